"""The learning dynamics in sentences: the verb follows sign and interval, what is missing is named as missing."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..records import CATEGORIES, HIGHLY_KNOWN, TRAINED, UNKNOWN
from ..reference import STOPPINGS
from .changes import Change
from .dynamics_figures import CONVERGENCE, EARLY_STOP, STOPPING_NAMES
from .dynamics_tables import FULL, NATURAL, SIGNED, asked_roles, by_share, estimate_of, treatments
from .run import Run
from .wording import Estimate, difference, share, share_reading

FITTED = {"b_known": "known", "b_unknown": "Unknown"}


def dynamics_sentences(run: Run) -> list[str]:
    """One sentence for each thing that the section shows."""
    sentences = []
    if {"runs", "accuracy_by_mix"} <= run.dynamics.keys():
        sentences.append(fit_sentence(run))
        for role in asked_roles(run):
            sentences.append(single_sentence(run, role))
            sentences += share_sentences(run, role)
    if "linear_model" in run.dynamics:
        sentences += model_sentences(run)
    return sentences


def fit_sentence(run: Run) -> str:
    """Were Unknown examples fitted later? The fitted shares of one mix at its early stop, against each other."""
    table = run.dynamics["accuracy_by_mix"]
    table = table[(table["role"] == TRAINED) & (table["stopping"] == EARLY_STOP)]
    found = []
    for mix, here in table.groupby("mix", sort=False):
        by_category = {str(row["category"]): row for _, row in here.iterrows()}
        if {HIGHLY_KNOWN, UNKNOWN} <= by_category.keys():
            fewest = min(int(by_category[category]["num_examples"]) for category in (HIGHLY_KNOWN, UNKNOWN))
            found.append((str(mix).lower() == NATURAL.lower(), fewest, str(mix), by_category))
    if not found:
        return "Missing: a mix with HighlyKnown and Unknown examples and an early stop, to compare how fast they fit."
    _, _, mix, by_category = max(found, key=lambda entry: entry[:2])
    known, unknown = (estimate_of(by_category[category]) for category in (HIGHLY_KNOWN, UNKNOWN))
    gap = difference(known, unknown)
    place = f"At the early stop of the mix {mix} the fitted share of Unknown examples"
    if gap.sign is None:
        return f"{place} is given without an interval, so there is no verdict."
    verb = {"up": "is higher than", "down": "is lower than", "flat": "does not differ from"}[gap.sign]
    ending = " beyond the interval" if gap.sign == "flat" else ""
    numbers = f"{share(unknown.value)} against {share(known.value)}, {_amount(gap)}"
    return f"{place} {verb} that of HighlyKnown ones{ending} ({numbers})."


def single_sentence(run: Run, role: str) -> str:
    """Which single category is best to train on, as far as the intervals tell."""
    kinds = run.dynamics["runs"].drop_duplicates("mix").set_index("mix")["kind"]
    table = run.dynamics["accuracy_by_mix"]
    single = kinds[kinds.isin(CATEGORIES)].index
    table = table[(table["role"] == role) & (table["category"] == FULL) & table["mix"].isin(single)]
    asked = run.nouns.role(role)
    for stopping in STOPPINGS[::-1]:
        here = table[table["stopping"] == stopping].sort_values("accuracy", ascending=False, kind="stable")
        if len(here) < 2:
            continue
        first, second = (here.iloc[place] for place in (0, 1))
        gap = difference(estimate_of(second), estimate_of(first))
        best, other = (kinds[row["mix"]] for row in (first, second))
        numbers = f"{share(float(first['accuracy']))} against {share(float(second['accuracy']))}, {_amount(gap)}"
        where = f"at {STOPPING_NAMES[stopping]}, on {asked}"
        if gap.sign == "up":
            return f"Of the single-category mixes {best} gave the most right answers {where}; next was {other} ({numbers})."
        if gap.sign == "flat":
            return f"Of the single-category mixes none was best beyond its interval {where}: {best} and {other} ({numbers})."
        return f"Of the single-category mixes {best} gave the most right answers {where}, without an interval ({numbers})."
    return f"Missing: two single-category mixes, to compare them on {asked}."


def share_sentences(run: Run, role: str) -> list[str]:
    """What more Unknown did, and what training on to convergence did where there was most of it."""
    kept = by_share(run, role)
    kept = kept[~kept["mix"].isin(list(treatments(run)))]
    asked = run.nouns.role(role)
    if kept["unknown_share"].nunique() < 2:
        return [f"Missing: mixes of two shares of Unknown, to compare them on {asked}."]
    sentences = []
    for stopping in STOPPINGS:
        here = kept[kept["stopping"] == stopping]
        if here["unknown_share"].nunique() < 2:
            sentences.append(
                f"Missing: two shares of Unknown with a reading at {STOPPING_NAMES[stopping]} on {asked}."
            )
            continue
        least, most = here.iloc[0], here.iloc[-1]
        before, after = estimate_of(least), estimate_of(most)
        ends = f"{share(float(least['unknown_share']))} to {share(float(most['unknown_share']))} Unknown in the mix"
        what = f"From {ends}, accuracy on {asked} at {STOPPING_NAMES[stopping]}"
        sentences.append(Change(what=what, change=difference(before, after), before=before, after=after).sentence)
    late = kept[kept["stopping"] == CONVERGENCE]
    if len(late) and pd.notna(late.iloc[-1]["change"]):
        most = late.iloc[-1]
        what = f"From early stop to convergence of the mix {most['mix']}, accuracy on {asked}"
        change = estimate_of(most, "change", "change_low", "change_high")
        sentences.append(Change(what=what, change=change).sentence)
    return sentences


def model_sentences(run: Run) -> list[str]:
    """What fitting known and Unknown examples goes with, by the linear model."""
    roles = asked_roles(run)
    table = run.dynamics["linear_model"]
    table = table[table["role"].isin(roles) & table["term"].isin(SIGNED)]
    if table.empty:
        return ["Missing: the linear model of what was asked."]
    return [_coefficient_sentence(run, row) for _, row in table.iterrows()]


def _coefficient_sentence(run: Run, row: Any) -> str:
    fitted, asked = FITTED[str(row["term"])], run.nouns.role(str(row["role"]))
    estimate = estimate_of(row, "estimate")
    if pd.isna(estimate.value):
        return f"What fitting {fitted} examples does to accuracy on {asked} could not be estimated from these runs."
    amount, subject = _amount(estimate), f"Fitting {fitted} examples"
    if estimate.sign is None:
        return (
            f"What fitting {fitted} examples does to accuracy on {asked} is given without an interval, so there is no"
            f" verdict ({amount})."
        )
    if estimate.sign == "flat":
        return f"{subject} has no effect on accuracy on {asked} beyond its interval ({amount})."
    direction = "higher" if estimate.sign == "up" else "lower"
    return f"{subject} goes with {direction} accuracy on {asked} in the linear model ({amount})."


def _amount(change: Estimate) -> str:
    return " ".join(filter(None, share_reading(change, signed=True)))
