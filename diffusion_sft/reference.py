"""Published figures that measured ones are laid beside; they ship with the repository, each with its source.

Accuracies stay in percent as printed, differences in percentage points, shares in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .records import CATEGORIES

FOLDER = Path(__file__).parents[1] / "data" / "reference"
STOPPINGS = ("early_stop", "convergence")
DISTRIBUTIONS = ("in_distribution", "out_of_distribution")
"""The test questions of relations that are trained on, and those of other relations."""


@dataclass(frozen=True, kw_only=True)
class Citation:
    """The paper that the figures are from."""

    authors: str
    title: str
    venue: str
    year: int
    arxiv: str
    url: str

    @property
    def short(self) -> str:
        """As it stands in a heading: first author and year."""
        return f"{self.authors.split(',')[0]} et al., {self.year}"


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """accuracy = b0 + b_known · fitted known share + b_unknown · fitted Unknown share."""

    b0_percent: float
    b_known_points: float
    b_unknown_points: float
    r2: float


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Accuracy over the questions that were answered, and how many of all that is."""

    accuracy_percent: float
    answered_percent: float


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One paper's figures."""

    citation: Citation
    slick: Mapping[str, Any]
    """How its knowledge categories were read."""
    setup: Mapping[str, Any]
    """Its base, data and training."""
    category_shares: Mapping[str, float]
    """Of the training questions, in 0..1."""
    test_counts: Mapping[str, int]
    """Test questions per category, and `total`."""
    ood_counts: Mapping[str, int]
    """The same of relations that are never trained on."""
    single_category: Mapping[str, Mapping[str, Mapping[str, float]]]
    """accuracy_percent by stopping, then by what was trained on (a category or Natural), then by what was asked (a
    category or Full)."""
    linear_model: Mapping[str, PublishedModel]
    """By distribution (DISTRIBUTIONS)."""
    largest_drop: Mapping[str, float]
    """Points of accuracy by distribution, "up to"."""
    fit_speed: str
    """What was found about it, in words."""
    relabel: Mapping[str, Mapping[str, Answered]]
    """By stopping, then `plain` or `relabelled` (the Unknown answers replaced by "I don't know")."""
    sources: Mapping[str, str]
    """Where in the paper each block stands."""
    notes: Mapping[str, str]
    """What to know about a block, where there is anything."""


def load_reference(name: str = "gekhman2024") -> Reference:
    """Read the figures of `data/reference/<name>.yaml`.

    Raises:
        UserError: no such file, or one whose blocks are not complete; every block needs a `source`.
    """
    path = FOLDER / f"{name}.yaml"
    blocks = _blocks(path)
    try:
        return _reference(blocks)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the figures that are expected ({type(error).__name__}: {error})") from None


def _blocks(path: Path) -> dict[str, dict[str, Any]]:
    """The file's blocks, each of them with a source."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; the published figures are part of the repository, not of the package")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: blocks of figures are expected")
    for block, figures in content.items():
        source = figures.get("source") if isinstance(figures, dict) else None
        if not isinstance(source, str) or not source.strip():
            raise UserError(f"{path}: block {block} has no source; say where in the paper its figures stand")
    return content


def _reference(blocks: Mapping[str, dict[str, Any]]) -> Reference:
    figures = {
        name: {key: value for key, value in block.items() if key not in ("source", "note")}
        for name, block in blocks.items()
    }
    table = figures["single_category"]["accuracy_percent"]
    rows = (*CATEGORIES, "Natural")
    return Reference(
        citation=Citation(**figures["citation"]),
        slick=figures["slick"],
        setup=figures["setup"],
        category_shares={category: figures["category_shares"]["shares"][category] for category in CATEGORIES},
        test_counts=_counts(figures["test_counts"]),
        ood_counts=_counts(figures["ood_counts"]),
        single_category={
            stopping: {
                row: {column: table[stopping][row][column] for column in ("Full", *CATEGORIES)} for row in rows
            }
            for stopping in STOPPINGS
        },
        linear_model={name: PublishedModel(**figures["linear_model"][name]) for name in DISTRIBUTIONS},
        largest_drop={name: figures["largest_drop"]["points"][name] for name in DISTRIBUTIONS},
        fit_speed=figures["fit_speed"]["finding"],
        relabel={
            stopping: {name: Answered(**figures["relabel"][stopping][name]) for name in ("plain", "relabelled")}
            for stopping in STOPPINGS
        },
        sources={name: block["source"] for name, block in blocks.items()},
        notes={name: block["note"] for name, block in blocks.items() if "note" in block},
    )


def _counts(block: Mapping[str, Any]) -> dict[str, int]:
    return {name: block["counts"][name] for name in (*CATEGORIES, "total")}
