"""A fine-tuned language model on disk: a folder that plain transformers loads, or peft's adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from ..files import read_json, user_path, write_json
from ..layouts import write_tensors
from .language_loading import LoadedLanguageModel

ADAPTER_SETTINGS = "adapter_config.json"


def save_language_model(loaded: LoadedLanguageModel, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the model in float32 as trained, its configuration and its tokenizer; of an adapter, peft's two files.

    `metadata` goes into the headers of the weight files, beside what transformers writes there.
    """
    loaded.model.save_pretrained(folder)
    if getattr(loaded.model, "_hf_peft_config_loaded", False):
        _complete_adapter(folder, str(loaded.source["source"]))
    else:
        loaded.tokenizer.save_pretrained(folder)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            own = dict(stream.metadata() or {})
        write_tensors(file, load_file(file), {**own, **metadata})


def _complete_adapter(folder: Path, source: str) -> None:
    """Name the base as others know it, and not where it lies on this machine; leave peft's two files alone."""
    settings = read_json(folder / ADAPTER_SETTINGS)
    local = user_path(source).exists()
    settings["base_model_name_or_path"] = Path(source).name if local else source
    settings["task_type"] = "CAUSAL_LM"
    settings["target_modules"] = sorted(settings["target_modules"])
    write_json(folder / ADAPTER_SETTINGS, settings)
    (folder / "generation_config.json").unlink(missing_ok=True)
