"""Figures of fine-tuning: what is learnt, how fast, and at what cost."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffusion_sft.compare.verdict_words import LEARNERS_TOLD
from diffusion_sft.records import CATEGORIES, DIFFUSION, HIGHLY_KNOWN, LLM, UNKNOWN
from diffusion_sft.reference import load_reference
from diffusion_sft.report.svg import COLOURS, INK, MUTED, PAPER, PUBLISHED

from .drawing import WORLD_STYLE, in_percent, one_legend, panels, signed_ticks
from .halves import MAIN, OTHER, SHARES, of_mix, over_runs
from .learnt import learnt_points
from .numbers import Published

TAUGHT = {
    ("unknown-100", MAIN): ("Unknown alone, {}", COLOURS[UNKNOWN], "D"),
    ("unknown-100-preserved", MAIN): ("known ones beside it", COLOURS[HIGHLY_KNOWN], "o"),
    ("unknown-100-replayed", MAIN): ("known ones at the end", COLOURS["MaybeKnown"], "s"),
    ("unknown-100", OTHER): ("Unknown alone, {}", COLOURS["unknown"], "^"),
}


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
            in_percent(axes.xaxis, axes.yaxis)
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
            in_percent(axes.yaxis)
            one_legend(axes, loc="lower right")
        grid[0][0].set_ylabel("trained examples answered rightly", color=MUTED)
    return figure


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
            in_percent(axes.xaxis, axes.yaxis)
            axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        grid[0][0].set_ylabel("HighlyKnown, not taught: change", color=MUTED)
    return figure


def learnt_and_lost(published: Published) -> Figure:
    """What is newly right of what was taught, and what is lost of what was known best, at the end of each run."""
    with panels(2, height=4.1) as (figure, grid):
        for axes, learner in zip(grid[0], LEARNERS_TOLD, strict=True):
            for number, world in enumerate(published.worlds_of(learner)):
                points = learnt_points(published.half(learner, world)).sort_values("update")
                for mix, own in points.groupby("run").tail(1).groupby("mix"):
                    colour = COLOURS.get(_only_category(learner, str(mix)), MUTED)
                    marker = WORLD_STYLE[number][0]
                    axes.plot(own["newly"], own["change"], marker, color=colour, alpha=0.75, mew=0)
            axes.axhline(0, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set(title=LEARNERS_TOLD[learner], xlabel="taught examples that are newly right")
            in_percent(axes.xaxis, axes.yaxis)
        grid[0][0].set_ylabel("HighlyKnown, not taught: change", color=MUTED)
        marks = [*((c, COLOURS[c], "o") for c in CATEGORIES), ("mixed", MUTED, "o")]
        marks += [(world, INK, style[0]) for world, style in zip(published.worlds, WORLD_STYLE, strict=False)]
        handles = [Line2D([], [], color=c, marker=marker, linestyle="", label=label) for label, c, marker in marks]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _only_category(learner: str, mix: str) -> str:
    """The category of a mix of one; empty where there are more."""
    own = {"weakly-known": "WeaklyKnown", "maybe-known": "MaybeKnown", "highly-known": HIGHLY_KNOWN}
    own |= {"unknown": UNKNOWN, SHARES[-1]: UNKNOWN} | ({SHARES[0]: HIGHLY_KNOWN} if learner == DIFFUSION else {})
    return own.get(mix, "")


def coefficients(published: Published) -> Figure:
    """b_known and b_unknown of the linear model beside the published ones: filled of the mixes of known and Unknown alone,
    open of all mixes."""
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
                    for shares_alone, face, shift in ((True, colour, -0.14), (False, PAPER, 0.14)):
                        found = published.coefficient(learner, world, term, shares_alone=shares_alone)
                        height = place + shift
                        axes.plot([found.low, found.high], [height, height], color=colour, linewidth=1.6)
                        axes.plot(found.value, height, marker, color=colour, mfc=face)
                    place += 1
            told = {"b_known": reference.b_known_points, "b_unknown": reference.b_unknown_points}[term]
            axes.plot(told / 100, place, "^", mfc="none", mec=PUBLISHED, ms=8)
            axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set_yticks(range(place + 1), labels, color=INK)
            axes.set(title={"b_known": "b known", "b_unknown": "b Unknown"}[term], ylim=(place + 0.5, -0.5))
            signed_ticks(axes.xaxis, scale=100)
            axes.set_xlabel("points of accuracy")
    return figure
