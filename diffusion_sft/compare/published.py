"""The published figures of a language model that mean the same as a row of the table, in its units."""

from __future__ import annotations

from ..records import CATEGORIES, LLM, UNKNOWN
from ..reference import Reference
from .metrics import METRICS, STOPPINGS
from .rows import PUBLISHED, Row

MODELS = {"": "in_distribution", "_other_relations": "out_of_distribution"}


def published_rows(reference: Reference) -> list[Row]:
    """Category shares, accuracies after the natural mix, what is lost after the early stop on Unknown alone, and the
    dynamics model. The paper prints no intervals, and no value of the others."""
    return [*_shares(reference), *_natural(reference), *_late(reference), *_model(reference)]


def _shares(reference: Reference) -> list[Row]:
    counted = reference.sources["category_shares"]
    return [
        _row(reference, "category_share", category, share, 0, f"{counted}; training questions of 12 relations")
        for category, share in reference.category_shares.items()
    ]


def _natural(reference: Reference) -> list[Row]:
    source = f"{reference.sources['single_category']}; printed in per cent"
    return [
        _row(
            reference,
            f"natural_accuracy_{stop}",
            category,
            reference.single_category[stop]["Natural"][category] / 100,
            reference.test_counts[category],
            source,
        )
        for stop in STOPPINGS
        for category in CATEGORIES
    ]


def _late(reference: Reference) -> list[Row]:
    early, late = (reference.single_category[stop][UNKNOWN] for stop in STOPPINGS)
    source = f"{reference.sources['single_category']}; difference of two accuracies printed in per cent"
    return [
        _row(
            reference,
            "late_change",
            category,
            (late[category] - early[category]) / 100,
            reference.test_counts[category],
            source,
        )
        for category in CATEGORIES
    ]


def _model(reference: Reference) -> list[Row]:
    rows = []
    for ending, name in MODELS.items():
        model = reference.linear_model[name]
        source = f"{reference.sources['linear_model']}, {name.replace('_', ' ')}"
        for metric, value in (
            ("b_known", model.b_known_points / 100),
            ("b_unknown", model.b_unknown_points / 100),
            ("r2", model.r2),
        ):
            told = source if metric == "r2" else f"{source}; printed in points"
            rows.append(_row(reference, f"{metric}{ending}", "", value, 0, told))
    return rows


def _row(reference: Reference, metric: str, category: str, value: float, n: int, source: str) -> Row:
    setup = reference.setup
    return Row(
        learner=LLM,
        metric=metric,
        category=category,
        value=round(value, 6),
        n=n,
        n_of="questions" if n else "",
        unit=METRICS[metric].unit_of(LLM),
        source=PUBLISHED,
        note=f"{reference.citation.short}, {source}; {setup['base']}, {setup['dataset']}",
    )
