"""Matrices that are never formed: two products are all that is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class LinearMap(Protocol):
    """J of shape (num_rows, num_columns), on flat vectors of the map's own device and type."""

    @property
    def num_rows(self) -> int: ...

    @property
    def num_columns(self) -> int: ...

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        """J v: (num_columns,) to (num_rows,)."""
        ...

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        """Jᵀ u: (num_rows,) to (num_columns,)."""
        ...


@dataclass(frozen=True, eq=False)
class DenseMap:
    """A matrix that is there, (num_rows, num_columns)."""

    matrix: torch.Tensor

    @property
    def num_rows(self) -> int:
        """Its rows."""
        return self.matrix.shape[0]

    @property
    def num_columns(self) -> int:
        """Its columns."""
        return self.matrix.shape[1]

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        """J v."""
        return self.matrix @ columns

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        """Jᵀ u."""
        return self.matrix.T @ rows


@dataclass(frozen=True, eq=False)
class Transposed:
    """Jᵀ as a map of its own."""

    map: LinearMap

    @property
    def num_rows(self) -> int:
        """The columns of J."""
        return self.map.num_columns

    @property
    def num_columns(self) -> int:
        """The rows of J."""
        return self.map.num_rows

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        """Jᵀ u."""
        return self.map.vjp(columns)

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        """J v."""
        return self.map.jvp(rows)


@dataclass(frozen=True, eq=False)
class Stacked:
    """Maps of the same columns on top of each other, each times its weight."""

    maps: Sequence[LinearMap]
    weights: Sequence[float]

    @property
    def num_rows(self) -> int:
        """Of all of them."""
        return sum(part.num_rows for part in self.maps)

    @property
    def num_columns(self) -> int:
        """Of any of them."""
        return self.maps[0].num_columns

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        """The parts' products, one after the other."""
        return torch.cat([w * part.jvp(columns) for part, w in zip(self.maps, self.weights, strict=True)])

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum of the parts' products."""
        pieces = torch.split(rows, [part.num_rows for part in self.maps])
        products = [w * part.vjp(piece) for part, w, piece in zip(self.maps, self.weights, pieces, strict=True)]
        return torch.stack(products).sum(dim=0)
