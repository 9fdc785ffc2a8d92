"""What does solving for new examples do to known ones, to first order?

J_U δ = r_U of the new examples U is solved by a step of smallest norm, which moves the outputs of the known ones K by
J_K δ* = Θ_KU Θ_UU⁺ r_U, with Θ_AB = J_A J_Bᵀ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .krylov import Stopped, least_squares, length
from .linear_map import LinearMap, Stacked, Transposed


@dataclass(frozen=True, kw_only=True, eq=False)
class Constrained:
    """A step for new examples that is held back where it moves known ones."""

    solution: torch.Tensor
    """δ, (num_columns,)."""
    new_residual: torch.Tensor
    """r − J_new δ."""
    side_effect: torch.Tensor
    """J_known δ."""
    stopped: Stopped
    """Why the solve ended."""


def constrained(
    new: LinearMap, known: LinearMap, residual: torch.Tensor, weight: float, *, num_steps: int
) -> Constrained:
    """min ‖J_new δ − r‖² + weight ‖J_known δ‖²: what is left to solve where known outputs may hardly move, and what J_known δ
    does to them; at weight 0 that is the side effect Θ_KU Θ_UU⁺ r of a plain solution.

    Raises:
        ValueError: a weight that is negative or no number.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be 0 or more, not {weight}")
    if weight == 0:
        plain = least_squares(new, residual, num_steps=num_steps)
        moved = known.jvp(plain.solution)
        return Constrained(
            solution=plain.solution, new_residual=plain.residual, side_effect=moved, stopped=plain.stopped
        )
    root = math.sqrt(weight)
    both = Stacked((new, known), (1.0, root))
    rhs = torch.cat([residual, residual.new_zeros(known.num_rows)])
    found = least_squares(both, rhs, num_steps=num_steps)
    left, moved = torch.split(found.residual, [new.num_rows, known.num_rows])
    return Constrained(solution=found.solution, new_residual=left, side_effect=moved / -root, stopped=found.stopped)


@dataclass(frozen=True, eq=False)
class RowSpan:
    """The span of the rows of J_K, where they are few: Θ_KK = J_K J_Kᵀ is formed once, and then a gradient costs one
    product with J_K."""

    map: LinearMap
    inverse: torch.Tensor
    """Θ_KK⁺, float64."""

    @classmethod
    def of(cls, known: LinearMap, like: torch.Tensor, tolerance: float = 1e-6) -> RowSpan:
        """Take one product with J_K and one with its transpose for every row.

        Args:
            known: J_K.
            like: any vector of the map's type and device.
            tolerance: eigenvalues below this share of the largest are taken for rounding.

        Raises:
            ValueError: a product that is not finite.
        """
        units = torch.eye(known.num_rows, dtype=like.dtype, device=like.device)
        gram = torch.stack([known.jvp(known.vjp(unit)) for unit in units]).double()
        if not bool(torch.isfinite(gram).all()):
            raise ValueError("products with the known equations that are not finite")
        return cls(known, torch.linalg.pinv((gram + gram.T) / 2, rtol=tolerance, hermitian=True))

    def share_outside(self, gradient: torch.Tensor) -> float:
        """‖P_K^⊥ g‖ / ‖g‖ = √(1 − gᵀ J_Kᵀ Θ⁺ J_K g / ‖g‖²); NaN for g = 0, and where g or J_K g is not finite."""
        square = float(gradient.double().square().sum())
        if square == 0 or not math.isfinite(square):
            return math.nan
        along = self.map.jvp(gradient).double()
        if not bool(torch.isfinite(along).all()):
            return math.nan
        return math.sqrt(max(0.0, 1.0 - float(along @ (self.inverse @ along)) / square))


def solvable_share(new: LinearMap, known: LinearMap, residual: torch.Tensor, *, num_steps: int) -> float:
    """s = ‖P_K^⊥ g‖ / ‖g‖ of g = J_newᵀ r: 1 where descending on the new moves nothing known, 0 where it moves nothing
    else. NaN where g = 0, and where g or a product with J_K is not finite.

    With fewer steps than J_K has rank, less is projected out and s comes out too large.

    Args:
        new: the equations of one example, or of a set of them.
        known: J_K.
        residual: r of the new; for a single row any number but 0 gives the same.
        num_steps: of the projection.
    """
    gradient = new.vjp(residual)
    norm = length(gradient)
    if norm == 0 or not math.isfinite(norm):
        return math.nan
    found = least_squares(Transposed(known), gradient, num_steps=num_steps)  # its residual is P_K^⊥ g
    return math.nan if found.stopped == "not finite" else length(found.residual) / norm
