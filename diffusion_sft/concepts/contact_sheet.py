"""The contact sheets of a data check: one HTML page that needs nothing beside it, and one picture.

The page has no scripts and fetches nothing; captions and names are foreign text and escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..files import replaced, write_text
from ..parsing import printable
from ..records import SPLITS
from .images import load_image
from .read import ReadResult

MOST_PICTURES = 1200
"""Pictures on the page; each concept and split gets its share of them, and says how many it has."""
MOST_PER_GROUP = 24
MOST_PAIRS = 24
MOST_PROBLEMS = 50
THUMBNAIL = 256
"""Pixels of a thumbnail's longer side."""
CELL, GAP, COLUMNS, MOST_CELLS = 160, 12, 8, 480
"""Of the picture: pixels of a cell and between cells, cells in a line, and cells in all."""


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """What a data check found out, for the pages that show it."""

    title: str
    resolution: int
    result: ReadResult
    images: pd.DataFrame
    counts: pd.DataFrame
    near_duplicates: pd.DataFrame
    sizes: str
    samples: Mapping[str, list[str]]
    lengths: str
    token_limit: int


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One picture on the page with what stands under it."""

    uri: str
    width: int
    height: int
    small: bool
    crisp: bool
    num_tokens: int | None
    caption: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures of one concept and split: those shown, and how many there are."""

    split: str
    shown: tuple[Thumbnail, ...]
    count: int
    repeats: tuple[int, ...]


def write_contact_sheet(path: Path, data: CheckedData) -> None:
    """Write the page."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    style = Markup((here / "contact_sheet.css").read_text(encoding="utf-8"))
    page = environment.get_template("contact_sheet.html.j2").render(
        data=data,
        style=style,
        concepts=_concept_groups(data),
        pairs=_pairs(data),
        facts=_facts(data),
        splits=[split for split in SPLITS if split in data.counts.columns],
        problems=data.result.problems[:MOST_PROBLEMS],
    )
    write_text(path, page)


def _facts(data: CheckedData) -> list[tuple[str, str, bool]]:
    """Counts for the head of the page, what each counts, and whether the user should look into it."""
    small, pairs = int(data.images["below_resolution"].sum()), len(data.near_duplicates)
    leaks, problems = int(data.near_duplicates["leak"].sum()), len(data.result.problems)
    facts = [
        (len(data.counts), "concept", "concepts", False),
        (len(data.images), "image", "images", False),
        (small, f"smaller than {data.resolution} px", f"smaller than {data.resolution} px", False),
        (pairs, "pair looks the same", "pairs look the same", False),
        (leaks, "of them a leak", "of them leaks", leaks > 0),
        (problems, "problem", "problems", problems > 0),
    ]
    shown = [fact for fact in facts if fact[0] or fact[2] != "of them leaks"]
    return [(f"{count:,}", one if count == 1 else many, bad) for count, one, many, bad in shown]


def _concept_groups(data: CheckedData) -> list[tuple[str, list[Group]]]:
    """Each concept with its groups in the order of the splits; shared images stand in the first of theirs."""
    grouped = dict(iter(data.images.groupby(["concept", "split"], sort=False)))
    share = max(1, min(MOST_PER_GROUP, MOST_PICTURES // max(1, len(grouped))))
    concepts: dict[str, list[Group]] = {str(name): [] for name in data.counts["concept"]}
    order = sorted(grouped, key=lambda key: _rank(str(key[1])))
    for concept, split in tqdm(order, desc="contact sheet", disable=None, leave=False):
        group = grouped[concept, split]
        concepts[str(concept)].append(
            Group(
                split=str(split).replace("+", " and "),
                shown=tuple(_thumbnail(row) for row in _spread(group, share)),
                count=len(group),
                repeats=tuple(sorted(set(group["repeats"].tolist()))),
            )
        )
    return list(concepts.items())


def _rank(splits: str) -> list[int]:
    return [SPLITS.index(split) for split in splits.split("+")]


def _by_split(images: pd.DataFrame) -> list[Any]:
    """The table's index with the images in the order of their splits, otherwise as they are."""
    return sorted(images.index, key=lambda index: _rank(images["split"][index]))


