"""Figures of what the base knows, of the systems, and of what distances and forecasts tell."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from diffusion_sft.compare.verdict_words import LEARNERS_TOLD
from diffusion_sft.records import CATEGORIES, DIFFUSION, HIGHLY_KNOWN, UNKNOWN
from diffusion_sft.report.svg import COLOURS, INK, MUTED, PAPER, RULE

from .analyses import distances_and_loss
from .drawing import WORLD_STYLE, in_percent, one_legend, panels, signed_ticks
from .halves import MAIN, SHARES
from .numbers import Published

MIX_KINDS = {
    "HighlyKnown taught": COLOURS[HIGHLY_KNOWN],
    "Unknown taught": COLOURS[UNKNOWN],
    "mixed or MaybeKnown": MUTED,
}


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
        one_legend(grid[0][0], loc="upper left")
    return figure


def classes(published: Published) -> Figure:
    """Category against solution class, of each learner and world."""
    solutions = ("one", "many", "none")
    places = [(learner, world) for learner in LEARNERS_TOLD for world in published.worlds_of(learner)]
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
    with panels(2) as (figure, grid):
        for axes, learner in zip(grid[0], LEARNERS_TOLD, strict=True):
            for number, world in enumerate(published.worlds_of(learner)):
                table = published.half(learner, world).forecasts
                marker, _, colour = WORLD_STYLE[number]
                axes.plot(table["forecast"], table["outcome"], marker, color=colour, alpha=0.7, label=world)
            low, high = axes.get_xlim()
            axes.axline((low, low), slope=1, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set(title=LEARNERS_TOLD[learner], xlabel="forecast, nats of error", xlim=(low, high))
            signed_ticks(axes.xaxis, axes.yaxis)
            one_legend(axes, loc="best")
        grid[0][0].set_ylabel("measured at the end", color=MUTED)
    return figure


def distances(published: Published) -> Figure:
    """FID's change beside what was lost: of the HighlyKnown bucket, and of the pictures of all concepts together."""
    told = {HIGHLY_KNOWN: "change of FID, HighlyKnown bucket", "all": "change of FID, all concepts together"}
    with panels(2, height=3.9, sharey=True) as (figure, grid):
        for axes, (bucket, label) in zip(grid[0], told.items(), strict=True):
            table = distances_and_loss(published, bucket)
            reach = 1.96 * table["standard_error"]
            axes.errorbar(table["value"], table["change"], xerr=reach, fmt="none", ecolor=RULE, zorder=1)
            for (kind, how), own in table.groupby([table["mix"].map(_mix_kind), "how"]):
                marker, words = (
                    ("o", kind) if how == MAIN else ("^", f"{kind}, {published.method_words(DIFFUSION, how)}")
                )
                axes.scatter(
                    own["value"], own["change"], color=MIX_KINDS[kind], s=26, marker=marker, zorder=3, label=words
                )
            axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set(xlabel=label)
            in_percent(axes.yaxis)
        grid[0][0].set_ylabel("HighlyKnown, not taught: pictures\nread right, change", color=MUTED)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _mix_kind(mix: str) -> str:
    known, unknown, mixed = MIX_KINDS
    return unknown if mix.startswith(SHARES[-1]) else known if mix == SHARES[0] else mixed
