"""S3: the inputs are fixed; which change δ of the weights makes the base say b, J δ = r, and what does it cost?

Every set can be fitted with enough updates, so that 'no solution' is budgeted: the residual that is left after k Krylov
steps, the norm of δ, and the side effect on what is known. As many examples of every category are solved together, since
all of these depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from ..numerics.interference import constrained, side_effect, solvable_share
from ..numerics.krylov import KrylovSolution, effective_rank, least_squares, picard_slope
from ..records import Example
from ..systems import Equations, WeightSide
from .config import WeightsConfig

REPORTED_STEPS = (1, 2, 5, 10, 20)
"""After how many Krylov steps residuals are told."""
SHUFFLED = "shuffled"
"""The control in the place of a category: known concepts' examples with each other's captions or answers."""


@dataclass(frozen=True, kw_only=True)
class EquationSet:
    """Examples that are solved together."""

    concept: str
    """Of a single example its concept, of a set its category."""
    examples: tuple[Example, ...]


def solve_sets(
    weights: WeightSide, known: Sequence[Example], sets: Sequence[EquationSet], config: WeightsConfig
) -> pd.DataFrame:
    """One row for each set of examples: residuals and norms after every step, spectrum, and side effects."""
    held = weights.equations(known).jacobian if known else None
    rows = []
    for own in sets:
        equations = weights.equations(own.examples)
        found = least_squares(equations.jacobian, equations.residual, num_steps=config.num_steps)
        row = {"concept": own.concept, "num_examples": len(own.examples), **_solution(equations, found)}
        row |= {
            "effective_rank": effective_rank(found.ritz),
            "picard_slope": picard_slope(found.ritz, found.coefficients),
            "ritz": found.ritz.tolist(),
            "coefficients": found.coefficients.tolist(),
        }
        if held is not None:
            moved = equations.jacobian.jvp(found.solution)
            effect = side_effect(equations.jacobian, held, equations.residual, num_steps=config.num_steps)
            bound = constrained(
                equations.jacobian, held, equations.residual, config.known_weight, num_steps=config.num_steps
            )
            left = equations.residual - equations.jacobian.jvp(bound.solution)
            row |= {
                "side_effect": _ratio(_rms(effect), _rms(moved)),
                "known_shift": float(effect.double().mean()),
                "constrained_residual": _ratio(float(left.norm()), float(equations.residual.norm())),
                "constrained_side_effect": _ratio(_rms(held.jvp(bound.solution)), _rms(moved)),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def solve_examples(
    weights: WeightSide, known: Sequence[Example], sets: Sequence[EquationSet], config: WeightsConfig
) -> pd.DataFrame:
    """One row for each example by itself: what it takes, and the share of its gradient that moves nothing known."""
    held = weights.equations(known).jacobian if known else None
    rows = []
    for own in sets:
        equations = weights.equations(own.examples)
        found = least_squares(equations.jacobian, equations.residual, num_steps=config.num_steps)
        row = {"concept": own.concept, **_solution(equations, found)}
        if held is not None:
            solved_for = equations.residual if bool(equations.residual.any()) else torch.ones_like(equations.residual)
            row["solvable_share"] = solvable_share(equations.jacobian, held, solved_for, num_steps=config.num_steps)
        rows.append(row)
    return pd.DataFrame(rows)


def residual_curves(sets: pd.DataFrame) -> pd.DataFrame:
    """Relative residual and ‖δ‖ of each set after every step, one row each."""
    rows = [
        (own["concept"], step, _ratio(residual, own["rhs_norm"]), norm)
        for own in sets.to_dict("records")
        for step, (residual, norm) in enumerate(zip(own["residual_norms"], own["solution_norms"], strict=True))
    ]
    return pd.DataFrame(rows, columns=["category", "step", "relative_residual", "solution_norm"])


def spectra(sets: pd.DataFrame) -> pd.DataFrame:
    """Ritz values σ_i of each set, |u_iᵀ r| and the ratio of the two (the discrete Picard condition), one row each."""
    rows = [
        (own["concept"], number, value, coefficient, _ratio(coefficient, value))
        for own in sets.to_dict("records")
        for number, (value, coefficient) in enumerate(zip(own["ritz"], own["coefficients"], strict=True))
    ]
    return pd.DataFrame(rows, columns=["category", "index", "ritz", "coefficient", "picard_ratio"])


def _solution(equations: Equations, found: KrylovSolution) -> dict[str, object]:
    norm = float(equations.residual.norm())
    residuals, lengths = list(found.residual_norms), list(found.solution_norms)
    row: dict[str, object] = {
        "num_rows": equations.jacobian.num_rows,
        "rhs_norm": norm,
        "rhs_rms": _rms(equations.residual),
        "residual_norms": residuals,
        "solution_norms": lengths,
        "solution_norm": lengths[-1],
    }
    for step in REPORTED_STEPS:
        # A solve that ended earlier has nothing more to gain.
        row[f"residual_{step}"] = _ratio(residuals[min(step, len(residuals) - 1)], norm)
    return row


def _rms(vector: torch.Tensor) -> float:
    return float(vector.double().square().mean().sqrt())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
