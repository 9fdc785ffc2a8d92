"""One learner's half of one world, as frames with one row for each run and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion_sft.dynamics.model import linear_model
from diffusion_sft.dynamics.runs import ALL
from diffusion_sft.files import read_json, read_table
from diffusion_sft.numerics.statistics import Interval, student_mean
from diffusion_sft.records import DIFFUSION, HELDOUT, HIGHLY_KNOWN, LLM, TEST, UNKNOWN, UNTOUCHED
from diffusion_sft.report.wording import Estimate

OUTSIDE = {DIFFUSION: UNTOUCHED, LLM: TEST}
"""The role of what a run is asked and was never taught."""
RUN = ["world", "run", "mix", "method", "how", "seed", "unknown_share"]
SHARES = ("unknown-000", "unknown-025", "unknown-050", "unknown-075", "unknown-100")
"""The mixes of known and Unknown in one size."""
MAIN, OTHER = "main", "other"
"""How a run was taught: by its learner's first method, whose mixes are compared with each other, or by another."""
METHOD_WORDS = {"full": "all weights", "lora-rank16": "LoRA"}


def estimate(found: Any) -> Estimate:
    """What the pages write: an interval, or a row or record with a value or a share and its `low` and `high`."""
    if isinstance(found, Estimate):
        return found
    numbers = asdict(found) if isinstance(found, Interval) else found
    value = numbers["share" if "share" in numbers else "value"]
    return Estimate(value=float(value), low=float(numbers["low"]), high=float(numbers["high"]))


def over_runs(values: Iterable[float]) -> Estimate:
    """Mean and Student's interval over runs."""
    return estimate(student_mean(np.asarray([value for value in values if np.isfinite(value)], dtype=float)))


def share_over_runs(values: Iterable[float], least: float = 0.0) -> Estimate:
    """`over_runs` of shares, or of their changes where `least` is -1; no end lies beyond what they can be."""
    found = over_runs(values)
    return Estimate(value=found.value, low=max(found.low, least), high=min(found.high, 1.0))


