"""Counter-based noise: the generator's published answers, the normal law, and rows that know nothing of their company."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion_sft.numerics.noise import (
    _log,
    _open_unit,
    _sine_and_cosine,
    normal,
    normals,
    philox,
    philox_rounds,
    uniform,
)

CPU = torch.device("cpu")
# Known answers of the Random123 library (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_of(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_the_generator_gives_its_published_answers(counter: str, key: str, expected: str) -> None:
    given = tuple(torch.tensor([word]) for word in words_of(counter))
    k0, k1 = (torch.tensor([word]) for word in words_of(key))
    assert [int(word) for word in philox_rounds(given, (k0, k1))] == words_of(expected)


def test_the_counter_counts_and_the_seed_is_the_key() -> None:
    assert philox(1, [0], CPU)[0].tolist() == words_of(ANSWERS[0][2])
    seed = 0x299F31D0A4093822
    rows = philox(3, [seed, 7], CPU)
    key = (torch.tensor([0xA4093822]), torch.tensor([0x299F31D0]))
    for counter in range(3):
        block = tuple(torch.tensor([word]) for word in (counter, 0, 0, 0))
        assert rows[0, 4 * counter : 4 * counter + 4].tolist() == [int(w) for w in philox_rounds(block, key)]


def test_logarithm_sine_and_cosine_are_exact_to_the_last_places() -> None:
    words = philox(50_000, [3], CPU).unflatten(1, (-1, 4))[0]
    numbers = _open_unit(words[:, 0], words[:, 1])
    numbers = torch.cat([numbers, torch.tensor([2.0**-53, 1 - 2.0**-53, 0.5, math.sqrt(0.5)], dtype=torch.float64)])
    np.testing.assert_allclose(_log(numbers).numpy(), np.log(numbers.numpy()), rtol=1e-15, atol=2e-16)
    sine, cosine = _sine_and_cosine(words[:, 2], words[:, 3])
    turn = _open_unit(words[:, 2] & 0x3FFFFFFF | (words[:, 3] & 3) << 30, words[:, 3]).numpy()
    angle = ((words[:, 2] >> 30).numpy() + turn - 0.5) * (np.pi / 2)
    np.testing.assert_allclose(sine.numpy(), np.sin(angle), atol=4e-16)
    np.testing.assert_allclose(cosine.numpy(), np.cos(angle), atol=4e-16)


def test_numbers_are_normal_and_independent() -> None:
    rows = normals((4, 50), range(2000), CPU)
    assert rows.dtype == torch.float32
    flat = rows.flatten().numpy()
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    assert abs(float(stats.skew(flat))) < 0.02
    assert abs(float(stats.kurtosis(flat))) < 0.04
    # Of a row's numbers among each other (Box and Muller's pairs among them), and of one seed with the next.
    covariance = np.cov(rows.flatten(1).numpy().T)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 5.5 / math.sqrt(2000)
    neighbours = np.corrcoef(rows[:-1].flatten(), rows[1:].flatten())[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(flat.size)
    squares = rows.flatten(1).square().numpy()
    assert abs(np.corrcoef(squares[:, ::2].ravel(), squares[:, 1::2].ravel())[0, 1]) < 4 / math.sqrt(flat.size / 2)


def test_a_row_is_the_same_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [5, 2**63 + 11, 0, 5]
    rows = normals((3, 7), seeds, CPU)
    assert torch.equal(rows[0], rows[3])
    assert not torch.equal(rows[0], rows[2])
    for seed, row in zip(seeds, rows, strict=True):
        assert torch.equal(normal((3, 7), seed), row)
    monkeypatch.setattr("diffusion_sft.numerics.noise.CHUNK", 30)
    assert torch.equal(normals((3, 7), seeds, CPU), rows)
    # A longer row begins as a shorter one.
    assert torch.equal(normal((30,), 5)[:21], rows[0].flatten())
    assert normals((2, 2), [], CPU).shape == (0, 2, 2)


def test_uniform_numbers_are_uniform_and_never_the_ends() -> None:
    numbers = uniform(100_001, 9)
    assert numbers.dtype == np.float64
    assert numbers.shape == (100_001,)
    assert 0 < numbers.min() < numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert np.array_equal(uniform(11, 9), numbers[:11])
    extreme = torch.tensor([0, 2**32 - 1])
    assert _open_unit(extreme, extreme).tolist() == [2.0**-53, 1 - 2.0**-53]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_bits() -> None:
    seeds = list(range(100))
    assert torch.equal(normals((4, 64, 64), seeds, torch.device("cuda")).cpu(), normals((4, 64, 64), seeds, CPU))
