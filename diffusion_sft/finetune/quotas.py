"""Shares turned into whole numbers, and what to say where there is not enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import UserError
from ..records import Example


def shared_out(shares: Mapping[str, float], size: int) -> dict[str, int]:
    """Whole numbers that add up to `size`, by largest remainder (ties to the label named first)."""
    exact = {label: share * size for label, share in shares.items()}
    quotas = {label: int(value + 1e-9) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: quotas[label] - exact[label])
    for label in by_remainder[: size - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def check_quotas(
    where: str, shares: Mapping[str, float], quotas: Mapping[str, int], there: Mapping[str, int], unit: str
) -> None:
    """Raise UserError where a label has less than its quota, with the size that these shares allow.

    Args:
        where: what is composed, for the message.
        shares: of each label.
        quotas: what is asked for of each label.
        there: what there is of each label.
        unit: concepts or examples.
    """
    short = [label for label in quotas if quotas[label] > there[label]]
    if not short:
        return
    size = sum(quotas.values())
    fits = next(
        (n for n in range(size - 1, 0, -1) if all(q <= there[label] for label, q in shared_out(shares, n).items())), 0
    )
    advice = f"set num_{unit} to at most {fits}, or other shares" if fits else "choose other shares"
    raise UserError(
        f"{where}: asks for {', '.join(f'{quotas[label]} {label}' for label in short)} {unit}, with training "
        f"examples there are {', '.join(f'{n} {label}' for label, n in there.items())}; {advice}"
    )


def take(
    names: Sequence[str], quota: int, examples: Mapping[str, tuple[Example, ...]], *, whole: bool
) -> dict[str, list[Example]]:
    """The first concepts up to the quota; in examples, the last concept may be cut."""
    if whole:
        return {name: list(examples[name]) for name in names[:quota]}
    taken: dict[str, list[Example]] = {}
    for name in names:
        if quota <= 0:
            break
        taken[name] = list(examples[name][:quota])
        quota -= len(taken[name])
    return taken
