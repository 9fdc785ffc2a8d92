"""What was said at each evaluation: a table per evaluation while a run goes, one of all when it is finished.

One table that grew would be written whole at every evaluation, which takes hours over a thousand of them.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..files import read_table, remove_folder, replaced, write_table

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
        file = self.run / PARTS / f"update-{update:06d}.parquet"
        with replaced(file) as temporary:
            answers.to_parquet(temporary, index=False, write_page_checksum=True)
        self._count(read_table(file))

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
                self._count(self._read(file))
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
            table = self._read(whole)
            if "update" not in table.columns:
                raise UserError(f"{whole}: has no column update; remove {self.run} to begin anew")
            for update, rows in table.groupby("update"):
                with replaced(self.run / PARTS / f"update-{update:06d}.parquet") as temporary:
                    rows.to_parquet(temporary, index=False, write_page_checksum=True)
        whole.unlink(missing_ok=True)
        whole.with_suffix(".csv").unlink(missing_ok=True)

    def _read(self, file: Path) -> pd.DataFrame:
        try:
            return read_table(file)
        except UserError as error:
            reason = str(error).split(";")[0]
            raise UserError(f"{reason}; what was said is lost: remove {self.run} to begin anew") from None

    def _parts(self) -> list[tuple[int, Path]]:
        found = ((_PART.fullmatch(file.name), file) for file in (self.run / PARTS).glob("update-*.parquet"))
        return sorted((int(match[1]), file) for match, file in found if match)

    def _count(self, answers: pd.DataFrame) -> None:
        # Of types that the values alone decide: those of a column depend on what it was joined with.
        self._digest.update(answers.convert_dtypes().to_csv(index=False).encode())
        self._any = True
