"""The page's drawings as files for papers: a PNG and a PDF of each, from the figures that the page itself was drawn from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib

from ..files import replaced_folder
from .svg import PAPER, THEME, Drawing

FIGURES = "figures"
DOTS_PER_INCH = 200
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "png": {"dpi": DOTS_PER_INCH, "metadata": {"Software": None}},
    "pdf": {"metadata": {"Creator": None, "Producer": None, "CreationDate": None}},
}
"""How each kind is saved; without dates and versions, so that the same run gives the same bytes."""


def drawings_in(part: Any) -> Iterator[Drawing]:
    """The drawings anywhere in what a page is made of: in records, mappings and sequences."""
    if isinstance(part, Drawing):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from drawings_in(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from drawings_in(value)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from drawings_in(getattr(part, field.name))


def write_figures(part: Any, study_folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Write every drawing of a page to `figures/` in the study's folder, in place of what was there.

    Returns:
        For each drawing its name and, for each file of it, the kind and a link relative to the folder.
    """
    named: dict[str, Drawing] = {}
    for drawing in drawings_in(part):
        named.setdefault(_file_name(drawing.identity), drawing)
    with replaced_folder(study_folder / FIGURES) as folder, matplotlib.rc_context(THEME | {"pdf.fonttype": 42}):
        for name, drawing in named.items():
            for kind, how in FORMATS.items():
                drawing.figure.savefig(folder / f"{name}.{kind}", format=kind, facecolor=PAPER, **how)
    return [(name, [(kind, quote(f"{FIGURES}/{name}.{kind}")) for kind in FORMATS]) for name in named]


def _file_name(identity: str) -> str:
    """An identity holds names of metrics and roles, which are a table's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", identity)[:100]
