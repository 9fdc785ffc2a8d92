"""What was said at each evaluation: a table per evaluation while a run goes, one of all when it is finished.

One table that grew would be written whole at every evaluation, which takes hours over a thousand of them.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..files import read_table, remove_folder, write_parquet, write_table

ANSWERS = "answers.parquet"
"""Every question of every evaluation, with what was said; of a finished run."""
PARTS = "answers"
_PART = re.compile(r"update-(\d+)\.parquet")


class AnswerFiles:
    """The answers of one run in its folder; for the main process alone."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._digest = hashlib.sha256()
        self._any = False

    def add(self, update: int, answers: pd.DataFrame) -> None:
        """Keep the answers of an evaluation."""
        write_parquet(self._part(update), answers)
        self._count(read_table(self._part(update)))

    def stamp(self) -> str | None:
        """The hash of all answers as text; None where there are none."""
        return self._digest.hexdigest() if self._any else None

    def rewind(self, update: int) -> None:
        """Forget the answers after this update; the stamp is that of those before.

        Raises:
            UserError: a table that cannot be read.
        """
        self._take_apart()
        self._digest, self._any = hashlib.sha256(), False
        for number, file in self._parts():
            if number > update:
                file.unlink()
            else:
                self._count(read_of_run(file, self.run, "what was said"))
        if not self._any and (self.run / PARTS).is_dir():
            remove_folder(self.run / PARTS)

    def join(self) -> None:
        """Put the tables of a run that has ended into one."""
        if parts := self._parts():
            write_table(self.run / ANSWERS, pd.concat([read_table(file) for _, file in parts], ignore_index=True))
            remove_folder(self.run / PARTS)

    def _take_apart(self) -> None:
        """Make the parts of a finished run's table again; where both are there, the parts are the ones to trust."""
        whole = self.run / ANSWERS
        if whole.is_file() and not self._parts():
            table = read_of_run(whole, self.run, "what was said")
            if "update" not in table.columns:
                raise UserError(f"{whole}: has no column update; remove {self.run} to begin anew")
            for update in table["update"].unique().tolist():
                write_parquet(self._part(update), table[table["update"] == update])
        whole.unlink(missing_ok=True)
        whole.with_suffix(".csv").unlink(missing_ok=True)

    def _part(self, update: int) -> Path:
        return self.run / PARTS / f"update-{update:06d}.parquet"

    def _parts(self) -> list[tuple[int, Path]]:
        found = ((_PART.fullmatch(file.name), file) for file in (self.run / PARTS).glob("update-*.parquet"))
        return sorted((int(match[1]), file) for match, file in found if match)

    def _count(self, answers: pd.DataFrame) -> None:
        self._digest.update(table_text(answers).encode())
        self._any = True


def table_text(table: pd.DataFrame) -> str:
    """A table as text that is the same for one that was written and read back, or joined with others and cut again: its
    types are those that the values alone decide."""
    return str(table.convert_dtypes().to_csv(index=False))


def read_of_run(file: Path, run: Path, what: str) -> pd.DataFrame:
    """A table that a run goes on from; UserError saying that `what` is lost where it cannot be read."""
    try:
        return read_table(file)
    except UserError as error:
        reason = str(error).split(";")[0]
        raise UserError(f"{reason}; {what} is lost: remove {run} to begin anew") from None
