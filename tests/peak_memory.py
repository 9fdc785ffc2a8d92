"""The most memory that this process took since it was last asked to forget it, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path


class PeakMemory:
    """Counts from its making on; `megabytes` is 0 where the system does not say."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _megabytes("VmRSS")
        except OSError:
            self.before = None

    @property
    def megabytes(self) -> float:
        """The peak since then, beyond what was taken already."""
        return 0.0 if self.before is None else _megabytes("VmHWM") - self.before


def _megabytes(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
