"""How Gaussian is a latent? What of x_T ~ N(0, 1) is easily told, beside how far chance moves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Gaussianity:
    """Figures of one latent of d dimensions. Each `..._error` is the figure's standard deviation under N(0, 1)."""

    mean_square: float
    """‖x‖² / d: 1 under N(0, 1)."""
    mean_square_error: float
    """√(2/d)."""
    mean: float
    mean_error: float
    """1/√d."""
    excess_kurtosis: float
    """The unbiased one (G2 of Joanes & Gill, 1998): 0 for a normal distribution of any mean and variance."""
    excess_kurtosis_error: float
    """Exact in d (their equation for G2), about √(24/d)."""
    kolmogorov_smirnov_p: float
    """Of the test against N(0, 1)."""
    neighbour_correlation: float
    """Of pixels that are next to each other in a row or a column of one channel; NaN where there are none."""
    neighbour_correlation_error: float
    """1/√(number of such pairs)."""


def gaussianity(latent: np.ndarray) -> Gaussianity:
    """The figures of one latent, (channels, height, width), or (d,), of which any two in a row are neighbours.

    Raises:
        ValueError: fewer than four numbers, or one that is not finite.
    """
    values = np.asarray(latent, dtype=np.float64)
    d = values.size
    if d < 4 or not np.isfinite(values).all():
        raise ValueError(f"gaussianity needs at least four finite numbers, not {d} of which some may be infinite")
    flat = values.reshape(-1)
    correlation, num_pairs = _neighbours(values)
    return Gaussianity(
        mean_square=float(np.square(flat).mean()),
        mean_square_error=float(np.sqrt(2 / d)),
        mean=float(flat.mean()),
        mean_error=float(1 / np.sqrt(d)),
        excess_kurtosis=float(stats.kurtosis(flat, bias=False)) if np.ptp(flat) > 0 else float("nan"),
        excess_kurtosis_error=float(np.sqrt(24 * d * (d - 1) ** 2 / ((d - 3) * (d - 2) * (d + 3) * (d + 5)))),
        kolmogorov_smirnov_p=float(stats.kstest(flat, "norm").pvalue),
        neighbour_correlation=correlation,
        neighbour_correlation_error=float(1 / np.sqrt(num_pairs)) if num_pairs else float("nan"),
    )


def _neighbours(values: np.ndarray) -> tuple[float, int]:
    """The correlation of all pairs of neighbours along the last one or two axes, and their number."""
    centred = values - values.mean()
    axes = range(1, values.ndim) if values.ndim > 1 else range(1)
    products = [(np.moveaxis(centred, axis, 0)[1:] * np.moveaxis(centred, axis, 0)[:-1]).reshape(-1) for axis in axes]
    pairs = np.concatenate(products)
    variance = np.square(centred).mean()
    return (float(pairs.mean() / variance), pairs.size) if pairs.size and variance > 0 else (float("nan"), pairs.size)
