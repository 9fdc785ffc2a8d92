"""What happens to runs: a second process, a kill between two system calls, a cut-off or altered file, weights that run away."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from taught import taught
from test_finetune import EXACT, UNKNOWN_MIX, run_exact

from diffusion_sft import cli
from diffusion_sft.answers import AnswerConfig
from diffusion_sft.concepts.store import Store
from diffusion_sft.errors import UserError
from diffusion_sft.files import (
    partial_owner,
    partial_path,
    read_table,
    recover_folder,
    remove_folder,
    remove_orphans,
    replaced_folder,
    write_table,
)
from diffusion_sft.finetune.checkpoints import checkpoint_updates
from diffusion_sft.finetune.optimizers import make_optimizer
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.learners.likelihood import finite
from diffusion_sft.locks import locked
from diffusion_sft.manifests import read_record
from diffusion_sft.parts import Parts
from diffusion_sft.probe import ProbeConfig, probe

SHORT = replace(EXACT, max_train_steps=6, checkpointing_steps=2, validation_steps=0, checkpoints_total_limit=None)


# --- folders ---


def test_a_second_process_is_told_who_is_at_work_and_a_death_sets_the_folder_free(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = "import sys, time; from pathlib import Path; from diffusion_sft.locks import locked\n"
    script += "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        told = rf"process {other.pid} on \S+ since 20\S+ \S+ UTC \(0 h 0 min\) is at work there; wait"
        with pytest.raises(UserError, match=told), locked(folder):
            pass
        other.kill()
    assert (tmp_path / ".run.lock").exists()  # which says nothing any more
    with locked(folder):
        assert not folder.exists()  # the lock stands beside it
    with locked(folder):
        pass


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a mistake"), locked(tmp_path / "runs" / "mine"):
        assert (tmp_path / "runs" / ".mine.lock").exists()
        raise UserError("a mistake")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "mine").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, the last owner may have removed the file: its lock would be one of nothing."""
    import fcntl

    plain, calls = fcntl.flock, []

    def flock(stream: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / ".run.lock").unlink()
        plain(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "run"):
        assert len(calls) == 2
        monkeypatch.setattr(fcntl, "flock", plain)
        with pytest.raises(UserError, match="is at work there"), locked(tmp_path / "run"):
            pass


def test_a_run_is_refused_where_another_is_at_work(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(UserError, match="is at work there"):
        run_exact(SHORT, tmp_path / "run", UNKNOWN_MIX)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_removed_is_gone_at_once_or_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "state.json").write_text("{}")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(folder)
    assert not folder.exists()
    assert checkpoint_updates(tmp_path) == []


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    with replaced_folder(folder) as temporary:
        (temporary / "number").write_text("1")
    os.replace(folder, tmp_path / ".state.old.0123abcd")  # as it is between two renames
    recover_folder(folder)
    assert (folder / "number").read_text() == "1"
    assert list(tmp_path.iterdir()) == [folder]
    # Where the new one cannot be put in place, the old one stays.
    plain, calls = os.replace, []

    def refused(source: Any, target: Any) -> None:
        calls.append(target)
        if Path(target) == folder and len(calls) == 2:
            raise OSError(errno.EIO, "no")
        plain(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="no"), replaced_folder(folder) as temporary:
        (temporary / "number").write_text("2")
    assert (folder / "number").read_text() == "1"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_lock_clears_what_killed_processes_left(tmp_path: Path) -> None:
    run, busy = tmp_path / "run", tmp_path / "run" / "finetune" / "busy"
    for folder in (run / "probe", busy):
        folder.mkdir(parents=True)
        (folder / ".partial-scores.parquet.000000-1-0123abcd.parquet").write_text("half")
        (folder / ".partial-checkpoint-5.000000-1-0123abcd").mkdir()
        (folder / ".partial-checkpoint-5.000000-1-0123abcd" / "weights.safetensors").write_text("half")
    (run / "probe" / ".hidden").write_text("the user's")
    (run / ".pipeline.old.0123abcd").mkdir()
    (run / ".pipeline.old.0123abcd" / "model_index.json").write_text("{}")
    with locked(busy):  # in which another process works, whose files are left alone
        (busy / ".partial-answers.csv.000000-1-0123abcd.csv").write_text("half")
        with locked(run):
            assert [path.name for path in (run / "probe").iterdir()] == [".hidden"]
            assert (run / "pipeline" / "model_index.json").is_file()
            assert [path.name for path in busy.iterdir()] == [".partial-answers.csv.000000-1-0123abcd.csv"]
    assert sorted(path.name for path in run.iterdir()) == ["finetune", "pipeline", "probe"]


