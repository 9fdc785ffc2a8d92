"""Long runs: nothing grows with the updates that should not, old checkpoints go in the right order, clocks are harmless."""

from __future__ import annotations

import gc
import json
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from taught import taught
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_benches import BENCHES, bench
from test_finetune import ANSWERS, EXACT, UNKNOWN_MIX, an_evaluation, lines_of, run_exact

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.finetune import checkpoints, run
from diffusion_sft.finetune.checkpoints import checkpoint_damage, checkpoint_updates
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import COLUMNS, early_stop_update, evaluation_rows, make_exam
from diffusion_sft.finetune.journal import Journal
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.probe import ProbeConfig, probe

KILOBYTE = 1024
BUSY = replace(
    EXACT,
    max_train_steps=12,
    use_ema=True,
    validation_steps=4,
    validation_draws=2,
    checkpointing_steps=3,
    report_to="tensorboard",
    validation_prompts=["a photo of a dax"],
    num_validation_images=1,
    validation_inference_steps=2,
)
"""Everything that writes is on."""
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted under /proc")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def tensors() -> int:
    """How many tensors there are that were made since `gc.freeze`."""
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


# ---- memory and open files ---------------------------------------------------------------------------------------


def looked_at(every: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """Bytes that Python holds, tensors, open files and threads after every so many updates of runs to come."""
    looks: list[tuple[int, int, int, int]] = []
    plain = Journal.log

    def log(self: Journal, values: dict) -> None:
        plain(self, values)
        if values["update"] % every == 0:
            counted = tensors()
            looks.append((tracemalloc.get_traced_memory()[0], counted, open_files(), threading.active_count()))

    monkeypatch.setattr(Journal, "log", log)
    return looks


def thirds(looks: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each in the first third after the first looks, and the least of each in the last."""
    count = len(looks) // 3
    return np.max(looks[2 : 2 + count], axis=0), np.min(looks[-count:], axis=0)


@pytest.fixture
def counted() -> Iterator[None]:
    """What there is at the start is not looked at any more, which makes looking fast."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def traced(counted: None) -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def diffusion_run(pipeline: Path, concepts: Path, folder: Path, updates: int) -> None:
    learner = DiffusionLearner.load(str(pipeline), device=torch.device("cpu"), cache_dir=folder.parent / "cache")
    concept_set = read_concept_set(ConceptsConfig(path=str(concepts))).concept_set
    mix = compose(MixConfig(name="all"), None, concept_set, 0)
    config = FinetuneConfig(
        max_train_steps=updates,
        train_batch_size=1,
        use_ema=True,
        validation_steps=50,
        validation_draws=2,
        validation_examples_per_concept=1,
        validation_prompts=["a photo of a dax"],
        num_validation_images=1,
        validation_inference_steps=2,
        checkpointing_steps=50,
    )
    finetune(learner, mix, make_exam(mix, None, concept_set, config, ANSWERS), config, folder)


@needs_proc
@pytest.mark.slow
def test_nothing_grows_with_the_updates_of_a_diffusion_model(
    tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: None
) -> None:
    looks = looked_at(20, monkeypatch)
    diffusion_run(tiny_pipeline, tiny_set, tmp_path / "run", updates=300)
    assert len(looks) == 15
    first, last = thirds(looks)
    # The evaluations themselves are kept: four more of a few rows.
    assert last[0] - first[0] < 200 * KILOBYTE
    assert (last[1:] <= first[1:]).all(), (first, last)


@needs_proc
@pytest.mark.slow
def test_nothing_grows_with_the_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: None) -> None:
    looks = looked_at(20, monkeypatch)
    config = replace(BUSY, max_train_steps=300, validation_steps=50, checkpointing_steps=50)
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    first, last = thirds(looks)
    assert last[0] - first[0] < 50 * KILOBYTE
    assert (last[1:] <= first[1:]).all(), (first, last)


@needs_proc
def test_growth_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: None) -> None:
    """The same measure of a run that keeps the graph of each loss, opens a file and starts a thread."""
    kept: list[object] = []
    end = threading.Event()
    plain = run.Run.losses

    def leaking(self: run.Run, micro: object) -> torch.Tensor:
        losses = plain(self, micro)  # type: ignore[arg-type]
        kept.append((losses, bytearray(2 * KILOBYTE), (tmp_path / "open").open("w")))
        thread = threading.Thread(target=end.wait)
        thread.start()
        kept.append(thread)
        return losses

    monkeypatch.setattr(run.Run, "losses", leaking)
    looks = looked_at(5, monkeypatch)
    config = replace(BUSY, max_train_steps=60, validation_steps=0, checkpointing_steps=60)
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    first, last = thirds(looks)
    end.set()
    for thing in kept:
        if isinstance(thing, tuple):
            thing[2].close()
        elif isinstance(thing, threading.Thread):
            thing.join()
    assert last[0] - first[0] > 50 * KILOBYTE
    assert (last[1:] > first[1:] + 10).all(), (first, last)


