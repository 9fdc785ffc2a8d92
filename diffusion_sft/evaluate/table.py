"""The distances of every bucket and model as a table for a terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pandas as pd

from .rows import Row

PCA = "FD-PCA"
HEADER = (
    *("bucket", "model", "n real/gen", "FID", "FID n/2", "floor n/2", "excess"),
    *(PCA, "KID x1000", "change of FID", "accuracy"),
)
LEGEND = (
    "± one standard error. FID is comparable within a bucket only. The floor is real against real at half the\n"
    "images, the excess what FID n/2 has beyond it. Across buckets compare FD-PCA and KID.\n"
    "Changes are from base, paired by prompt and seed."
)


def distance_table(measures: pd.DataFrame) -> str:
    """Plain text: n, FID, floor, excess, FD-PCA-k, KID x 1000, paired change by bucket and model, then notes.

    Args:
        measures: the table of `measures.parquet`.
    """
    found: dict[tuple[str, str], dict[str, Row]] = {}
    fields = [field.name for field in dataclasses.fields(Row)]
    for record in measures.to_dict("records"):
        row = Row(**{field: record[field] for field in fields})
        found.setdefault((record["bucket"], record["model"]), {})[row.metric] = row
    pca = next((name for name in measures["metric"] if name.startswith("fd_pca")), "fd_pca")
    header = [pca.replace("fd_pca", PCA).replace("_", "-") if name == PCA else name for name in HEADER]
    order = list(dict.fromkeys(bucket for bucket, _ in found))
    keys = sorted(found, key=lambda key: order.index(key[0]))
    body = [[*key, _counts(found[key]), *_figures(found[key], pca)] for key in keys]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    text = [_aligned(line, widths) for line in [header, ["-" * width for width in widths], *body]]
    warnings = sorted({note.split(";")[0] for note in measures["note"] if note.startswith("warning")})
    return "\n".join([*text, LEGEND, *(f"extractor: {label}" for label in measures["extractor"].unique()), *warnings])


def _figures(rows: Mapping[str, Row], pca: str) -> list[str]:
    plain = [_figure(rows.get(metric)) for metric in ("fid", "fid_half", "fid_floor", "fid_excess", pca)]
    change = _figure(rows["fid_change"], sign="+") if "fid_change" in rows else ""
    return [*plain, _figure(rows.get("kid"), scale=1000), change, _figure(rows.get("accuracy"))]


def _figure(row: Row | None, *, scale: float = 1, sign: str = "") -> str:
    if row is None or math.isnan(row.value):
        return "-"
    value, error = scale * row.value, scale * row.standard_error
    if max(abs(value), error) >= 1e5:
        return f"{value:{sign}.3g} ± {error:.2g}"
    digits = 2 if abs(value) < 100 else 1
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"


def _counts(rows: Mapping[str, Row]) -> str:
    return f"{rows['fid'].num_real}/{rows['fid'].num_generated}" if "fid" in rows else "-"


def _aligned(line: list[str], widths: list[int]) -> str:
    first = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
    rest = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
    return "  ".join([*first, *rest]).rstrip()
