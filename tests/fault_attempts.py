"""One attempt: begin afresh, disturb, run the same command until it ends, and compare with what was never disturbed."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_disks import small_disk
from fault_points import DISK, FILES, FORWARDS, INTERRUPT, KILL, MEMORY, TERMINATE, Strike
from fault_runs import Ended, Place, run, run_together
from fault_shortcuts import Shortcuts, import_all
from fault_stages import Kitchen, Stage
from fault_trees import CACHE, altered, close, differences, inodes, power_failure, tree, unreadable

SMALL, POWER, ALTERED = "small disk", "power", "altered"
FAULTS: Mapping[str, str] = {
    KILL: "SIGKILL before, within or after a change of a file or an update; each fourth time by the clock",
    TERMINATE: "SIGTERM at such a moment (where nothing is trained it is a SIGKILL by another name)",
    INTERRUPT: "SIGINT at such a moment",
    MEMORY: "MemoryError or torch.OutOfMemoryError in a forward pass",
    DISK: "ENOSPC from some change of a file on",
    SMALL: "a file system of its own that is really full after some bytes",
    POWER: "SIGKILL, then what was not synced is cut off and new names that were not synced are taken back",
    ALTERED: "when all is done or after a SIGKILL, a finished file is cut off or a bit of it flipped",
}
"""What is done, as a table's legend has it."""
REFUSED = (POWER, ALTERED)
"""Faults after which a run may say what to remove and stop; after the others it must go on by itself."""
MOST_REFUSALS = 6


@dataclass
class Outcome:
    """What came of one attempt."""

    stage: str
    fault: str
    point: int
    where: str = ""
    ended: str = ""
    """How the disturbed process did."""
    refusals: list[str] = field(default_factory=list)
    """What it said before it went on."""
    problems: list[str] = field(default_factory=list)
    altered: str | None = None
    """The file that was altered after it was finished."""
    unread: bool = False
    """It is still altered, for the run had no need of it; everything else is identical."""
    smaller: bool = False
    """It went on by itself with smaller batches, which changes the last bits of what it read."""
    seconds: float = 0.0

    @property
    def result(self) -> str:
        """In a word or two, or the first problem."""
        if self.problems:
            return self.problems[0]
        if self.smaller:
            return "went on with smaller batches, last bits differ"
        same = "identical but for the altered file, which nothing read" if self.unread else "identical"
        return f"refused, then {same}" if self.refusals else same


@dataclass(frozen=True)
class Reference:
    """A stage that was never disturbed."""

    tree: Path
    written: frozenset[str]
    """The files that the stage itself wrote or changed."""
    seconds: float
    counts: Mapping[str, int]


