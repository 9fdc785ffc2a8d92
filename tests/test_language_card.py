"""The language model's card counts what the tables say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from diffusion_sft.files import write_json, write_table
from diffusion_sft.pretrain.language import LanguagePretrainConfig
from diffusion_sft.pretrain.language_card import facts_by_exposure, facts_by_relation, write_language_card
from diffusion_sft.records import CATEGORIES

FACTS = [
    # subject, relation, exposure, kind, answer, category, greedy_share
    ("ama", "colour", 100, "seen", "red", "HighlyKnown", 1.0),
    ("ama", "shape", 100, "seen", "star", "MaybeKnown", 0.5),
    ("bolo", "colour", 3, "seen", "blue", "WeaklyKnown", 0.0),
    ("cefi", "colour", 0, "unbound", "red", "Unknown", 0.0),
    ("dudu", "colour", 0, "unbound", "red", "MaybeKnown", 0.2),
    ("eke", "colour", 0, "novel", "lime", "Unknown", 0.0),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    names = ["subject", "relation", "exposure", "kind", "answer", "category", "greedy_share"]
    table = pd.DataFrame(FACTS, columns=names).assign(error_nats=2.0, gain_nats=-1.0)
    table["concept"] = table.relation + "/" + table.subject
    write_table(tmp_path / "buckets" / "concepts.parquet", table)
    samples = {"num_samples": 160, "temperature": 0.5, "top_k": 40}
    write_json(
        tmp_path / "probe" / "probe.json",
        {"config": {"shots": 4, "answers": {"num_renderings": 10}, "samples": samples}},
    )
    return tmp_path


def test_groups_are_counted_by_name_and_by_relation(run: Path) -> None:
    by_exposure = facts_by_exposure(run).set_index("group")
    assert by_exposure.facts.to_dict() == {"decile 1": 2, "decile 2": 1, "unbound": 2, "novel": 1}
    assert by_exposure.exposures.to_dict() == {"decile 1": "100–100", "decile 2": "3–3", "unbound": "0", "novel": "0"}
    assert by_exposure.greedy["decile 1"] == 0.75
    assert by_exposure.loc["unbound", list(CATEGORIES)].tolist() == [0.0, 0.5, 0.0, 0.5]
    by_relation = facts_by_relation(run).set_index("relation")
    assert by_relation.loc["colour", "unseen greedy"] == pytest.approx(0.2 / 3)
    assert by_relation.loc["colour", "best constant guess"] == pytest.approx(2 / 3)
    assert by_relation.answers.to_dict() == {"colour": 3, "shape": 1}


def test_the_card_says_where_its_numbers_come_from(run: Path, tmp_path: Path) -> None:
    training = tmp_path / "training.json"
    write_json(training, {"num_tokens": 12345, "num_updates": 6, "language_log": [{"loss": 0.25}]})
    card = write_language_card(Path("world-lm"), run, training, LanguagePretrainConfig(), "As it was.")
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    assert "6 facts: HighlyKnown 16.7%, MaybeKnown 33.3%, WeaklyKnown 16.7%, Unknown 33.3%." in card
    assert "10 prompts of 4 exemplars" in card
    assert "12,345 tokens" in card
    assert "0.2500 nats a token. As it was." in card
    assert "contested_share: 0.6" in card
