"""The picture of `long_run.py`: a column per run, a row per thing that must not grow."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from diffusion_sft.report.drawing import tick
from diffusion_sft.report.svg import COLOURS, INK, MUTED, PAPER, SHADE, THEME

PRIVATE, RESIDENT, FILES, THREADS = (COLOURS[name] for name in ("HighlyKnown", "known", "Unknown", "MaybeKnown"))
ROWS = {
    "memory, MB": {"resident_mb": ("resident", RESIDENT), "own_mb": ("written by itself", PRIVATE)},
    "open files and threads": {"open_files": ("open files", FILES), "threads": ("threads", THREADS)},
    "run's folder, MB": {"disk_mb": ("on disk", INK)},
}
WARM_UP = 0.1
TITLES = {
    "diffusion": "Fine-tuning, diffusion",
    "language": "Fine-tuning, language",
    "probe": "Probe",
    "generate": "Generation",
    "serve": "Live view",
}


def draw(samples: pd.DataFrame, file: Path) -> None:
    """Draw every look of every run over its progress; the warm-up is shaded.

    Args:
        samples: the table of `long_run.py`'s looks.
        file: the PNG to write.
    """
    runs = list(samples["run"].unique())
    with matplotlib.rc_context(THEME | {"lines.linewidth": 1.3}):
        figure = Figure(figsize=(3.0 * len(runs) + 0.8, 7.4), layout="constrained", facecolor=PAPER)
        grid = figure.subplots(len(ROWS), len(runs), squeeze=False, sharex="col")
        for column, name in enumerate(runs):
            looks = samples[(samples["run"] == name) & (samples["progress"] > 0)]
            last = int(looks["progress"].max())
            looks = looks[looks["progress"] < last]  # After the last of them the command ends.
            for row, (label, lines) in enumerate(ROWS.items()):
                axes = grid[row][column]
                _curves(axes, looks, lines)
                if column == 0:
                    axes.set_ylabel(label)
            unit = looks["unit"].iloc[0]
            grid[0][column].set_title(f"{TITLES[name]}\n{last:,} {unit}, {looks['seconds'].max():.0f} s", color=INK)
            grid[-1][column].set_xlabel(unit)
        for row in (0, 1):
            grid[row][0].legend(frameon=False, loc="lower right", labelcolor=MUTED)
        figure.savefig(file, dpi=110, metadata={"Software": None})


def _curves(axes: Axes, looks: pd.DataFrame, lines: dict[str, tuple[str, str]]) -> None:
    last = looks["progress"].max()
    axes.axvspan(0, WARM_UP * last, color=SHADE, zorder=0)
    for measure, (told, colour) in lines.items():
        axes.plot(looks["progress"], looks[measure], color=colour, label=told)
    # From 0, so that what looks like growth is growth.
    axes.set(xlim=(0, last), ylim=(0, 1.15 * max(looks[measure].max() for measure in lines)))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer="threads" in lines))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
