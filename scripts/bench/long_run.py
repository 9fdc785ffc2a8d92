"""Does anything grow in a long run: memory, open files, threads, files on disk?

    python scripts/bench/long_run.py runs/long                          # everything, about eight minutes on one core
    python scripts/bench/long_run.py runs/long --only diffusion serve --picture docs/long-run.png

The real commands run one after another in processes of their own, on models of a few thousand weights, and are looked at
from outside twice a second. `samples.parquet` has every look, `growth.csv` what came of it, and the picture the curves.

A run's first tenth is its warm-up. Growth is the mean of the last tenth less that of the tenth after the warm-up. The slope
is a line through the means of 20 equal stretches after the warm-up, with its 95 % interval: single looks are no independent
draws, means of stretches nearly are.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from long_run_inputs import make_inputs
from long_run_picture import draw
from scipy import stats

from diffusion_sft.files import read_table, write_table

DATA = Path(__file__).parents[2] / "data"
PAUSE = 0.5
"""Seconds between two looks."""
STRETCHES = 20
MEASURED = ("own_mb", "resident_mb", "open_files", "threads", "files", "disk_mb")
LINES = 1_000_000
"""Updates that the run of the live view has made."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A command, where it writes, and how far it is."""

    name: str
    unit: str
    command: Sequence[str]
    folder: Path
    progress: Callable[[], int]
    ask: Callable[[], None] | None = None
    """Done before each look at a command that has to be asked to do anything."""
    last: float = math.inf
    """Such a command is ended when it has come so far."""


def main() -> None:
    """Make the models, watch the commands, write and draw."""
    options = _options()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(folder / "inputs", options.concepts)
    runs = _runs(folder, inputs, options)
    samples = pd.concat([_looks(run, options.only, folder) for run in runs], ignore_index=True)
    write_table(folder / "samples.parquet", samples)
    found = growth(samples)
    found.to_csv(folder / "growth.csv", index=False)
    print(markdown(found))
    print(_logs(folder))
    draw(samples, Path(options.picture or folder / "long-run.png"))


def _looks(run: Watched, chosen: Sequence[str], folder: Path) -> pd.DataFrame:
    """Those of a run that is watched now, or of an earlier call where it was not chosen."""
    file = folder / f"{run.name}.parquet"
    if run.name in chosen:
        write_table(file, watch(run))
    return read_table(file) if file.is_file() else pd.DataFrame()


def watch(run: Watched) -> pd.DataFrame:
    """One row per look: run, unit, seconds, progress and what is MEASURED."""
    print(f"{run.name}: {' '.join(run.command)}", flush=True)
    rows, started = [], time.monotonic()
    log = run.folder.with_suffix(".log")
    with log.open("w") as out, subprocess.Popen(run.command, stdout=out, stderr=out) as child:
        try:
            process = psutil.Process(child.pid)
            while child.poll() is None and run.progress() < run.last:
                if run.ask is not None:
                    run.ask()
                else:
                    time.sleep(PAUSE)
                if (row := _look(process, run.folder)) is not None:
                    rows.append([run.name, run.unit, time.monotonic() - started, run.progress(), *row])
        finally:
            child.terminate()
    if child.returncode not in (0, -15):
        raise SystemExit(f"{run.name} ended with {child.returncode}; see {log}")
    return pd.DataFrame(rows, columns=["run", "unit", "seconds", "progress", *MEASURED])


def growth(samples: pd.DataFrame) -> pd.DataFrame:
    """One row per run and measure: the tenth after the warm-up, the last tenth, and the slope per 1,000 of the unit."""
    rows = []
    for (name, unit), looks in samples.groupby(["run", "unit"], sort=False):
        reached = int(looks["progress"].max())
        # Before the first of the unit a command loads, after the last it exports and ends.
        looks = looks[looks["progress"].between(1, reached - 1)]
        share = looks["progress"] / reached
        first, last = looks[(share > 0.1) & (share <= 0.2)], looks[share > 0.9]
        for measure in MEASURED:
            slope, low, high = _slope(looks[share > 0.1], measure)
            ends = first[measure].mean(), last[measure].mean()
            rows.append([name, unit, reached, measure, *ends, ends[1] - ends[0], slope, low, high])
    columns = ["run", "unit", "reached", "measure", "first_tenth", "last_tenth", "growth"]
    return pd.DataFrame(rows, columns=[*columns, "slope_per_1000", "slope_low", "slope_high"])


