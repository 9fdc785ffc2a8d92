"""Loading a causal language model by what its users have: a folder in transformers' layout, or a Hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..files import file_hash, user_path
from ..parsing import first_line
from .inspection import PICKLED, check_weights

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
    folder = _locate(name, revision)
    _check_folder(folder, name)
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise UserError(f"{name}: cannot be loaded as a causal language model ({first_line(error)})") from error
    for what in ("missing_keys", "mismatched_keys"):
        if found := sorted(map(str, report.get(what) or [])):
            raise UserError(
                f"{name}: its weight files do not fill the model of its config.json ({found[0]} and {len(found) - 1} more); "
                "fetch the whole folder again"
            )
    source: dict[str, Any] = {"source": name, "revision": revision, "dtype": str(dtype).removeprefix("torch.")}
    if folder != user_path(name):
        source["commit"] = folder.name
    if adapter is not None:
        source["adapter"] = _add_adapter(model, adapter)
    return LoadedLanguageModel(model=model.eval(), tokenizer=tokenizer, folder=folder, source=source)


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
            raise UserError(
                f"{name}: its weights are pickled ({pickled[0]}), which can run any program; load them once where you "
                "trust them and save_pretrained(folder), which writes safetensors"
            )
        raise UserError(f"{name}: no weights (*.safetensors) in it; fetch the whole folder again")
    for file in weights:
        check_weights(file)


def _add_adapter(model: PreTrainedModel, adapter: Path) -> str:
    file = adapter / ADAPTER_FILE
    if not file.is_file():
        raise UserError(f"{adapter}: no {ADAPTER_FILE} in it, so it is no adapter")
    check_weights(file)
    try:
        model.load_adapter(str(adapter))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{adapter}: cannot be put on this model ({first_line(error)})") from error
    return file_hash(file)
