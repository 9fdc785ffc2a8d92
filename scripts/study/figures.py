"""The study's figures, drawn from the published tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from diffusion_sft.compare.verdict_words import LEARNERS_TOLD
from diffusion_sft.files import replaced
from diffusion_sft.records import CATEGORIES, DIFFUSION, HIGHLY_KNOWN, LLM, UNKNOWN
from diffusion_sft.reference import load_reference
from diffusion_sft.report.drawing import tick
from diffusion_sft.report.svg import COLOURS, EARLY, INK, LATE, MUTED, PAPER, PUBLISHED, RULE, THEME

from .halves import MAIN, OTHER, of_mix, over_runs
from .numbers import Published

WORLD_STYLE = (("o", "-", EARLY), ("s", "--", LATE))
"""Marker, line and colour of the first world and of the second."""
SHARES = ("unknown-000", "unknown-025", "unknown-050", "unknown-075", "unknown-100")
TAUGHT = {
    ("unknown-100", MAIN): ("Unknown alone, {}", COLOURS[UNKNOWN], "D"),
    ("unknown-100-preserved", MAIN): ("known ones beside it", COLOURS[HIGHLY_KNOWN], "o"),
    ("unknown-100-replayed", MAIN): ("known ones at the end", COLOURS["MaybeKnown"], "s"),
    ("unknown-100", OTHER): ("Unknown alone, {}", COLOURS["unknown"], "^"),
}
MIX_KINDS = {"HighlyKnown taught": COLOURS[HIGHLY_KNOWN], "Unknown taught": COLOURS[UNKNOWN], "both": MUTED}
DOTS_PER_INCH = 110


@contextmanager
def panels(
    columns: int, rows: int = 1, width: float = 4.1, height: float = 3.3, **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure in the project's look, and its axes as (rows, columns)."""
    with matplotlib.rc_context(THEME):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor=PAPER)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def cost(published: Published) -> Figure:
    """What stays right of what was HighlyKnown and was not taught, by the share of Unknown in the mix."""
    single = load_reference().single_category["convergence"]
    with panels(2, sharey=True) as (figure, grid):
        for axes, learner in zip(grid[0], LEARNERS_TOLD, strict=True):
            for number, world in enumerate(published.worlds_of(learner)):
                table = published.half(learner, world).known_untaught
                table = table[table["mix"].isin(SHARES) & (table["how"] == MAIN)]
                _share_line(axes, table, number, world)
            if learner == LLM:
                ends = [single[name][HIGHLY_KNOWN] / 100 for name in (HIGHLY_KNOWN, UNKNOWN)]
                axes.plot([0, 1], ends, "^", mfc="none", mec=PUBLISHED, ms=8, label="Gekhman et al. (2024)")
            axes.set(
                title=LEARNERS_TOLD[learner],
                xlabel="Unknown in the mix",
                xticks=[0, 0.25, 0.5, 0.75, 1],
                ylim=(-0.03, 1.03),
            )
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axes.legend(frameon=False, labelcolor=INK, loc="lower left", fontsize=9.5)
        grid[0][0].set_ylabel("HighlyKnown, not taught:\nright after fine-tuning", color=MUTED)
    return figure


def _share_line(axes: Axes, table: pd.DataFrame, number: int, world: str) -> None:
    marker, line, colour = WORLD_STYLE[number]
    shift = (-0.012, 0.012)[number]
    means = {share: over_runs(own["end"]) for share, own in table.groupby("unknown_share")}
    places = np.array(list(means)) + shift
    axes.scatter(table["unknown_share"] + shift, table["end"], s=14, color=colour, alpha=0.35, linewidth=0)
    axes.plot(places, [mean.value for mean in means.values()], line, marker=marker, color=colour, label=world)
    for place, mean in zip(places, means.values(), strict=True):
        if mean.has_interval:
            axes.plot([place, place], np.clip([mean.low, mean.high], 0, 1), color=colour, linewidth=1.1)
    axes.axhline(table["before"].mean(), color=colour, linewidth=0.9, linestyle=":")