def _spread(group: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    """So many rows, evenly spaced."""
    count = min(count, len(group))
    positions = [i * len(group) // count for i in range(count)]
    return [{str(key): value for key, value in row.items()} for row in group.iloc[positions].to_dict("records")]


def _thumbnail(row: Mapping[str, Any]) -> Thumbnail:
    image = load_image(Path(row["file"]))
    crisp = max(image.size) <= 64
    stream = io.BytesIO()
    if crisp:
        image.save(stream, format="PNG")
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(stream, format="JPEG", quality=82, optimize=True)
    kind = "png" if crisp else "jpeg"
    return Thumbnail(
        uri=f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}",
        width=int(row["width"]),
        height=int(row["height"]),
        small=bool(row["below_resolution"]),
        crisp=crisp,
        num_tokens=None if pd.isna(row["num_tokens"]) else int(row["num_tokens"]),
        caption=str(row["caption"]),
        id=str(row["id"]),
    )


def _pairs(data: CheckedData) -> list[dict[str, Any]]:
    """The first near-duplicates with their pictures, leaks before others."""
    rows = data.images.set_index("id", drop=False)
    pairs = []
    for pair in data.near_duplicates.head(MOST_PAIRS).to_dict("records"):
        sides = [
            (_thumbnail(rows.loc[pair[side]].to_dict()), pair[f"{side}_split"].replace("+", " and "))
            for side in ("first", "second")
        ]
        pairs.append({"leak": pair["leak"], "sides": sides})
    return pairs


def write_contact_sheet_png(path: Path, data: CheckedData) -> None:
    """Write one picture: a heading per concept, a cell per image with its split and caption under it."""
    share = max(1, min(MOST_PER_GROUP, MOST_CELLS // max(1, len(data.counts))))
    shown = [
        (str(concept), len(group), _spread(group.loc[_by_split(group)], share))
        for concept, group in data.images.groupby("concept", sort=False)
    ][:MOST_CELLS]
    head, line = 46, CELL + 52
    height = GAP + sum(head + line * -(-len(rows) // COLUMNS) for _, _, rows in shown) + GAP
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for concept, count, rows in shown:
        more = f"   {len(rows)} of {count} images" if len(rows) < count else f"   {count} images"
        draw.text((GAP, top + 8), _fitting(concept, 80), fill=(20, 26, 34), font=_font(20, bold=True))
        at = GAP + draw.textlength(_fitting(concept, 80), font=_font(20, bold=True))
        draw.text((at, top + 13), more, fill=(93, 103, 116), font=_font(14))
        top += head
        for number, row in enumerate(rows):
            corner = (GAP + (number % COLUMNS) * (CELL + GAP), top + (number // COLUMNS) * line)
            _paste(sheet, draw, row, corner)
        top += line * -(-len(rows) // COLUMNS)
    with replaced(path) as temporary:
        sheet.save(temporary, format="PNG")


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Mapping[str, Any], corner: tuple[int, int]) -> None:
    """One picture, whole and centred in its cell, with split and caption under it."""
    left, top = corner
    image = load_image(Path(row["file"]))
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=(241, 243, 246))
    sheet.paste(small, (left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2))
    draw.text((left, top + CELL + 4), str(row["split"]).replace("+", ", "), fill=(0, 95, 148), font=_font(12))
    text = _fitting(row["caption"] or "(empty)", 40)
    while len(text) > 1 and draw.textlength(text, font=_font(12)) > CELL:
        text = f"{text[:-2]}…"
    draw.text((left, top + CELL + 20), text, fill=(60, 70, 82), font=_font(12))


def _fitting(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans out of matplotlib, which is there on every machine."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), size)
