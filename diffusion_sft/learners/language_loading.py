"""Loading a causal language model by what its users have: a folder in transformers' layout, or a Hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import UserError
from ..files import file_hash, read_object, user_path
from ..parsing import first_line
from .configurations import refuse_kernels
from .inspection import HOW_TO_CONVERT, PICKLED, check_finite, header

ADAPTER_FILE = "adapter_model.safetensors"
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


@dataclass(frozen=True, kw_only=True)
class LoadedLanguageModel:
    """A model, its tokenizer, and where they came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """What was read: the given folder, or the Hub's copy on this machine."""
    source: dict[str, Any]


def load_language_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device_map: str | None = None,
    adapter: Path | None = None,
) -> LoadedLanguageModel:
    """Load any causal language model of transformers; code that comes with a model is never run.

    Args:
        name: a folder, or a Hub id.
        revision: branch, tag or commit of a Hub repository.
        dtype: of all weights.
        device_map: as accelerate knows it (`auto` spreads a model over GPUs and memory); None leaves it on the CPU.
        adapter: a folder with peft's adapter to put on it.

    Raises:
        UserError: nothing there, unreadable, pickled, cut off, of another kind, or in need of its own code.
    """
    folder = inspect_language_model(name, revision)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # Whatever transformers, tokenizers and their validators make of a stranger's files.
        raise UserError(f"{name}: cannot be loaded as a causal language model ({first_line(error)[:300]})") from error
    for what in ("missing_keys", "mismatched_keys"):
        if found := sorted(map(str, report.get(what) or [])):
            raise UserError(
                f"{name}: its weight files do not fill the model of its config.json ({found[0]} and {len(found) - 1} more); "
                "fetch the whole folder again"
            )
    check_finite(folder, model.state_dict())
    _check_vocabulary(model, tokenizer, name)
    source: dict[str, Any] = {"source": name, "revision": revision, "dtype": str(dtype).removeprefix("torch.")}
    if folder != user_path(name):
        source["commit"] = folder.name
    if adapter is not None:
        source["adapter"] = _add_adapter(model, adapter)
    return LoadedLanguageModel(model=model.eval(), tokenizer=tokenizer, folder=folder, source=source)


def inspect_language_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model that looks sound, from its settings and the headers of its weights; nothing is loaded.

    Raises:
        UserError: as `load_language_model`, as far as that can be told by then.
    """
    folder = _locate(name, revision)
    _check_folder(folder, name)
    _check_config(folder, name)
    return folder


def language_weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file by its name."""
    return {file.name: file_hash(file) for file in sorted(folder.glob("*.safetensors"))}


def _locate(name: str, revision: str | None) -> Path:
    folder = user_path(name)
    if folder.is_dir():
        if revision:
            raise UserError(f"{folder}: a folder has no revision ({revision}); leave revision out")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder; give a folder in transformers' layout or a Hub id")
    try:
        patterns = ["*.safetensors", *SETTINGS]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(f"{name}: no such folder, nor could the Hub give it: {first_line(error)}") from error


def _check_folder(folder: Path, name: str) -> None:
    """What is missing or broken in a folder, found out before anything is built from it."""
    if not (folder / "config.json").is_file():
        other = " (a diffusion pipeline; give it as `base`)" if (folder / "model_index.json").is_file() else ""
        raise UserError(f"{name}: no config.json in it, so it is no language model{other}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLED]
        if pickled:
            raise UserError(f"{folder / pickled[0]}: {HOW_TO_CONVERT}")
        raise UserError(f"{name}: no weights (*.safetensors) in it; fetch the whole folder again")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{name}: an adapter lies beside the weights (adapter_config.json); give the base in a folder alone"
        )
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UserError(f"{file}: no plain file; a language model consists of files")
    for file in folder.glob("*.safetensors.index.json"):
        named = read_object(file).get("weight_map")
        shards = set(map(str, named.values())) if isinstance(named, dict) else set()
        # Names come from a file that anybody may have written: they must stay in its folder.
        if not shards or any(Path(shard).name != shard or not (folder / shard).is_file() for shard in shards):
            raise UserError(f"{file}: does not name safetensors beside it; fetch the whole folder again")


def _check_config(folder: Path, name: str) -> None:
    """What would run code of the model's own, or be built at any cost before it is held against the weights."""
    config = read_object(folder / "config.json")
    refuse_kernels(config, folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = " (it comes with code of its own, auto_map, which is never run)" if "auto_map" in config else ""
        raise UserError(f"{name}: model_type {str(kind)[:80]!r} is none that transformers knows{own}")
    shapes = {key: shape for file in folder.glob("*.safetensors") for key, shape in header(file).shapes.items()}
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    limits = dict.fromkeys(("vocab_size", "hidden_size", "n_embd"), largest)
    for key, limit in (limits | dict.fromkeys(("num_hidden_layers", "n_layer"), len(shapes))).items():
        if isinstance(value := config.get(key), int) and value > limit:
            raise UserError(f"{folder / 'config.json'}: {key} {value} is more than its weights can fill")


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """A tokenizer may know fewer tokens than the model, whose tables are often padded, but none beyond them."""
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 < len(tokenizer) <= rows:
        raise UserError(
            f"{name}: its tokenizer has {len(tokenizer)} entries and the model embeddings for {rows}; they are of different "
            "models"
        )


def _add_adapter(model: PreTrainedModel, adapter: Path) -> str:
    file = adapter / ADAPTER_FILE
    if not file.is_file():
        raise UserError(f"{adapter}: no {ADAPTER_FILE} in it, so it is no adapter")
    header(file)
    check_finite(adapter, load_file(file))
    try:
        model.load_adapter(str(adapter))
    except Exception as error:
        raise UserError(f"{adapter}: cannot be put on this model ({first_line(error)[:300]})") from error
    return file_hash(file)
