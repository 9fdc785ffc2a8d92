"""Every base that nobody should hand in is refused in one line, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bad_bases import CASES, TEXT, change, only_variant, retensor, whole
from bad_inputs import BadInput
from refusals import assert_refused

from diffusion_sft.learners.diffusion import DiffusionLearner


@pytest.mark.filterwarnings("ignore")  # What the libraries say of such folders is theirs.
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_a_base_is_refused(case: BadInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(case, tmp_path, capsys)


def test_no_case_stands_twice() -> None:
    names = [(case.group, case.name) for case in CASES]
    assert len(set(names)) == len(names) >= 60


def test_what_is_unusual_and_right_is_taken(tmp_path: Path) -> None:
    """Published tokenizers that name no length; fewer positions than the tokenizer's; weights of one variant alone."""
    endless = Path(shutil.copytree(whole("sd1"), tmp_path / "endless"))
    change("tokenizer/tokenizer_config.json", model_max_length=10**30)(endless)
    assert len(DiffusionLearner.load(endless)._text.token_ids("a photo")[0]) == 24
    short = Path(shutil.copytree(whole("sd1"), tmp_path / "short"))
    name = "text_model.embeddings.position_embedding.weight"
    retensor(TEXT, lambda tensors: tensors.update({name: tensors[name][:10].clone()}))(short)
    change("text_encoder/config.json", max_position_embeddings=10)(short)
    assert len(DiffusionLearner.load(short)._text.token_ids("a photo")[0]) == 10
    half = Path(shutil.copytree(whole("sd1"), tmp_path / "half"))
    only_variant(half)
    assert DiffusionLearner.load(half, variant="fp16").resolution == 16