def markdown(found: pd.DataFrame) -> str:
    """The figures as a table for a page."""
    lines = [
        "| run | measure | tenth after warm-up | last tenth | growth | per 1,000 [95 % interval] |",
        "|" + "---|" * 6,
    ]
    for row in found.itertuples():
        slope = f"{row.slope_per_1000:+.3g} [{row.slope_low:+.3g}, {row.slope_high:+.3g}]"
        ends = f"{row.first_tenth:.2f} | {row.last_tenth:.2f} | {row.growth:+.2f}"
        lines.append(f"| {row.run}, {row.reached:,} {row.unit} | {row.measure} | {ends} | {slope} |")
    return "\n".join(lines)


def _slope(looks: pd.DataFrame, measure: str) -> tuple[float, float, float]:
    """Per 1,000 of the unit, with its 95 % interval."""
    stretch = pd.cut(looks["progress"], STRETCHES, labels=False)
    means = looks.groupby(stretch)[["progress", measure]].mean()
    line = stats.linregress(means["progress"] / 1000, means[measure])
    # Of what never changed scipy gives no error; there is none.
    reach = stats.t.ppf(0.975, len(means) - 2) * np.nan_to_num(line.stderr)
    return line.slope, line.slope - reach, line.slope + reach


def _look(process: psutil.Process, folder: Path) -> list[float] | None:
    """What is MEASURED, sizes in MB (10⁶ bytes); None where the process has ended."""
    try:
        # What it wrote itself: pages of libraries come and go with whoever else has them open.
        own = re.search(r"^Anonymous: +(\d+) kB", Path(f"/proc/{process.pid}/smaps_rollup").read_text(), re.MULTILINE)
        resident, files, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
    except (psutil.Error, OSError):
        return None
    if own is None:
        return None
    found = [int(own[1]) * 1024 / 1e6, resident / 1e6, files, threads]
    sizes = []
    for place, _, names in os.walk(folder):  # Which bears that folders go meanwhile.
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(place, name)).st_size)
            except FileNotFoundError:
                continue
    return [*found, len(sizes), sum(sizes) / 1e6]


def _runs(folder: Path, inputs: Mapping[str, Path], options: argparse.Namespace) -> list[Watched]:
    """Fine-tuning of both learners, the probe, pictures, and the live view of a run of a million updates."""
    tool = [sys.executable, "-m", "diffusion_sft.cli"]
    base, pictures = f"pretrained_model_name_or_path={inputs['base']}", f"concepts.path={inputs['set']}"
    loop = [f"max_train_steps={options.updates}", "train_batch_size=2", "learning_rate=1e-3", "use_ema=true"]
    loop += ["checkpointing_steps=100", "validation_steps=100", "validation_examples_per_concept=1"]
    seen = ["validation_draws=2", "validation_prompts=[a photo of a blorp]", "num_validation_images=1"]
    seen += ["validation_inference_steps=2", f"cache_dir={folder / 'cache'}", f"concepts.path={inputs['small']}"]
    words = [
        f"pretrained_model_name_or_path={inputs['model']}",
        f"questions.path={inputs['questions']}",
        "questions.dev_share=0.3",
    ]
    few = ("num_draws=32", "answers.num_renderings=2", "answers.num_draws=16", "samples.num_samples=0")
    probe = [f"base={inputs['base']}", pictures, f"evaluate.weights={DATA / 'world-readout'}"]
    probe += [f"probe.{setting}" for setting in few]
    draws = [base, f"num_images={options.images}", "num_inference_steps=2", "prompts=[a photo of a blorp]"]
    told = {"diffusion": [*tool, "finetune", base, *loop, *seen], "language": [*tool, "sft", *words, *loop]}
    told |= {"probe": [*tool, "probe", *probe], "generate": [*tool, "generate", *draws]}
    far = {name: _last_update(folder / name) for name in ("diffusion", "language")}
    far |= {
        "probe": _count(folder / "probe", "probe/parts/*/*.parquet"),
        "generate": _count(folder / "generate", "*.png"),
    }
    units = {"diffusion": "updates", "language": "updates", "probe": "parts", "generate": "pictures"}
    watched = [
        Watched(
            name=name,
            unit=units[name],
            command=[*command, f"output_dir={folder / name}"],
            folder=folder / name,
            progress=far[name],
        )
        for name, command in told.items()
    ]
    return [*watched, _live_view(tool, folder / "watched", options.polls)]