@needs_proc
def test_runs_one_after_another_leave_no_file_open_and_no_thread(tmp_path: Path, counted: None) -> None:
    found = []
    for number in range(6):
        run_exact(replace(BUSY, max_train_steps=6), tmp_path / f"run-{number}", UNKNOWN_MIX)
        found.append((open_files(), threading.active_count(), tensors()))
    # The first imports and fills what is kept for good.
    assert found[1:] == [found[1]] * 5


@needs_proc
def test_a_run_that_fails_leaves_no_file_open_and_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_exact(replace(BUSY, max_train_steps=6), tmp_path / "first", UNKNOWN_MIX)
    before = open_files(), threading.active_count()

    def fails(*_: object, **__: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(run, "draw_grid", fails)
    for number in range(3):
        with pytest.raises(UserError, match="no room"):
            run_exact(replace(BUSY, max_train_steps=6), tmp_path / f"run-{number}", UNKNOWN_MIX)
        assert (open_files(), threading.active_count()) == before


# ---- checkpoints -------------------------------------------------------------------------------------------------


def test_rotation_keeps_the_last_two_and_the_best_and_lets_nothing_go_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at when each checkpoint is whole, before each removal, and after each rotation."""
    folder = tmp_path / "run"
    strangers = [folder / "checkpoint-best" / "weights.safetensors", folder / "checkpoint-notes.txt"]
    for file in strangers:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("not this program's")
    most, made, removed, bests = [], [], [], []
    save, remove, rotate = run.save_checkpoint, checkpoints.remove_folder, run.rotate_checkpoints

    def saved(where: Path, update: int, *rest: object) -> None:
        before = checkpoint_updates(where)
        save(where, update, *rest)  # type: ignore[arg-type]
        assert checkpoint_updates(where) == [*before, update]
        assert all(checkpoint_damage(where, there) is None for there in checkpoint_updates(where))
        most.append(len(checkpoint_updates(where)))
        made.append(update)
        if update == 15:  # A copy that somebody else puts there meanwhile.
            (where / "checkpoint-7").mkdir()
            (where / "checkpoint-7" / "weights.safetensors").write_text("somebody's")

    def removing(path: Path) -> None:
        there = checkpoint_updates(path.parent)
        assert path.name != f"checkpoint-{max(there)}"
        assert checkpoint_damage(path.parent, max(there)) is None
        removed.append(path.name)
        remove(path)

    def rotated(where: Path, limit: int | None, every: int, best: int | None) -> None:
        rotate(where, limit, every, best)
        if not made:
            return
        bests.append(best)
        scheduled = [update for update in made if update % every == 0 or update == made[-1]]
        assert set(checkpoint_updates(where)) == set(scheduled[-2:]) | ({best} - {None})

    monkeypatch.setattr(run, "save_checkpoint", saved)
    monkeypatch.setattr(checkpoints, "remove_folder", removing)
    monkeypatch.setattr(run, "rotate_checkpoints", rotated)
    run_exact(replace(BUSY, max_train_steps=60, checkpointing_steps=5), folder, UNKNOWN_MIX)
    assert len(most) >= 12
    assert max(most) <= 4
    assert len(removed) >= 9
    assert len(set(bests)) > 2, bests  # None, then one and another
    assert [file.read_text() for file in strangers] == ["not this program's"] * 2
    assert (folder / "checkpoint-7" / "weights.safetensors").read_text() == "somebody's"
    assert not list(folder.glob(".checkpoint-*"))


# ---- logs --------------------------------------------------------------------------------------------------------


def test_files_and_lines_are_as_many_as_the_settings_say(tmp_path: Path) -> None:
    config, folder = replace(BUSY, checkpoints_total_limit=1), tmp_path / "run"
    run_exact(config, folder, UNKNOWN_MIX)
    assert [line["update"] for line in lines_of(folder)] == list(range(1, 13))
    evaluations = pd.read_parquet(folder / "evaluations.parquet")
    assert sorted(evaluations["update"].unique()) == [0, 4, 8, 12]
    assert len(evaluations) == 4 * len(evaluations[evaluations["update"] == 0])
    assert sorted(file.name for file in (folder / "samples").iterdir()) == [
        f"update-{n:06d}.png" for n in (0, 4, 8, 12)
    ]
    one_start = {file.relative_to(folder) for file in (folder / "logs").rglob("*") if file.is_file()}
    assert len(one_start) == 3  # events, and the settings in two forms
    run_exact(config, folder, UNKNOWN_MIX)  # nothing is left to do
    assert {f.relative_to(folder) for f in (folder / "logs").rglob("*") if f.is_file()} == one_start
    longest = max(len(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert longest < 300
    files = {file.relative_to(folder).parts[0] for file in folder.rglob("*")}
    run_exact(replace(config, max_train_steps=16), folder, UNKNOWN_MIX)
    assert len(lines_of(folder)) == 16
    logs = [file for file in (folder / "logs").rglob("*") if file.is_file()]
    assert len(logs) == 6  # three for each start
    assert {
        f for f in (file.relative_to(folder).parts[0] for file in folder.rglob("*")) if "checkpoint" not in f
    } == {f for f in files if "checkpoint" not in f}


def stopped_at(update: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have runs die after this update's line is written; returns what lets them live again."""
    plain = Journal.log

    def log(self: Journal, values: dict) -> None:
        plain(self, values)
        if values["update"] == update:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "log", log)
    return lambda: monkeypatch.setattr(Journal, "log", plain)


