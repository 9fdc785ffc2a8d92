"""Random numbers that are a function of a seed alone: the same bits on any device, in any company.

Philox-4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"): the seed is the key, the place of a
number in its row is the counter, so that a row costs no state and rows of many seeds are made together where they are
wanted. Normal numbers are Box and Muller's (1958). Everything after the integers is float64 sums, products, quotients
and roots, which IEEE 754 rounds alike everywhere; logarithm, sine and cosine, which it does not, are polynomials here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF
CHUNK = 2**22
"""Numbers made at a time, so that the steps in between take no more than some hundred megabytes."""
_LOG = [1 / k for k in range(1, 24, 2)]
"""Of ln m = 2 artanh s, s = (m − 1)/(m + 1), in powers of s²."""
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(9)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(10)]


def normal(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Standard normal numbers of this shape, float32, on the CPU."""
    return normals(shape, [seed], torch.device("cpu"))[0]


def normals(shape: Sequence[int], seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """Standard normal numbers, one row for each seed, float32 (num_seeds, *shape), made on the device.

    Args:
        shape: of one row.
        seeds: from 0 to 2**64 - 1, in any number.
        device: one with float64; where it has none, the numbers are made on the CPU and copied.
    """
    where = torch.device("cpu") if device.type == "mps" else device
    count = math.prod(shape)
    rows = max(1, CHUNK // max(count, 1))
    parts = [_normals(count, seeds[start : start + rows], where) for start in range(0, len(seeds), rows)]
    made = torch.cat(parts) if parts else torch.empty(0, count)
    return made.reshape(len(seeds), *shape).to(device)


def uniform(count: int, seed: int) -> np.ndarray:
    """`count` independent numbers in (0, 1), float64, on the CPU."""
    words = philox(-(-count // 2), [seed], torch.device("cpu"))
    return _open_unit(words[:, ::2], words[:, 1::2]).reshape(-1)[:count].numpy()


def philox(num_blocks: int, seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """The generator's words: for each seed those of counters 0 to num_blocks − 1, int64 below 2**32, one row a seed,
    (num_seeds, 4 · num_blocks)."""
    keys = torch.tensor([[seed & MASK, seed >> 32 & MASK] for seed in seeds], dtype=torch.int64)
    if device.type == "cuda":
        keys = keys.pin_memory()  # Else the copy would wait for all that the device was given before.
    keys = keys.to(device, non_blocking=True)
    counter = torch.arange(num_blocks, dtype=torch.int64, device=device).expand(len(seeds), -1)
    zeros = torch.zeros_like(counter)
    words = philox_rounds((counter & MASK, counter >> 32, zeros, zeros), (keys[:, :1], keys[:, 1:]))
    return torch.stack(words, dim=-1).flatten(1)


def philox_rounds(
    counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Ten rounds over counters of four words under keys of two, all int64 below 2**32 that broadcast."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(ROUNDS):
        # A product of two words overflows into the sign; its bits are right all the same.
        low, high = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (high >> 32 & MASK) ^ c1 ^ k0,
            high & MASK,
            (low >> 32 & MASK) ^ c3 ^ k1,
            low & MASK,
        )
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0, c1, c2, c3


def _normals(count: int, seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """(num_seeds, count): √(−2 ln u) cos 2πv and √(−2 ln u) sin 2πv, u of two words and v of two, side by side."""
    words = philox(-(-count // 2), seeds, device).unflatten(1, (-1, 4))
    radius = (-2.0 * _log(_open_unit(words[..., 0], words[..., 1]))).sqrt()
    sine, cosine = _sine_and_cosine(words[..., 2], words[..., 3])
    pairs = torch.stack([radius * cosine, radius * sine], dim=-1)
    return pairs.float().flatten(1)[:, :count]


def _open_unit(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Numbers in (0, 1) of 52 random bits each: odd multiples of 2⁻⁵³."""
    return ((high << 20 | low >> 12) * 2 + 1).double() * 2.0**-53


def _log(numbers: torch.Tensor) -> torch.Tensor:
    """ln of numbers in (0, 1), to a few units in the last place."""
    mantissa, exponent = torch.frexp(numbers)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa * 2, mantissa)
    exponent = exponent.double() - low.double()
    ratio = (mantissa - 1) / (mantissa + 1)
    series = ratio * _polynomial(_LOG, ratio * ratio) * 2
    return series + exponent * math.log(2)


def _sine_and_cosine(high: torch.Tensor, low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sin and cos of a random angle: two bits choose the quadrant, 52 others the place from its middle."""
    quadrant = high >> 30
    turn = _open_unit(high & 0x3FFFFFFF | (low & 3) << 30, low) - 0.5  # of a quadrant, −½ to ½
    angle = turn * (math.pi / 2)
    square = angle * angle
    sine, cosine = angle * _polynomial(_SIN, square), _polynomial(_COS, square)
    swapped, sign_of_sine, sign_of_cosine = quadrant & 1 == 1, quadrant >= 2, (quadrant == 1) | (quadrant == 2)
    sine, cosine = torch.where(swapped, cosine, sine), torch.where(swapped, sine, cosine)
    return torch.where(sign_of_sine, -sine, sine), torch.where(sign_of_cosine, -cosine, cosine)


def _polynomial(coefficients: Sequence[float], at: torch.Tensor) -> torch.Tensor:
    """Horner's rule; a product and a sum are two operations, so that no device fuses them."""
    value = torch.full_like(at, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * at + coefficient
    return value