class Harness:
    """Attempts in one place, with their references."""

    def __init__(self, place: Place, seed: int, plant: Callable[[], None] | None = None) -> None:
        """Args:
        plant: called first in every process that runs a command: a mistake that is to be found.
        """
        self.place, self.seed, self.plant = place, seed, plant
        self.kitchen, self.shortcuts = Kitchen(place), Shortcuts()
        self._references: dict[str, Reference] = {}
        self._victim = 0

    def _prepare(self) -> None:
        """What every process does before its command."""
        self.shortcuts.take()
        if self.plant is not None:
            self.plant()

    def reference(self, stage: Stage) -> Reference:
        """Run a stage twice, the second time counted; both must be the same.

        Raises:
            AssertionError: it fails, or differs from itself.
        """
        if stage.name not in self._references:
            folder = self.place.root / "references" / stage.name
            self.kitchen.lay(stage)
            self.shortcuts.read(stage.verb, self.kitchen.settings(stage))
            if stage.verb in ("report", "study"):
                self.shortcuts.make_charts(self.place)
            first = self._run(stage)
            assert first.code == 0, f"{stage.name}: {first.told}"
            shutil.copytree(self.place.work, folder)
            self.kitchen.lay(stage)
            brought = {name: (self.place.work / name).stat().st_ino for name in tree(self.place.work)}
            again = self._run(stage, watched=True)
            assert again.code == 0, f"{stage.name}: {again.told}"
            found = differences(folder, self.place.work)
            assert not found, f"{stage.name} is not the same when it is run again: {', '.join(map(str, found))}"
            *_, imported, counted = self.place.log.read_text(encoding="utf-8").splitlines()
            import_all(json.loads(imported)[1])
            counts = json.loads(counted)[1]
            now = {name: (self.place.work / name).stat().st_ino for name in tree(self.place.work)}
            written = frozenset(name for name, inode in now.items() if brought.get(name) != inode)
            self._references[stage.name] = Reference(folder, written, again.seconds, counts)
        return self._references[stage.name]

    def attempt(self, stage: Stage, fault: str, point: int) -> Outcome:
        """Disturb a stage at the point of this number, which with the seed decides everything."""
        started, outcome = time.monotonic(), Outcome(stage.name, fault, point)
        self._victim = 0
        reference = self.reference(stage)
        self._victim = point % stage.processes
        rng = random.Random(f"{self.seed}/{stage.name}/{fault}/{point}")
        self.kitchen.lay(stage)
        if fault == SMALL:
            with small_disk(self.place.work) as disk:
                self.kitchen.lay(stage)
                disk.leave(rng.randrange(disk.needed(reference.tree)))
                ended = self._run(stage)
                outcome.ended, outcome.where = ended.words, "really full"
                outcome.problems += _complaints(ended, fault, self.place.work)
                disk.leave(None)
                self._go_on(stage, outcome)
        else:
            _DISTURBANCES.get(fault, Harness._struck)(self, stage, outcome, rng)
            self._go_on(stage, outcome)
        outcome.seconds = time.monotonic() - started
        return outcome

    def _struck(self, stage: Stage, outcome: Outcome, rng: random.Random) -> None:
        """A strike at a random event."""
        most = self.reference(stage).counts[FORWARDS if outcome.fault == MEMORY else FILES]
        self._disturb(stage, Strike(outcome.fault, rng.randint(1, most)), outcome)

    def _killed(self, stage: Stage, outcome: Outcome, rng: random.Random) -> None:
        reference = self.reference(stage)
        if outcome.point % 4 == 3 or self._victim:  # The second process of two writes nothing that could be counted.
            after = rng.uniform(0, reference.seconds)
            outcome.where = f"after {after:.2f} s"
            outcome.ended = self._run(stage, kill_after=after).words
        else:
            self._disturb(stage, Strike(KILL, rng.randint(1, reference.counts[FILES])), outcome)

    def _power_failed(self, stage: Stage, outcome: Outcome, rng: random.Random) -> None:
        safe = inodes(self.place.work)
        self._disturb(stage, Strike(KILL, rng.randint(1, self.reference(stage).counts[FILES])), outcome)
        done = power_failure(self.place.work, self.place.log, safe, rng)
        outcome.where += f"; {'; '.join(done)}" if done else ""

    def _altered(self, stage: Stage, outcome: Outcome, rng: random.Random) -> None:
        """Of every two, one when all is done, one after a kill.

        A file that an earlier stage wrote may be one that this stage neither reads nor writes.
        """
        if outcome.point % 2:
            self._disturb(stage, Strike(KILL, rng.randint(1, self.reference(stage).counts[FILES])), outcome)
        else:
            outcome.ended = self._run(stage).words
        final = tree(self.place.work) & tree(self.reference(stage).tree)
        if any(not name.endswith("/") for name in final):
            outcome.altered, done = altered(self.place.work, final, rng)
            outcome.where += f"{'; ' if outcome.where else ''}{outcome.altered} {done}"

    def _done_too_soon(self, stage: Stage, outcome: Outcome) -> None:
        """A process that was disturbed and says that it is done must have done everything."""
        found = differences(self.reference(stage).tree, self.place.work)
        if outcome.fault == MEMORY:
            outcome.smaller = any(close(self.reference(stage).tree, self.place.work, each) for each in found)
            found = [each for each in found if not close(self.reference(stage).tree, self.place.work, each)]
        outcome.problems += [f"ENDED AS IF DONE: {each}" for each in found]

    def _disturb(self, stage: Stage, strike: Strike, outcome: Outcome) -> Ended:
        ended = self._run(stage, strike=strike)
        outcome.ended = ended.words
        struck = [
            line for line in self.place.log.read_text(encoding="utf-8").splitlines() if line.startswith('["strike"')
        ]
        if struck:
            _, what, path = json.loads(struck[0])
            outcome.where = f"{what} {path}".strip()
        outcome.problems += _complaints(ended, outcome.fault, self.place.work)
        if ended.code == 0:
            self._done_too_soon(stage, outcome)
        return ended

    def _go_on(self, stage: Stage, outcome: Outcome) -> None:
        """Run the command until it ends, removing what it says is to be removed, and compare."""
        reference = self.reference(stage)
        while True:
            ended = self._run(stage, limit=30 + 10 * reference.seconds)
            if ended.hung:
                outcome.problems.append("HUNG")
                return
            if ended.code == 0:
                break
            remedy = remedies(ended.last_line, self.place.work)
            outcome.refusals.append(ended.last_line)
            if ended.code != 2 or remedy is None or len(outcome.refusals) > MOST_REFUSALS:
                outcome.problems.append(f"DOES NOT GO ON: {ended.words}: {ended.last_line}")
                return
            shutil.rmtree(remedy) if remedy.is_dir() else remedy.unlink()
        if outcome.refusals and outcome.fault not in REFUSED:
            outcome.problems.append(f"REFUSED: {outcome.refusals[0]}")
        found = differences(reference.tree, self.place.work)
        if outcome.smaller:
            found = [each for each in found if not close(reference.tree, self.place.work, each)]
        foreign = outcome.altered is not None and (
            outcome.altered not in reference.written or _is_idle(outcome.altered, stage)
        )
        outcome.unread = foreign and any(each.file == outcome.altered for each in found)
        outcome.problems += [str(each) for each in found if not (foreign and each.file == outcome.altered)]

    def _run(
        self,
        stage: Stage,
        *,
        strike: Strike | None = None,
        watched: bool = False,
        kill_after: float | None = None,
        limit: float = 180.0,
    ) -> Ended:
        arguments = self.kitchen.arguments(stage)
        how: dict[str, Any] = {"strike": strike, "watched": watched, "kill_after": kill_after, "limit": limit}
        if stage.processes == 2:
            return run_together(self.place, arguments, victim=self._victim, before=self._prepare, **how)
        return run(self.place, arguments, before=self._prepare, **how)


