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

import numpy as np
import pandas as pd

from diffusion_sft.files import read_json, read_table
from diffusion_sft.numerics.statistics import student_mean
from diffusion_sft.records import DIFFUSION, HIGHLY_KNOWN, LLM, TEST, UNTOUCHED
from diffusion_sft.report.wording import Estimate

from .publishing import half_folder

OUTSIDE = {DIFFUSION: UNTOUCHED, LLM: TEST}
"""The role of what a run is asked and was never taught."""
RUN = ["world", "run", "mix", "method", "seed"]
ALL = "all"


def over_runs(values: Iterable[float]) -> Estimate:
    """Mean and Student's interval over runs."""
    found = student_mean(np.asarray([value for value in values if np.isfinite(value)], dtype=float))
    return Estimate(value=found.value, low=found.low, high=found.high)


def of_mix(table: pd.DataFrame, mix: str, method: str = "full") -> pd.DataFrame:
    """The rows of a mix's runs with a method."""
    return table[(table["mix"] == mix) & (table["method"] == method)]


@dataclass(frozen=True)
class Half:
    """One learner's half of one world."""

    world: str
    learner: str
    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        """A table by its name below the half's folder, without the ending."""
        return read_table(self.folder / f"{name}.parquet")

    @cached_property
    def study(self) -> dict[str, Any]:
        """`study.json`."""
        return read_json(self.folder / "study.json")

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row for each run, with what it was taught (`taught`, concepts' names) and what guarded it."""
        rows = self.table("dynamics/runs")
        records = [read_json(self.folder / "finetune" / run / "finetune.json") for run in rows["run"]]
        taught = [
            {n for names in r["concepts"].values() for n in names} | set(r["guarding_concepts"]) for r in records
        ]
        guards = [str(record["guard"]) for record in records]
        seconds = [float(record["seconds"]) for record in records]
        return rows.assign(
            world=self.world, taught=pd.Series(taught, index=rows.index, dtype=object), guard=guards, seconds=seconds
        )

    @cached_property
    def asked(self) -> pd.DataFrame:
        """One row for each run, role and category (`all` too): accuracy and nats of error before, early and at the end."""
        parts = []
        for run in self.runs.to_dict("records"):
            table = self.table(f"finetune/{run['run']}/evaluations")
            table = pd.concat([table, _together(table)], ignore_index=True)
            stops = {"before": 0, "early": run["early_stop_update"], "end": run["last_update"]}
            found = table.drop_duplicates(["role", "category"]).set_index(["role", "category"])[["num_examples"]]
            for stop, update in stops.items():
                here = table[table["update"] == update].set_index(["role", "category"])
                found = found.join(here[["accuracy", "error_nats"]].add_suffix(f"_{stop}"))
            parts.append(found.reset_index().assign(**{name: run[name] for name in [*RUN, "unknown_share", "guard"]}))
        table = pd.concat(parts, ignore_index=True)
        for measure in ("accuracy", "error_nats"):
            for stop in ("early", "end"):
                table[f"{measure}_change_{stop}"] = table[f"{measure}_{stop}"] - table[f"{measure}_before"]
        return table

    @cached_property
    def pictures(self) -> pd.DataFrame:
        """One row for each run and category of the concepts that it was *not* taught: the share of their generated
        pictures that are read right, before and after."""
        table = self.table("evaluate/concept_accuracy")
        before = table[table["model"] == "base"].set_index("concept")["accuracy"]
        rows = []
        for run in self.runs.to_dict("records"):
            own = table[(table["model"] == run["run"]) & ~table["concept"].isin(run["taught"])]
            for category, here in own.groupby("category"):
                change = here["accuracy"].to_numpy() - before.loc[here["concept"]].to_numpy()
                readings = {
                    "num_concepts": len(here),
                    "before": float(before.loc[here["concept"]].mean()),
                    "end": float(here["accuracy"].mean()),
                    "change": float(change.mean()),
                    "lost_concepts": int((change <= -0.5).sum()),
                }
                rows.append(
                    {name: run[name] for name in [*RUN, "unknown_share", "guard"]} | {"category": category} | readings
                )
        return pd.DataFrame(rows)

    @cached_property
    def known_untaught(self) -> pd.DataFrame:
        """One row for each run: the share right of what was HighlyKnown and was not taught (of generated pictures, or of
        test questions) before and at the end, and its change."""
        if self.learner == DIFFUSION:
            return self.pictures[self.pictures["category"] == HIGHLY_KNOWN]
        own = self.asked[(self.asked["role"] == TEST) & (self.asked["category"] == HIGHLY_KNOWN)]
        names = {"accuracy_before": "before", "accuracy_end": "end", "accuracy_change_end": "change"}
        return own.rename(columns=names)

    @cached_property
    def bucket_summary(self) -> dict[str, Any]:
        """`buckets.json`."""
        return read_json(self.folder / "buckets" / "buckets.json")

    @cached_property
    def forecasts(self) -> pd.DataFrame | None:
        """One row for each run that was forecast: the change of error in nats on what is not taught, forecast with the
        most Krylov steps and measured at the end; None where nothing was forecast."""
        if not (self.folder / "solve" / "forecasts.parquet").is_file():
            return None
        table = self.table("solve/forecasts")
        own = table[(table["role"] == OUTSIDE[self.learner]) & (table["category"] == ALL)]
        own = own[own["krylov_steps"] == own["krylov_steps"].max()]
        own = own.merge(self.runs[["run", "mix"]], on="run")
        return own.assign(
            world=self.world,
            forecast=own["forecast_error_nats"] - own["base_error_nats"],
            outcome=own["last_error_nats"] - own["before_error_nats"],
        )[["world", "run", "mix", "seed", "forecast", "outcome"]]

    def coefficient(self, term: str, method: str = "full") -> pd.Series:
        """A row of `dynamics/linear_model` about what is not taught."""
        table = self.table("dynamics/linear_model")
        own = table[(table["role"] == OUTSIDE[self.learner]) & (table["method"] == method) & (table["term"] == term)]
        return own.iloc[0]

    @cached_property
    def distances(self) -> pd.DataFrame:
        """`evaluate/measures` of the runs, with what they are."""
        table = self.table("evaluate/measures")
        return table.merge(self.runs[[*RUN, "unknown_share", "guard"]], left_on="model", right_on="run")


def _together(table: pd.DataFrame) -> pd.DataFrame:
    """All categories of each update and role as one, in the columns that are read here."""
    weights = table["num_examples"]
    sums = table.assign(accuracy=table["accuracy"] * weights, error_nats=table["error_nats"] * weights)
    found = (
        sums.groupby(["update", "role"], sort=False)[["num_examples", "accuracy", "error_nats"]].sum().reset_index()
    )
    means = found[["accuracy", "error_nats"]].div(found["num_examples"], axis=0)
    return found.assign(accuracy=means["accuracy"], error_nats=means["error_nats"], category=ALL)


@dataclass(frozen=True)
class Published:
    """The published results: every world, both learners."""

    folder: Path

    @cached_property
    def worlds(self) -> list[str]:
        """Their names, in order."""
        return sorted(path.parent.name for path in self.folder.glob("*/study.json"))

    @cached_property
    def halves(self) -> dict[tuple[str, str], Half]:
        """By world and learner."""
        return {
            (world, learner): Half(world, learner, half_folder(self.folder / world, learner))
            for world in self.worlds
            for learner in (DIFFUSION, LLM)
        }

    def verdict(self, world: str = "") -> dict[str, Any]:
        """`verdict.json` of one world's comparison, or of that of all."""
        return read_json(self.folder / world / "compare" / "verdict.json")

    def half(self, learner: str, world: str) -> Half:
        """One learner's half of one world."""
        return self.halves[world, learner]

    def frame(self, learner: str, name: str, worlds: Iterable[str] = ()) -> pd.DataFrame:
        """A frame of `Half` (runs, asked, pictures, known_untaught, distances) of these worlds; of all where none is named."""
        return pd.concat(
            [getattr(self.half(learner, world), name) for world in worlds or self.worlds], ignore_index=True
        )

    def share_right(
        self,
        learner: str,
        mix: str,
        role: str,
        category: str,
        *,
        method: str = "full",
        stop: str = "end",
        worlds: Iterable[str] = (),
    ) -> Estimate:
        """The share answered rightly of a role and category, over runs of a mix."""
        table = self.frame(learner, "asked", worlds)
        own = table[(table["role"] == role) & (table["category"] == category)]
        return over_runs(of_mix(own, mix, method)[f"accuracy_{stop}"])

    def kept(
        self, learner: str, mix: str, *, method: str = "full", worlds: Iterable[str] = ()
    ) -> dict[str, Estimate]:
        """What was HighlyKnown and was not taught, over runs of a mix: the share right before and at the end (of generated
        pictures, or of test questions), and its change."""
        own = of_mix(self.frame(learner, "known_untaught", worlds), mix, method)
        return {name: over_runs(own[name]) for name in ("before", "end", "change")}

    def beyond(
        self,
        learner: str,
        mix: str,
        control: str,
        *,
        method: str = "full",
        control_method: str = "full",
        worlds: Iterable[str] = (),
    ) -> Estimate:
        """How much more of what was HighlyKnown and not taught a mix loses than another, over pairs of runs of one world and
        seed; negative where it loses more."""
        table = self.frame(learner, "known_untaught", worlds)
        ends = [
            of_mix(table, *which).set_index(["world", "seed"])["change"]
            for which in ((mix, method), (control, control_method))
        ]
        return over_runs((ends[0] - ends[1]).dropna())

    def outside_nats(
        self, learner: str, mix: str, *, method: str = "full", category: str = ALL, worlds: Iterable[str] = ()
    ) -> Estimate:
        """The change of the error in nats on what was never taught, over runs of a mix."""
        table = self.frame(learner, "asked", worlds)
        own = table[(table["role"] == OUTSIDE[learner]) & (table["category"] == category)]
        return over_runs(of_mix(own, mix, method)["error_nats_change_end"])

    def coefficient(self, learner: str, world: str, term: str) -> Estimate:
        """A coefficient of the dynamics model of one world, in shares of accuracy."""
        row = self.half(learner, world).coefficient(term)
        return Estimate(value=row["estimate"], low=row["low"], high=row["high"])

    def forecast(
        self,
        learner: str,
        world: str,
        *,
        role: str = "",
        category: str = ALL,
        measure: str = "error_nats",
        predictor: str = "forecast",
    ) -> pd.Series | None:
        """A rank correlation of forecast and outcome at the end, after the most Krylov steps; None where there is none."""
        half = self.half(learner, world)
        if half.forecasts is None:
            return None
        table = half.table("solve/correlations")
        wanted = {"role": role or OUTSIDE[learner], "category": category, "outcome": "last", "measure": measure}
        for column, value in (wanted | {"predictor": predictor, "krylov_steps": table["krylov_steps"].max()}).items():
            table = table[table[column] == value]
        return table.iloc[0] if len(table) else None

    @cached_property
    def _compared(self) -> pd.DataFrame:
        return read_table(self.folder / "compare" / "comparison.parquet")

    def row(self, metric: str, learner: str, category: str = "") -> pd.Series | None:
        """A row of the comparison of both learners in all worlds together; None where it is missing."""
        table = self._compared
        own = table[(table["metric"] == metric) & (table["learner"] == learner) & (table["source"] == "measured")]
        own = own[(own["category"] == category) & own["value"].notna()]
        return own.iloc[0] if len(own) else None

    def trend(self, metric: str, learner: str) -> Estimate | None:
        """Spearman's ρ of a measure with the category over single concepts of all worlds; None where there is none."""
        table = read_table(self.folder / "compare" / "trends.parquet")
        own = table[(table["metric"] == metric) & (table["learner"] == learner) & table["rho"].notna()]
        return (
            Estimate(value=own.iloc[0]["rho"], low=own.iloc[0]["rho_low"], high=own.iloc[0]["rho_high"])
            if len(own)
            else None
        )

    def pictures_change(
        self, mix: str, *, method: str = "full", category: str = HIGHLY_KNOWN, worlds: Iterable[str] = ()
    ) -> Estimate:
        """The change of the share of generated pictures read right, of concepts that were not taught."""
        table = self.frame(DIFFUSION, "pictures", worlds)
        own = table[(table["mix"] == mix) & (table["method"] == method) & (table["category"] == category)]
        return over_runs(own["change"])

    def distance_change(
        self, metric: str, bucket: str, mix: str, *, method: str = "full", worlds: Iterable[str] = ()
    ) -> Estimate:
        """A distance's paired change base → fine-tuned, over runs of a mix."""
        table = self.frame(DIFFUSION, "distances", worlds)
        own = table[(table["metric"] == metric) & (table["bucket"] == bucket)]
        return over_runs(own[(own["mix"] == mix) & (own["method"] == method)]["value"])