def of_mix(table: pd.DataFrame, mix: str, how: str = MAIN) -> pd.DataFrame:
    """The rows of a mix's runs by the main method or by another."""
    return table[(table["mix"] == mix) & (table["how"] == how)]


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
    def main_method(self) -> str:
        """The first method, by which every mix was taught."""
        return str(self.table("dynamics/runs")["method"].iloc[0])

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row for each run, with what it was taught (`taught`, concepts' names)."""
        rows = self.table("dynamics/runs")
        records = [read_json(self.folder / "finetune" / run / "finetune.json") for run in rows["run"]]
        taught = [
            {n for names in r["concepts"].values() for n in names} | set(r["guarding_concepts"]) for r in records
        ]
        seconds = [float(record["seconds"]) for record in records]
        how = np.where(rows["method"] == self.main_method, MAIN, OTHER)
        return rows.assign(
            how=how,
            world=self.world,
            taught=pd.Series(taught, index=rows.index, dtype=object),
            seconds=seconds,
        )

    @cached_property
    def evaluations(self) -> dict[str, pd.DataFrame]:
        """All that each run was asked, with all categories together too, by the run's name."""
        return {run: with_all(self.table(f"finetune/{run}/evaluations")) for run in self.runs["run"]}

    @cached_property
    def asked(self) -> pd.DataFrame:
        """One row for each run, role and category (`all` too): accuracy and nats of error before, early and at the end."""
        parts = []
        for run in self.runs.to_dict("records"):
            table = self.evaluations[run["run"]]
            stops = {"before": 0, "early": run["early_stop_update"], "end": run["last_update"]}
            found = table.drop_duplicates(["role", "category"]).set_index(["role", "category"])[["num_examples"]]
            for stop, update in stops.items():
                here = table[table["update"] == update].set_index(["role", "category"])
                found = found.join(here[["accuracy", "error_nats"]].add_suffix(f"_{stop}"))
            parts.append(found.reset_index().assign(**{name: run[name] for name in RUN}))
        table = pd.concat(parts, ignore_index=True)
        for measure in ("accuracy", "error_nats"):
            table[f"{measure}_change"] = table[f"{measure}_end"] - table[f"{measure}_before"]
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
                rows.append({name: run[name] for name in RUN} | {"category": category} | readings)
        return pd.DataFrame(rows)

    @cached_property
    def known_untaught(self) -> pd.DataFrame:
        """One row for each run: the share right of what was HighlyKnown and was not taught (of generated pictures, or of
        the questions of the run's own evaluations) before and at the end, and its change."""
        if self.learner == DIFFUSION:
            return self.pictures[self.pictures["category"] == HIGHLY_KNOWN]
        own = self.asked[(self.asked["role"] == OUTSIDE[self.learner]) & (self.asked["category"] == HIGHLY_KNOWN)]
        names = {"accuracy_before": "before", "accuracy_end": "end", "accuracy_change": "change"}
        return own.rename(columns=names)

    @cached_property
    def unknown_heldout(self) -> pd.DataFrame:
        """The rows of `asked` about the held-out examples of Unknown concepts that were taught."""
        return self.asked[(self.asked["role"] == HELDOUT) & (self.asked["category"] == UNKNOWN)]

    @cached_property
    def bucket_summary(self) -> dict[str, Any]:
        """`buckets.json`."""
        return read_json(self.folder / "buckets" / "buckets.json")

    @cached_property
    def solved_config(self) -> dict[str, Any]:
        """What the systems were solved with."""
        return dict(read_json(self.folder / "solve" / "solve.json")["config"])

    @cached_property
    def forecasts(self) -> pd.DataFrame:
        """One row for each run that was forecast: the change of error in nats on what is not taught, forecast with the
        most Krylov steps and measured at the end."""
        table = self.table("solve/forecasts")
        own = table[(table["role"] == OUTSIDE[self.learner]) & (table["category"] == ALL)]
        own = own[own["krylov_steps"] == own["krylov_steps"].max()]
        own = own.merge(self.runs[["run", "mix"]], on="run")
        return own.assign(
            world=self.world,
            forecast=own["forecast_error_nats"] - own["base_error_nats"],
            outcome=own["last_error_nats"] - own["before_error_nats"],
        )[["world", "run", "mix", "seed", "forecast", "outcome"]]

    @cached_property
    def _linear_models(self) -> dict[bool, pd.DataFrame]:
        """The dynamics model of all mixes, and that of the mixes of known and Unknown alone."""
        points = self.table("dynamics/linear_model_points")
        return {False: self.table("dynamics/linear_model"), True: linear_model(points[points["mix"].isin(SHARES)])}

    def coefficient(self, term: str, *, shares_alone: bool = False) -> pd.Series:
        """A row of the dynamics model about what is not taught, by the main method: of all mixes without guards, or of those
        of known and Unknown alone, as published."""
        table = self._linear_models[shares_alone]
        own = table[
            (table["role"] == OUTSIDE[self.learner]) & (table["method"] == self.main_method) & (table["term"] == term)
        ]
        return own.iloc[0]

    @cached_property
    def distances(self) -> pd.DataFrame:
        """`evaluate/measures` of the runs, with what they are."""
        table = self.table("evaluate/measures")
        return table.merge(self.runs[RUN], left_on="model", right_on="run")


def with_all(table: pd.DataFrame) -> pd.DataFrame:
    """A run's evaluations with a row of each update and role for all categories together, in the columns that are read
    here."""
    weights = table["num_examples"]
    sums = table.assign(accuracy=table["accuracy"] * weights, error_nats=table["error_nats"] * weights)
    found = (
        sums.groupby(["update", "role"], sort=False)[["num_examples", "accuracy", "error_nats"]].sum().reset_index()
    )
    means = found[["accuracy", "error_nats"]].div(found["num_examples"], axis=0)
    together = found.assign(accuracy=means["accuracy"], error_nats=means["error_nats"], category=ALL)
    return pd.concat([table, together], ignore_index=True)
