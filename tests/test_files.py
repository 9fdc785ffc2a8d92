"""Files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from diffusion_sft.errors import UserError
from diffusion_sft.files import file_hash, read_json, read_table, replaced, replaced_folder, write_json, write_table
from diffusion_sft.records import Draws, identity_seed


class Interrupted(Exception):
    pass


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with pytest.raises(Interrupted), replaced(file) as temporary:
        temporary.write_text("half")
        raise Interrupted
    assert read_json(file) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for text in ("first", "second"):
        with replaced_folder(folder) as temporary:
            (temporary / text).write_text(text)
    assert [path.name for path in folder.iterdir()] == ["second"]
    with pytest.raises(Interrupted), replaced_folder(folder) as temporary:
        (temporary / "third").write_text("half")
        raise Interrupted
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (folder / "second").exists()


def test_tables_come_back_and_bad_ones_are_named(tmp_path: Path) -> None:
    table = pd.DataFrame({"concept": ["a", "<b>"], "value": [1.5, float("nan")]})
    write_table(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), table)
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "concept,value"
    (tmp_path / "bad.parquet").write_text("not parquet")
    for name in ("bad.parquet", "absent.parquet"):
        with pytest.raises(UserError, match=name):
            read_table(tmp_path / name)


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeds_are_functions_of_identity() -> None:
    assert identity_seed(0, "a", 1) == identity_seed(0, "a", 1)
    assert len({identity_seed(s, name, i) for s in (0, 1) for name in ("a", "b") for i in range(3)}) == 12
    assert identity_seed(0, "ab", "c") != identity_seed(0, "a", "bc")
    assert 0 <= identity_seed(5, "x") < 2**63
    with pytest.raises(ValueError, match="at least 1"):
        Draws(seed=0, count=0)
