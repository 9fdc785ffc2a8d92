"""A few faults of every kind on the quick stages, and proof that the harness finds what it is there for.

The long version is `scripts/faults.py`; its table is docs/faults.md.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_attempts import ALTERED, FAULTS, POWER, SMALL, Harness, applies, remedies
from fault_points import DISK, INTERRUPT, KILL, TERMINATE
from fault_runs import Place, run
from fault_stages import STAGES, stage_named
from fault_table import table
from fault_trees import Difference, differences, inodes, power_failure

import diffusion_sft.commands
import diffusion_sft.study  # noqa: F401  imported once, for all processes
from diffusion_sft import files

SHORT = ("world", "cache", "bucket", "finetune, cached", "generate")
POINTS = [(name, fault) for name in SHORT for fault in FAULTS if fault != SMALL and applies(stage_named(name), fault)]
# Each fault in some stage; the rest: pytest -m slow, and all stages: scripts/faults.py.
CASES = [
    pytest.param(*point, marks=[pytest.mark.slow] if (place + place // len(FAULTS)) % 3 else [])
    for place, point in enumerate(POINTS)
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(Place(tmp_path_factory.mktemp("faults")), seed=1)


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_a_disturbed_stage_ends_as_if_nothing_had_happened(harness: Harness, name: str, fault: str) -> None:
    outcome = harness.attempt(stage_named(name), fault, 0)
    assert not outcome.problems, outcome


def test_sigterm_in_training_leaves_a_checkpoint_and_the_run_goes_on(harness: Harness) -> None:
    ends = {harness.attempt(stage_named("finetune, cached"), TERMINATE, point).ended for point in (1, 2, 3)}
    assert "exit 143" in ends


# --- what the harness finds ---


@contextmanager
def written_in_place(path: Path) -> Iterator[Path]:
    """As `files.replaced`, without a temporary file: what is half-written bears the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path


def planted_in_place() -> None:
    """Write the world's files and the buckets' tables in place."""
    files.replaced = written_in_place


def planted_deaf() -> None:
    """Take a SIGTERM in training for nothing, and end as if all were done."""
    from diffusion_sft.finetune import loop

    @contextmanager
    def deaf(request: Any) -> Iterator[None]:
        previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        yield
        signal.signal(signal.SIGTERM, previous)

    loop.stop_on_sigterm = deaf


def planted_forgetful() -> None:
    """Forget the optimiser's state when a run goes on."""
    from diffusion_sft.finetune import checkpoints

    checkpoints.restore = lambda *_: None


@pytest.mark.parametrize(
    ("plant", "name", "fault", "told"),
    [
        (planted_in_place, "bucket", DISK, "HALF-WRITTEN"),
        pytest.param(planted_forgetful, "finetune, cached", KILL, "DIFFERENT: run/", marks=pytest.mark.slow),
        (planted_deaf, "finetune, cached", TERMINATE, "ENDED AS IF DONE"),
    ],
)
def test_a_planted_mistake_is_found(
    tmp_path_factory: pytest.TempPathFactory, plant: Any, name: str, fault: str, told: str
) -> None:
    harness = Harness(Place(tmp_path_factory.mktemp("planted")), seed=1, plant=plant)
    found: list[str] = []
    for point in range(8):
        found += harness.attempt(stage_named(name), fault, point).problems
        if any(problem.startswith(told) for problem in found):
            return
    raise AssertionError(found)


def test_a_command_that_hangs_is_ended_and_named(harness: Harness) -> None:
    ended = run(harness.place, ["--help"], limit=0.2, before=lambda: signal.pause())
    assert ended.hung
    assert ended.words == "hung"


def test_what_differs_is_named(tmp_path: Path) -> None:
    reference, found = tmp_path / "reference", tmp_path / "found"
    for root in (reference, found):
        (root / "probe").mkdir(parents=True)
        (root / "probe" / "scores.csv").write_text("1\n")
        (root / "probe" / "probe.json").write_text('{"key": "a", "seconds": 1.0}')
    (found / "probe" / "probe.json").write_text('{"key": "a", "seconds": 2.0}')
    assert differences(reference, found) == []
    (found / "probe" / "probe.json").write_text('{"key": "b", "seconds": 1.0}')
    (found / "probe" / "parts" / "x").mkdir(parents=True)
    (found / ".run.lock").write_text("")
    (found / "probe" / "scores.csv").unlink()
    assert set(differences(reference, found)) == {
        Difference("MISSING", "probe/scores.csv"),
        Difference("LEFT BEHIND", "probe/parts/"),
        Difference("LEFT BEHIND", ".run.lock"),
        Difference("DIFFERENT", "probe/probe.json"),
    }


def test_a_power_failure_takes_what_was_not_synced(tmp_path: Path) -> None:
    work, log = tmp_path / "work", tmp_path / "points.log"
    work.mkdir()
    (work / "safe").write_text("12345678")
    (work / "loose").write_text("12345678")
    (work / "new").write_text("new")
    safe = inodes(work)
    safe.pop((work / "loose").stat().st_ino)
    (tmp_path / "kept").write_text("old")
    log.write_text(f'["rename", "{work}/.new", "{work}/new", "file", "{tmp_path}/kept"]\n')
    taken = [bool(power_failure(work, log, safe, random.Random(seed))) for seed in range(1)]
    assert taken == [True]
    assert (work / "safe").read_text() == "12345678"
    assert len((work / "loose").read_text()) < 8
    assert (work / "new").read_text() in ("new", "old")


def test_what_a_refusal_says_is_done_inside_the_work_folder_alone(tmp_path: Path) -> None:
    file = tmp_path / "run" / "scores.parquet"
    file.parent.mkdir()
    file.touch()
    assert remedies(f"diffusion-sft: {file}: not a readable table (x); remove it and run again", tmp_path) == file
    assert remedies(f"diffusion-sft: {file}: cut; remove {file.parent} to go on", tmp_path) == file.parent
    assert remedies(f"diffusion-sft: {file}: not a readable table", tmp_path) is None
    assert remedies("diffusion-sft: /etc/passwd: odd; remove it and run again", tmp_path) is None


def test_every_stage_has_its_faults_and_the_table_names_each(harness: Harness) -> None:
    assert {name for stage in STAGES for name in FAULTS if applies(stage, name)} == set(FAULTS)
    outcome = harness.attempt(stage_named("generate"), INTERRUPT, 1)
    assert "| generate | interrupt | 1 | exit 130 ×1 | identical ×1 |" in table([outcome])
    shutil.rmtree(harness.place.work)
    assert {POWER, ALTERED} <= set(FAULTS)
