"""`diffusion-sft data check`: what a concept set was read as, before anything is computed from it.

Bad rows are listed instead of stopping at them; the pages and tables show what is left without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pandas as pd

from ..files import write_json, write_table
from ..parsing import printable
from ..ranges import MOST_PIXELS, check_range
from ..records import SPLITS, Example
from .check import MEASURED, TRAINED
from .config import ConceptsConfig
from .contact_sheet import CheckedData, write_contact_sheet, write_contact_sheet_png
from .looks import near_pairs
from .read import ReadResult, read_concept_set

TOKEN_LIMIT = 77
"""Tokens of a caption that CLIP's text encoders see, start and end included; the rest is cut off."""
SAMPLE_CAPTIONS = 5
MOST_PAIRS = 2000
"""Near-duplicates that are listed; a set with more of them is told by the first."""
_PRINTED_CONCEPTS = 20


@dataclass(frozen=True, kw_only=True)
class DataCheckConfig:
    """Which concept sets to look at, and where to write what was seen."""

    concepts: ConceptsConfig = field(default_factory=ConceptsConfig)
    base: str | None = None
    """A pipeline folder or Hub id whose tokenizer counts the captions' tokens; None leaves them uncounted."""
    revision: str | None = None
    resolution: int = 512
    """Pixels of a side; images with a shorter side below it would be enlarged."""
    output_dir: str = "runs/data-check"

    def __post_init__(self) -> None:
        check_range(self, "resolution", least=1, most=MOST_PIXELS)


def check_data(config: DataCheckConfig, count_tokens: Callable[[str], int] | None = None) -> int:
    """Read the sets, write tables and contact sheets to `output_dir`, and print a summary.

    Args:
        config: the sets, and the resolution that images are held against.
        count_tokens: the number of tokens of a caption, start and end included.

    Returns:
        0, or 1 where reading the sets with on_bad=stop would stop: there are problems, or an image that is trained on
        looks the same as one of another set that measures.

    Raises:
        UserError: a set cannot be read at all, or nothing usable is left of it.
    """
    result = read_concept_set(replace(config.concepts, on_bad="skip"), keep_alike=True)
    images = image_table(result, config.resolution, count_tokens)
    pairs = near_duplicate_table(result, several=bool(config.concepts.sets))
    data = CheckedData(
        title=config.concepts.path
        or ", ".join(source.name or Path(source.path).name for source in config.concepts.sets),
        resolution=config.resolution,
        result=result,
        images=images,
        counts=count_table(images),
        near_duplicates=pairs,
        sizes=_sizes(images),
        samples=sample_captions(images),
        lengths=caption_lengths(images),
        token_limit=TOKEN_LIMIT,
    )
    folder = Path(config.output_dir)
    for name, table in (
        ("images", images),
        ("concepts", data.counts),
        ("near_duplicates", pairs),
        ("problems", result.problems_table()),
    ):
        write_table(folder / f"{name}.parquet", table)
    write_json(folder / "summary.json", _summary(data))
    write_contact_sheet(folder / "contact-sheet.html", data)
    write_contact_sheet_png(folder / "contact-sheet.png", data)
    print(summary_text(data))
    print(f"\nlook at {folder / 'contact-sheet.html'}")
    return int(bool(result.problems) or bool((pairs["leak"] & pairs["between_sets"]).any()))


def image_table(result: ReadResult, resolution: int, count_tokens: Callable[[str], int] | None) -> pd.DataFrame:
    """One row per image: id, concept, split (several joined by +), caption, repeats, size, tokens, file."""
    by_id: dict[str, list[Example]] = {}
    for example in result.concept_set.examples:
        by_id.setdefault(example.id, []).append(example)
    tokens: dict[str, int] = {}
    rows = []
    for name, group in by_id.items():
        example, look = group[0], result.looks[group[0].path]
        if count_tokens is not None and example.caption not in tokens:
            tokens[example.caption] = count_tokens(example.caption)
        rows.append(
            {
                "id": name,
                "concept": example.concept,
                "split": "+".join(e.split for e in group),
                "caption": example.caption,
                "repeats": example.repeats,
                "width": look.width,
                "height": look.height,
                "below_resolution": min(look.width, look.height) < resolution,
                "num_tokens": tokens.get(example.caption),
                "file": str(example.path),
            }
        )
    return pd.DataFrame(rows).astype({"num_tokens": "Int64"})


def count_table(images: pd.DataFrame) -> pd.DataFrame:
    """Images per concept (rows, in the set's order) and split (columns, those that occur), with their sum."""
    memberships = images.assign(split=images["split"].str.split("+")).explode("split")
    counts = pd.crosstab(memberships["concept"], memberships["split"])
    order = list(dict.fromkeys(images["concept"]))
    present = [split for split in SPLITS if split in counts.columns]
    counts = counts.loc[order, present]
    # an image that serves as held-out and as reference is one image
    counts["images"] = images.groupby("concept", sort=False)["id"].count()
    counts["below_resolution"] = images.groupby("concept", sort=False)["below_resolution"].sum()
    return counts.rename_axis(columns=None).reset_index()


