"""Which δ solves J δ = r as far as k products with J and k with Jᵀ can tell, and what do these say of J's spectrum?

Golub–Kahan bidiagonalisation (Paige & Saunders, 1982, section 3, `Bidiag 1`) builds orthonormal u_i and v_i from r:

    J V_k = U_{k+1} B_k,   Jᵀ U_{k+1} = V_{k+1} L_{k+1}ᵀ,   B_k lower bidiagonal, (k + 1, k)

The u_i or the v_i, whichever are shorter, are kept and each new one is made orthogonal to them, which keeps the others
orthogonal too (one-sided reorthogonalisation; Simon & Zha, 2000). With reorthogonalise=True and rows fewer than
columns, the case of a network's weights, there are five vectors of num_columns numbers at a time (v, the new product,
and LSMR's δ, h and h̄) and four of num_rows beside the k that are kept (the new product, the residual, J h and J h̄).

Products must be new memory, which is written over here. A product that is not finite ends the solve where it stood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .linear_map import LinearMap

Stopped = Literal["tolerance", "budget", "exhausted", "not finite"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KrylovSolution:
    """Where LSMR ended after k steps, and what its bidiagonal matrix B_k = P Σ Qᵀ says; u_i = U_{k+1} p_i."""

    solution: torch.Tensor
    """δ_k, (num_columns,)."""
    residual: torch.Tensor
    """r − J δ_k, (num_rows,)."""
    residual_norms: np.ndarray
    """‖r − J δ_i‖ without the damping's share, after i = 0 … k steps, float64 (k + 1,)."""
    solution_norms: np.ndarray
    """‖δ_i‖, (k + 1,)."""
    ritz: np.ndarray
    """Singular values of B_k, largest first, (k,): approximations to J's, the largest soonest."""
    coefficients: np.ndarray
    """|u_iᵀ r| of each, (k,)."""
    num_steps: int
    """k: products with J."""
    stopped: Stopped
    """tolerance: as small as was asked for. budget: num_steps. exhausted: another step could change nothing. not finite: a
    product with J or Jᵀ was no number; what is told is what was known before it."""
    kept: Mapping[int, torch.Tensor]
    """δ_i of the steps that were to be kept; the last one in the place of those that were not reached."""
    kept_residuals: Mapping[int, torch.Tensor]
    """r − J δ_i of the same."""

    @property
    def picard(self) -> np.ndarray:
        """|u_iᵀ r| / σ_i, (k,): what each direction adds to ‖δ‖. It must fall, or r has no δ of reasonable size
        (discrete Picard condition; Hansen, 1990)."""
        return np.divide(self.coefficients, self.ritz, out=np.full(len(self.ritz), np.inf), where=self.ritz > 0)


def least_squares(
    map: LinearMap,
    rhs: torch.Tensor,
    *,
    num_steps: int,
    damping: float = 0.0,
    reorthogonalise: bool = True,
    tolerance: float = 1e-10,
    keep: Sequence[int] = (),
) -> KrylovSolution:
    """min ‖r − J δ‖² + damping² ‖δ‖² by LSMR (Fong & Saunders, 2011), which is MINRES on the normal equations.

    Without damping the limit is the solution of smallest norm. ‖Jᵀ(r − J δ_k)‖ falls with every step, so that any step
    is a fair place to end.

    Args:
        map: J; `num_steps` products with it and one more with its transpose are taken at most.
        rhs: r, (num_rows,).
        num_steps: the budget.
        reorthogonalise: keep the shorter side's vectors and make new ones orthogonal to them.
        tolerance: end where ‖r − J δ‖ is at most this share of ‖r‖, or ‖Jᵀ(r − J δ) − damping² δ‖ at most this share
            of ‖J‖ times the residual.
        keep: after which steps δ is to be had beside the last one; each costs a copy.

    Raises:
        ValueError: no steps, or a right side of another length or with a number that is not finite.
    """
    if num_steps < 1 or rhs.shape != (map.num_rows,):
        raise ValueError(f"num_steps={num_steps} for {map.num_rows} rows and a right side of {tuple(rhs.shape)}")
    if not bool(torch.isfinite(rhs).all()):
        raise ValueError("a right side that is not finite")
    chain = _Bidiagonalisation(map, rhs, reorthogonalise)
    lsmr = _Lsmr(chain, rhs, map.num_columns, damping, sorted(keep))
    stopped: Stopped | None = None
    if chain.end is not None:
        stopped = "tolerance" if chain.betas[0] == 0 else chain.end
    while stopped is None:
        image = map.jvp(chain.v)
        lsmr.see(image)
        chain.forward(image)
        if chain.end == "not finite":
            stopped = chain.end
            break
        lsmr.advance(chain)
        if chain.end is not None:
            stopped = chain.end
        elif lsmr.small_enough(tolerance):
            stopped = "tolerance"
        elif len(chain.alphas) > num_steps:
            stopped = "budget"
    return lsmr.solution(chain, stopped)