def test_tensorboard_shows_no_update_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(BUSY, tracker_project_name="mine")
    events = tmp_path / "run" / "logs" / "mine"
    live = stopped_at(11, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    live()
    shown = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload().Scalars("train/loss")
    assert [event.step for event in shown][-1] == 11  # more than the checkpoint has
    time.sleep(1.1)  # TensorBoard orders its files by the second
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    found = EventAccumulator(str(events), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in found.Scalars("trained/Unknown/accuracy")] == [0, 4, 8, 12]
    assert [event.step for event in found.Images("validation")] == [0, 4, 8, 12]
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx(
        [line["loss"] for line in lines_of(tmp_path / "run")], rel=1e-6
    )


def test_a_run_that_died_before_its_first_checkpoint_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(BUSY, max_train_steps=8, checkpointing_steps=8, tracker_project_name="mine")
    live = stopped_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    live()
    time.sleep(1.1)
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    found = EventAccumulator(str(tmp_path / "run" / "logs" / "mine"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == list(range(1, 9))
    assert [event.step for event in found.Scalars("trained/Unknown/accuracy")] == [0, 4, 8]


# ---- early stop --------------------------------------------------------------------------------------------------


def test_an_error_that_is_no_number_never_wins() -> None:
    def table(errors: dict[int, float], correct: int = 1) -> pd.DataFrame:
        rows = [
            an_evaluation(update, "heldout", "Unknown", correct, 2, error=error) for update, error in errors.items()
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    nan, inf = float("nan"), float("inf")
    for order in ({10: nan, 20: 3.0, 30: 4.0}, {10: 3.5, 20: 3.0, 30: nan}, {10: inf, 20: 3.0, 30: nan}):
        assert early_stop_update(table(order)) == 20
    assert early_stop_update(table({10: nan, 20: nan})) is None
    better = pd.concat([table({10: nan}, correct=2), table({20: 3.0})])
    assert early_stop_update(better) == 20
    # One category of two without a number spoils the update.
    mixed = pd.concat([table({10: 1.0, 20: 3.0}), table({10: nan, 20: 3.0}).assign(category="HighlyKnown")])
    assert early_stop_update(mixed) == 20


def test_an_answer_that_is_no_number_is_not_passed_over() -> None:
    answers = pd.DataFrame({"concept": "a", "correct": [True, True], "answered": True, "gain_nats": 1.0})
    answers["error_nats"] = [2.0, float("nan")]
    rows = evaluation_rows(10, {"heldout": answers}, {"a": "Unknown"})
    assert np.isnan(rows.error_nats.iloc[0])
    assert rows.gain_nats.iloc[0] == 1.0


# ---- clocks and time zones ---------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """All that a run leaves but its trackers' files, and without the seconds that it took."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and not name.startswith("logs/") and name not in ("finetune.json", "README.md"):
            found[name] = file.read_bytes()
            if file.name == "state.json":
                state = json.loads(found[name])
                del state["seconds"], state["seal"]  # the seal is a hash of all the rest
                found[name] = json.dumps(state).encode()
    return found


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plain") / "run"
    run_exact(BUSY, folder, UNKNOWN_MIX)
    return content(folder)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def into(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield into
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", ["Pacific/Kiritimati", "America/St_Johns"])
def test_a_run_is_the_same_in_every_time_zone(
    name: str, zone: Callable[[str], None], plain_run: dict[str, bytes], tmp_path: Path
) -> None:
    zone(name)
    assert time.strftime("%z") in ("+1400", "-0330", "-0230")
    run_exact(BUSY, tmp_path / "run", UNKNOWN_MIX)
    assert content(tmp_path / "run") == plain_run


CLOCKS: dict[str, Callable[[int], float]] = {
    "backwards": lambda calls: -3600.0 * calls,
    "a year ahead and back": lambda calls: 365 * 86400.0 * (calls % 2),
    "an hour back at the end of summer time": lambda calls: -3600.0 * (calls > 5),
    "before 1970": lambda calls: -60 * 365 * 86400.0,
}


@pytest.mark.parametrize("name", list(CLOCKS))
def test_a_run_is_the_same_whatever_the_clock_does(
    name: str, plain_run: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real, real_ns = 0, time.time, time.time_ns

    def shift() -> float:
        nonlocal calls
        calls += 1
        return CLOCKS[name](calls)

    monkeypatch.setattr(time, "time", lambda: real() + shift())
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(1e9 * shift()))
    live = stopped_at(8, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_exact(BUSY, tmp_path / "run", UNKNOWN_MIX)
    live()
    run_exact(BUSY, tmp_path / "run", UNKNOWN_MIX)
    assert calls > 0
    assert content(tmp_path / "run") == plain_run


@pytest.mark.parametrize("order", ["shuffled", "reversed", "years to come", "all alike"])
def test_resuming_does_not_ask_when_files_were_written(
    order: str, plain_run: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = stopped_at(11, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_exact(BUSY, tmp_path / "run", UNKNOWN_MIX)
    live()
    restamped(tmp_path, order)
    run_exact(BUSY, tmp_path / "run", UNKNOWN_MIX)
    assert content(tmp_path / "run") == plain_run


def restamped(folder: Path, order: str) -> None:
    """Other times of writing for all that is in a folder."""
    files = sorted(folder.rglob("*"), key=lambda path: path.stat().st_mtime_ns)
    times = [1e9 + 1000.0 * place for place in range(len(files))]
    if order == "shuffled":
        random.Random(0).shuffle(times)
    elif order == "reversed":
        times.reverse()
    elif order == "years to come":
        times = [time.time() + 10 * 365 * 86400 - moment / 1e6 for moment in times]
    else:
        times = [1e9] * len(files)
    for file, moment in zip(files, times, strict=True):
        os.utime(file, (moment, moment))


def test_a_probe_goes_on_whatever_the_times_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, concept_set = taught()
    config = ProbeConfig(num_draws=16, answers=ANSWERS)
    expected = probe(learner, concept_set, config, tmp_path / "plain")
    plain, calls = ExactLearner.surprise, 0

    def dies(self: ExactLearner, *given: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return plain(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ExactLearner, "surprise", dies)
    with pytest.raises(KeyboardInterrupt):
        probe(learner, concept_set, config, tmp_path / "run")
    monkeypatch.setattr(ExactLearner, "surprise", plain)
    assert list((tmp_path / "run" / "parts").rglob("*.parquet"))
    restamped(tmp_path / "run", "years to come")
    found = probe(learner, concept_set, config, tmp_path / "run")
    for name in ("scores", "answers"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))


# ---- the measurement ---------------------------------------------------------------------------------------------


def test_the_bench_finds_the_growth_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHES))
    from long_run import MEASURED, growth, markdown

    progress = np.arange(0, 10_001, 10)
    noise = np.random.default_rng(0).normal(0, 1, len(progress))
    looks = pd.DataFrame({"run": "r", "unit": "updates", "seconds": progress / 100, "progress": progress})
    looks = looks.assign(**dict.fromkeys(MEASURED, 5.0)).assign(own_mb=100 + 0.5 * progress / 1000 + noise)
    looks.loc[progress <= 1000, "own_mb"] = 400.0  # the warm-up
    found = growth(looks).set_index("measure")
    grown = found.loc["own_mb"]
    assert grown.slope_low < 0.5 < grown.slope_high
    assert 0.02 < grown.slope_high - grown.slope_low < 0.2
    assert grown.growth == pytest.approx(0.5 * 8, abs=0.5)
    assert found.loc["threads", ["growth", "slope_per_1000", "slope_low", "slope_high"]].tolist() == [0, 0, 0, 0]
    assert markdown(growth(looks)).count("\n") == 1 + len(MEASURED)


@needs_proc
@pytest.mark.slow
def test_the_bench_watches_the_real_command(tmp_path: Path) -> None:
    options = ["out", "--only", "language", "--updates", "1500"]
    text = bench("long_run.py", *options, folder=tmp_path)
    assert "| language, 1,500 updates | open_files |" in text
    samples = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    assert samples.progress.is_monotonic_increasing
    assert 0 < samples.own_mb.median() < samples.resident_mb.median()
    assert (tmp_path / "out" / "long-run.png").stat().st_size > 10_000
