"""S3: the inputs are fixed; which change δ of the weights makes the base say b, J δ = r, and what does it cost?

Every set can be fitted with enough updates, so that 'no solution' is budgeted: the residual that is left after k Krylov
steps, the norm of δ, and the side effect on what is known. As many examples of every category are solved together, since
all of these depend on how many there are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch

from ..errors import UserError
from ..numerics.interference import RowSpan, constrained, solvable_share
from ..numerics.krylov import KrylovSolution, Stopped, effective_rank, least_squares, length, picard_slope
from ..parsing import few
from ..records import Example
from ..systems import Equations, WeightSide
from .config import WeightsConfig

REPORTED_STEPS = (1, 2, 5, 10, 20)
"""After how many Krylov steps residuals are told."""
MAX_SPAN_ROWS = 256
"""Up to so many known equations their span is formed."""
ADVICE = "try dtype=float32"
SHUFFLED = "shuffled"
"""The control in the place of a category: known concepts' examples with each other's captions or answers."""
NOT_FINITE: Stopped = "not finite"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EquationSet:
    """Examples that are solved together."""

    concept: str
    """Of a single example its concept, of a set its category."""
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class KnownSide:
    """What is known and should not move; read when it is first asked for, and once."""

    weights: WeightSide
    examples: tuple[Example, ...]
    num_steps: int

    @cached_property
    def equations(self) -> Equations:
        """J_K of the known examples."""
        return checked(self.weights.equations(self.examples), self.examples)

    def share_outside(self, own: Equations) -> float:
        """The share of the gradient Jᵀ r that moves nothing known (with r = 1 where all is fitted): exact where the known
        equations are few, else after `num_steps` Krylov steps."""
        residual = own.residual if bool(own.residual.any()) else torch.ones_like(own.residual)
        if self._span is not None:
            return self._span.share_outside(own.jacobian.vjp(residual))
        return solvable_share(own.jacobian, self.equations.jacobian, residual, num_steps=self.num_steps)

    @cached_property
    def _span(self) -> RowSpan | None:
        known = self.equations
        if known.jacobian.num_rows > MAX_SPAN_ROWS:
            return None
        try:
            return RowSpan.of(known.jacobian, known.residual)
        except ValueError as error:
            raise UserError(f"the known examples {_some(self.examples)}: {error}; {ADVICE}") from None


def checked(equations: Equations, examples: Sequence[Example]) -> Equations:
    """The same equations of these examples.

    Raises:
        UserError: naming the examples, where what is to be solved for is not finite.
    """
    if not bool(torch.isfinite(equations.residual).all()):
        raise UserError(f"{_some(examples)}: what the base says of them is not finite; {ADVICE}")
    return equations


def solve_sets(
    weights: WeightSide, known: KnownSide, sets: Sequence[EquationSet], config: WeightsConfig
) -> pd.DataFrame:
    """One row for each set of examples: residuals and norms after every step, spectrum, and side effects."""
    held = known.equations.jacobian if known.examples else None
    rows = []
    for own in sets:
        equations = checked(weights.equations(own.examples), own.examples)
        found = least_squares(equations.jacobian, equations.residual, num_steps=config.num_steps)
        _tell(found.stopped, own, "its equations")
        row = {"concept": own.concept, "num_examples": len(own.examples), **_solution(equations, found)}
        row |= {
            "effective_rank": effective_rank(found.ritz),
            "picard_slope": picard_slope(found.ritz, found.coefficients),
            "ritz": found.ritz.tolist(),
            "coefficients": found.coefficients.tolist(),
        }
        if held is not None:
            moved = equations.residual - found.residual
            effect = held.jvp(found.solution)  # Θ_KU Θ_UU⁺ r_U, as far as the steps went
            bound = constrained(
                equations.jacobian, held, equations.residual, config.known_weight, num_steps=config.num_steps
            )
            _tell(bound.stopped, own, "its equations beside the known ones")
            broken = bound.stopped == NOT_FINITE
            row |= {
                "side_effect": _ratio(_rms(effect), _rms(moved)),
                "known_shift": float(effect.double().mean()),
                "constrained_residual": math.nan
                if broken
                else _ratio(length(bound.new_residual), length(equations.residual)),
                "constrained_side_effect": math.nan if broken else _ratio(_rms(bound.side_effect), _rms(moved)),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def solve_examples(
    weights: WeightSide, known: KnownSide, sets: Sequence[EquationSet], config: WeightsConfig
) -> pd.DataFrame:
    """One row for each example by itself: what it takes, and the share of its gradient that moves nothing known."""
    rows = []
    for own in sets:
        equations = checked(weights.equations(own.examples), own.examples)
        found = least_squares(equations.jacobian, equations.residual, num_steps=config.num_steps)
        _tell(found.stopped, own, "its equations")
        row = {"concept": own.concept, **_solution(equations, found)}
        if known.examples:
            row["solvable_share"] = known.share_outside(equations)
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
    norm = length(equations.residual)
    residuals, lengths = list(found.residual_norms), list(found.solution_norms)
    row: dict[str, object] = {
        "num_rows": equations.jacobian.num_rows,
        "rhs_norm": norm,
        "rhs_rms": _rms(equations.residual),
        "residual_norms": residuals,
        "solution_norms": lengths,
        "solution_norm": math.nan if found.stopped == NOT_FINITE else lengths[-1],
        "stopped": found.stopped,
    }
    for step in REPORTED_STEPS:
        if step >= len(residuals) and found.stopped == NOT_FINITE:
            row[f"residual_{step}"] = math.nan
            continue
        # A solve that ended earlier has nothing more to gain.
        row[f"residual_{step}"] = _ratio(residuals[min(step, len(residuals) - 1)], norm)
    return row


def _tell(stopped: Stopped, own: EquationSet, what: str) -> None:
    """Name a set whose solve broke off: it counts as one that did not converge, and has no numbers from there on."""
    if stopped == NOT_FINITE:
        logger.warning(
            "%s (%s): %s gave numbers that are not finite; solved up to there", own.concept, _some(own.examples), what
        )


def _some(examples: Sequence[Example]) -> str:
    return few([example.id for example in examples], 4)


def _rms(vector: torch.Tensor) -> float:
    return float(vector.double().square().mean().sqrt())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