def test_orphans_are_told_from_what_is_being_written(tmp_path: Path) -> None:
    live = partial_path(tmp_path / "entry.safetensors", ".safetensors")
    names = [
        live.name,
        live.name.replace(f"-{os.getpid()}-", "-2147483646-"),
        ".partial-of-others",
        "entry.safetensors",
    ]
    elsewhere = ".partial-entry.safetensors.000000-2147483646-0123abcd.safetensors"
    for name in (*names, elsewhere):
        (tmp_path / name).write_text("half")
    assert partial_owner(live.name) == ("entry.safetensors", False)
    assert partial_owner(names[1]) == ("entry.safetensors", True)
    assert partial_owner(".partial-of-others") is None
    remove_orphans(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {names[0], *names[2:], elsewhere}


def test_a_folder_that_was_being_made_goes_with_its_own_lock_alone(tmp_path: Path) -> None:
    dead = f"-{2**31 - 2}-"
    mine, other = (
        path.with_name(path.name.replace(f"-{os.getpid()}-", dead))
        for path in (partial_path(tmp_path / "run"), partial_path(tmp_path / "run.2"))
    )
    for folder in (mine, other):
        folder.mkdir()
    with locked(tmp_path / "run"):
        assert not mine.exists()
        assert other.exists()


def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / "run"):
        pass
    assert [message for message in caplog.messages if "this file system has no locks" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_files_get_the_rights_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replaced_folder(tmp_path / "folder") as temporary:
            (temporary / "number").write_text("1")
        write_table(tmp_path / "t.parquet", pd.DataFrame({"a": [1]}))
    finally:
        os.umask(before)
    modes = [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("folder", "t.parquet", "t.csv")]
    assert modes == ["0o750", "0o640", "0o640"]


# --- tables ---


def test_a_flipped_bit_in_a_table_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    write_table(file, pd.DataFrame({"gain_nats": np.arange(1000.0)}))
    assert len(read_table(file)) == 1000
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"scores\.parquet: not a readable parquet table .*; remove it and run again"):
        read_table(file)


class Item:
    def __init__(self, concept: str) -> None:
        self.concept = concept


def test_a_part_that_was_harmed_is_made_anew(tmp_path: Path) -> None:
    items, made = [Item(name) for name in "abcd"], []

    def compute(some: Any) -> pd.DataFrame:
        made.extend(item.concept for item in some)
        return pd.DataFrame({"concept": [item.concept for item in some]})

    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-20])

    harms: list[Any] = [cut, flip, Path.unlink, lambda file: None]
    for expected, harm in zip(("abcd", "cd", "cd", "cd", ""), [*harms, harms[-1]], strict=True):
        made.clear()
        with Parts(tmp_path / "parts" / "key", 2) as parts:
            parts.expect(4)
            table = parts.table("scores", items, compute, len)
        assert "".join(made) == expected
        assert "".join(table["concept"]) == "abcd"
        _, part = sorted((tmp_path / "parts" / "key").iterdir())
        harm(part)


