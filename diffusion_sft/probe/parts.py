"""Work on a set in parts of a few concepts: done parts are read back, the others computed, written and counted."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from ..files import read_table, replaced

CONCEPTS_PER_PART = 4
"""Small enough that little is lost when a run is stopped, large enough that batches are full."""


class _OfConcept(Protocol):
    @property
    def concept(self) -> str: ...


T = TypeVar("T", bound=_OfConcept)


class Parts:
    """A folder of finished parts and a progress bar in network evaluations, used as a context manager.

    The folder's name must say everything that the results depend on; neighbours of another name are stale.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_evaluations = 0
        self._expected = 0
        self._started = time.monotonic()
        self._told = False
        self._bar: tqdm = tqdm(total=0, desc="probe", unit="eval", unit_scale=True, disable=None)

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def expect(self, num_evaluations: int) -> None:
        """Announce work, for the bar and the estimate of the time left."""
        self._expected += num_evaluations
        self._bar.total = self._expected
        self._bar.refresh()

    def table(
        self,
        name: str,
        items: Sequence[T],
        compute: Callable[[Sequence[T]], pd.DataFrame],
        count: Callable[[Sequence[T]], int],
    ) -> pd.DataFrame:
        """The rows of all items, in the order of concept names.

        Args:
            name: the table's, part of the parts' file names.
            items: what there is to be done.
            compute: the rows for some items, which must not depend on which others come with them.
            count: the network evaluations that it takes for them; they must have been announced.
        """
        names = sorted({item.concept for item in items})
        tables = []
        for start in range(0, len(names), CONCEPTS_PER_PART):
            chunk = set(names[start : start + CONCEPTS_PER_PART])
            some = [item for item in items if item.concept in chunk]
            file = self.folder / f"{name}-{start:06d}.parquet"
            if file.exists():
                self.expect(-count(some))
            else:
                with replaced(file) as temporary:
                    compute(some).to_parquet(temporary, index=False)
                self._advance(count(some))
            tables.append(read_table(file))
        return pd.concat(tables, ignore_index=True)

    def remove(self) -> None:
        """Delete all parts, stale ones too; their rows are in the finished tables."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _advance(self, num_evaluations: int) -> None:
        self.num_evaluations += num_evaluations
        self._bar.update(num_evaluations)
        if not self._told and self.seconds > 2:
            # Where standard error is no terminal there is no bar, and this line is all that tells the time.
            rate = self.num_evaluations / self.seconds
            left = (self._expected - self.num_evaluations) / rate
            self._bar.write(f"probe: {rate:,.0f} evaluations/s, about {_duration(left)} left", file=sys.stderr)
            self._told = True


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