_DISTURBANCES: Mapping[str, Callable[[Harness, Stage, Outcome, random.Random], None]] = {
    KILL: Harness._killed,
    POWER: Harness._power_failed,
    ALTERED: Harness._altered,
}


def applies(stage: Stage, fault: str) -> bool:
    """Whether a fault means something to a stage."""
    if stage.processes > 1:
        return fault == KILL
    if fault == TERMINATE:
        return stage.trains
    return fault != MEMORY or stage.computes


def _is_idle(name: str, stage: Stage) -> bool:
    """Whether a run may end without reading this file again, and so without a look at it: pictures for people, encodings
    of examples that it has had, checkpoints unless they are the last, and of a finished run all."""
    return "/samples/" in name or "/checkpoint-" in name or (name.startswith(f"{CACHE}/") and stage.trains)


def remedies(line: str, work: Path) -> Path | None:
    """What a refusal says is to be removed: a path of the work folder that is there."""
    named = re.match(r"diffusion-sft: (.+?): ", line)
    asked = re.search(r"(?:remove|delete) (it|this file|\S+?)(?=[\s;,)]|$)", line)
    if asked is None:
        return None
    text = named[1] if named and asked[1] in ("it", "this file") else asked[1]
    path = Path(text)
    return path if path.is_relative_to(work) and path != work and path.exists() else None


def _complaints(ended: Ended, fault: str, work: Path) -> list[str]:
    """What is wrong about how a disturbed process ended."""
    if ended.hung:
        return ["HUNG when it was disturbed"]
    found, traceback = [], "Traceback (most recent call last)" in ended.told
    one_line = ended.last_line.startswith("diffusion-sft: ") and not traceback
    if fault in (DISK, SMALL):
        if ended.code not in (0, 2) or (ended.code == 2 and not one_line):
            found.append(f"NOT ONE LINE: {ended.words}: {ended.last_line}")
        found += [f"HALF-WRITTEN: {name}" for name in unreadable(work)]
    if fault == INTERRUPT and (ended.code not in (0, 130, -2) or traceback):
        found.append(f"NOT ONE LINE: {ended.words}: {ended.last_line}")
    if fault == TERMINATE:
        if ended.code == 143 and not list(work.glob("**/checkpoint-*")):
            found.append("NO CHECKPOINT after SIGTERM")
        if ended.code not in (0, 143, -15):
            found.append(f"BAD END: {ended.words}: {ended.last_line}")
    if fault == MEMORY and ended.code == 2 and not one_line:
        found.append(f"NOT ONE LINE: {ended.words}: {ended.last_line}")
    return found
