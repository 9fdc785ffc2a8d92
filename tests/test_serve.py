"""The live view: what its pages say of running, finished, broken and odd runs, asked over a real connection."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from live_runs import aged, evaluations, finetune_run, log, picture, study_run, watching, write

from diffusion_sft import cli
from diffusion_sft.errors import UserError
from diffusion_sft.records import CATEGORIES
from diffusion_sft.serve import curves, pages, place, shares, training
from diffusion_sft.serve.config import ServeConfig
from diffusion_sft.serve.halves import DONE, NOW, OPEN, parts_done, read_half
from diffusion_sft.serve.pages import ago
from diffusion_sft.serve.place import Place, Remembered
from diffusion_sft.serve.runs import (
    FINISHED,
    QUIET,
    RUNNING,
    STOPPED,
    find_runs,
    kind_of,
    page_kind,
    read_runs,
    read_state,
)
from diffusion_sft.serve.server import LiveServer
from diffusion_sft.serve.shares import last_answers
from diffusion_sft.serve.training import Stretch, parsed, read_finetune, stretches


def words(page: str) -> str:
    """The text of a page's main element."""
    inside = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", inside)).split())


# ---- what is found -----------------------------------------------------------------------------------------------


def test_runs_are_found_two_levels_deep_and_not_inside_runs(tmp_path: Path) -> None:
    study_run(tmp_path / "a")
    finetune_run(tmp_path / "group" / "b")
    finetune_run(tmp_path / "group" / "deeper" / "c")
    write(tmp_path / "base" / "work" / "denoiser" / "state.json", {"update": 50, "log": []})
    write(tmp_path / "notes" / "readme.txt", "no run")
    found = {run.relative: kind_of(run) for run in find_runs(Place(tmp_path))}
    assert found == {"a": "study", "group/b": "fine-tuning", "base": "pretraining"}


def test_a_folder_that_is_a_run_is_the_only_one(tmp_path: Path) -> None:
    root = Place(study_run(tmp_path / "a"))
    assert [run.parts for run in find_runs(root)] == [()]
    with watching(tmp_path / "a") as reader:
        assert "What is known?" in reader.page()
        assert "Fine-tuning runs" in reader.page("/run")
        assert reader.ask("/file/report.html")[0] == 200


def test_a_studys_runs_have_pages_and_its_other_folders_have_none(tmp_path: Path) -> None:
    study_run(tmp_path / "a")
    root = Place(tmp_path)
    assert page_kind(root / "a") == "study"
    assert page_kind(root / "a/finetune/half") == "fine-tuning"
    assert [page_kind(root / name) for name in ("", "a/finetune", "a/probe", "elsewhere")] == [None] * 4


def test_one_half_alone_is_a_study(tmp_path: Path) -> None:
    record = {"title": "Facts", "settings": {"learners": ["llm"], "llm": {"base": "data/world-lm", "mixes": []}}}
    write(tmp_path / "a" / "llm" / "study.json", record)
    run = read_state(Place(tmp_path) / "a")
    assert (run.kind, run.title, [half.learner for half in run.halves]) == ("study", "Facts", ["llm"])
    assert run.halves[0].base == "data/world-lm"


def test_the_other_half_is_told_of_before_it_begins(tmp_path: Path) -> None:
    own = {"base": "sd15", "learners": ["diffusion", "llm"], "llm": {"base": "qwen", "mixes": [{}], "seeds": [1, 2]}}
    write(tmp_path / "a" / "llm" / "study.json", {"settings": own | {"mixes": []}})
    diffusion, llm = read_state(Place(tmp_path) / "a").halves
    assert (diffusion.base, diffusion.stage, llm.base) == ("sd15", None, "qwen")
    assert llm.stages[2].detail == "0 of 2 runs"


# ---- how far it is -----------------------------------------------------------------------------------------------


def test_states_go_by_the_last_file_and_the_clock(tmp_path: Path) -> None:
    going, done = finetune_run(tmp_path / "going"), finetune_run(tmp_path / "done", updates=100, finished=True)
    now = time.time()
    states = [read_state(Place(tmp_path) / name).state(now) for name in ("going", "done")]
    assert states == [RUNNING, FINISHED]
    aged(going, 600)
    aged(done, 600)
    states = [read_state(Place(tmp_path) / name).state(now) for name in ("going", "done")]
    assert states == [QUIET, FINISHED]