def _live_view(tool: Sequence[str], folder: Path, polls: int) -> Watched:
    """The live view of a run that has made `LINES` updates, evaluated every 1,000, and goes on while it is looked at."""
    run, port = folder / "run", 8341
    run.mkdir(parents=True, exist_ok=True)
    line = {"learning_rate": 1e-4, "examples_seen": 2, "loss": 0.39235904812812805, "grad_norm": 0.5428436994552612}
    table = pd.DataFrame({"update": np.repeat(np.arange(0, LINES, 1000), 2), "role": "heldout"})
    table["category"] = np.where(np.arange(len(table)) % 2, "Unknown", "HighlyKnown")
    waits: list[float] = []

    def log(first: int, last: int, mode: str) -> None:
        with (run / "metrics.jsonl").open(mode) as stream:
            stream.writelines(json.dumps({"update": update, **line}) + "\n" for update in range(first, last + 1))

    def ask() -> None:
        if not waits:
            (run / "config.yaml").write_text(f"max_train_steps: {2 * LINES}\n")
            log(1, LINES, "w")
        count = len(waits) + 1
        log(LINES + count, LINES + count, "a")
        if count % 4 == 1:
            shares = {"accuracy": 0.4 + 0.2 * count / polls, "accuracy_low": 0.3, "accuracy_high": 0.7}
            table.assign(**shares).to_parquet(run / "evaluations.parquet")
        waits.append(_get(port, "/run/run" if count % 2 else "/"))
        if count == polls:
            told = f"{np.median(waits[::2]):.3f} s in the middle and {max(waits[2::2]):.3f} s at most"
            print(f"serve: the page of a run of {LINES:,} updates took {told}")

    command = [*tool, "serve", str(folder), f"port={port}"]
    return Watched(
        name="serve",
        unit="pages",
        command=command,
        folder=folder,
        progress=lambda: len(waits),
        ask=ask,
        last=polls,
    )


def _get(port: int, path: str) -> float:
    """Ask for a page; returns the seconds that it took. The server may still be on its way up."""
    until = time.monotonic() + 60
    while True:
        connection, started = http.client.HTTPConnection("127.0.0.1", port, timeout=60), time.monotonic()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"{path}: {answer.status}")
            return time.monotonic() - started
        except ConnectionRefusedError:
            if started > until:
                raise
            time.sleep(0.2)
        finally:
            connection.close()


def _last_update(run: Path) -> Callable[[], int]:
    def found() -> int:
        file = run / "metrics.jsonl"
        if not file.is_file():
            return 0
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 4096))
            lines = stream.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["update"]) if lines else 0

    return found


def _count(folder: Path, pattern: str) -> Callable[[], int]:
    return lambda: sum(1 for _ in folder.glob(pattern))


def _logs(folder: Path) -> str:
    """What the logs of the fine-tuning runs took, in all and per 1,000 updates."""
    lines = []
    for name in ("diffusion", "language"):
        run = folder / name
        updates = _last_update(run)()
        groups = {
            "metrics.jsonl": "metrics.jsonl",
            "TensorBoard": "logs/**/*",
            "tables": "*.parquet",
            "same as CSV": "*.csv",
        }
        for told, pattern in groups.items():
            size = sum(path.stat().st_size for path in run.glob(pattern) if path.is_file())
            if updates:
                lines.append(f"{name}, {told}: {size / 1e6:.3f} MB, {size / updates:.1f} kB per 1,000 updates")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["diffusion", "language", "probe", "generate", "serve"]
    parser.add_argument("folder", help="a new folder for the runs and what is measured")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--concepts", type=int, default=200, help="of the probed set")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--polls", type=int, default=2000, help="pages that the live view is asked for")
    parser.add_argument("--picture", help="where the curves are drawn; default: long-run.png in the folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
