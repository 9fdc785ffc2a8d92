"""The parts of the page that are rows of drawings, the numbers at its head, and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..records import LLM, RULES
from .agreement import auroc, rank_correlation
from .changes import measure, metric_name
from .drawing import Interval, Panel, interval_panel, shared_limits
from .figures import POINTS, accuracy_panel, drawn_concepts, exposure_panel, learning_panels
from .run import Run
from .tables import BUCKETS
from .wording import BASE, model_name, plural, reading


@dataclass(frozen=True, kw_only=True)
class PanelRow:
    """Panels under one heading; the name is a run's or a metric's."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A few numbers of one half for the head of the page, each with what it counts."""

    heading: str
    numbers: tuple[tuple[str, str], ...]


def key_facts(runs: Mapping[str, Run]) -> list[Facts]:
    """The numbers of every half that has some."""
    facts = [Facts(heading=run.nouns.model.capitalize(), numbers=tuple(_numbers(run))) for run in runs.values()]
    return [half for half in facts if half.numbers]


def _numbers(run: Run) -> list[tuple[str, str]]:
    facts = []
    if run.concepts is not None:
        known = int((run.concepts["bucket"] == "known").sum())
        facts += [(f"{len(run.concepts):,}", f"{run.nouns.concept}s"), (f"{known:,}", "known to the base")]
        facts.append((f"{len(run.concepts) - known:,}", "unknown to it"))
    if run.mixes:
        mixes = len(run.first_runs)
        facts.append((str(mixes), "mix fine-tuned" if mixes == 1 else "mixes fine-tuned"))
        if len(run.mixes) > mixes:
            facts.append((str(len(run.mixes)), "runs of them"))
    if run.accuracy is not None:
        facts.append((f"{int(run.accuracy['num_images'].sum()):,}", "images generated"))
    return facts


def exposure_panels(run: Run) -> list[Panel]:
    """The four rules' scores against exposure."""
    if run.concepts is None:
        return []
    shown = drawn_concepts(run.concepts)
    return [exposure_panel(shown, rule, _auroc_remark(run, rule), run.nouns, run.prefix) for rule in RULES]


def exposure_remark(run: Run) -> str:
    """That the drawings hold a sample of the concepts, where they do."""
    if run.concepts is None or len(run.concepts) <= POINTS:
        return ""
    return f"Drawn: {POINTS:,} of {plural(len(run.concepts), run.nouns.concept)}, chosen by a hash of their names."


def learning_rows(run: Run) -> list[PanelRow]:
    """The learning curves of each mix that was evaluated, those of its first seed."""
    evaluated = [(place, mix) for place, mix in enumerate(run.first_runs) if mix.evaluations is not None]
    return [PanelRow(name=mix.name, panels=tuple(learning_panels(mix, n, run.prefix))) for n, mix in evaluated]


def seed_remark(run: Run) -> str:
    """That only the first seed of each mix is shown, where there are several."""
    further = len(run.mixes) - len(run.first_runs)
    return f"Of a mix with several seeds the first is shown; {plural(further, 'further run')} left out here." * (
        further > 0
    )


def change_rows(run: Run) -> list[PanelRow]:
    """For each paired change of a distance that was measured, one panel per mix, all on the same axis."""
    if run.measures is None:
        return []
    metrics = [str(metric) for metric in dict.fromkeys(run.measures["metric"])]
    found = [name for name in metrics if name.endswith("_change") and name != "accuracy_change"]
    rows = []
    for metric in sorted(found, key=lambda name: (not name.startswith("fid"), name)):
        by_model = {model: _intervals(run, model, metric) for model in run.shown_models if model != BASE}
        limits = shared_limits([row.estimate for intervals in by_model.values() for row in intervals])
        panels = tuple(
            interval_panel(model_name(model), f"change-{metric}-{place}", intervals, limits)
            for place, (model, intervals) in enumerate(by_model.items())
            if intervals
        )
        if panels:
            rows.append(PanelRow(name=metric_name(metric), panels=panels))
    return rows


def accuracy_panels(run: Run) -> list[Panel]:
    """Each concept's accuracy after a mix against before it, one panel per mix."""
    if run.accuracy is None:
        return []
    by_model = run.accuracy.pivot_table(index=["concept", "category"], columns="model", values="accuracy")
    panels = []
    for place, model in enumerate(run.shown_models):
        if model == BASE or not {BASE, model} <= set(by_model.columns):
            continue
        pairs = by_model[[BASE, model]].dropna().reset_index().rename(columns={BASE: "before", model: "after"})
        trained = {
            name for mix in run.mixes if mix.name == model for names in mix.composition.values() for name in names
        }
        if len(pairs):
            panels.append(accuracy_panel(model_name(model), f"accuracy-{place}", pairs, trained))
    return panels


def table_files(study_folder: Path) -> list[tuple[str, str]]:
    """The CSV tables of a study: name and relative link."""
    stages = ("probe", "buckets", "finetune/*", "evaluate", "dynamics", "solve", "compare")
    own = ("*.csv", *(f"{stage}/*.csv" for stage in stages))
    patterns = (*own, *(f"{LLM}/{pattern}" for pattern in own))
    found = [
        path.relative_to(study_folder).as_posix()
        for pattern in patterns
        for path in sorted(study_folder.glob(pattern))
    ]
    return [(name, quote(name)) for name in found]


def _intervals(run: Run, model: str, metric: str) -> list[Interval]:
    read = ((bucket, measure(run, model, bucket, metric)) for bucket in BUCKETS)
    return [Interval(label=bucket, estimate=estimate) for bucket, estimate in read if estimate is not None]


def _auroc_remark(run: Run, rule: str) -> str:
    area, follows = auroc(run.buckets, rule), rank_correlation(run.buckets, rule)
    parts = [f"AUROC {' '.join(reading(area))}".rstrip() if area else "AUROC not recorded"]
    if follows is not None:
        parts.append(f"rank correlation {' '.join(reading(follows))}".rstrip())
    return ", ".join(parts)
