"""Work in parts: each concept once, what is done is read back, and no more looks at the folder than there are parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from diffusion_sft.parts import Parts


@dataclass(frozen=True)
class Item:
    concept: str
    number: int


ITEMS = [Item(f"concept {n % 60:02d}", n) for n in range(180)]


def table_of(items: Sequence[Item]) -> pd.DataFrame:
    return pd.DataFrame({"concept": [i.concept for i in items], "number": [i.number for i in items]})


def test_parts_are_computed_once_and_in_the_order_of_names(tmp_path: Path) -> None:
    asked: list[int] = []

    def compute(items: Sequence[Item]) -> pd.DataFrame:
        if len(asked) == 12:
            raise KeyboardInterrupt
        asked.append(len(items))
        return table_of(items)

    with Parts(tmp_path / "key", 2) as parts:
        parts.expect(len(ITEMS))
        with pytest.raises(KeyboardInterrupt):
            parts.table("scores", ITEMS, compute, len)
        assert parts._done_here == 12 * 6
    with Parts(tmp_path / "key", 2) as parts:
        parts.expect(len(ITEMS))
        found = parts.table("scores", ITEMS, lambda items: (asked.append(len(items)), table_of(items))[1], len)
        assert parts.num_evaluations == len(ITEMS)
        assert parts._done_here == len(ITEMS) - 12 * 6
        assert parts._bar.total == len(ITEMS) - 12 * 6
    assert asked == [6] * 30
    expected = table_of(ITEMS).sort_values(["concept", "number"], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected)


def test_looks_at_the_folder_do_not_grow_with_the_number_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    plain = Path.glob

    def glob(path: Path, pattern: str) -> Iterator[Path]:
        looks.append(path)
        return plain(path, pattern)

    monkeypatch.setattr(Path, "glob", glob)
    with Parts(tmp_path / "key", 1) as parts:
        parts.expect(len(ITEMS))
        parts.table("scores", ITEMS, table_of, len)
    assert looks == [tmp_path / "key"] * 2
