"""The published figures: values typed off the paper, identities between its tables, and a source for each block."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from diffusion_sft import reference as module
from diffusion_sft.errors import UserError
from diffusion_sft.records import CATEGORIES
from diffusion_sft.reference import load_reference

PAPER = load_reference()


def test_figures_are_the_papers() -> None:
    early, late = PAPER.single_category["early_stop"], PAPER.single_category["convergence"]
    assert early["HighlyKnown"] == {
        "Full": 40.5,
        "HighlyKnown": 98.7,
        "MaybeKnown": 60.1,
        "WeaklyKnown": 9.0,
        "Unknown": 0.6,
    }
    assert list(early["MaybeKnown"].values()) == [43.6, 98.4, 69.9, 12.1, 1.0]
    assert list(early["WeaklyKnown"].values()) == [39.2, 95.0, 59.2, 8.6, 0.4]
    assert list(early["Unknown"].values()) == [37.5, 95.6, 52.9, 6.5, 0.6]
    assert list(early["Natural"].values()) == [43.5, 98.0, 67.6, 14.1, 1.8]
    assert list(late["HighlyKnown"].values()) == [40.0, 98.4, 58.8, 8.5, 0.7]
    assert list(late["MaybeKnown"].values()) == [43.2, 97.5, 68.2, 12.9, 1.3]
    assert list(late["WeaklyKnown"].values()) == [35.4, 73.5, 55.8, 17.2, 2.2]
    assert list(late["Unknown"].values()) == [25.8, 55.8, 36.6, 12.2, 3.2]
    assert list(late["Natural"].values()) == [41.8, 95.5, 61.7, 14.8, 2.5]
    inside, outside = PAPER.linear_model["in_distribution"], PAPER.linear_model["out_of_distribution"]
    assert (inside.b0_percent, inside.b_known_points, inside.b_unknown_points, inside.r2) == (36.9, 7.3, -8.3, 0.86)
    assert (outside.b0_percent, outside.b_known_points, outside.b_unknown_points, outside.r2) == (
        36.2,
        3.2,
        -3.0,
        0.95,
    )
    relabelled = PAPER.relabel["early_stop"]["relabelled"]
    assert (relabelled.accuracy_percent, relabelled.answered_percent) == (61.8, 58.7)
    assert PAPER.relabel["convergence"]["relabelled"].answered_percent == 55.6
    assert [PAPER.relabel[stopping]["plain"].accuracy_percent for stopping in module.STOPPINGS] == [43.0, 38.8]
    assert PAPER.largest_drop == {"in_distribution": 14, "out_of_distribution": 6}
    assert PAPER.setup["train_size"] == 6142
    assert PAPER.setup["learning_rate"] == 1e-5
    assert PAPER.slick["exemplar_sets"] * (1 + PAPER.slick["samples_per_prompt"]) == 170
    assert PAPER.citation.short == "Gekhman et al., 2024"


def test_the_categories_make_up_the_whole() -> None:
    for counts in (PAPER.test_counts, PAPER.ood_counts):
        assert sum(counts[category] for category in CATEGORIES) == counts["total"]
    assert sum(PAPER.category_shares.values()) == pytest.approx(1.0)
    train = {"HighlyKnown": 19528, "MaybeKnown": 20674, "WeaklyKnown": 13825, "Unknown": 27673}  # table 3
    for category, count in train.items():
        assert PAPER.category_shares[category] == pytest.approx(count / 81700, abs=5e-4)


@pytest.mark.parametrize("stopping", module.STOPPINGS)
def test_shares_times_category_accuracies_are_the_full_ones(stopping: str) -> None:
    for row in PAPER.single_category[stopping].values():
        weighted = sum(PAPER.test_counts[category] * row[category] for category in CATEGORIES)
        assert weighted / PAPER.test_counts["total"] == pytest.approx(row["Full"], abs=0.1)


def test_every_block_has_a_source() -> None:
    content = yaml.safe_load((module.FOLDER / "gekhman2024.yaml").read_text(encoding="utf-8"))
    assert set(PAPER.sources) == set(content)
    assert all(PAPER.sources.values())
    assert PAPER.sources["single_category"] == "table 2"
    assert "PaLM 2-S" in PAPER.notes["setup"]
    assert "Footnote 5" in PAPER.notes["category_shares"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {b: 1}", "block a has no source"),
        ("a: {source: ' ', b: 1}", "block a has no source"),
        ("a: 1", "block a has no source"),
        ("- 1", "blocks of figures are expected"),
        ("a: {", "not valid YAML"),
        ("citation: {source: here}", "not the figures that are expected"),
    ],
)
def test_incomplete_figures_are_refused_in_one_line(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_reference("mine")
    assert "\n" not in str(caught.value)


def test_a_package_without_the_repository_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDER", tmp_path / "absent")
    with pytest.raises(UserError, match="part of the repository, not of the package"):
        load_reference()
