"""Work on a set in parts of a few concepts: done parts are read back, the others computed, written and counted.

Several processes deal the parts out among themselves and meet in the folder. A network's last bits depend on the batch
that a row stands in; what is in a part, and how it is cut into batches, depends on neither the number of processes nor
what was done before, so that on CPUs (of as many threads) the tables are the same to the last bit.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from .files import file_hash, read_table, replaced
from .processes import is_main, process_count, process_index, shared, wait_for_everyone

logger = logging.getLogger(__name__)


class _OfConcept(Protocol):
    @property
    def concept(self) -> str: ...


T = TypeVar("T", bound=_OfConcept)
TABLES_AT_ONCE = 64
"""Finished parts that are read before they are joined."""
PARTS = "parts"
"""In a stage's folder."""
LOOK_EVERY = 2.0
"""Seconds between looks at what other processes have written: each is a question to the file system for every part."""


@dataclass(frozen=True, eq=False)
class _Part:
    name: str
    """Of its file, before the hash of what is in it."""
    items: Sequence[Any]
    num_evaluations: int


class Parts:
    """A folder of finished parts and a progress bar in network evaluations, used as a context manager.

    The folder's name must say everything that the results depend on; neighbours of another name are stale. The bar
    and the counts are of all processes together; only the main process shows them.
    """

    def __init__(self, folder: Path, concepts_per_part: int, stage: str = "probe") -> None:
        self.folder, self.stage = folder, stage
        self.concepts_per_part = concepts_per_part
        self.num_evaluations = 0
        """That the tables took, whoever made their parts and when."""
        self._done_here = self._expected = 0
        self._started = self._looked = time.monotonic()
        self._told = not is_main()
        shown = None if is_main() else True
        self._bar: tqdm = tqdm(total=0, desc=stage, unit="eval", unit_scale=True, disable=shown)

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
        concepts_per_part: int | None = None,
    ) -> pd.DataFrame:
        """The rows of all items, in the order of concept names; every process gets them all.

        Args:
            name: the table's, part of the parts' file names.
            items: what there is to be done.
            compute: the rows for some items, which must not depend on which others come with them.
            count: the network evaluations that it takes for them; they must have been announced.
            concepts_per_part: where this table's parts are smaller or larger than the others'.
        """
        parts = self._parts(name, items, count, concepts_per_part or self.concepts_per_part)
        there = self._files(name)
        missing = {part for part in parts if _whole(there.get(part.name, ())) is None}
        whole = sum(part.num_evaluations for part in parts)
        self.num_evaluations += whole
        self.expect(sum(part.num_evaluations for part in missing) - whole)
        wait_for_everyone()  # until then nobody writes, so that all count the same parts as missing
        for part in parts[process_index() :: process_count()]:
            if part in missing:
                self._write(part, compute(part.items), there.get(part.name, ()))
                self._done(missing, {part} | self._of_others(missing))
        wait_for_everyone()
        table = self._joined(name, parts)
        self._done(missing, set(missing))
        return table

    def _parts(self, name: str, items: Sequence[T], count: Callable[[Sequence[T]], int], size: int) -> list[_Part]:
        by_concept: dict[str, list[T]] = {}
        for item in items:
            by_concept.setdefault(item.concept, []).append(item)
        names, parts = sorted(by_concept), []
        for start in range(0, len(names), size):
            some = [item for concept in names[start : start + size] for item in by_concept[concept]]
            parts.append(_Part(f"{name}-{start:06d}", some, count(some)))
        return parts

    def _files(self, name: str) -> dict[str, list[Path]]:
        """The files of a table's parts by the parts' names, in one look at the folder."""
        found: dict[str, list[Path]] = {}
        for file in sorted(self.folder.glob(f"{name}-*.parquet")):
            found.setdefault(file.name.split(".")[0], []).append(file)
        return found

    def _write(self, part: _Part, rows: pd.DataFrame, damaged: Iterable[Path]) -> None:
        """Write a part under a name that ends in the hash of its bytes, so that one that was altered is known by it."""
        content = rows.to_parquet(index=False, write_page_checksum=True)
        digest = hashlib.sha256(content).hexdigest()[:16]
        with replaced(self.folder / f"{part.name}.{digest}.parquet") as temporary:
            temporary.write_bytes(content)
        for file in damaged:
            if file.name.split(".")[1] != digest:
                file.unlink(missing_ok=True)

    def _joined(self, name: str, parts: Sequence[_Part]) -> pd.DataFrame:
        """The rows of all parts, in their order."""
        there = self._files(name)

        def found(part: _Part) -> Path:
            return _whole(there.get(part.name, ())) or shared(
                lambda: _whole(self._files(name).get(part.name, ())), f"{self.folder / part.name}"
            )

        # Some at a time: a small table takes ten times the memory of its rows, and there may be thousands.
        joined = []
        for start in range(0, len(parts), TABLES_AT_ONCE):
            tables = [read_table(found(part)) for part in parts[start : start + TABLES_AT_ONCE]]
            joined.append(pd.concat(tables, ignore_index=True))
        return pd.concat(joined, ignore_index=True) if joined else pd.DataFrame()

    def _of_others(self, missing: set[_Part]) -> set[_Part]:
        """Those of the missing parts that other processes have written by now, looked for every `LOOK_EVERY` seconds."""
        now = time.monotonic()
        if process_count() == 1 or now - self._looked < LOOK_EVERY:
            return set()
        self._looked = now
        there = {file.name.split(".")[0] for file in self.folder.glob("*.parquet")}
        return {part for part in missing if part.name in there}

    def _done(self, missing: set[_Part], done: set[_Part]) -> None:
        """Take finished parts, whoever wrote them, from the missing ones, and count them."""
        missing -= done
        self._advance(sum(part.num_evaluations for part in done))

    def _advance(self, num_evaluations: int) -> None:
        self._done_here += num_evaluations
        self._bar.update(num_evaluations)
        if not self._told and self._done_here and self.seconds > 2:
            # Where standard error is no terminal there is no bar, and this line is all that tells the time.
            rate = self._done_here / self.seconds
            left = (self._expected - self._done_here) / rate
            self._bar.write(f"{self.stage}: {rate:,.0f} evaluations/s, about {_duration(left)} left", file=sys.stderr)
            self._told = True


def remove_parts(folder: Path) -> None:
    """Delete the parts of a finished stage, stale ones too; their rows are in its tables."""
    if is_main():
        shutil.rmtree(folder / PARTS, ignore_errors=True)


def _whole(files: Iterable[Path]) -> Path | None:
    """The first file that holds what its name says."""
    for file in files:
        if file_hash(file)[:16] == file.name.split(".")[1]:
            return file
        logger.warning("%s: has other content than was written; it is made again", file)
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
