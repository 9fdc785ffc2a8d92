"""The study's figures, drawn from the published tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from diffusion_sft.files import replaced
from diffusion_sft.report.svg import PAPER, THEME

from .base_figures import classes, distances, forecasts, rules
from .learning_figures import coefficients, cost, fit, learnt_and_lost, mitigations
from .numbers import Published

DOTS_PER_INCH = 110
FIGURES: Mapping[str, Callable[[Published], Figure]] = {
    "cost": cost,
    "fit": fit,
    "rules": rules,
    "classes": classes,
    "forecasts": forecasts,
    "distances": distances,
    "mitigations": mitigations,
    "coefficients": coefficients,
    "learnt": learnt_and_lost,
}


def draw_all(published: Published, folder: Path) -> None:
    """Write every figure as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        with replaced(folder / f"{name}.png") as temporary, matplotlib.rc_context(THEME):
            draw(published).savefig(
                temporary, format="png", dpi=DOTS_PER_INCH, facecolor=PAPER, metadata={"Software": None}
            )
