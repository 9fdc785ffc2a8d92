"""The verdict in plain words: every sentence follows the sign and the interval of its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..parsing import printable
from ..records import DIFFUSION, LLM
from .metrics import STOPPINGS
from .verdict import FAILS, HOLDS, OPEN, UNDECIDED

LEARNERS_TOLD = {DIFFUSION: "diffusion model", LLM: "language model"}
SAYS = {HOLDS: "Holds", FAILS: "Does not hold", UNDECIDED: "Undecided"}
LAST = "convergence"


def headline(verdicts: Mapping[str, str]) -> str:
    """What the learners say of the hypothesis together."""
    decided = {learner: word for learner, word in verdicts.items() if word != OPEN}
    if not decided:
        return (
            "The hypothesis stays open: no learner's solution classes were read in more than one category and class."
        )
    words = [f"{word} in the {LEARNERS_TOLD[learner]}" for learner, word in decided.items()]
    if len(decided) == 2 and len(set(decided.values())) == 1:
        told = f"{next(iter(decided.values()))} in both learners"
    else:
        told = " and ".join(words)
    left = [LEARNERS_TOLD[learner] for learner, word in verdicts.items() if word == OPEN]
    return (
        "'No solution is Unknown, one is HighlyKnown, many are what lies between' is "
        f"{told}{f'; of the {left[0]} it stays open' if left else ''}."
    )


def association_sentences(learner: str, found: Mapping[str, Any]) -> list[str]:
    """Do category and class go together, and which parts of the hypothesis hold?"""
    name = LEARNERS_TOLD[learner].capitalize()
    if "claims" not in found:
        return [f"{name}: missing, no solution classes were read ({printable('; '.join(found['missing']))})."]
    noun = found["noun"]
    v, p = found["cramers_v"], found["permutation_p"]
    if p is None:
        first = (
            f"{name}: all {found['num_concepts']} {noun} are of one category or of one class, so nothing can be said."
        )
    else:
        numbers = (
            f"Cramér's V = {v:.2f}, or {found['cramers_v_corrected'] or 0:.2f} less what chance alone gives; permutation "
            f"p = {p:.4f}; {found['num_concepts']} {noun}"
        )
        together = "go together" if p < 0.05 else "do not go together beyond chance"
        first = f"{name}: category and solution class {together} ({numbers})."
    sentences = [first]
    for outcome, says in SAYS.items():
        claims = [_claim(claim) for claim in found["claims"] if claim["outcome"] == outcome and claim["of"]]
        if claims:
            sentences.append(f"{says}: {'; '.join(claims)}.")
    return sentences


def _claim(claim: Mapping[str, Any]) -> str:
    ends = f"[{100 * claim['low']:.0f}, {100 * claim['high']:.0f}]"
    return f"{claim['claim']} ({claim['count']} of {claim['of']}, {100 * claim['share']:.0f} % {ends})"


def answer(found: Mapping[str, Any]) -> str:
    """Where there is no solution, was fine-tuning effective? By the signs of the changes until convergence; of the
    solution class none where that was taught, else of Unknown."""
    learnt, what = found.get("none"), "had no solution"
    if learnt is None:
        learnt, what = found.get("unknown"), "was Unknown"
    if learnt is None or learnt[f"fitted_change_{LAST}"] is None:
        return "Whether fine-tuning is effective where there is no solution stays open: nothing Unknown was taught."
    fitted, carried = learnt[f"fitted_change_{LAST}"]["sign"], (learnt[f"transfer_{LAST}"] or {}).get("sign")
    cost = (found["cost"].get(f"known_change_{LAST}") or {}).get("sign")
    if fitted != 1:
        effect = f"No fit of what {what} shows beyond the interval"
    elif carried == 1:
        effect = f"Fine-tuning taught what {what}, beyond the examples it was trained on"
    else:
        effect = f"Fine-tuning fitted the examples of what {what}; that this carried over does not show"
    price = {
        -1: "it cost accuracy on what was known",
        0: "a cost in accuracy on what was known does not show beyond the interval",
        1: "accuracy on what was known rose",
        None: "what it cost was not measured",
    }[cost]
    return f"{effect}; {price}."


def taught_sentences(learner: str, found: Mapping[str, Any]) -> list[str]:
    """What was learnt of what had no solution, and what it cost."""
    name = LEARNERS_TOLD[learner].capitalize()
    if "mixes" not in found:
        reasons = "; ".join(f"{where}: {why}" for where, why in found["missing"].items())
        return [f"{name}: missing, no run on Unknown to read ({printable(reasons)})."]
    mixes = printable(", ".join(found["mixes"]))
    shares = [100 * share for share in found["unknown_share"]]
    share = f"{shares[0]:.0f}" if shares[0] == shares[1] else f"{shares[0]:.0f} to {shares[1]:.0f}"
    runs = f"{found['num_runs']} run" + ("" if found["num_runs"] == 1 else "s")
    sentences = [f"{name}, after fine-tuning on {mixes} ({share} % Unknown, {runs}): {answer(found)}"]
    for key, told in (("unknown", "Unknown"), ("none", "solution class none")):
        sentences.append(_learnt(told, found.get(key)))
    sentences.append(_cost(found["cost"], found["missing"]))
    if "images" in found:
        sentences.append(_images(found["images"]))
    return sentences


def _learnt(told: str, learnt: Mapping[str, Any] | None) -> str:
    if learnt is None:
        return f"Learnt, {told}: missing, none of what was trained on is."
    shares = [f"{STOPPINGS.get(stop, stop)} {_share(learnt[f'fitted_{stop}'])}" for stop in ("before", *STOPPINGS)]
    fitted, carried = learnt[f"fitted_change_{LAST}"], learnt[f"transfer_{LAST}"]
    return (
        f"Learnt, {told}: fitted {', '.join(shares)}; {_moved(fitted, 'the trained examples', 'learnt', 'lost')}; "
        f"{_moved(carried, 'held-out examples of the same', 'carried over', 'worse')}."
    )


def _cost(cost: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    if not cost:
        return f"Cost in accuracy: missing ({printable(missing.get('cost', 'nothing known was asked'))})."
    parts = [
        f"{_moved(cost[f'known_change_{stop}'], f'known examples outside the mix, {told}', 'better', 'worse')}"
        for stop, told in STOPPINGS.items()
    ]
    beyond = cost[f"beyond_control_{LAST}"]
    if beyond is not None:
        parts.append(_moved(beyond, "beyond what mixes of known alone did, convergence", "better", "worse"))
    return f"Cost in accuracy: {'; '.join(parts)}."


def _images(images: Mapping[str, Any]) -> str:
    change = images.get("fid_change")
    if change is None:
        reasons = "; ".join(f"{where}: {why}" for where, why in images["missing"].items())
        return f"Cost in pictures: missing ({printable(reasons)})."
    words = {1: "worse", -1: "better", 0: "no change beyond the interval", None: "no interval"}[change["sign"]]
    return f"Cost in pictures: FID of the known bucket {_signed(change, 1, 2)} ({words})."


def _moved(change: Mapping[str, Any] | None, what: str, up: str, down: str) -> str:
    if change is None:
        return f"{what}: not asked"
    words = {1: up, -1: down, 0: "no change beyond the interval", None: "no interval"}[change["sign"]]
    return f"{what} {_signed(change, 100, 1)} points ({words})"


def _signed(change: Mapping[str, Any], scale: float, decimals: int) -> str:
    text = _number(scale * change["value"], decimals)
    if change["low"] is None or change["high"] is None:
        return text
    low, high = (_number(scale * change[end], decimals) for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) or 0.0:+.{decimals}f}".replace("-", "−")


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not asked"
    ends = "" if found["low"] is None else f" [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"
    return f"{100 * found['value']:.0f} %{ends}"
