"""Random numbers that are a function of a seed alone: made on the CPU in a fixed type, whatever device uses them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def normal(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Standard normal numbers of this shape, float32, on the CPU."""
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def uniform(count: int, seed: int) -> np.ndarray:
    """`count` independent numbers in [0, 1), float64."""
    return torch.rand(count, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64).numpy()
