"""All attempts in order, a line for each that fails, and the table."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from fault_attempts import FAULTS, SMALL, Harness, Outcome, applies
from fault_points import KILL
from fault_runs import Place
from fault_stages import STAGES, Stage
from fault_trees import SECONDS

import diffusion_sft.commands
import diffusion_sft.study  # noqa: F401  imported once, for all processes
from diffusion_sft.files import read_json, write_json


def main(mounts: bool) -> int:
    """Read the arguments and make the attempts; returns the exit code.

    Args:
        mounts: whether this process may mount small disks of its own.
    """
    options = _parser().parse_args()
    if options.join:
        return _finish(options, *_loaded(options.join))
    torch.set_num_threads(1)
    stages = [stage for stage in STAGES if not options.stage or stage.name in options.stage]
    faults = [fault for fault in FAULTS if not options.fault or fault in options.fault]
    if not mounts and SMALL in faults:
        print(f"{SMALL}: left out, this system lets nobody mount a file system of his own")
        faults.remove(SMALL)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", dir=options.work) as root:
        harness = Harness(Place(Path(root).resolve()), options.seed)
        outcomes = []
        for stage in stages:
            wanted = {
                fault: options.point or range(options.points if fault == KILL else options.others)
                for fault in faults
                if applies(stage, fault)
            }
            outcomes += _stage(harness, stage, wanted)
    return _finish(options, outcomes, time.monotonic() - started)


def _finish(options: argparse.Namespace, outcomes: Sequence[Outcome], seconds: float) -> int:
    """Print the table, and keep it and the outcomes where that is asked for."""
    text = table(outcomes)
    print(text)
    print(f"{len(outcomes)} attempts in {seconds / 60:.1f} minutes, seed {options.seed}")
    if options.save:
        write_json(options.save, {"seconds": seconds, "outcomes": [asdict(outcome) for outcome in outcomes]})
    if options.output:
        options.output.write_text(_page(text, outcomes, seconds, options.seed), encoding="utf-8")
    return int(any(outcome.problems for outcome in outcomes))


def _loaded(files: Sequence[Path]) -> tuple[list[Outcome], float]:
    """The outcomes of several calls in the order of stages, and the seconds of all."""
    contents = [read_json(file) for file in files]
    outcomes = [Outcome(**outcome) for content in contents for outcome in content["outcomes"]]
    order = [stage.name for stage in STAGES]
    outcomes.sort(key=lambda outcome: order.index(outcome.stage))
    return outcomes, sum(content["seconds"] for content in contents)


def _stage(harness: Harness, stage: Stage, wanted: Mapping[str, Sequence[int]]) -> list[Outcome]:
    """All attempts on one stage: the points of each fault."""
    started, outcomes = time.monotonic(), []
    reference = harness.reference(stage)
    for fault, points in wanted.items():
        for point in points:
            outcome = harness.attempt(stage, fault, point)
            outcomes.append(outcome)
            if outcome.problems:
                _tell(outcome)
    good = sum(not outcome.problems for outcome in outcomes)
    print(
        f"{stage.name}: {good} of {len(outcomes)} identical; undisturbed {reference.seconds:.1f} s, "
        f"all {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return outcomes


def _tell(outcome: Outcome) -> None:
    """What failed, and how to see it again."""
    print(f"{outcome.stage} / {outcome.fault} / {outcome.point}: {outcome.where} ({outcome.ended})")
    for problem in outcome.problems[:12]:
        print(f"    {problem}")
    if len(outcome.problems) > 12:
        print(f"    and {len(outcome.problems) - 12} more")
    for refusal in outcome.refusals:
        print(f"    it said: {refusal}")
    print(f'    --stage "{outcome.stage}" --fault "{outcome.fault}" --point {outcome.point}', flush=True)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: stage, fault, points, how they ended, and what came of them."""
    lines = ["| stage | fault | points | the disturbed run | outcome |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.stage, outcome.fault), []).append(outcome)
    for (stage, fault), group in groups.items():
        ended = ", ".join(f"{words} ×{n}" for words, n in Counter(o.ended for o in group).most_common())
        results = Counter(outcome.result for outcome in group).most_common()
        told = ", ".join(f"{result} ×{n}" for result, n in results[:4]).replace("|", "\\|")
        lines.append(f"| {stage} | {fault} | {len(group)} | {ended} | {told} |")
    return "\n".join(lines)


def _page(text: str, outcomes: Sequence[Outcome], seconds: float, seed: int) -> str:
    """The table with what was done, what was compared and how to do it again."""
    legend = "\n".join(f"- `{fault}`: {what}." for fault, what in FAULTS.items())
    allowed = "\n".join(f"- `{name}`: {', '.join(f'`{key}`' for key in keys)}" for name, keys in SECONDS.items())
    bad = sum(bool(outcome.problems) for outcome in outcomes)
    smaller, unread = (sum(getattr(outcome, kind) for outcome in outcomes) for kind in ("smaller", "unread"))
    same = len(outcomes) - bad - smaller - unread
    return f"""# Faults

Every stage was disturbed at random points of the work that it does on tiny bases, and the same command was then run again
until it ended. What it left was compared with what a run leaves that nothing happened to: every file, hidden ones and
folders too, byte by byte. {len(outcomes)} attempts: {same} left what an undisturbed run leaves, {unread} that but for an altered
file which nothing read, {smaller} went on with smaller batches by themselves, {bad} left something else. Seed {seed},
{seconds / 60:.0f} minutes of one core. Written by `python scripts/faults.py --output docs/faults.md`; a short version of it is
`tests/test_fault_harness.py`.

{text}

What was done to them:

{legend}

After a `power` or `altered` fault a run may refuse to go on if it says what is to be removed; that was then removed, and
"refused, then identical" is what came of it. After all others it has to go on by itself.

An altered file that the run has no need of any more (a table of an earlier stage, a picture for people, the encoding of an
example that it has had, a checkpoint that it does not go on from) stays as it is, and the table says so; whoever reads it
next is told.

What may differ is how long things took, in these files under these keys, and where the report says the same:

{allowed}

Where a run finds no memory for an evaluation and goes on with smaller batches, the last bits of what it reads differ, and the
table says so.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Disturb every stage at random points and compare what comes of it.")
    parser.add_argument("--stage", action="append", choices=[stage.name for stage in STAGES])
    parser.add_argument("--fault", action="append", choices=list(FAULTS))
    parser.add_argument("--point", action="append", type=int, help="only points of these numbers")
    parser.add_argument("--points", type=int, default=20, help="of a SIGKILL, for each stage")
    parser.add_argument("--others", type=int, default=6, help="of each other fault, for each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the runs are written, best a file system in memory")
    parser.add_argument("--save", type=Path, help="a JSON file for the outcomes")
    parser.add_argument("--join", type=Path, nargs="+", help="files of --save to make one table of; nothing is run")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    return parser