def length(vector: torch.Tensor) -> float:
    """‖v‖, also where the squares of float32 numbers leave float32's range; not finite where a number of v is not."""
    norm, numbers = float(vector.norm()), torch.finfo(vector.dtype)
    if math.sqrt(numbers.tiny / numbers.eps) < norm < math.inf:
        return norm
    peak = float(vector.abs().max()) if len(vector) else 0.0
    return peak * float((vector / peak).norm()) if 0 < peak < math.inf else peak


def effective_rank(singular_values: np.ndarray) -> float:
    """exp(−Σ p_i log p_i) with p_i = σ_i / Σ σ (Roy & Vetterli, 2007): 1 for one direction, n for n equal ones; 0 where
    there is none."""
    values = np.asarray(singular_values, dtype=np.float64)
    values = values[values > 0]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def picard_slope(ritz: np.ndarray, coefficients: np.ndarray) -> float:
    """How fast |u_iᵀ r| changes beside σ_i, in nats per direction: the slope of log |u_iᵀ r| − log σ_i over i.

    Below 0 the discrete Picard condition holds, since the coefficients fall faster than the singular values (Hansen,
    1990). NaN for fewer than two directions; those where either is 0 are left out.
    """
    sigma, along = np.asarray(ritz, dtype=np.float64), np.asarray(coefficients, dtype=np.float64)
    there = (sigma > 0) & (along > 0)
    if there.sum() < 2:
        return math.nan
    places = np.flatnonzero(there)
    return float(np.polyfit(places, np.log(along[there]) - np.log(sigma[there]), 1)[0])


class _Bidiagonalisation:
    """u_i, v_i and the entries of B: alphas on the diagonal, betas (from β_1 = ‖r‖ on) below it."""

    def __init__(self, map: LinearMap, rhs: torch.Tensor, reorthogonalise: bool) -> None:
        self.map = map
        self._basis: list[torch.Tensor] = []
        self._keeps_rows = reorthogonalise and map.num_rows <= map.num_columns
        self._keeps_columns = reorthogonalise and not self._keeps_rows
        self._rounding = 10 * torch.finfo(rhs.dtype).eps * math.sqrt(min(map.num_rows, map.num_columns))
        self._squares = 0.0
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.end: Literal["exhausted", "not finite"] | None = None
        """Why there is no further step, if there is none."""
        self.u = self._unit(rhs.clone(), self.betas, self._keeps_rows)
        if self.end is None:
            self.v = self._unit(map.vjp(self.u), self.alphas, self._keeps_columns)

    @property
    def norm(self) -> float:
        """‖B‖_F, which grows towards ‖J‖_F."""
        return math.sqrt(self._squares)

    def forward(self, image: torch.Tensor) -> None:
        """Take one step, with J v, which is used up."""
        image.add_(self.u, alpha=-self.alphas[-1])
        self.u = self._unit(image, self.betas, self._keeps_rows)
        if self.end is None:
            product = self.map.vjp(self.u).add_(self.v, alpha=-self.betas[-1])
            self.v = self._unit(product, self.alphas, self._keeps_columns)
        elif self.end == "exhausted":
            self.alphas.append(0.0)

    def _unit(self, vector: torch.Tensor, norms: list[float], kept: bool) -> torch.Tensor:
        """The vector's direction; its norm is appended, 0 for what is only rounding. Sets `end` where it has none."""
        if kept:
            for _ in range(2):  # Once leaves what cancels; twice is enough (Parlett, 1980).
                for other in self._basis:
                    vector.sub_(other, alpha=float(torch.dot(other, vector)))
        norm = length(vector)
        if not math.isfinite(norm):
            self.end = "not finite"
            return vector
        first = norms is self.betas and not norms
        if norm <= (0.0 if first else self._rounding * self.norm):
            norms.append(0.0)
            self.end = "exhausted"
            return vector
        if not first:
            self._squares += norm**2
        norms.append(norm)
        vector.div_(norm)
        if kept:
            self._basis.append(vector)
        return vector

    def matrix(self, num_steps: int) -> np.ndarray:
        """B_k, (k + 1, k)."""
        found = np.zeros((num_steps + 1, num_steps))
        places = np.arange(num_steps)
        found[places, places] = self.alphas[:num_steps]
        found[places + 1, places] = self.betas[1 : num_steps + 1]
        return found