def test_a_run_that_goes_on_after_its_summary_is_not_finished(tmp_path: Path) -> None:
    aged(finetune_run(tmp_path / "a", updates=100, finished=True), 600)
    write(tmp_path / "a" / "config.yaml", "max_train_steps: 200\n")
    log(tmp_path / "a", range(101, 111))
    run = read_state(Place(tmp_path) / "a")
    assert not run.finished
    assert run.trainings[0].progress == pytest.approx(110 / 200)


@pytest.mark.parametrize("seconds", [-1e8, 1e8])
def test_what_is_finished_does_not_hang_on_times_of_writing(seconds: float, tmp_path: Path) -> None:
    """As after copying, unpacking, or under a clock that was set meanwhile."""
    done, going = finetune_run(tmp_path / "done", updates=100, finished=True), finetune_run(tmp_path / "going")
    dead = finetune_run(tmp_path / "dead")
    with (dead / "metrics.jsonl").open("a") as stream:
        stream.write('{"update": 41, "loss": null, "skipped": "loss"}\n')
    write(dead / "nonfinite.json", {"update": 41, "not_finite": "loss", "items": []})
    base = write(
        tmp_path / "base" / "work" / "unet" / "state.json", {"update": 50, "log": [{"update": 50, "loss": 1.0}]}
    )
    write(tmp_path / "base" / "training.json", {"denoiser_log": [{"update": 50, "loss": 1.0}]})
    now = time.time()
    for name in ("metrics.jsonl", "finetune.json", "nonfinite.json"):
        for run in (done, going, dead):
            if (run / name).is_file():
                os.utime(run / name, (now + seconds, now + seconds))
        seconds = -seconds
    os.utime(base, (now + seconds, now + seconds))
    found = {run.place.name: run for run in read_runs(Place(tmp_path))}
    assert {name: run.finished for name, run in found.items()} == {
        "done": True,
        "going": False,
        "dead": False,
        "base": True,
    }
    assert found["dead"].state(now) == STOPPED
    # The run that failed goes on from before, and the pretraining is made longer.
    finetune_run(dead, updates=45)
    write(base, {"update": 60, "log": [{"update": 50, "loss": 1.0}, {"update": 60, "loss": 0.9}]})
    assert [read_state(Place(tmp_path) / name).finished for name in ("dead", "base")] == [False, False]
    assert not read_state(Place(tmp_path) / "dead").trainings[0].stopped


def test_times_to_come_make_no_run_last(tmp_path: Path) -> None:
    """A file of before the clock was set back; a server's clock that is a little ahead is borne with."""
    run = finetune_run(tmp_path / "a")
    aged(run, 600)
    now = time.time()
    os.utime(run / "config.yaml", (now + 1e8, now + 1e8))
    assert read_state(Place(tmp_path) / "a").state(now) == QUIET
    os.utime(run / "metrics.jsonl", (now + 100, now + 100))
    assert read_state(Place(tmp_path) / "a").state(now) == RUNNING


def test_a_report_older_than_the_tables_is_said_to_be(tmp_path: Path) -> None:
    aged(study_run(tmp_path / "a"), 600)
    assert read_state(Place(tmp_path) / "a").finished
    write(tmp_path / "a" / "study.json", json.loads((tmp_path / "a" / "study.json").read_text()))
    run = read_state(Place(tmp_path) / "a")
    assert (run.finished, run.report_is_old) == (False, True)
    with watching(tmp_path) as reader:
        assert "older than the tables" in words(reader.page())


