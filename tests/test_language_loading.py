"""Loading language models: folders and the Hub's cache, and a line for everything that is none; saving them again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import ARCHITECTURES, question_set, tiny_folder, tiny_model, tiny_tokenizer
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from test_loading import COMMITS, cached
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffusion_sft.errors import UserError
from diffusion_sft.files import file_hash
from diffusion_sft.learner import Query
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.language_export import save_language_model
from diffusion_sft.learners.language_loading import ADAPTER_FILE, LoadedLanguageModel, load_language_model
from diffusion_sft.records import TEST, Draws

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language")
    return {name: tiny_folder(root / name, name) for name in ARCHITECTURES}


@pytest.fixture
def copy(bases: dict[str, Path], tmp_path: Path) -> Path:
    """A Llama that may be broken."""
    return Path(shutil.copytree(bases["llama"], tmp_path / "base"))


def load(folder: Path, **options: Any) -> LoadedLanguageModel:
    return load_language_model(str(folder), **options)


def refusal(folder: Path | str, **options: Any) -> str:
    """What the user is told, which must be one line that says where."""
    with pytest.raises(UserError) as caught:
        load_language_model(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


# --- folders ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_becomes_the_model_it_holds(architecture: str, bases: dict[str, Path]) -> None:
    loaded = load(bases[architecture])
    expected = tiny_model(architecture).state_dict()
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not loaded.model.training
    assert loaded.folder == bases[architecture]
    assert loaded.source == {"source": str(bases[architecture]), "revision": None, "dtype": "float32"}
    text = "Q: What is the capital of Rome?\nA: Rome\n"
    assert loaded.tokenizer(text)["input_ids"] == tiny_tokenizer(architecture)(text)["input_ids"]


def test_the_identity_is_the_weights_hash_and_no_folder(bases: dict[str, Path], copy: Path) -> None:
    identity = LanguageLearner.load(bases["llama"]).identity()
    assert identity["sha256"] == {WEIGHTS: file_hash(bases["llama"] / WEIGHTS)}
    assert (identity["architecture"], identity["vocab_size"]) == ("llama", 320)
    assert identity["num_parameters"] == sum(p.numel() for p in tiny_model("llama").parameters())
    moved = LanguageLearner.load(copy).identity()
    assert {k: v for k, v in moved.items() if k != "source"} == {k: v for k, v in identity.items() if k != "source"}
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_all_weights_get_the_dtype_that_was_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever the files are in, which is bfloat16 for most published models."""
    folder = tiny_folder(tmp_path / "half", "qwen2", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()} == {torch.bfloat16}
    loaded = load(folder, dtype=dtype)
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert loaded.source["dtype"] == str(dtype).removeprefix("torch.")


def test_bfloat16_reads_much_the_same(bases: dict[str, Path]) -> None:
    queries = [Query(example=e, cues=(e.caption,)) for e in question_set().split(TEST)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        learner = LanguageLearner.load(bases["llama"], dtype=dtype, max_answer_tokens=8)
        readings = learner.surprise(queries, Draws(seed=0, count=1), batch_size=4)
        found.append(torch.tensor([float(reading.error_nats[1, 0]) for reading in readings]))
        assert all(reading.squared_error.dtype.name == "float64" for reading in readings)
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.5)
    assert not torch.equal(found[0], found[1])


def test_shards_are_read_and_hashed(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    tiny_model("llama").save_pretrained(folder, max_shard_size="30KB")
    tiny_tokenizer("llama").save_pretrained(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    learner = LanguageLearner.load(folder)
    expected = load(bases["llama"]).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in learner.model.state_dict().items())
    assert learner.identity()["sha256"] == {file.name: file_hash(file) for file in shards}
    shards[1].unlink()
    assert str(folder) in refusal(folder)


# --- what is broken ---


def test_pickled_weights_are_refused_with_what_to_do(copy: Path, tmp_path: Path) -> None:
    """They are not even opened: unpickling this file would write another."""
    trace = tmp_path / "was here"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch '{trace}'",))

    (copy / WEIGHTS).unlink()
    torch.save({"bomb": Bomb()}, copy / "pytorch_model.bin")
    message = refusal(copy)
    assert "pytorch_model.bin: pickled weights" in message
    assert "safetensors.torch.save_file" in message
    assert not trace.exists()


def test_pickles_beside_safetensors_are_left_alone(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"no pickle")
    assert load(copy).model is not None


def truncated(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


def cut_in_the_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def lfs_pointer(folder: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5000\n"
    (folder / WEIGHTS).write_text(text)


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", ')


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def unknown_type(folder: Path) -> None:
    change(folder / "config.json", model_type="nothing-we-know")


def other_sizes(folder: Path) -> None:
    change(folder / "config.json", hidden_size=64, head_dim=16)


def a_reader(folder: Path) -> None:
    """An encoder and a decoder."""
    change(folder / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])


def more_layers(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=3)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (truncated, f"{WEIGHTS}: not a whole safetensors file"),
        (cut_in_the_header, f"{WEIGHTS}: not a whole safetensors file"),
        (empty, f"{WEIGHTS}: not a whole safetensors file"),
        (lfs_pointer, f"{WEIGHTS}: a Git-LFS pointer, not the weights themselves; run `git lfs pull`"),
        (no_weights, "no weights (*.safetensors) in it; fetch the whole folder again"),
        (no_config, "no config.json in it, so it is no language model"),
        (broken_config, "config.json: not valid JSON"),
        (no_tokenizer, "cannot be loaded as a causal language model"),
        (broken_tokenizer, "cannot be loaded as a causal language model"),
        (unknown_type, "is none that transformers knows"),
        (other_sizes, "cannot be loaded as a causal language model"),
        (a_reader, "cannot be loaded as a causal language model"),
    ],
)
def test_what_is_broken_is_named_in_one_line(spoil: Callable[[Path], None], expected: str, copy: Path) -> None:
    spoil(copy)
    message = refusal(copy)
    assert expected in message
    assert str(copy) in message


