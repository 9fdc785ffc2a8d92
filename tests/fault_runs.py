"""A command in a process of its own, forked from one that has imported everything: disturbed or not, and how it ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.state import AcceleratorState
from fault_points import Points, Strike, watch

from diffusion_sft import cli

LAUNCHER_PATIENCE = 30.0
"""Seconds that torchrun leaves a process after SIGTERM."""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    """The exit code; of a signal, its negative number."""
    seconds: float
    printed: str
    told: str
    """On standard error."""
    hung: bool = False
    """It was killed after its time was over."""

    @property
    def words(self) -> str:
        """For a table."""
        if self.hung:
            return "hung"
        return f"exit {self.code}" if self.code >= 0 else signal.Signals(-self.code).name

    @property
    def last_line(self) -> str:
        """Of what it told, without bars."""
        lines = [line for line in self.told.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Place:
    """Folders of one line of attempts."""

    root: Path

    @property
    def work(self) -> Path:
        """Where the commands write; their working directory too, so that nothing goes unseen."""
        return self.root / "work"

    @property
    def log(self) -> Path:
        """What `Points` tells."""
        return self.root / "points.log"


def run(
    place: Place,
    arguments: Sequence[str],
    *,
    strike: Strike | None = None,
    watched: bool = False,
    kill_after: float | None = None,
    limit: float = 120.0,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Run a command and wait for its end.

    Args:
        place: where.
        arguments: as on the command line.
        strike: what happens to it; None for nothing.
        watched: events are counted although nothing happens.
        kill_after: SIGKILL after so many seconds.
        limit: seconds after which it has hung.
        before: called in the process first.
    """
    process = start(place, arguments, strike=strike, watched=watched, before=before)
    return wait(process, place, limit=limit, kill_after=kill_after)


def start(
    place: Place,
    arguments: Sequence[str],
    *,
    strike: Strike | None = None,
    watched: bool = False,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
    name: str = "command",
) -> int:
    """Fork a process that runs a command; returns its id. What it prints goes to `<name>.out` and `<name>.err`."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    try:
        os.environ.update(environment or {})
        _redirect(place.root / f"{name}.out", 1)
        _redirect(place.root / f"{name}.err", 2)
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        warnings.resetwarnings()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        AcceleratorState._reset_state(reset_partial_state=True)
        os.chdir(place.work)
        if before is not None:
            before()
        if strike is not None or watched:
            points = Points(place.work, place.log, strike)
            watch(points)
        known = set(sys.modules)
        code = _main(arguments)
        if watched:
            points.tell("imported", sorted(set(sys.modules) - known))
            points.tell("counted", points.counted)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # The process must not go on as its parent.
        traceback.print_exc()
        code = 99
    os._exit(code)


def wait(
    process: int, place: Place, *, limit: float, kill_after: float | None = None, name: str = "command"
) -> Ended:
    """Wait for a process's end, or bring it about."""
    started, hung = time.monotonic(), False
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        passed = time.monotonic() - started
        if done:
            break
        if kill_after is not None and passed >= kill_after:
            os.kill(process, signal.SIGKILL)
            kill_after = None
        elif passed > limit:
            hung = True
            os.kill(process, signal.SIGKILL)
            limit = float("inf")
        time.sleep(0.002)
    told = [(place.root / f"{name}.{kind}").read_text(encoding="utf-8", errors="replace") for kind in ("out", "err")]
    return Ended(os.waitstatus_to_exitcode(status), passed, *told, hung=hung)


def run_together(
    place: Place,
    arguments: Sequence[str],
    *,
    strike: Strike | None = None,
    victim: int = 0,
    watched: bool = False,
    kill_after: float | None = None,
    limit: float = 180.0,
    before: Callable[[], None] | None = None,
) -> Ended:
    """The same with two processes of one run (gloo), as a launcher starts them: where one dies, the other is ended.

    Args:
        victim: which of them is struck, or killed after so many seconds.

    Returns:
        How the victim ended; hung where the other one did not end within a launcher's patience.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = {}
    for rank in range(2):
        environment = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        struck = rank == victim
        processes[rank] = start(
            place,
            arguments,
            strike=strike if struck else None,
            watched=watched and struck,
            before=before,
            environment=environment,
            name=f"rank-{rank}",
        )
    first = wait(processes[victim], place, limit=limit, kill_after=kill_after, name=f"rank-{victim}")
    other = 1 - victim
    if first.code:
        os.kill(processes[other], signal.SIGTERM)
    second = wait(processes[other], place, limit=LAUNCHER_PATIENCE if first.code else limit, name=f"rank-{other}")
    if first.code == 0 and second.code:
        return second
    return replace(first, hung=first.hung or second.hung)


def _main(arguments: Sequence[str]) -> int:
    """What the installed command does, to the exit code."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _redirect(file: Path, number: int) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, number)
    os.close(handle)
