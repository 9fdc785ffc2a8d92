"""A polite request to stop: SIGTERM, as schedulers send it before they kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    """Whether this process was asked to stop."""

    asked: bool = False


@contextmanager
def stop_on_sigterm(request: StopRequest) -> Iterator[None]:
    """Inside the block, SIGTERM is written down and nothing else happens; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def write_down(*_: object) -> None:
        request.asked = True

    previous = signal.signal(signal.SIGTERM, write_down)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
