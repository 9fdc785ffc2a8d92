"""The write-up: templates filled with numbers from the tables, and sentences that hold only as long as the numbers do.

A template says `{{ holds(CONDITION) }}` before a sentence that claims something; where the tables no longer say so, no
page is written and the error names the template, so that no claim outlives its evidence.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context

from diffusion_sft.compare.verdict_words import LEARNERS_TOLD
from diffusion_sft.files import write_text
from diffusion_sft.records import CATEGORIES
from diffusion_sft.reference import load_reference
from diffusion_sft.report.systems_words import SYSTEMS
from diffusion_sft.report.wording import fixed, listing, reading, share, share_reading

from .analyses import (
    buckets_together,
    distances_and_loss,
    forecast_roles,
    never_read,
    sight,
    solved_sets,
    system_rows,
)
from .halves import estimate
from .learnt import learnt
from .numbers import Published

TEMPLATES = Path(__file__).parent / "templates"
PAGES = {
    "study.md.j2": "docs/study.md",
    "systems.md.j2": "docs/study_systems.md",
    "advice.md.j2": "docs/advice.md",
    "results.md.j2": "data/results/README.md",
}
README = "README.md"
WIDTH = 130
BEGIN, END = "<!-- findings: written by scripts/rebuild_results.py -->", "<!-- end of findings -->"


SYSTEM_MEASURES = {
    "effective_answers": "effective number of answers",
    "recovery": "share of the answer that must be given",
    "rounds_per_step": "rounds over steps",
    "residual_floor": "S2: residual at the best free input",
    "input_distance": "S2: its distance from the named one",
    "residual_10": "S3: residual after 10 steps",
    "solution_norm": "S3: norm of δ",
    "solvable_share": "S3: gradient outside the known",
}


class ClaimError(Exception):
    """A sentence of the write-up that the tables do not bear out."""


def write_pages(published: Published, root: Path) -> None:
    """Write the pages and the README's findings below `root`.

    Raises:
        ClaimError: a claim that does not hold.
    """
    environment = _environment(published)
    for template, page in PAGES.items():
        write_text(root / page, filled(environment.get_template(template).render()))
    findings = filled(environment.get_template("findings.md.j2").render()).strip()
    readme = (root / README).read_text(encoding="utf-8")
    before, rest = readme.split(BEGIN)
    write_text(root / README, f"{before}{BEGIN}\n{findings}\n{END}{rest.split(END)[1]}")


def filled(page: str) -> str:
    """Markdown with its paragraphs and list items wrapped, and no two blank lines together; tables and code as they are."""
    blocks, fenced = [], False
    for block in re.sub(r"\n{3,}", "\n\n", page).strip().split("\n\n"):
        if not fenced and not block.startswith(_AS_IT_IS):
            items = re.split(r"\n(?=- )", block)
            block = "\n".join(_wrapped(item) for item in items)
        fenced ^= block.count("```") % 2 == 1
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"


_AS_IT_IS = ("|", "#", "!", "```")


def _wrapped(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        subsequent_indent="  " if text.startswith("- ") else "",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _environment(published: Published) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "percent": lambda found: _joined(share_reading(estimate(found))),
        "points": lambda found: _joined(share_reading(estimate(found), signed=True)),
        "reading": lambda found: _joined(reading(estimate(found))),
        "signed": lambda found: _joined(reading(estimate(found), signed=True)),
        "rank": _rank,
        "share": lambda value, signed=False: share(value, signed).replace("\u00a0", " "),
        "fixed": fixed,
    }
    environment.globals |= {
        "results": published,
        "never_read": never_read,
        "buckets_together": buckets_together,
        "distances_and_loss": distances_and_loss,
        "learnt": learnt,
        "forecast_roles": forecast_roles,
        "sight": sight,
        "solved_sets": solved_sets,
        "system_rows": system_rows,
        "systems": SYSTEMS,
        "system_measures": SYSTEM_MEASURES,
        "run_seeds": _words(seed for half in published.halves.values() for seed in half.runs["seed"]),
        "world_seeds": _words(half.study["settings"]["world"]["seed"] for half in published.halves.values()),
        "machine": _machine(published),
        "worlds": published.worlds,
        "learners": LEARNERS_TOLD,
        "categories": CATEGORIES,
        "reference": load_reference(),
        "holds": pass_context(_holds),
        "listing": listing,
    }
    return environment


def _holds(context: Context, condition: Any) -> str:
    """Nothing, where the condition is true."""
    if not condition:
        raise ClaimError(f"{context.name}: a claim does not hold any more; look at the sentence and the tables")
    return ""


def _words(numbers: Iterable[int]) -> list[str]:
    return [str(number) for number in sorted(set(numbers))]


def _machine(published: Published) -> str:
    """What it ran on, as the studies' records say."""
    studies = [half.study for half in published.halves.values()]
    told = {
        f"{s['hardware']['device']}, torch {s['versions']['torch']}, Python {s['versions']['python']}"
        for s in studies
    }
    return f"Machine: {listing(sorted(told))}"


def _rank(found: Any) -> str:
    """A rank correlation, or that all runs stood equal."""
    ranked = estimate(found)
    return _joined(reading(ranked, signed=True)) if math.isfinite(ranked.value) else "all equal"


def _joined(parts: tuple[str, str]) -> str:
    return " ".join(part for part in parts if part).replace("\u00a0", " ")
