"""The reading aids: every term that tables and pages use is in the glossary, and the citation is the package's."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from diffusion_sft.records import CATEGORIES, RULES
from diffusion_sft.report.changes import METRIC_NAMES
from diffusion_sft.report.systems_words import SYSTEMS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
COLUMNS = (
    *("exposure", "error", "gain", "opinion", "gap", "relative_error", "greedy_share", "sampled_share", "misknown"),
    *("category_confidence", "estimator", "null_error", "uniform_mse", "rendering", "draw", "solution_class"),
    *(
        "effective_answers",
        "recovery",
        "rounds",
        "slope",
        "first_passage",
        "sensitivity",
        "residual",
        "effective_rank",
    ),
    *("picard_ratio", "ritz", "side_effect", "solvable_share", "constrained_residual", "cosine", "step_error"),
    *("fitted_share", "unknown_share", "stopping", "role", "b_known", "b_unknown", "all_known_fitted", "forecast"),
    *("precision", "recall", "density", "coverage", "vendi", "kid", "fid", "floor", "excess", "paired_change", "n"),
)
"""Names in the stages' tables that are terms of this project or field."""


def glossary() -> str:
    """The terms' column of the glossary, in lower case with blanks for underscores."""
    section = TEXT.split("# Glossary")[1].split("\n# ")[0]
    terms = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return plain(" · ".join(terms))


def plain(text: str) -> str:
    return re.sub(r"[_`*]", " ", text).lower()


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_in_the_glossary(name: str) -> None:
    assert re.search(rf"\b{re.escape(plain(name))}", glossary()), name


@pytest.mark.parametrize("name", [*CATEGORIES, *RULES, *METRIC_NAMES.values()])
def test_words_of_the_page_are_explained(name: str) -> None:
    assert plain(name.replace("FD-PCA", "FD-PCA-k")) in plain(TEXT), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_measures_of_the_systems_are_explained(system: str) -> None:
    for measure in SYSTEMS[system].measures.values():
        words = re.findall(r"[a-z‖δ]{4,}|‖δ‖", plain(measure.name))
        assert all(word in plain(TEXT) for word in words), measure.name


def test_glossary_is_in_order_and_has_no_term_twice() -> None:
    section = TEXT.split("# Glossary")[1].split("\n# ")[0]
    terms = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(set(terms)) == len(terms)
    latin = [re.sub(r"[^a-z]", "", term.lower()) for term in terms if re.match(r"[A-Za-z]", term)]
    out_of_order = [after for before, after in pairwise(latin) if after[:1] < before[:1]]
    assert out_of_order == []


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).resolve().is_file(), target


def test_the_citation_is_the_packages() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["title"], cited["version"], cited["license"]) == ("diffusion_sft", "0.1.0", "Apache-2.0")
    assert cited["authors"] == project["authors"] == [{"name": "The diffusion_sft authors"}]
    assert (cited["title"], cited["version"], cited["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert f"version = {{{cited['version']}}}" in TEXT