def fit(published: Published) -> Figure:
    """The fitted share of the trained examples over updates, mixes that are half Unknown."""
    with panels(2, sharey=True) as (figure, grid):
        for axes, learner in zip(grid[0], LEARNERS_TOLD, strict=True):
            for number, world in enumerate(published.worlds_of(learner)):
                half = published.half(learner, world)
                curves = half.table("dynamics/fit_curves")
                curves = curves[(curves["mix"] == "unknown-050") & (curves["method"] == half.main_method)]
                for category in CATEGORIES:
                    own = curves[curves["category"] == category].sort_values("update")
                    if len(own):
                        line = WORLD_STYLE[number][1]
                        axes.plot(own["update"], own["fitted_share"], line, color=COLOURS[category], label=category)
                        axes.fill_between(
                            own["update"], own["low"], own["high"], color=COLOURS[category], alpha=0.08, lw=0
                        )
            axes.set(title=LEARNERS_TOLD[learner], xlabel="updates", ylim=(-0.03, 1.03))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            _one_legend(axes, loc="lower right")
        grid[0][0].set_ylabel("trained examples answered rightly", color=MUTED)
    return figure


def _one_legend(axes: Axes, **options: Any) -> None:
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes.legend(handles.values(), handles.keys(), frameon=False, labelcolor=INK, fontsize=9.5, **options)


def rules(published: Published) -> Figure:
    """How well each rule tells names read often from names never read, and follows the exposure."""
    measures = {
        "auroc": "AUROC, read ≥ 200 times / never",
        "spearman_with_log_exposure": "Spearman with log exposure",
    }
    with panels(2, height=2.6, sharey=True) as (figure, grid):
        for axes, (measure, told) in zip(grid[0], measures.items(), strict=True):
            for number, world in enumerate(published.worlds_of(DIFFUSION)):
                marker, _, colour = WORLD_STYLE[number]
                summary = published.half(DIFFUSION, world).bucket_summary["exposure"][measure]
                for place, rule in enumerate(summary):
                    found, height = summary[rule], place + (-0.12, 0.12)[number]
                    axes.plot([found["low"], found["high"]], [height, height], color=colour, linewidth=1.6)
                    axes.plot(found["value"], height, marker, color=colour, label=world)
            axes.set_yticks(range(len(summary)), list(summary), color=INK)
            axes.set(xlabel=told, ylim=(len(summary) - 0.5, -0.5))
        grid[0][0].axvline(0.5, color=MUTED, linewidth=0.9, linestyle=":")
        _one_legend(grid[0][0], loc="upper left")
    return figure


def classes(published: Published) -> Figure:
    """Category against solution class, of each learner and world."""
    solutions = ("one", "many", "none")
    places = [(half.learner, half.world) for half in published.halves.values() if half.is_solved]
    places.sort(key=lambda place: (list(LEARNERS_TOLD).index(place[0]), place[1]))
    with panels(len(places), width=2.6, height=2.9) as (figure, grid):
        for axes, (learner, world) in zip(grid[0], places, strict=True):
            counts = published.verdict(world)["learners"][learner]["association"]["table"]
            table = np.array([[counts.get(c, {}).get(s, 0) for s in solutions] for c in CATEGORIES], dtype=float)
            shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
            for row in range(4):
                for column in range(3):
                    dark = shares[row, column] > 0.75
                    axes.text(
                        column,
                        row,
                        f"{table[row, column]:.0f}",
                        ha="center",
                        va="center",
                        color=PAPER if dark else INK,
                    )
            axes.set_xticks(range(3), solutions)
            axes.set_yticks(range(4), CATEGORIES if axes is grid[0][0] else [""] * 4, color=INK)
            axes.set_title(f"{LEARNERS_TOLD[learner]}\n{world}", fontsize=10)
            axes.grid(False)
            axes.spines[:].set_visible(False)
    return figure


def forecasts(published: Published) -> Figure:
    """Forgetting in nats, forecast before training and measured after it."""
    learners = [
        learner
        for learner in LEARNERS_TOLD
        if any(published.half(learner, w).forecasts is not None for w in published.worlds_of(learner))
    ]
    with panels(len(learners)) as (figure, grid):
        for axes, learner in zip(grid[0], learners, strict=True):
            for number, world in enumerate(published.worlds_of(learner)):
                table = published.half(learner, world).forecasts
                if table is not None:
                    marker, _, colour = WORLD_STYLE[number]
                    axes.plot(table["forecast"], table["outcome"], marker, color=colour, alpha=0.7, label=world)
            low, high = axes.get_xlim()
            axes.axline((low, low), slope=1, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set(title=LEARNERS_TOLD[learner], xlabel="forecast, nats of error", xlim=(low, high))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, signed=True)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, signed=True)))
            _one_legend(axes, loc="best")
        grid[0][0].set_ylabel("measured at the end", color=MUTED)
    return figure


