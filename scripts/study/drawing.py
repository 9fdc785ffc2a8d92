"""The look that the study's figures share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from diffusion_sft.report.drawing import tick
from diffusion_sft.report.svg import EARLY, INK, LATE, PAPER, THEME

WORLD_STYLE = (("o", "-", EARLY), ("s", "--", LATE))
"""Marker, line and colour of the first world and of the second."""


@contextmanager
def panels(
    columns: int, rows: int = 1, width: float = 4.1, height: float = 3.3, **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure in the project's look, and its axes as (rows, columns)."""
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor=PAPER)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def in_percent(*axes: Axis) -> None:
    """Shares as percentages."""
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def signed_ticks(*axes: Axis, scale: float = 1.0) -> None:
    """Numbers with their sign, multiplied by a scale."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(scale * value, 6), signed=True)))


def one_legend(axes: Axes, **options: Any) -> None:
    """A legend in which every label stands once."""
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes.legend(handles.values(), handles.keys(), frameon=False, labelcolor=INK, fontsize=9.5, **options)
