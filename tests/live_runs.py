"""Runs for the live view's tests: folders as the stages leave them at some moment, and a server that watches them."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from diffusion_sft.records import CATEGORIES
from diffusion_sft.serve.config import ServeConfig
from diffusion_sft.serve.server import LiveServer

MIXES = ("half", "known", "unknown")


def write(path: Path, content: Any) -> Path:
    """A text as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def finetune_run(folder: Path, updates: int = 40, budget: int = 100, finished: bool = False) -> Path:
    """A fine-tuning run after so many updates."""
    write(folder / "config.yaml", f"method: full\nmax_train_steps: {budget}\nstopping: budget\n")
    log(folder, range(1, updates + 1), mode="w")
    evaluations(folder, list(range(0, updates + 1, 20)))
    if finished:
        summary = {"method": "full", "stopping_reason": "budget", "updates": updates, "early_stop_update": 20}
        write(folder / "finetune.json", summary | {"num_examples": 64, "record": {"max_train_steps": budget}})
    return folder


def log(folder: Path, updates: range, mode: str = "a") -> None:
    """Append the lines of these updates to the metrics."""
    with (folder / "metrics.jsonl").open(mode, encoding="utf-8") as stream:
        for update in updates:
            stream.write(json.dumps({"update": update, "learning_rate": 1e-4, "loss": 1 / update}) + "\n")


def evaluations(folder: Path, updates: list[int]) -> None:
    """The table of the evaluations at these updates."""
    rows = []
    for update in updates:
        for role in ("trained", "heldout", "untouched"):
            for place, category in enumerate(CATEGORIES):
                share = min(1.0, 0.2 * place + update / 200)
                rows.append([update, role, category, share, max(0.0, share - 0.1), min(1.0, share + 0.1)])
    columns = ["update", "role", "category", "accuracy", "accuracy_low", "accuracy_high"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "evaluations.parquet", index=False)
    answers = pd.DataFrame({"update": updates, "role": "trained", "category": CATEGORIES[0], "concept": "a blorp"})
    answers.assign(answer="red", correct=True).to_parquet(folder / "answers.parquet", index=False)


def picture(path: Path, seed: int = 0, size: int = 24) -> Path:
    """A small picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)).save(path)
    return path


def study_run(folder: Path, mixes: tuple[str, ...] = MIXES) -> Path:
    """A finished study of a diffusion model."""
    settings = {"title": "What is known?", "learners": ["diffusion"], "base": "data/world-base", "seeds": []}
    settings |= {"mixes": [{"name": name} for name in mixes], "evaluate": {"num_images_per_concept": 2}}
    record = {"title": "What is known?", "settings": settings, "seconds": {"probe": 107.4, "finetune": 240.0}}
    write(folder / "study.json", record)
    write(folder / "config.yaml", "title: What is known?\n")
    write(folder / "probe/probe.json", {"key": "0"})
    labels = dict(zip(CATEGORIES, (5, 3, 2, 6), strict=True))
    buckets = {"rule": "gain", "num_concepts": 16, "categories": labels, "buckets": {"known": 8, "unknown": 8}}
    write(folder / "buckets/buckets.json", buckets | {"warnings": ["fewer than 5 held-out examples"]})
    for name in mixes:
        finetune_run(folder / "finetune" / name, updates=100, finished=True)
    for model in ("base", *mixes):
        for concept in ("blorp", "wug"):
            picture(folder / "evaluate" / model / "images" / concept / "0000.png")
    for name in ("evaluate/measures.parquet", "buckets/concepts.parquet"):
        pd.DataFrame({"a": [1]}).to_parquet(folder / name, index=False)
        pd.DataFrame({"a": [1]}).to_csv((folder / name).with_suffix(".csv"), index=False)
    write(folder / "dynamics/summary.txt", "one line\nthe last line\n")
    write(folder / "report.html", "<!doctype html><title>report</title><script>1</script>")
    return folder


def aged(folder: Path, seconds: float) -> None:
    """Make all of a folder so much older."""
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds), follow_symlinks=False)


class Reader:
    """A browser that follows nothing and decides nothing."""

    def __init__(self, server: LiveServer) -> None:
        self.port = server.server_port

    def ask(
        self, path: str, method: str = "GET", host: str | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of one request; the path goes out as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host if host is not None else f"127.0.0.1:{self.port}")
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body

    def page(self, path: str = "/") -> str:
        """The text of a page that must be there."""
        status, _, body = self.ask(path)
        assert status == 200, f"{path}: {status} {body[:200]!r}"
        return body.decode("utf-8")


@contextmanager
def watching(folder: Path, refresh_seconds: int = 5) -> Iterator[Reader]:
    """A server on a free port in a thread of its own."""
    with LiveServer(ServeConfig(runs=str(folder), port=0, refresh_seconds=refresh_seconds)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Reader(server)
        finally:
            server.shutdown()
            thread.join()