def distances(published: Published) -> Figure:
    """FID's change of the known bucket beside what happened to single concepts."""
    pictures = published.frame(DIFFUSION, "known_untaught").set_index(["world", "run"])
    frame = published.frame(DIFFUSION, "distances")
    frame = frame[(frame["metric"] == "fid_change") & (frame["bucket"] == "known")].set_index(["world", "run"])
    table = frame[["value", "standard_error", "mix", "method"]].join(
        pictures[["change", "lost_concepts", "num_concepts"]]
    )
    kinds = [_mix_kind(mix) for mix in table["mix"]]
    lost = table["lost_concepts"] / table["num_concepts"]
    told = {"pictures read right, change": table["change"], "concepts that lost half of theirs": lost}
    with panels(2) as (figure, grid):
        for axes, (label, values) in zip(grid[0], told.items(), strict=True):
            axes.errorbar(
                table["value"], values, xerr=1.96 * table["standard_error"], fmt="none", ecolor=RULE, zorder=1
            )
            for kind, colour in MIX_KINDS.items():
                own = [found == kind for found in kinds]
                axes.scatter(table["value"][own], values[own], color=colour, s=26, zorder=3, label=kind)
            axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set(xlabel="change of the known bucket's FID", ylabel=label)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        grid[0][0].legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    return figure


def _mix_kind(mix: str) -> str:
    known, unknown, mixed = MIX_KINDS
    return unknown if mix.startswith(SHARES[-1]) else known if mix == SHARES[0] else mixed


def mitigations(published: Published) -> Figure:
    """What is learnt of all-Unknown mixes, and what it costs, with and without a guard."""
    with panels(2, height=4.2) as (figure, grid):
        for axes, learner in zip(grid[0], LEARNERS_TOLD, strict=True):
            learnt = published.frame(learner, "unknown_heldout").set_index(["world", "run"])
            changes = published.frame(learner, "known_untaught").set_index(["world", "run"])["change"]
            for (mix, how), (told, colour, marker) in TAUGHT.items():
                runs = of_mix(learnt, mix, how)
                words = told.format(published.method_words(learner, how)) if len(runs) else ""
                own = runs["accuracy_end"]
                lost = changes.reindex(own.index)
                if len(own):
                    axes.plot(own, lost, marker, color=colour, alpha=0.4, ms=5)
                    axes.plot(own.mean(), lost.mean(), marker, color=colour, ms=10, mec=INK, label=words)
            axes.axhline(0, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set(title=LEARNERS_TOLD[learner], xlabel="Unknown learnt: held-out right")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        grid[0][0].set_ylabel("HighlyKnown, not taught: change", color=MUTED)
    return figure


def coefficients(published: Published) -> Figure:
    """b_known and b_unknown of the linear model, beside the published ones."""
    reference = load_reference().linear_model["in_distribution"]
    with panels(2, height=2.8, sharey=True) as (figure, grid):
        labels = [
            f"{LEARNERS_TOLD[learner]}, {world}"
            for learner in LEARNERS_TOLD
            for world in published.worlds_of(learner)
        ] + ["Gekhman et al. (2024)"]
        for axes, term in zip(grid[0], ("b_known", "b_unknown"), strict=True):
            place = 0
            for learner in LEARNERS_TOLD:
                for number, world in enumerate(published.worlds_of(learner)):
                    marker, _, colour = WORLD_STYLE[number]
                    row = published.half(learner, world).coefficient(term)
                    axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.6)
                    axes.plot(row["estimate"], place, marker, color=colour)
                    place += 1
            told = {"b_known": reference.b_known_points, "b_unknown": reference.b_unknown_points}[term]
            axes.plot(told / 100, place, "^", mfc="none", mec=PUBLISHED, ms=8)
            axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set_yticks(range(place + 1), labels, color=INK)
            axes.set(title={"b_known": "b known", "b_unknown": "b Unknown"}[term], ylim=(place + 0.5, -0.5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(round(100 * value, 6), signed=True)))
            axes.set_xlabel("points of accuracy")
    return figure


FIGURES: Mapping[str, Callable[[Published], Figure]] = {
    "cost": cost,
    "fit": fit,
    "rules": rules,
    "classes": classes,
    "forecasts": forecasts,
    "distances": distances,
    "mitigations": mitigations,
    "coefficients": coefficients,
}


def draw_all(published: Published, folder: Path) -> None:
    """Write every figure as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = any(half.is_drawn for half in published.halves.values())
    for name, draw in FIGURES.items():
        if draw is distances and not drawn:
            continue
        with replaced(folder / f"{name}.png") as temporary, matplotlib.rc_context(THEME):
            draw(published).savefig(
                temporary, format="png", dpi=DOTS_PER_INCH, facecolor=PAPER, metadata={"Software": None}
            )
