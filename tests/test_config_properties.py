"""A pipeline's JSON, altered at random: the base loads, or one line says why not; no code is run and no memory filled."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from architectures import tiny_pipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peak_memory import PeakMemory

from diffusion_sft.errors import UserError
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.inspection import check_folder

FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)
MOST_MEGABYTES = 500
"""More than before; the base itself takes 2."""
WORDS = (
    "",
    "evil",
    "Evil",
    "evil.Evil",
    "os.system",
    "../evil",
    "0.5",
    "silu",
    "epsilon",
    "a\nb",
    "\x1b[2J",
    "é" * 300,
)
KEYS = (
    *("_class_name", "auto_map", "attn_implementation", "custom_pipeline", "safety_checker", "image_encoder"),
    *("trained_betas", "rescale_betas_zero_snr", "thresholding", "timestep_spacing", "encoder_hid_dim", "dropout"),
    *("time_embedding_dim", "conv_in_kernel", "num_attention_heads", "transformer_layers_per_block", "latents_mean"),
    *("shift_factor", "use_quant_conv", "model_max_length", "added_tokens_decoder", "tokenizer_class", "text_config"),
    *("quantization_config", "torch_dtype", "dtype", "chat_template", "extra_special_tokens", "time_cond_proj_dim"),
)
"""Names that mean something to the libraries and are not in the files."""

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, 1, -1, 2, 3, 7, 64, 10**4, 10**9, 2**63, 10**400)),
    st.sampled_from((0.0, 0.5, -1.5, 1e30, 1e-300, float("nan"), float("inf"))),
    st.sampled_from(WORDS),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from((*WORDS, "0")), inner, max_size=2)
    ),
    max_leaves=6,
)
alterations = st.tuples(
    st.sampled_from(("set", "drop", "add", "wrap", "repeat")), st.integers(0, 63), st.sampled_from(KEYS), values
)


def altered(content: dict[str, Any], alteration: tuple[str, int, str, Any]) -> dict[str, Any]:
    """The content with one entry set, dropped, added, put into a list, or repeated in its list."""
    kind, place, key, value = alteration
    names = sorted(content)
    if kind == "add" or not names:
        return content | {key: value}
    name = names[place % len(names)]
    if kind == "drop":
        return {other: own for other, own in content.items() if other != name}
    if kind == "wrap":
        return content | {name: [content[name]]}
    if kind == "repeat":
        own = content[name]
        return content | {name: own * 3 if isinstance(own, list | str | int) else own}
    return content | {name: value}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_pipeline(tmp_path_factory.mktemp("properties") / "base", "sd1")
    for part in (".", "unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        (folder / part / "evil.py").write_text(f"open({str(folder / 'trace')!r}, 'w')\nclass Evil: pass\n")
    return folder


@contextmanager
def put(base: Path, file: str, *changes: tuple[str, int, str, Any]) -> Iterator[None]:
    """The file is altered inside the block."""
    before = (base / file).read_text()
    content = json.loads(before)
    for change in changes:
        content = altered(content, change)
    (base / file).write_text(json.dumps(content))
    try:
        yield
    finally:
        (base / file).write_text(before)


def loads_or_says_why(read: Any) -> bool:
    """Whether it loads; if not, it is told in one line."""
    memory = PeakMemory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
            loaded = True
        except UserError as error:
            loaded = False
            told = str(error)
            assert told.isprintable(), told
            assert len(told) < 1000, told
    assert memory.megabytes < MOST_MEGABYTES
    return loaded


def nothing_ran(base: Path) -> bool:
    return not (base / "trace").exists() and "evil" not in sys.modules


often = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), max_examples=400
)


@often
@given(file=st.sampled_from(FILES), changes=st.lists(alterations, min_size=1, max_size=3))
def test_a_folder_is_looked_through_or_refused(
    base: Path, file: str, changes: list[tuple[str, int, str, Any]]
) -> None:
    with put(base, file, *changes):
        loads_or_says_why(lambda: check_folder(base, None))
    assert nothing_ran(base)


@settings(often, max_examples=80)
@given(file=st.sampled_from(FILES), changes=st.lists(alterations, min_size=1, max_size=2))
def test_a_base_loads_or_is_refused(base: Path, file: str, changes: list[tuple[str, int, str, Any]]) -> None:
    with put(base, file, *changes):
        loads_or_says_why(lambda: DiffusionLearner.load(base))
    assert nothing_ran(base)


def test_the_base_itself_loads(base: Path) -> None:
    assert loads_or_says_why(lambda: DiffusionLearner.load(base))


@pytest.mark.parametrize("file", ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json"])
@settings(often, max_examples=12)
@given(content=st.one_of(st.binary(max_size=40), values.map(lambda value: json.dumps(value).encode())))
def test_words_are_read_or_refused(base: Path, file: str, content: bytes) -> None:
    before = (base / file).read_bytes() if (base / file).exists() else None
    (base / file).write_bytes(content)
    try:
        loads_or_says_why(lambda: DiffusionLearner.load(base))
    finally:
        (base / file).unlink() if before is None else (base / file).write_bytes(before)
    assert nothing_ran(base)
