"""The tables of the page: what stands in which cell, as text; how a cell looks is the template's business."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from ..records import CATEGORIES, HELDOUT, HIGHLY_KNOWN, MAYBE_KNOWN, RULES, TRAINED, UNKNOWN, UNTOUCHED, WEAKLY_KNOWN
from .agreement import auroc, kappa, rank_correlation
from .cells import Cell, Group, Table, cut_remark, first_rows, heading_cell
from .changes import Change, image_change, learning_change, measure, metric_name
from .run import Run
from .wording import DASH, NO_BREAK, Estimate, fixed, listing, model_name, number, reading, share, share_reading

BUCKETS = ("known", "unknown", *CATEGORIES, "all")
LEVELS = ("fid", "fid_half", "fid_floor", "fid_excess")


def verdict_table(run: Run) -> Table | None:
    """What each mix gained and cost, one row per mix; None where nothing was measured before and after."""
    asked = [(TRAINED, UNKNOWN), (HELDOUT, UNKNOWN)]
    asked += [(role, label) for role in run.nouns.costs for label in (HIGHLY_KNOWN, MAYBE_KNOWN, WEAKLY_KNOWN)]
    columns: dict[str, list[Change | None]] = {}
    for role, category in asked:
        title = f"{category}, {'outside the mix' if role == UNTOUCHED else run.nouns.role(role)}"
        columns[title] = [learning_change(mix, role, category) for mix in run.mixes]
    for metric, name in (("accuracy_change", "images read correctly"), ("fid_change", "FID")):
        for bucket in ("unknown", "known"):
            columns[f"{name}, {bucket}"] = [image_change(run, mix.name, bucket, metric) for mix in run.mixes]
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    if not columns:
        return None
    rows = tuple(
        (heading_cell(mix.name), *(_change_cell(cells[place]) for cells in columns.values()))
        for place, mix in enumerate(run.mixes)
    )
    return Table(
        identity=f"{run.prefix}verdicts", title="Change by mix", columns=("mix", *columns), groups=(Group(rows=rows),)
    )


def concept_table(concepts: pd.DataFrame) -> Table:
    """Every concept: category, bucket by each rule, error, gain with its interval, exposure."""
    readings = ("seen", "error", "gain", "relative", "greedy", "sampled", "known by")
    columns = ("concept", "category", "sure", "bucket", *readings)
    rows = tuple(_concept_row(row) for _, row in first_rows(concepts).iterrows())
    return Table(
        identity="concepts",
        title="All concepts",
        columns=columns,
        groups=(Group(rows=rows),),
        remarks=cut_remark(concepts),
    )


def rule_table(run: Run) -> Table | None:
    """The four rules side by side: how many concepts each calls known, and how well that follows exposure."""
    if run.concepts is None:
        return None
    rows = []
    for rule in RULES:
        known = run.concepts[f"known_{rule}"].astype(bool)
        agreement = [_agreement_cell(run, run.concepts, rule, other) for other in RULES]
        area, follows = auroc(run.buckets, rule), rank_correlation(run.buckets, rule)
        rows.append(
            (
                heading_cell(rule, under="the rule of this run" if run.buckets.get("rule") == rule else ""),
                Cell(text=f"{int(known.sum()):,}"),
                _reading_cell(area),
                _reading_cell(follows),
                *agreement,
            )
        )
    columns = ("rule", "known", "AUROC", "rank correlation", *(f"agrees with {rule}" for rule in RULES))
    return Table(
        identity=f"{run.prefix}rules", title="The four rules", columns=columns, groups=(Group(rows=tuple(rows)),)
    )


def fid_table(measures: pd.DataFrame, run: Run) -> Table:
    """FID and its relatives per bucket and model, with the numbers of images behind them and the paired change."""
    shown = _distances(measures)
    return Table(
        identity="fid",
        title="FID per bucket",
        columns=("model", "images real / drawn", *(metric_name(metric) for metric in shown)),
        groups=_grouped(measures, run, shown, with_sizes=True),
        remarks=_notes(measures, shown),
    )


def measure_table(measures: pd.DataFrame, run: Run) -> Table | None:
    """Every other measure per bucket and model; None where there is no other."""
    distances = _distances(measures)
    shown = [str(metric) for metric in dict.fromkeys(measures["metric"]) if metric not in distances]
    if not shown:
        return None
    return Table(
        identity="measures",
        title="Other measures",
        columns=("model", *(metric_name(metric) for metric in shown)),
        groups=_grouped(measures, run, shown, with_sizes=False),
        remarks=_notes(measures, shown),
    )


def _distances(measures: pd.DataFrame) -> list[str]:
    """The metrics of the main table, in its order, as far as they were measured."""
    found = {str(metric) for metric in measures["metric"]}
    directions = sorted(m for m in found if m.startswith("fd_pca") and not m.endswith("_change"))
    return [metric for metric in (*LEVELS, *directions, "kid", "fid_change") if metric in found]


def accuracy_table(accuracy: pd.DataFrame, run: Run) -> Table:
    """The share of each concept's images that were read correctly, before and after each mix."""
    models = [model for model in run.models if (accuracy["model"] == model).any()]
    by_pair = {(row["concept"], row["model"]): row for _, row in accuracy.iterrows()}
    labels = accuracy.drop_duplicates("concept").sort_values(["category", "concept"], key=_by_category)
    rows = []
    for _, row in first_rows(labels).iterrows():
        cells = [heading_cell(str(row["concept"]), label=str(row["category"]))]
        cells += [_accuracy_cell(by_pair.get((row["concept"], model))) for model in models]
        rows.append(tuple(cells))
    return Table(
        identity="accuracy",
        title="Images read correctly, per concept",
        columns=("concept", *(model_name(model) for model in models)),
        groups=(Group(rows=tuple(rows)),),
        remarks=cut_remark(labels),
    )


