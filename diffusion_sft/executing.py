"""Pieces of a study that wait for nothing of each other, as Ray tasks: on this machine, or on a cluster that is up.

A piece is one fine-tuning run, or the pictures of one model. It is handed out as plain data, does what the study itself
would do, in a process of its own, and writes where the study would. A piece whose process or machine died is started
again and goes on from its last checkpoint; a mistake in settings or data is not, and reaches the user as it is.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .errors import UserError
from .plan import RayConfig
from .processes import LAUNCHED, process_count

ALONE = (*LAUNCHED, "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher (srun is one, for `ray start`) tells processes about each other; a piece is a process by itself."""


class Performer(Protocol):
    """What does pieces: a study's half."""

    def perform(self, stage: str, name: str) -> None:
        """Do one piece of a stage, and write what comes of it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of a stage, and who does it."""

    learner: str
    stage: str
    name: str
    """The run's, or the model's."""
    performer: Callable[[], Performer]
    """Makes one in another process; sent there, so made of plain data alone."""
    log: Path
    """What is printed there, every attempt's after the one before."""

    @property
    def title(self) -> str:
        """What it is called on the terminal."""
        return f"{self.learner}, {self.stage} {self.name}"


@contextmanager
def ray_joined(config: RayConfig) -> Iterator[None]:
    """Ray is up inside the block, started here or joined; one that was up before is used and left as it is.

    Raises:
        UserError: no Ray here, no cluster at the address, a cluster without room for one run, or several processes.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("executor=ray needs Ray, which is not installed: pip install 'diffusion_sft[ray]'")
    if process_count() > 1:
        raise UserError(f"executor=ray starts its own processes; start the study once, not as {process_count()}")
    if config.address in (None, "local") and "ray" not in sys.modules:  # Ray looks when it is imported.
        # It listens on every interface of the machine, and runs what it is sent by whoever knows the token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield
        return
    _join(config)
    try:
        _check_room(config)
        yield
    finally:
        ray.shutdown()


def on_ray(pieces: Sequence[Piece], config: RayConfig) -> None:
    """Do all pieces, as many at once as there is room for, with a line for each that is finished.

    One that fails does not stop the others.

    Raises:
        UserError: the first mistake, in the order of the pieces; or pieces whose processes kept dying.
        Exception: the first error that is no mistake of the user's, as it was raised there.
    """
    if not pieces:
        return
    import ray

    with ray_joined(config):
        work = ray.remote(
            num_cpus=config.cpus_per_run,
            num_gpus=_gpus_per_run(config),
            max_retries=config.max_retries,
            retry_exceptions=False,
        )(_perform)
        here = {"folder": os.getcwd(), "threads": torch.get_num_threads(), "gpus": _gpus_per_run(config)}
        # Of two halves each has its performer, which is sent once.
        sent = {id(piece.performer): ray.put(piece.performer) for piece in pieces}
        waiting = {
            work.remote(sent[id(p.performer)], p.stage, p.name, str(p.log.absolute()), here): p for p in pieces
        }
        logs = ", ".join(dict.fromkeys(str(piece.log.parent) for piece in pieces))
        print(f"ray: {len(pieces)} pieces of work on {_size()}; what they print is in {logs}")
        failures: dict[str, Exception] = {}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            piece = waiting.pop(done)
            failure = _failure(done, piece, config)
            if failure is not None:
                failures[piece.title] = failure
            told = "done" if failure is None else f"FAILED, see {piece.log}"
            print(f"ray: {piece.title} {told}; {len(waiting)} of {len(pieces)} left")
    for piece in pieces:
        if piece.title in failures:
            raise failures[piece.title]


def _perform(
    performer: Callable[[], Performer], stage: str, name: str, log: str, here: Mapping[str, Any]
) -> str | None:
    """In the other process: do one piece; returns what the user did wrong, if anything."""
    for variable in ALONE:
        os.environ.pop(variable, None)
    if not here["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of them visible, or will.
    # Numbers are the same to the last bit for the same number of threads alone.
    torch.set_num_threads(here["threads"])
    try:
        os.chdir(here["folder"])
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        stream = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    except OSError as error:
        return f"{socket.gethostname()} does not see the folders of the study ({error})"
    with stream, redirect_stdout(stream), redirect_stderr(stream):
        print(f"{stage} {name}: process {os.getpid()} on {socket.gethostname()}")
        try:
            performer().perform(stage, name)
        except UserError as error:
            print(f"diffusion-sft: {error}")
            return str(error)
        except (
            SystemExit
        ) as stopped:  # By SIGTERM, with a checkpoint written. To Ray it is a death, to be tried again.
            print(f"stopped: {stopped}")
            os._exit(1)
    return None


def _failure(done: Any, piece: Piece, config: RayConfig) -> Exception | None:
    """What came of a piece, None where it is done."""
    import ray

    try:
        mistake = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        return error
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[0]
        times = config.max_retries + 1
        return UserError(
            f"{piece.title}: its process died {times} times ({why}); see {piece.log}, then run the same command again"
        )
    return None if mistake is None else UserError(mistake)


def _join(config: RayConfig) -> None:
    import ray

    address = config.address or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        if address == "auto":
            raise UserError("ray.address=auto: no Ray runs here; start one with ray start --head") from None
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"ray.address={config.address or 'null'}: no Ray there ({reason})") from None


def _check_reachable(address: str) -> None:
    """Raise OSError unless something listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_room(config: RayConfig) -> None:
    """Refuse what no machine of the cluster could ever run: Ray would wait for one without a word."""
    import ray

    wanted = {"CPU": config.cpus_per_run, "GPU": _gpus_per_run(config)}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(what, 0) >= number for what, number in wanted.items()) for machine in machines):
        there = "; ".join(f"{m.get('CPU', 0):g} CPUs, {m.get('GPU', 0):g} GPUs" for m in machines)
        raise UserError(
            f"ray: no machine has room for a run of {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs (there are: {there});"
            " change ray.cpus_per_run or ray.gpus_per_run"
        )


def _gpus_per_run(config: RayConfig) -> float:
    import ray

    if config.gpus_per_run is not None:
        return config.gpus_per_run
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def _size() -> str:
    import ray

    found = ray.cluster_resources()
    machines = sum(node["Alive"] for node in ray.nodes())
    return f"{machines} machines, {found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"
