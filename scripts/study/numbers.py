"""What the write-up says in numbers, read off the published tables; every mean over runs has its interval.

A run is one mix taught with one method and one seed in one world. Means over runs have Student's interval, those over
concepts the bootstrap's of the comparison; runs of one world share its base, which an interval over runs does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from diffusion_sft.files import read_json, read_table
from diffusion_sft.report.wording import Estimate

from .deriving import COMPARED, published_worlds
from .halves import ALL, MAIN, METHOD_WORDS, OUTSIDE, Half, estimate, of_mix, over_runs, share_over_runs
from .publishing import half_folder, halves_of


@dataclass(frozen=True)
class Published:
    """The published results: every world, both learners."""

    folder: Path

    @cached_property
    def worlds(self) -> list[str]:
        """Their names, in order."""
        return [world.name for world in published_worlds(self.folder)]

    @cached_property
    def halves(self) -> dict[tuple[str, str], Half]:
        """By world and learner."""
        return {
            (world, learner): Half(world, learner, half_folder(self.folder / world, learner))
            for world in self.worlds
            for learner in halves_of(self.folder / world)
        }

    def worlds_of(self, learner: str) -> list[str]:
        """The worlds in which this learner was studied."""
        return [world for world, other in self.halves if other == learner]

    @property
    def has_report(self) -> bool:
        """Whether a page of the study itself is among them."""
        return any(self.folder.glob("*/report.html"))

    @cached_property
    def _verdicts(self) -> dict[str, dict[str, Any]]:
        return {world: read_json(self.folder / world / COMPARED / "verdict.json") for world in ("", *self.worlds)}

    def verdict(self, world: str = "") -> dict[str, Any]:
        """`verdict.json` of one world's comparison, or of that of all."""
        return self._verdicts[world]

    def half(self, learner: str, world: str) -> Half:
        """One learner's half of one world."""
        return self.halves[world, learner]

    def frame(self, learner: str, name: str, worlds: Iterable[str] = ()) -> pd.DataFrame:
        """A frame of `Half` by its name (runs, asked, known_untaught, ...), of these worlds; of all where none is named."""
        return pd.concat(
            [getattr(self.half(learner, world), name) for world in worlds or self.worlds_of(learner)],
            ignore_index=True,
        )

    def method_words(self, learner: str, how: str = MAIN) -> str:
        """What a learner's runs changed: all weights, or adapters."""
        runs = self.frame(learner, "runs")
        return METHOD_WORDS[runs[runs["how"] == how]["method"].iloc[0]]

    def share_right(
        self,
        learner: str,
        mix: str,
        role: str,
        category: str,
        *,
        how: str = MAIN,
        stop: str = "end",
        worlds: Iterable[str] = (),
    ) -> Estimate:
        """The share answered rightly of a role and category, over runs of a mix."""
        table = self.frame(learner, "asked", worlds)
        own = table[(table["role"] == role) & (table["category"] == category)]
        return share_over_runs(of_mix(own, mix, how)[f"accuracy_{stop}"])

    def kept(self, learner: str, mix: str, *, how: str = MAIN, worlds: Iterable[str] = ()) -> dict[str, Estimate]:
        """What was HighlyKnown and was not taught, over runs of a mix: the share right before and at the end (of generated
        pictures, or of test questions), and its change."""
        own = of_mix(self.frame(learner, "known_untaught", worlds), mix, how)
        return {
            name: share_over_runs(own[name], -1.0 if name == "change" else 0.0)
            for name in ("before", "end", "change")
        }

    def beyond(
        self,
        learner: str,
        mix: str,
        control: str,
        *,
        how: str = MAIN,
        learnt: bool = False,
        worlds: Iterable[str] = (),
    ) -> Estimate:
        """What a mix does beyond another (by the main method), over pairs of runs of one world and seed.

        Of the change of what was HighlyKnown and not taught, negative where more is lost; or of the share of held-out
        Unknown that is right (`learnt`).
        """
        name, column = ("unknown_heldout", "accuracy_end") if learnt else ("known_untaught", "change")
        return _beyond(self.frame(learner, name, worlds), column, (mix, how), control)

    def asked_change(self, learner: str, mix: str, category: str = ALL, *, how: str = MAIN) -> Estimate:
        """The change of the share right of what was not taught, as the runs' own evaluations ask it, over runs of a mix."""
        return share_over_runs(of_mix(self._outside(learner, category), mix, how)["accuracy_change"], -1.0)

    def asked_beyond(
        self, learner: str, mix: str, control: str, category: str = ALL, *, stop: str = "end"
    ) -> Estimate:
        """What a mix does beyond another to the share right of what was not taught, as the runs' own evaluations ask it, over
        pairs of runs of one world and seed."""
        return _beyond(self._outside(learner, category), f"accuracy_{stop}", (mix, MAIN), control)

    def _outside(self, learner: str, category: str) -> pd.DataFrame:
        """The rows of `asked` about what was not taught."""
        table = self.frame(learner, "asked")
        return table[(table["role"] == OUTSIDE[learner]) & (table["category"] == category)]

    def nats_change(
        self, learner: str, mix: str, role: str = "", *, how: str = MAIN, worlds: Iterable[str] = ()
    ) -> Estimate:
        """The change of the error in nats of all that is asked in a role, or of what was never taught, over runs of a mix."""
        table = self.frame(learner, "asked", worlds)
        own = table[(table["role"] == (role or OUTSIDE[learner])) & (table["category"] == ALL)]
        return over_runs(of_mix(own, mix, how)["error_nats_change"])

    def coefficient(self, learner: str, world: str, term: str, *, shares_alone: bool = False) -> Estimate:
        """A coefficient of the dynamics model of one world, in shares of accuracy; of all mixes without guards or of those of
        known and Unknown alone."""
        row = self.half(learner, world).coefficient(term, shares_alone=shares_alone)
        return estimate(row.rename({"estimate": "value"}))

    def forecast(
        self,
        learner: str,
        world: str,
        *,
        role: str = "",
        category: str = ALL,
        measure: str = "error_nats",
        predictor: str = "forecast",
    ) -> pd.Series:
        """A rank correlation of forecast and outcome at the end, after the most Krylov steps."""
        table = self.half(learner, world).table("solve/correlations")
        wanted = {"role": role or OUTSIDE[learner], "category": category, "outcome": "last", "measure": measure}
        for column, value in (wanted | {"predictor": predictor, "krylov_steps": table["krylov_steps"].max()}).items():
            table = table[table[column] == value]
        return table.iloc[0]

    def linearisation(self, learner: str) -> tuple[float, float]:
        """Medians over runs: the linear model's relative error at the step that training took, and that step's cosine with
        the forecast's."""
        halves = [self.half(learner, world) for world in self.worlds_of(learner)]
        found = pd.concat([half.table("solve/forecasts").drop_duplicates("run") for half in halves])[
            ["real_step_error", "cosine"]
        ].median()
        return float(found["real_step_error"]), float(found["cosine"])

    @cached_property
    def _compared(self) -> pd.DataFrame:
        return read_table(self.folder / COMPARED / "comparison.parquet")

    @cached_property
    def _trends(self) -> pd.DataFrame:
        table = read_table(self.folder / COMPARED / "trends.parquet")
        return table.rename(columns={"rho": "value", "rho_low": "low", "rho_high": "high"})

    def row(self, metric: str, learner: str, category: str = "") -> pd.Series | None:
        """A row of the comparison of both learners in all worlds together; None where it is missing."""
        table = self._compared
        own = table[(table["metric"] == metric) & (table["learner"] == learner) & (table["source"] == "measured")]
        own = own[(own["category"] == category) & own["value"].notna()]
        return own.iloc[0] if len(own) else None

    def trend(self, metric: str, learner: str) -> Estimate | None:
        """Spearman's ρ of a measure with the category over single concepts of all worlds; None where there is none."""
        table = self._trends
        own = table[(table["metric"] == metric) & (table["learner"] == learner) & table["value"].notna()]
        return estimate(own.iloc[0]) if len(own) else None


def _beyond(table: pd.DataFrame, column: str, which: tuple[str, str], control: str) -> Estimate:
    """The difference of a column between a mix, taught in some way, and a control, over pairs of runs of one world and seed."""
    own, other = (of_mix(table, *mix).set_index(["world", "seed"])[column] for mix in (which, (control, MAIN)))
    return share_over_runs((own - other).dropna(), -1.0)