def test_weights_that_are_missing_from_the_file_are_not_made_up(copy: Path) -> None:
    """transformers starts them from random numbers with a warning; nobody would know what was probed."""
    more_layers(copy)
    message = refusal(copy)
    assert str(copy) in message


def test_a_diffusion_pipeline_is_told_where_it_belongs(tiny_pipeline: Path) -> None:
    message = refusal(tiny_pipeline)
    assert message.endswith("so it is no language model (a diffusion pipeline; give it as `base`)")


def test_folders_that_are_not_there_are_told_from_hub_ids(bases: dict[str, Path], tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere-at-all", "a/b/c"):
        assert refusal(name) == f"{name}: no such folder; give a folder in transformers' layout or a Hub id"
    message = refusal(bases["llama"], revision="main")
    assert message == f"{bases['llama']}: a folder has no revision (main); leave revision out"


# --- code that comes with a model ---

HOSTILE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({trace!r}).write_text("was here")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_code_that_comes_with_a_model_never_runs(
    model_type: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    (copy / "own.py").write_text(HOSTILE.format(trace=str(trace)))
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel", "AutoTokenizer": ["own.X", None]}
    change(copy / "config.json", auto_map=auto, model_type=model_type)
    change(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.X", None]})
    # Nobody is asked at a terminal either.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    if model_type == "own":
        assert str(copy) in refusal(copy)
    else:
        assert type(load(copy).model).__name__ == "LlamaForCausalLM"
    assert not trace.exists()


# --- adapters ---


def adapter(base: Path, folder: Path) -> Path:
    """An adapter that changes every projection, as peft writes it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_put_on_its_base_and_is_part_of_the_identity(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = adapter(bases["llama"], tmp_path / "adapter")
    plain, adapted = (
        LanguageLearner.load(bases["llama"], **options)
        for options in ({}, {"adapter": folder})  # type: ignore[arg-type]
    )
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert float((plain.model(ids).logits - adapted.model(ids).logits).abs().max()) > 0.1
    assert adapted.identity()["adapter"] == file_hash(folder / ADAPTER_FILE)
    assert "adapter" not in plain.identity()
    assert not adapted.model.training


def test_adapters_that_are_none_or_another_bases_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = adapter(bases["llama"], tmp_path / "adapter")
    message = refusal(bases["gpt2"], adapter=folder)
    assert message.startswith(f"{folder}: cannot be put on this model")
    assert refusal(bases["llama"], adapter=tmp_path) == f"{tmp_path}: no {ADAPTER_FILE} in it, so it is no adapter"
    (folder / ADAPTER_FILE).write_bytes((folder / ADAPTER_FILE).read_bytes()[:-10])
    assert f"{ADAPTER_FILE}: not a whole safetensors file" in refusal(bases["llama"], adapter=folder)


def test_an_adapter_of_another_size_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    larger = tiny_folder(tmp_path / "larger", "llama", hidden_size=64)
    folder = adapter(larger, tmp_path / "adapter")
    assert refusal(bases["llama"], adapter=folder).startswith(f"{folder}: cannot be put on this model")


# --- saving ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_is_loaded_as_it_was(architecture: str, bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(bases[architecture])
    folder = tmp_path / "saved"
    folder.mkdir()
    metadata = {"mix": "half", "update": "7", "note": 'Ünïcode "quoted"'}
    save_language_model(loaded, folder, metadata)
    with safe_open(folder / WEIGHTS, "pt") as stream:
        assert stream.metadata() == {"format": "pt", **metadata}
    again = load(folder)
    expected = loaded.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())
    text = "Answer the following question.\nWho composed Rome?\n"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (
        loaded.tokenizer.eos_token_id,
        loaded.tokenizer.bos_token_id,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded.model(ids).logits)
    # Tied weights are written once, as they were.
    assert load_file(folder / WEIGHTS).keys() == load_file(bases[architecture] / WEIGHTS).keys()


def test_the_same_model_is_saved_as_the_same_bytes(bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(bases["qwen3"])
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        save_language_model(loaded, tmp_path / name, {"b": "2", "a": "1"})
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_settings_of_generation_come_along(copy: Path, tmp_path: Path) -> None:
    change(copy / "generation_config.json", eos_token_id=[1, 9], max_new_tokens=17)
    folder = tmp_path / "saved"
    folder.mkdir()
    save_language_model(load(copy), folder, {})
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.max_new_tokens == 17


def test_sampling_settings_that_disagree_do_not_stop_a_save(copy: Path, tmp_path: Path) -> None:
    """Published models have such: a temperature where nothing is sampled, which transformers' own check refuses."""
    change(copy / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    folder = tmp_path / "saved"
    folder.mkdir()
    save_language_model(load(copy), folder, {})
    assert (folder / WEIGHTS).is_file()


# --- the Hub, without network ---

OFFLINE = """
import json, sys
from pathlib import Path
from diffusion_sft.errors import UserError
from diffusion_sft.learners.language import LanguageLearner
answers = {}
for name, asked in json.load(open(sys.argv[1])).items():
    try:
        learner = LanguageLearner.load(**asked)
        answers[name] = {"folder": str(learner.loaded.folder), "identity": learner.identity()}
    except UserError as error:
        answers[name] = {"error": str(error)}
json.dump(answers, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def offline(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of a process that has a Hub cache and no network."""
    root = tmp_path_factory.mktemp("offline")
    hub = root / "hub"
    snapshots = {"main": cached(hub, "someone/tiny", bases["llama"], "main")}
    snapshots["v2"] = cached(hub, "someone/tiny", bases["qwen2"], "v2")
    snapshots["old"] = cached(hub, "gpt2", bases["gpt2"], "main")
    pickled = Path(shutil.copytree(bases["llama"], root / "pickled"))
    (pickled / WEIGHTS).unlink()
    (pickled / "config.json").write_text((bases["llama"] / "config.json").read_text() + "\n")
    cached(hub, "someone/pickled", pickled, "main")
    asked: dict[str, dict[str, Any]] = {
        "main": {"pretrained_model_name_or_path": "someone/tiny"},
        "v2": {"pretrained_model_name_or_path": "someone/tiny", "revision": "v2"},
        "commit": {"pretrained_model_name_or_path": "someone/tiny", "revision": COMMITS["v2"]},
        "old": {"pretrained_model_name_or_path": "gpt2"},
        "unknown": {"pretrained_model_name_or_path": "someone/else"},
        "unknown revision": {"pretrained_model_name_or_path": "someone/tiny", "revision": "v3"},
        "no name": {"pretrained_model_name_or_path": "some one/tiny"},
        "pickled": {"pretrained_model_name_or_path": "someone/pickled"},
    }
    (root / "asked.json").write_text(json.dumps(asked))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "HF_HOME": str(root)}
    command = [sys.executable, "-c", OFFLINE, str(root / "asked.json")]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return {"snapshots": snapshots, "answers": json.loads((root / "asked.json").read_text())}


@pytest.mark.parametrize(
    ("case", "snapshot", "architecture"),
    [("main", "main", "llama"), ("v2", "v2", "qwen2"), ("commit", "v2", "qwen2"), ("old", "old", "gpt2")],
)
def test_a_hub_id_is_read_from_the_cache(
    case: str, snapshot: str, architecture: str, offline: dict[str, Any]
) -> None:
    answer, folder = offline["answers"][case], offline["snapshots"][snapshot]
    assert answer["folder"] == str(folder)
    assert answer["identity"]["commit"] == folder.name
    assert answer["identity"]["architecture"] == architecture
    assert answer["identity"]["sha256"] == {WEIGHTS: (folder / WEIGHTS).resolve().name}


def test_what_the_cache_lacks_is_named(offline: dict[str, Any]) -> None:
    names = {"unknown": "someone/else", "unknown revision": "someone/tiny", "no name": "some one/tiny"}
    for case, name in names.items():
        message = offline["answers"][case]["error"]
        assert message.startswith(f"{name}: no such folder, nor could the Hub give it: ")
        assert "\n" not in message
    # Pickled files are never fetched, so that they cannot be named; but what is missing is.
    assert "someone/pickled: no weights (*.safetensors) in it" in offline["answers"]["pickled"]["error"]
