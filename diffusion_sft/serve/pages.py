"""The pages of the live view: what was read, written down as HTML with every text escaped."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..records import CATEGORIES, LLM
from ..report.wording import cut, number, plural, printable, seconds
from . import curves
from .halves import Half, drawn_models, samples, summaries
from .place import Place
from .runs import FINETUNE, LATELY, MOST, PRETRAINING, page_kind, reached, read_runs, read_state, updates_told
from .shares import ROLES, last_answers
from .training import Training, read_finetune

HERE = Path(__file__).parent
STYLE = Markup("\n".join(file.read_text("utf-8") for file in (HERE.parent / "report/style.css", HERE / "live.css")))
SCRIPT = Markup((HERE / "refresh.js").read_text("utf-8"))
DRAWN = 2
"""Fine-tuning runs of a study whose curves are drawn in full on its page; each has a page of its own."""
SHOWN_ROLES = ("test", "heldout", "untouched")
"""Whose accuracy stands beside the fitted share in the table of a study's runs: the first of these that was asked."""


def source_hash(content: str) -> str:
    """What a page's policy calls an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def link(view: str, place: Place, version: float | None = None) -> str:
    """The address of a run's page (`run`) or of a file (`file`), with the time that it was written where it may change."""
    address = "/".join(["", view, *(quote_from_bytes(os.fsencode(part), safe="") for part in place.parts)])
    return address if version is None else f"{address}?{version:.3f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fine-tuning run in a study's table."""

    training: Training
    beside: str
    """The heading of the role that stands beside the fitted share; empty where none was asked."""
    beside_curves: Any
    fitted: Any


class Pages:
    """The overview and the runs' pages of one watched folder."""

    def __init__(self, root: Place, refresh_seconds: int) -> None:
        self.root = root
        self.environment = _environment()
        self.environment.globals |= {"refresh_seconds": refresh_seconds, "style": STYLE, "script": SCRIPT}

    def overview(self) -> str:
        """All runs."""
        runs = read_runs(self.root)
        return self._page("overview.html.j2", title=f"Runs in {self.root.name}", way=[], runs=runs, most=MOST)

    def run(self, place: Place) -> str:
        """The page of a folder that is a run, inside another one or not."""
        run = read_state(place)
        top = 0 if page_kind(self.root) else 1
        way = [(Place(place.root, place.parts[:depth])) for depth in range(top, len(place.parts) + 1)]
        given: dict[str, Any] = {"title": run.title, "way": way, "run": run}
        if run.kind == FINETUNE:
            training = read_finetune(place)
            shown = [training]
            given |= {
                "training": training,
                "samples": samples(place),
                "said": last_answers(place),
            }
        elif run.kind == PRETRAINING:
            shown = list(run.trainings)
        else:
            halves = [self._half(half) for half in run.halves]
            shown = [training for half in halves for training in half["drawn"]]
            given["halves"] = halves
        labels = {label for each in shown for shares in each.shares.values() for label in shares}
        given["labels"] = [label for label in CATEGORIES if label in labels]
        return self._page("run.html.j2", **given)

    def _half(self, half: Half) -> dict[str, Any]:
        """What a study's page shows of one half."""
        trainings = [read_finetune(place) for place in half.tunings]
        # Those that are under way stand first, then those that ended last.
        trainings.sort(key=lambda training: training.finished)
        return {
            "half": half,
            "heading": "Language model" if half.learner == LLM else "Diffusion model",
            "rows": [_row(training) for training in trainings],
            "drawn": trainings[:DRAWN],
            "samples": {
                training.place: found for training in trainings[:DRAWN] if (found := samples(training.place))
            },
            "models": drawn_models(half) if half.learner != LLM else [],
            "summaries": summaries(half),
        }

    def _page(self, template: str, **given: Any) -> str:
        now = time.time()
        words = {"now": now, "ago": partial(ago, now=now), "left": partial(time_left, now=now)}
        return self.environment.get_template(template).render(words, **given)


def ago(changed: float, now: float) -> str:
    """`3 min ago`; a time to come is now."""
    if not changed:
        return "never"
    passed = max(0, round(now - changed))
    if passed < 2:
        return "just now"
    if passed >= 172800:
        return f"{passed // 86400} days ago"
    return f"{passed} s ago" if passed < 100 else f"{seconds(passed)} ago"


def moment(picture: Place) -> str:
    """`update 250` of `update-000250.png`; other names as they are."""
    named = re.fullmatch(r"update-(\d{1,15})\.png", picture.name)
    return f"update {int(named[1]):,}" if named else picture.name


def time_left(training: Training, now: float) -> str:
    """`about 4 min left, at most`; empty for what is finished or of no known pace, or was not written to lately."""
    left = training.seconds_left
    if left is None or now - training.changed > LATELY:
        return ""
    return f"about {seconds(left)} left, if all updates are used" if left >= 1 else "at its end"


def _row(training: Training) -> Row:
    beside = next((role for role in SHOWN_ROLES if role in training.shares), "")
    return Row(
        training=training,
        fitted=training.shares.get("trained"),
        beside=ROLES.get(beside, ""),
        beside_curves=training.shares.get(beside),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {
        "cut": cut,
        "plural": plural,
        "number": number,
        "seconds": seconds,
        "reached": reached,
        "moment": moment,
    }
    environment.globals |= {"curves": curves, "mark": curves.mark, "link": link, "roles": ROLES, "lately": LATELY}
    environment.globals["linked"] = lambda place: page_kind(place) is not None
    environment.globals |= {"updates_told": updates_told, "categories": CATEGORIES}
    return environment


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