@dataclass
class _Rotations:
    """Scalars of LSMR's recurrences in the names of Fong & Saunders (2011, section 2.8); `zetabar` is ± the norm of the
    normal equations' residual."""

    alphabar: float
    zetabar: float
    rho: float = 1.0
    rhobar: float = 1.0
    cbar: float = 1.0
    sbar: float = 0.0
    zeta: float = 0.0
    back: float = 0.0
    """θ̄ρ / (ρ_{k−1} ρ̄_{k−1}): what h̄ keeps of its last value, with its sign turned."""
    ahead: float = 0.0
    """θ_{k+1} / ρ_k: the same of h."""

    def turn(self, alpha: float, beta: float, damping: float) -> None:
        """Both QR factorisations one step on, with α_{k+1} and β_{k+1}."""
        last_rho, last_rhobar = self.rho, self.rhobar
        alphahat = math.hypot(self.alphabar, damping)
        self.rho = math.hypot(alphahat, beta)
        cosine, sine = alphahat / self.rho, beta / self.rho
        theta = sine * alpha
        self.alphabar = cosine * alpha
        thetabar, rhotemp = self.sbar * self.rho, self.cbar * self.rho
        self.rhobar = math.hypot(rhotemp, theta)
        self.cbar, self.sbar = rhotemp / self.rhobar, theta / self.rhobar
        self.zeta, self.zetabar = self.cbar * self.zetabar, -self.sbar * self.zetabar
        self.back = thetabar * self.rho / (last_rho * last_rhobar)
        self.ahead = theta / self.rho


class _Lsmr:
    """δ_k and its residual, from the vectors of a bidiagonalisation as they come.

    J h and J h̄ follow the same recurrences as h and h̄, so that the residual is the iterate's own, whatever
    orthogonality is lost.
    """

    def __init__(
        self, chain: _Bidiagonalisation, rhs: torch.Tensor, num_columns: int, damping: float, keep: Sequence[int]
    ) -> None:
        self._damping, self._keep = damping, keep
        self._delta = torch.zeros(num_columns, dtype=rhs.dtype, device=rhs.device)
        self._residual = rhs.clone()
        self._norms = [(length(rhs), 0.0)]
        self._kept = {step: (self._delta.clone(), rhs.clone()) for step in keep if step == 0}
        self._chain = chain
        if chain.end is None:
            self._scalars = _Rotations(alphabar=chain.alphas[0], zetabar=chain.alphas[0] * chain.betas[0])
            self._h, self._image_of_h = chain.v.clone(), torch.zeros_like(rhs)
            self._hbar, self._image_of_hbar = torch.zeros_like(self._delta), torch.zeros_like(rhs)

    def see(self, image: torch.Tensor) -> None:
        """Take note of J v, of the v that is already in h."""
        self._image_of_h.add_(image)

    def advance(self, chain: _Bidiagonalisation) -> None:
        """One step on."""
        scalars = self._scalars
        scalars.turn(chain.alphas[-1], chain.betas[-1], self._damping)
        self._hbar.mul_(-scalars.back).add_(self._h)
        self._image_of_hbar.mul_(-scalars.back).add_(self._image_of_h)
        step = scalars.zeta / (scalars.rho * scalars.rhobar)
        self._delta.add_(self._hbar, alpha=step)
        self._residual.sub_(self._image_of_hbar, alpha=step)
        self._norms.append((length(self._residual), length(self._delta)))
        count = len(self._norms) - 1
        if count in self._keep:
            self._kept[count] = (self._delta.clone(), self._residual.clone())
        if chain.end is None:
            self._h.mul_(-scalars.ahead).add_(chain.v)
            self._image_of_h.mul_(-scalars.ahead)

    def small_enough(self, tolerance: float) -> bool:
        """Whether the residual is, or the normal equations'."""
        residual, norm = self._norms[-1]
        damped = math.hypot(residual, self._damping * norm)
        small = residual <= tolerance * self._norms[0][0]
        return small or abs(self._scalars.zetabar) <= tolerance * self._chain.norm * damped

    def solution(self, chain: _Bidiagonalisation, stopped: Stopped) -> KrylovSolution:
        """All that there is to tell."""
        count = len(self._norms) - 1
        ritz, along = np.zeros(0), np.zeros(0)
        if count:
            left, ritz, _ = np.linalg.svd(chain.matrix(count), full_matrices=False)
            along = chain.betas[0] * np.abs(left[0])
        kept = {step: self._kept.get(step, (self._delta, self._residual)) for step in self._keep}
        norms = np.array(self._norms)
        return KrylovSolution(
            solution=self._delta,
            residual=self._residual,
            residual_norms=norms[:, 0],
            solution_norms=norms[:, 1],
            ritz=ritz,
            coefficients=along,
            num_steps=count,
            stopped=stopped,
            kept={step: delta for step, (delta, _) in kept.items()},
            kept_residuals={step: residual for step, (_, residual) in kept.items()},
        )
