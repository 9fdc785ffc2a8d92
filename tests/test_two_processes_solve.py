"""Several processes solve the systems of one: the same tables to the last bit, each system solved once."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from linear_systems import LinearNetwork
from test_solve import concept_set, config, labels, network
from test_two_processes_probe import Ranks

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.files import read_json
from diffusion_sft.records import ConceptSet
from diffusion_sft.solve.run import Task, solve

__all__ = ["concept_set", "labels", "network"]  # fixtures


@pytest.mark.parametrize("count", [2, 3])
def test_systems_are_dealt_out_and_every_process_gets_all_tables(
    count: int,
    network: LinearNetwork,
    labels: pd.DataFrame,
    concept_set: ConceptSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Task(learner="llm", concept_set=concept_set, labels=labels, answers=AnswerConfig())

    def work(folder: str) -> dict[str, pd.DataFrame]:
        return solve(network.systems(), task, config(), tmp_path / folder, concepts_per_part=3)

    alone = work("alone")
    shared = Ranks(count, monkeypatch).run(lambda: work("shared"))
    for tables in shared:
        assert tables.keys() == alone.keys()
        for name, table in alone.items():
            pd.testing.assert_frame_equal(tables[name], table, check_exact=True)
    records = [read_json(tmp_path / name / "solve.json") for name in ("alone", "shared")]
    assert records[0] | {"seconds": 0, "seal": ""} == records[1] | {"seconds": 0, "seal": ""}
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("alone", "shared")]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith((".csv", ".txt")):
            assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