def probe_of(folder: Path, seed: int = 0) -> tuple[pd.DataFrame, int]:
    """The scores, and how many network evaluations were made for them."""
    learner, concept_set = taught()
    asked = [0]
    plain = learner.predict

    def counted(noisy: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked[0] += len(noisy)
        return plain(noisy, *rest)

    learner.predict = counted  # type: ignore[method-assign]
    answers = AnswerConfig(num_renderings=1, num_candidates=4, num_invented=1, num_draws=6)
    result = probe(learner, concept_set, ProbeConfig(num_draws=6, seed=seed, answers=answers), folder)
    return result.scores, asked[0]


def test_tables_of_another_probe_are_never_taken_for_finished(tmp_path: Path) -> None:
    first, made = probe_of(tmp_path)
    assert made > 0
    assert probe_of(tmp_path)[1] == 0
    # A second probe with another seed, killed when it had written one table.
    other, _ = probe_of(tmp_path / "other", seed=1)
    shutil.copyfile(tmp_path / "other" / "scores.parquet", tmp_path / "scores.parquet")
    again, made = probe_of(tmp_path)
    assert made > 0
    pd.testing.assert_frame_equal(again, first)
    assert not other["gain_nats"].equals(first["gain_nats"])


def test_an_image_in_the_store_is_known_by_its_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    content = b"\x89PNG\r\n\x1a\n" + bytes(range(100))
    file = tmp_path / store.put(content)
    file.write_bytes(bytes(len(content)))  # as a power failure leaves it
    assert store.put(content) == file.relative_to(tmp_path).as_posix()
    assert file.read_bytes() == content


# --- runs ---


def test_weights_that_run_away_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite gradient may still make weights infinite; the checkpoints before are the good ones."""
    plain = make_optimizer

    def runaway(parameters: Any, config: Any) -> torch.optim.Optimizer:
        optimizer = plain(parameters, config)
        calls = [0]

        def after(*_: Any) -> None:
            calls[0] += 1
            if calls[0] == 5:
                next(iter(parameters.values())).data.fill_(float("inf"))

        optimizer.register_step_post_hook(after)
        return optimizer

    monkeypatch.setattr("diffusion_sft.finetune.begin.make_optimizer", runaway)
    with pytest.raises(UserError, match="are not finite after update 6; checkpoint-4 is the last good one"):
        run_exact(replace(SHORT, max_nonfinite_steps=9), tmp_path / "run", UNKNOWN_MIX)
    assert checkpoint_updates(tmp_path / "run") == [2, 4]


def test_a_finished_run_whose_weights_are_gone_exports_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_exact(SHORT, tmp_path / "run", UNKNOWN_MIX)
    shutil.rmtree(tmp_path / "run" / "pipeline")
    trained: list[int] = []
    plain = ExactLearner.loss

    def watched(self: ExactLearner, batch: Any) -> torch.Tensor:
        trained.append(1)
        return plain(self, batch)

    monkeypatch.setattr(ExactLearner, "loss", watched)
    run_exact(SHORT, tmp_path / "run", UNKNOWN_MIX)
    assert (tmp_path / "run" / "pipeline" / "means.safetensors").is_file()
    assert (tmp_path / "run" / "finetune.json").is_file()
    assert trained == []


def test_a_journal_that_lost_lines_is_refused(tmp_path: Path) -> None:
    run_exact(SHORT, tmp_path / "run", UNKNOWN_MIX)
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:3]))
    (tmp_path / "run" / "finetune.json").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: is not what it was at checkpoint-6; go back"):
        run_exact(SHORT, tmp_path / "run", UNKNOWN_MIX)
    back = replace(SHORT, resume_from_checkpoint="checkpoint-2")
    run_exact(back, tmp_path / "run", UNKNOWN_MIX)
    assert metrics.read_text().splitlines(keepends=True) == lines


def test_a_checkpoint_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    run_exact(SHORT, tmp_path / "run", UNKNOWN_MIX)
    weights = tmp_path / "run" / "checkpoint-2" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    (tmp_path / "run" / "finetune.json").unlink()
    with pytest.raises(UserError, match="checkpoint-2"):
        run_exact(replace(SHORT, resume_from_checkpoint="checkpoint-2"), tmp_path / "run", UNKNOWN_MIX)
    assert checkpoint_updates(tmp_path / "run") == [2, 4, 6]


EXAMINED = replace(SHORT, validation_steps=2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[2 * len(content) // 3] ^= 1
    file.write_bytes(content)


def left(run: Path) -> dict[str, bytes]:
    """What a run left, but for the numbers of seconds."""
    names = ("metrics.jsonl", "evaluations.csv", "answers.parquet", "pipeline/means.safetensors")
    weights = [path.relative_to(run).as_posix() for path in run.glob("checkpoint-*/*.safetensors")]
    return {name: (run / name).read_bytes() for name in (*names, *weights)}


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"]
)
def test_an_altered_checkpoint_is_named_and_made_again(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = tmp_path / "run", replace(EXAMINED, use_ema=True, ema_horizon=4)
    run_exact(config, run, UNKNOWN_MIX)
    before = left(run)
    flip(run / "checkpoint-6" / file)
    (run / "finetune.json").unlink()
    run_exact(config, run, UNKNOWN_MIX)
    assert f"{run / 'checkpoint-6' / file}: " in caplog.text
    assert "going on from checkpoint-4 instead" in caplog.text
    assert left(run) == before


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_behind_the_users_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_exact(EXAMINED, run, UNKNOWN_MIX)
    (run / "finetune.json").unlink()
    for update in (2, 4, 6):
        flip(run / f"checkpoint-{update}" / "weights.safetensors")
    with pytest.raises(UserError, match=r"checkpoint-6.weights\.safetensors: .*no other checkpoint is whole"):
        run_exact(EXAMINED, run, UNKNOWN_MIX)
    assert checkpoint_updates(run) == [2, 4, 6]


def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_exact(EXAMINED, tmp_path / "straight", UNKNOWN_MIX)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr("diffusion_sft.finetune.run.save_checkpoint", lambda *_: 1 / 0)
        run_exact(EXAMINED, tmp_path / "killed", UNKNOWN_MIX)
    assert (tmp_path / "killed" / "answers" / "update-000000.parquet").is_file()
    run_exact(EXAMINED, tmp_path / "killed", UNKNOWN_MIX)
    stamps = [read_record(tmp_path / n / "checkpoint-6" / "state.json")["journal"] for n in ("straight", "killed")]
    assert stamps[0] == stamps[1]
    assert left(tmp_path / "straight") == left(tmp_path / "killed")


@pytest.mark.parametrize("name", ["evaluations.parquet", "answers.parquet"])
@pytest.mark.parametrize("harm", ["gone", "another"])
def test_tables_that_are_not_those_of_the_checkpoint_are_refused(name: str, harm: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_exact(EXAMINED, run, UNKNOWN_MIX)
    (run / "finetune.json").unlink()
    if harm == "gone":
        (run / name).unlink()
    else:
        table = read_table(run / name)
        write_table(run / name, table[table["update"] > 0])
    with pytest.raises(UserError, match=name):
        run_exact(EXAMINED, run, UNKNOWN_MIX)


@pytest.mark.parametrize("name", ["pipeline/means.safetensors", "README.md", "finetune.json", "dynamics.csv"])
def test_what_was_altered_after_the_end_is_named_and_made_again(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run_exact(EXAMINED, run, UNKNOWN_MIX)
    before = left(run)
    flip(run / name)
    run_exact(EXAMINED, run, UNKNOWN_MIX)
    assert f"{run / name}: " in caplog.text
    assert "finished again from its last checkpoint" in caplog.text
    assert left(run) == before
    caplog.clear()
    run_exact(EXAMINED, run, UNKNOWN_MIX)
    assert caplog.text == ""


def test_numbers_that_are_none_are_null_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_sft.finetune.stepping.relative_distance", lambda *_: float("nan"))
    run_exact(replace(SHORT, max_train_steps=12), tmp_path / "run", UNKNOWN_MIX)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if "relative_update" in line] == [10]
    assert lines[9]["relative_update"] is None


def test_a_likelihood_that_is_no_number_names_the_example() -> None:
    good = [[np.ones(2)], [np.zeros(1)]]
    assert finite(good, "a/b/0") is good
    with pytest.raises(UserError, match=r"a/b/0: its answer's likelihood is not finite"):
        finite([[np.ones(2)], [np.array([np.nan])]], "a/b/0")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")]
)
def test_no_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main(["doctor"]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"diffusion-sft: no memory left \((MemoryError|CUDA .* 9 GiB\.)\); lower the stage's batch_size .* go on\n",
        told,
    )


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(RuntimeError, match="of ours"):
        cli.main(["doctor"])


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/scores.parquet")

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main(["doctor"]) == 2
    told = capsys.readouterr().err
    assert (
        told
        == "diffusion-sft: runs/x/scores.parquet: No space left on device; make room and run the same command again\n"
    )
