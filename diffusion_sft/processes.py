"""The processes of one run, as torchrun or `accelerate launch` start them: which one is this, and wait for the others.

A lone process initialises nothing. The others' files are seen through a folder that all processes share. Where a
process dies, the launcher ends the rest; without one, `WAITING` does. Others may wait for long: the main process alone
draws validation pictures, exports and writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, get_int_from_env, parse_flag_from_env

from .errors import UserError

T = TypeVar("T")
LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""What launchers say the number of processes in."""
WAITING = timedelta(hours=6)
"""How long a process waits for the others; torch's own limit is 10 minutes on GPUs, and one picture set takes more."""
PATIENCE = 60.0
"""Seconds until a file that another machine wrote shows up in a shared folder (NFS remembers absences for a while)."""


def process_count() -> int:
    """How many processes there are."""
    state = _state()
    return 1 if state is None else int(state.num_processes)


def process_index() -> int:
    """This one's number, from 0."""
    state = _state()
    return 0 if state is None else int(state.process_index)


def is_main() -> bool:
    """Whether this is the process that prints, and writes what there is one of."""
    return process_index() == 0


def wait_for_everyone() -> None:
    """Go on when all processes have come here."""
    state = _state()
    if state is not None:
        state.wait_for_everyone()


def from_main(compute: Callable[[], T]) -> T:
    """What the main process computes, given to all; a mistake of the user's that it finds is raised by all."""
    if process_count() == 1:
        return compute()
    found: list[Any] = [None, None]
    if is_main():
        try:
            found[0] = compute()
        except UserError as error:
            found[1] = error
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    outcome: T = found[0]
    return outcome


@contextmanager
def main_first() -> Iterator[None]:
    """The block is run by the main process, and then by the others, which find what it has written."""
    if not is_main():
        wait_for_everyone()
    yield
    if is_main():
        wait_for_everyone()


def shared_file(file: Path) -> Path:
    """The file, which some process has written before all were waited for.

    Raises:
        UserError: it does not show up.
    """
    return shared(lambda: file if file.exists() else None, str(file))


def shared(find: Callable[[], Path | None], name: str) -> Path:
    """What `find` gives as soon as it is not None: a file that some process has written before all were waited for.

    Raises:
        UserError: it does not show up.
    """
    until = time.monotonic() + (PATIENCE if process_count() > 1 else 0)
    while (file := find()) is None:
        if time.monotonic() > until:
            raise UserError(f"{name}: what another process wrote is not there; all need the same output folder")
        time.sleep(0.2)
    return file


def process_device() -> torch.device:
    """The device that accelerate gives to this process."""
    return torch.device(PartialState(cpu=_on_cpu(), timeout=WAITING).device)


def _state() -> PartialState | None:
    return PartialState(cpu=_on_cpu(), timeout=WAITING) if get_int_from_env(LAUNCHED, 1) > 1 else None


def _on_cpu() -> bool:
    # Without cpu=True, accelerate takes processes on a machine without a GPU for so many lone ones.
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