def test_the_time_left_is_the_checkpoints_pace(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a", updates=40, budget=100)
    write(run / "checkpoint-20" / "state.json", {"seconds": 10.0})
    write(run / "checkpoint-30" / "state.json", {"seconds": 60.0})
    found = read_finetune(Place(tmp_path) / "a")
    assert found.seconds_left == pytest.approx(60 * 60.0 / 30)
    with watching(tmp_path) as reader:
        assert "about 2 min left, if all updates are used" in words(reader.page()).replace("\u00a0", " ")


def test_before_the_first_checkpoint_the_pace_is_from_the_start(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a", updates=40, budget=100)
    aged(run, 0)
    begun = (run / "metrics.jsonl").stat().st_mtime - 80
    os.utime(run / "config.yaml", (begun, begun))
    assert read_finetune(Place(tmp_path) / "a").seconds_left == pytest.approx(2.0 * 60)


def test_nothing_is_foretold_of_a_run_that_went_quiet(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a")
    write(run / "checkpoint-20" / "state.json", {"seconds": 10.0})
    aged(run, 600)
    with watching(tmp_path) as reader:
        page = words(reader.page("/run/a"))
    assert "40 of 100 updates" in page
    assert " left" not in page


HASH = "0123456789abcdef"
"""Of a part, in its name."""


def test_parts_tell_how_many_there_are_where_an_earlier_table_does() -> None:
    scores = [f"scores-{start:06d}.{HASH}.parquet" for start in range(0, 120, 10)]
    assert parts_done(scores[:5]) == {"scores": (5, None)}
    answers = [f"answers-{start:06d}.{HASH}.parquet" for start in range(0, 30, 10)]
    assert parts_done([*scores, *answers]) == {"scores": (12, 12), "answers": (3, 12)}
    assert parts_done(["..", "x.parquet", "notes-1.txt", f"sets-000000.{HASH}.parquet"]) == {"sets": (1, None)}


def test_a_stage_under_way_shows_its_parts(tmp_path: Path) -> None:
    for name in [*(f"scores-{n:06d}" for n in range(4)), "answers-000000"]:
        write(tmp_path / "a" / "probe" / "parts" / "0123456789abcdef" / f"{name}.{HASH}.parquet", "")
    run = read_state(Place(tmp_path) / "a")
    stage = run.halves[0].stage
    assert stage is not None
    assert (stage.name, stage.state, stage.progress) == ("probe", NOW, 0.25)
    with watching(tmp_path) as reader:
        assert "probe, parts done: scores 4 of 4, answers 1 of 4" in words(reader.page())


def test_stages_of_a_half(tmp_path: Path) -> None:
    folder = study_run(tmp_path / "a")
    finetune_run(folder / "finetune" / "half", updates=60)
    half = read_half("diffusion", Place(tmp_path) / "a", json.loads((folder / "study.json").read_text()))
    states = {stage.name: stage.state for stage in half.stages}
    expected = {"probe": DONE, "buckets": DONE, "fine-tuning": DONE, "pictures": DONE, "evaluation": DONE}
    assert states == expected | {"systems": OPEN}
    (folder / "finetune" / "half" / "finetune.json").unlink()
    half = read_half("diffusion", Place(tmp_path) / "a", json.loads((folder / "study.json").read_text()))
    assert half.stage is not None
    assert (half.stage.detail, half.stage.progress) == ("2 of 3 runs", pytest.approx((2 + 0.6) / 3))


def test_pictures_are_counted_while_they_are_drawn(tmp_path: Path) -> None:
    folder = study_run(tmp_path / "a")
    (folder / "evaluate" / "measures.parquet").unlink()
    for model in ("known", "unknown"):
        for path in (folder / "evaluate" / model).rglob("*.png"):
            path.unlink()
    half = read_state(Place(tmp_path) / "a").halves[0]
    stage = next(stage for stage in half.stages if stage.name == "pictures")
    assert stage.state == NOW
    assert re.fullmatch(r"(known|unknown), 0 of 32, model 4 of 4", stage.detail)


# ---- what pages show ---------------------------------------------------------------------------------------------


def test_the_overview_tells_of_each_run(tmp_path: Path) -> None:
    study_run(tmp_path / "a")
    finetune_run(tmp_path / "b")
    with watching(tmp_path) as reader:
        page = words(reader.page())
    for told in (
        "2 runs",
        "What is known?",
        "diffusion on data/world-base",
        "40 of 100 updates",
        "running",
        "finished",
    ):
        assert told in page
    assert "fewer than 5 held-out examples" not in page


def test_a_studys_page_has_curves_buckets_pictures_and_summaries(tmp_path: Path) -> None:
    study_run(tmp_path / "a")
    with watching(tmp_path) as reader:
        page = reader.page("/run/a")
        pictures = re.findall(r'<img src="(/file/[^"?]+)', page)
        assert len(pictures) == 8
        assert all(reader.ask(address)[0] == 200 for address in pictures)
    text = words(page)
    for told in ("HighlyKnown 5", "unknown 8", "by the rule gain", "the last line", "The report", "3 of 3 runs"):
        assert told in text.replace("  ", " ") or told in re.sub(r"(\w+) (\d+)", r"\1 \2", text), told
    assert page.count('class="curve"') == pages.DRAWN * 4
    assert page.count('class="spark"') == 3 * 3


def test_a_runs_page_shows_its_last_samples_and_answers(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a")
    for update in range(0, 100, 10):
        picture(run / "samples" / f"update-{update:06d}.png")
    with watching(tmp_path) as reader:
        page = reader.page("/run/a")
    shown = re.findall(r"samples/(update-\d+)\.png", page.replace("%2F", "/"))
    assert shown == ["update-000000", *(f"update-{update:06d}" for update in range(50, 100, 10))]
    assert "a blorp" in words(page)
    assert "at update 40" in words(page)


def test_answers_are_shown_of_every_role_and_category_in_turn(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a")
    roles = ("trained", "heldout", "test", "untouched")
    rows = [(40, role, category, f"{role}{n}") for role in roles for category in CATEGORIES[:2] for n in range(9)]
    table = pd.DataFrame(rows, columns=["update", "role", "category", "concept"]).assign(answer="", correct=False)
    table.to_parquet(run / "answers.parquet")
    said = last_answers(Place(tmp_path) / "a")
    counts = pd.Series([(row.role, row.category) for row in said]).value_counts()
    assert len(said) == 12
    assert set(counts) == {1, 2}
    assert len(counts) == 8


def test_answers_of_a_run_that_goes_on_are_those_of_its_last_evaluation(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a")
    for update in (80, 1_000_000, 100):
        (run / "answers").mkdir(exist_ok=True)
        table = pd.DataFrame({"update": [update], "role": "trained", "category": CATEGORIES[0], "concept": "a wug"})
        table.assign(answer=f"said at {update}", correct=True).to_parquet(
            run / f"answers/update-{update:06d}.parquet"
        )
    write(run / "answers" / "update-9999999.txt", "none")
    (said,) = last_answers(Place(tmp_path) / "a")
    assert (said.update_number, said.answer) == (1_000_000, "said at 1000000")


def test_the_way_leads_back_to_a_study_that_is_watched_itself(tmp_path: Path) -> None:
    with watching(study_run(tmp_path / "a")) as reader:
        page = reader.page("/run/finetune/half")
        assert '<a href="/run"><bdi>a</bdi></a>' in page
        assert "Fine-tuning runs" in reader.page("/run")


def test_a_pretrainings_page_draws_each_network(tmp_path: Path) -> None:
    rows = [{"update": update, "loss": 5 / update} for update in range(50, 550, 50)]
    write(tmp_path / "base" / "work" / "autoencoder" / "state.json", {"update": 500, "log": rows})
    write(tmp_path / "base" / "work" / "denoiser" / "state.json", {"update": 500, "log": [{"update": "x"}, 3, None]})
    with watching(tmp_path) as reader:
        page = reader.page("/run/base")
    assert page.count('class="curve"') == 1
    assert "autoencoder" in words(page)
    assert "denoiser" in words(page)


def test_a_growing_run_is_seen_to_grow(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a", updates=40)
    with watching(tmp_path) as reader:
        assert "40 of 100 updates" in words(reader.page("/run/a"))
        log(run, range(41, 61))
        evaluations(run, [0, 20, 40, 60])
        page = reader.page("/run/a")
        assert "60 of 100 updates" in words(page)
        assert "update 60: " in page
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write('{"update": 61, "loss": 0.5}')
        assert "60 of 100 updates" in words(reader.page("/run/a"))
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write("\n")
        assert "61 of 100 updates" in words(reader.page("/run/a"))


def test_a_page_renews_itself_with_and_without_scripts(tmp_path: Path) -> None:
    finetune_run(tmp_path / "a")
    with watching(tmp_path) as reader:
        page = reader.page()
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page
    assert 'data-seconds="5"' in page
    assert page.count("<script>") == 1
    assert 'id="pause"' in page


# ---- what breaks -------------------------------------------------------------------------------------------------


BROKEN = {
    "text": "{",
    "list": "[1, 2]",
    "deep": "[" * 100_000,
    "binary": "\x00\x01\ufffd",
    "types": json.dumps(
        {"settings": [], "seconds": {"probe": "long"}, "title": 3, "categories": {"Unknown": "many", "x": -1}}
        | {"log": 7, "update": 10**400, "seconds_": None, "record": [], "concepts": 1, "warnings": [1, {"a": 2}]}
    ).replace("3", "NaN"),
    "empty": "",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_no_file_breaks_a_page(tmp_path: Path, content: str) -> None:
    names = ("study.json", "config.yaml", "probe/probe.json", "buckets/buckets.json", "solve/solve.json")
    for name in (*names, "dynamics/summary.txt", "evaluate/measures.parquet"):
        write(study_run(tmp_path / "a") / name if name == "study.json" else tmp_path / "a" / name, content)
    for name in ("metrics.jsonl", "evaluations.parquet", "answers.parquet", "finetune.json", "nonfinite.json"):
        write(tmp_path / "a" / "finetune" / "half" / name, content)
        write(tmp_path / "b" / name, content)
    write(tmp_path / "b" / "config.yaml", content)
    write(tmp_path / "b" / "checkpoint-20" / "state.json", content)
    write(tmp_path / "c" / "work" / "denoiser" / "state.json", content)
    with watching(tmp_path) as reader:
        for address in ("/", "/run/a", "/run/a/finetune/half", "/run/b", "/run/c"):
            assert "Traceback" not in reader.page(address)
        if content != BROKEN["types"]:
            assert "study.json cannot be read" in words(reader.page("/run/a"))
            assert "evaluations.parquet cannot be read" in words(reader.page("/run/b"))


def test_a_table_of_other_columns_or_values_is_left_out(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a")
    pd.DataFrame({"update": [1], "role": ["trained"]}).to_parquet(run / "evaluations.parquet")
    assert read_finetune(Place(tmp_path) / "a").problems == ("evaluations.parquet cannot be read",)
    odd = {
        "update": ["1", "x", "3", "4"],
        "role": ["trained", "trained", "<b>", "trained"],
        "category": [None, *["Unknown"] * 3],
    }
    odd |= {"accuracy": ["0.5"] * 4, "accuracy_low": [0.4] * 4, "accuracy_high": [0.6, 0.6, 0.6, 7.0]}
    pd.DataFrame(odd).to_parquet(run / "evaluations.parquet")
    found = read_finetune(Place(tmp_path) / "a")
    assert list(found.shares) == ["trained"]
    assert [len(points) for points in found.shares["trained"].values()] == [1]


def test_lines_that_are_no_metrics_are_passed_over() -> None:
    lines = [
        b'{"update": 2, "loss": 0.5}',
        b"{",
        b"[]",
        b'{"update": true, "loss": 1}',
        b'{"update": 3, "loss": null}',
    ]
    lines += [b'{"update": 4, "loss": NaN}', b'{"update": 1, "loss": 2}', b'{"update": -1, "loss": 2}', b"\xff\xfe"]
    assert parsed([*lines, b'{"update": 5, "loss": null, "skipped": "loss"}']) == ([(1, 2.0), (2, 0.5)], 1)
    assert parsed([b'{"update": true, "loss": 9}', b'{"update": 1, "loss": true}']) == ([], 0)


def test_skipped_updates_and_an_end_before_its_time_are_told(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"update": 41, "loss": null, "skipped": "loss"}\n')
    write(run / "nonfinite.json", {"update": 41, "not_finite": "loss", "items": []})
    with watching(tmp_path) as reader:
        page = words(reader.page("/run/a"))
        assert "ended at update 41: loss not finite" in page
        assert "1 skipped: loss or gradient not finite" in page
        log(run, range(42, 44))
        os.utime(run / "metrics.jsonl", (time.time() + 600, time.time() + 600))
        assert "ended at update 41" not in words(reader.page("/run/a"))


def test_files_that_vanish_while_they_are_read_are_as_if_absent(tmp_path: Path) -> None:
    here = Place(tmp_path) / "gone"
    assert (here.record(), here.end(10), here.log_lines(), here.entries(), here.changed) == (
        None,
        "",
        ([], True),
        [],
        0,
    )
    assert here.status is None


# ---- large ones --------------------------------------------------------------------------------------------------


def test_a_large_log_is_read_in_places(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write(folder / "config.yaml", "max_train_steps: 1000000\n")
    with (folder / "metrics.jsonl").open("w") as stream:
        stream.writelines(
            f'{{"update": {update}, "learning_rate": 0.0001, "loss": {1 + 1e-6 * update:.8f}}}\n'
            for update in range(1, 400_001)
        )
    size = (folder / "metrics.jsonl").stat().st_size
    lines, complete = (Place(tmp_path) / "a/metrics.jsonl").log_lines()
    assert not complete
    assert sum(map(len, lines)) < place.BLOCKS * place.BLOCK + place.LOG_END < 0.05 * size
    found = read_finetune(Place(tmp_path) / "a")
    assert found.update == 400_000
    assert len(found.loss) <= training.BINS
    # The line is the truth to within a stretch, from its first to its last update.
    assert found.loss[0].update < 4000
    assert all(abs(point.mean - (1 + 1e-6 * point.update)) < 4e-3 for point in found.loss)


def test_of_a_table_that_grows_the_last_alone_is_remembered(tmp_path: Path) -> None:
    """Each evaluation makes it another one; a page is asked for after each."""
    run = finetune_run(tmp_path / "a")
    with watching(tmp_path) as reader:
        for update in range(20, 400, 20):
            evaluations(run, list(range(0, update, 20)))
            write(run / "finetune.json", {"updates": update})
            reader.page("/run/a")
    for remembered in (shares._SHARES, shares._SAID, training._LOSSES, place._RECORDS):
        assert sum(tmp_path in kept.root.parents or kept.root == tmp_path for kept in remembered._kept) <= 1


def test_what_is_remembered_is_of_the_file_as_it_is_and_of_few_files(tmp_path: Path) -> None:
    remembered: Remembered[str] = Remembered(2)
    made = []

    def read(name: str) -> str:
        found = Place(tmp_path) / name
        return remembered.of(found, lambda: made.append(name) or found.end(10))  # type: ignore[func-returns-value]

    for name in ("a", "b"):
        write(tmp_path / name, "one")
        assert [read(name), read(name)] == ["one", "one"]
    assert made == ["a", "b"]
    status = (tmp_path / "a").stat()
    write(tmp_path / "new", "two")
    os.replace(tmp_path / "new", tmp_path / "a")
    os.utime(tmp_path / "a", ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size and time
    assert read("a") == "two"
    assert read("gone") == ""
    write(tmp_path / "c", "three")
    read("c")
    assert len(remembered._kept) == 2
    made.clear()
    assert [read("a"), read("b")] == ["two", "one"]
    assert made == ["b"]


def test_of_many_evaluations_some_are_drawn_with_the_first_and_the_last(tmp_path: Path) -> None:
    run = finetune_run(tmp_path / "a", updates=10)
    evaluations(run, list(range(0, 30_000, 30)))
    curve = read_finetune(Place(tmp_path) / "a").shares["heldout"][CATEGORIES[0]]
    updates = [point.update for point in curve]
    assert len(updates) == 160
    assert (updates[0], updates[-1]) == (0, 29_970)
    assert max(np.diff(updates)) - min(np.diff(updates)) <= 30
    with watching(tmp_path) as reader:
        assert len(reader.page("/run/a")) < 400_000


def test_a_table_of_too_many_rows_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes on the disk may be gigabytes in memory."""
    run = finetune_run(tmp_path / "a")
    rows = len(pd.read_parquet(run / "evaluations.parquet"))
    monkeypatch.setattr(shares, "MOST_ROWS", rows)
    assert shares.read_shares(Place(tmp_path) / "a/evaluations.parquet")
    evaluations(run, [0, 20, 30, 40])
    assert len(pd.read_parquet(run / "evaluations.parquet")) > rows
    assert shares.read_shares(Place(tmp_path) / "a/evaluations.parquet") is None


def test_many_runs_are_shown_in_a_moment(tmp_path: Path) -> None:
    for number in range(200):
        finetune_run(tmp_path / f"run-{number:03d}", updates=3, finished=number % 2 == 0)
    with watching(tmp_path) as reader:
        started = time.monotonic()
        page = reader.page()
        assert time.monotonic() - started < 5
    assert "200 runs" in words(page)
    assert page.count('class="name"') == 200


def test_stretches_keep_mean_and_range() -> None:
    found = stretches([(update, float(update % 2)) for update in range(1, 101)], most=10)
    assert [point.update for point in found] == list(range(10, 101, 10))
    assert all((point.mean, point.low, point.high) == (0.5, 0.0, 1.0) for point in found)
    assert stretches([]) == ()


# ---- drawings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (2, 2.0001), (-3, 12_345), (0, 1e-12), (0, 3e11)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = curves.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-6) for tick in ticks)
    steps = {round((after - before) / (high - low), 9) for before, after in pairwise(ticks)}
    assert len(steps) == 1


@pytest.mark.parametrize(
    "loss", [[Stretch(1, 0.0, 0.0, 0.0)], [Stretch(5, -2.0, -3.0, -1.0), Stretch(9, 1e9, 0, 1e9)]]
)
def test_odd_losses_are_drawn_inside_the_frame(loss: list[Stretch]) -> None:
    for drawing in (curves.loss_curve(loss, None), curves.loss_spark(loss)):
        points = re.findall(r'points="([^"]+)"', drawing)
        numbers = [float(number) for each in points for number in re.split("[ ,]", each)]
        assert all(0 <= number <= curves.WIDTH for number in numbers)
        assert "nan" not in drawing


def test_colours_and_shapes_are_the_reports() -> None:
    style = (Path(curves.__file__).parent / "live.css").read_text()
    for label in curves.MARKERS:
        assert f"of-{label} " in curves.mark(label).replace('"', " ")
        assert f".of-{label} {{" in style
    assert curves.mark("<b>") == ""


def test_how_long_ago() -> None:
    assert ago(0, 100.0) == "never"
    assert ago(100.0, 90.0) == "just now"
    assert ago(100.0, 140.0) == "40 s ago"
    assert ago(100.0, 100.0 + 3 * 86400) == "3 days ago"


# ---- the command -------------------------------------------------------------------------------------------------


def test_settings_are_checked_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, told in {
        "port=99999": "port must be from 0 to 65535",
        "refresh_seconds=0": "refresh_seconds must be from 1 to 3600",
        "prot=1": "did you mean port?",
    }.items():
        assert cli.main(["serve", str(tmp_path), given, "--dry-run"]) == 2
        captured = capsys.readouterr().err
        assert told in captured
        assert captured.count("\n") == 1
    assert cli.main(["serve", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert cli.main(["serve", str(tmp_path), str(tmp_path), "--dry-run"]) == 2
    assert "one folder at most" in capsys.readouterr().err
    assert cli.main(["serve", "--out", str(tmp_path), "--dry-run"]) == 2
    assert "serve writes nothing" in capsys.readouterr().err


def test_a_taken_port_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LiveServer(ServeConfig(runs=str(tmp_path), port=0)) as server:
        assert cli.main(["serve", str(tmp_path), f"port={server.server_port}"]) == 2
    captured = capsys.readouterr().err
    assert f"port {server.server_port} of 127.0.0.1 cannot be had" in captured
    assert captured.count("\n") == 1


def test_ctrl_c_ends_it_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: LiveServer, poll_interval: float = 0.5) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveServer, "serve_forever", interrupted)
    assert cli.main(["serve", str(tmp_path), "port=0"]) == 0
    assert re.search(r"http://127\.0\.0\.1:\d+/", capsys.readouterr().out)


def test_an_interrupt_from_the_keyboard_is_exit_code_0(tmp_path: Path) -> None:
    # A shell's background jobs ignore interrupts, and so would what is started by one.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += "; from diffusion_sft.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", str(tmp_path), "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


def test_the_folder_is_the_word_without_a_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", str(tmp_path / "odd.yaml"), "port=0", "--dry-run"]) == 0
    assert f"runs: {tmp_path / 'odd.yaml'}" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such folder"):
        LiveServer(ServeConfig(runs=str(tmp_path / "odd.yaml")))