def near_duplicate_table(result: ReadResult, *, several: bool = False) -> pd.DataFrame:
    """One row per pair of images that look the same; `leak` where one is trained on and the other measures.

    `several` says that ids start with the name of one of several sets.
    """
    splits: dict[str, set[str]] = {}
    examples: dict[str, Example] = {}
    for example in result.concept_set.examples:
        splits.setdefault(example.id, set()).add(example.split)
        examples.setdefault(example.id, example)
    names = list(examples)
    looks = [result.looks[examples[name].path] for name in names]
    rows = []
    for i, j, bits in islice(((i, j, b) for i, j, b in near_pairs(looks, looks) if i < j), MOST_PAIRS):
        one, other = splits[names[i]], splits[names[j]]
        leak = bool((one & TRAINED and other & MEASURED) or (one & MEASURED and other & TRAINED))
        between = several and names[i].partition("/")[0] != names[j].partition("/")[0]
        pair = {"first": names[i], "second": names[j], "bits": bits, "leak": leak, "between_sets": between}
        pair |= {"first_split": "+".join(sorted(one)), "second_split": "+".join(sorted(other))}
        rows.append(
            pair | {"first_concept": examples[names[i]].concept, "second_concept": examples[names[j]].concept}
        )
    columns = ["first", "second", "bits", "leak", "between_sets"]
    columns += [f"{side}_{what}" for side in ("first", "second") for what in ("split", "concept")]
    table = pd.DataFrame(rows, columns=columns).astype({"leak": bool, "between_sets": bool})
    return table.sort_values("leak", ascending=False, kind="stable", ignore_index=True)


def sample_captions(images: pd.DataFrame) -> dict[str, list[str]]:
    """Of each split five different captions, evenly spaced over its images."""
    memberships = images.assign(split=images["split"].str.split("+")).explode("split")
    samples = {}
    for split in SPLITS:
        different = list(dict.fromkeys(memberships.loc[memberships["split"] == split, "caption"]))
        count = min(SAMPLE_CAPTIONS, len(different))
        if count:
            samples[split] = [different[i * len(different) // count] for i in range(count)]
    return samples


def summary_text(data: CheckedData) -> str:
    """The same in a few lines for a terminal."""
    images, counts = data.images, data.counts
    shown = counts.head(_PRINTED_CONCEPTS).assign(concept=[printable(name) for name in counts["concept"]][:20])
    lines = [shown.to_string(index=False)]
    if len(counts) > len(shown):
        lines.append(f"... and {len(counts) - len(shown)} more concepts")
    lines.append(f"\n{len(images)} images of {len(counts)} concepts; sizes {data.sizes}")
    small = int(images["below_resolution"].sum())
    lines.append(f"{small} with a shorter side below {data.resolution} pixels")
    lines.append(data.lengths)
    for split, captions in data.samples.items():
        lines += [f"{split} captions:", *(f"  {_cut(caption) or '(empty)'}" for caption in captions)]
    lines += _pair_lines(data.near_duplicates)
    lines += [f"note: {note}" for note in data.result.notes]
    if data.result.problems:
        lines.append("1 problem:" if len(data.result.problems) == 1 else f"{len(data.result.problems)} problems:")
        lines += [f"  {problem}" for problem in data.result.problems[:20]]
    return "\n".join(lines)


def _pair_lines(pairs: pd.DataFrame) -> list[str]:
    if pairs.empty:
        return []
    leaks = pairs[pairs["leak"]]
    lines = [f"{len(pairs)} pairs look the same, {len(leaks) or 'none'} across training and measuring"]
    for one, other, between in list(zip(leaks["first"], leaks["second"], leaks["between_sets"], strict=True))[:10]:
        lines.append(f"  {printable(one)} and {printable(other)}{' (stops a run)' if between else ''}")
    return lines


def _cut(text: str, most: int = 110) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def caption_lengths(images: pd.DataFrame) -> str:
    """How long the captions are, as far as that was counted, and how many images have none."""
    counted = images["num_tokens"].dropna()
    empty = int((images["caption"] == "").sum())
    without = f"; {empty} images have no caption" if empty else ""
    if counted.empty:
        return f"captions' tokens are not counted (base= gives a tokenizer){without}"
    cut = int((counted > TOKEN_LIMIT).sum())
    return (
        f"{cut} of {len(counted)} captions ({cut / len(counted):.1%}) are cut off at {TOKEN_LIMIT} tokens; the longest"
        f" has {int(counted.max())}{without}"
    )


def _sizes(images: pd.DataFrame) -> str:
    by_area = images.assign(area=images["width"] * images["height"]).sort_values(["area", "width"], kind="stable")
    at = [by_area.iloc[0], by_area.iloc[(len(by_area) - 1) // 2], by_area.iloc[-1]]
    return ", ".join(
        f"{name} {row['width']}x{row['height']}"
        for name, row in zip(("smallest", "median", "largest"), at, strict=True)
    )


def _summary(data: CheckedData) -> dict[str, object]:
    images = data.images
    shorter = images[["width", "height"]].min(axis=1)
    counted = images["num_tokens"].dropna()
    memberships = images["split"].str.split("+").explode()
    return {
        "num_concepts": len(data.counts),
        "num_images": len(images),
        "num_images_by_split": {split: int((memberships == split).sum()) for split in SPLITS},
        "shorter_side": {name: float(getattr(shorter, name)()) for name in ("min", "median", "max")},
        "resolution": data.resolution,
        "num_below_resolution": int(images["below_resolution"].sum()),
        "num_empty_captions": int((images["caption"] == "").sum()),
        "num_truncated_captions": None if counted.empty else int((counted > TOKEN_LIMIT).sum()),
        "num_near_duplicate_pairs": len(data.near_duplicates),
        "num_leaking_pairs": int(data.near_duplicates["leak"].sum()),
        "num_problems": len(data.result.problems),
        "notes": list(data.result.notes),
    }