def gain_text(row: pd.Series) -> str:
    """A concept's gain and half its 95 % interval: `+38.9 ± 5.9`."""
    gain, reach = float(row["gain_nats"]), 1.96 * float(row["gain_se_nats"])
    if not (math.isfinite(reach) and reach > 0):
        return number(gain, signed=True)
    decimals = min(6, max(0, 1 - math.floor(math.log10(reach))))
    return f"{fixed(gain, decimals, signed=True)}{NO_BREAK}±{NO_BREAK}{fixed(reach, decimals)}"


def _concept_row(row: pd.Series) -> tuple[Cell, ...]:
    seen = DASH if pd.isna(row["exposure"]) else f"{int(row['exposure']):,}"
    return (
        heading_cell(str(row["concept"]), under="misknown" if row["misknown"] else ""),
        Cell(text=str(row["category"]), label=str(row["category"]), numeric=False),
        Cell(text=share(float(row["category_confidence"]))),
        Cell(text=str(row["bucket"]), label=str(row["bucket"]), numeric=False),
        Cell(text=seen),
        Cell(text=number(float(row["error_nats"]), 4)),
        Cell(text=gain_text(row)),
        Cell(text=number(float(row["relative_error"]))),
        Cell(text=share(float(row["greedy_share"]))),
        Cell(text=share(float(row["sampled_share"]))),
        Cell(text=", ".join(rule for rule in RULES if row[f"known_{rule}"]) or "none", numeric=False),
    )


def _agreement_cell(run: Run, concepts: pd.DataFrame, rule: str, other: str) -> Cell:
    if rule == other:
        return Cell(text="")
    same = (concepts[f"known_{rule}"] == concepts[f"known_{other}"]).mean()
    agreed = kappa(run.buckets, rule, other)
    return Cell(text=share(float(same)), under="" if agreed is None else f"κ {fixed(agreed, 2)}")


def _reading_cell(estimate: Estimate | None) -> Cell:
    text, under = (DASH, "") if estimate is None else reading(estimate)
    return Cell(text=text, under=under)


def _grouped(measures: pd.DataFrame, run: Run, metrics: Sequence[str], with_sizes: bool) -> tuple[Group, ...]:
    """One group per bucket, one row per model, one cell per metric."""
    groups = []
    for bucket in _buckets(measures):
        here = measures[measures["bucket"] == bucket]
        rows = []
        for model in run.models:
            if (of_model := here[here["model"] == model]).empty:
                continue
            cells = [_measure_cell(run, model, bucket, metric) for metric in metrics]
            rows.append((heading_cell(model_name(model)), *((_sizes(of_model),) if with_sizes else ()), *cells))
        groups.append(Group(rows=tuple(rows), heading=bucket))
    return tuple(groups)


def _measure_cell(run: Run, model: str, bucket: str, metric: str) -> Cell:
    estimate = measure(run, model, bucket, metric)
    if metric.endswith("_change"):
        return _change_cell(image_change(run, model, bucket, metric))
    if estimate is None:
        return Cell(text=DASH)
    if metric == "accuracy" or "_share" in metric:
        text, under = share_reading(estimate)
    else:
        text, under = reading(estimate)
    return Cell(text=text, under=under)


def _change_cell(change: Change | None) -> Cell:
    if change is None:
        return Cell(text=DASH)
    text, under = change.reading
    words = {"better": "better", "worse": "worse", "same": "", "unclear": "no interval"}
    return Cell(text=text, under="\n".join(filter(None, (under, words[change.outcome]))), outcome=change.outcome)


def _accuracy_cell(row: pd.Series | None) -> Cell:
    if row is None:
        return Cell(text=DASH)
    counts = f"{int(row['num_correct'])} of {int(row['num_images'])}"
    return Cell(text=f"{share(float(row['accuracy']))} ({counts})", bar=float(row["accuracy"]))


def _sizes(rows: pd.DataFrame) -> Cell:
    """The numbers of images behind a row's distances (its FID's where there is one)."""
    first = rows[rows["metric"] == "fid"] if (rows["metric"] == "fid").any() else rows
    real, generated = first["num_real"].iloc[0], first["num_generated"].iloc[0]
    return Cell(text=" / ".join(DASH if pd.isna(count) else f"{int(count):,}" for count in (real, generated)))


def _notes(measures: pd.DataFrame, metrics: Sequence[str]) -> tuple[str, ...]:
    """Warnings of the evaluation and reasons why a number is missing, each with the places it belongs to."""
    here = measures[measures["metric"].isin(list(metrics))]
    noted = here[here["note"].fillna("").str.startswith(("warning", "not measured"))]
    remarks = []
    for note, rows in noted.groupby("note", sort=False):
        names = listing(list(dict.fromkeys(metric_name(str(metric)) for metric in rows["metric"])))
        buckets = listing(list(dict.fromkeys(str(bucket) for bucket in rows["bucket"])))
        remarks.append(f"{names} of {buckets}: {note}")
    return tuple(remarks)


def _buckets(measures: pd.DataFrame) -> list[str]:
    found = [str(bucket) for bucket in dict.fromkeys(measures["bucket"])]
    return [b for b in BUCKETS if b in found] + [b for b in found if b not in BUCKETS]


def _by_category(column: pd.Series) -> pd.Series:
    return (
        column.map({label: place for place, label in enumerate(CATEGORIES)}) if column.name == "category" else column
    )
