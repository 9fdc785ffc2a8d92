"""A fine-tuned language model on disk: a folder that plain transformers loads, or peft's adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from ..layouts import write_tensors
from .language_loading import LoadedLanguageModel


def save_language_model(loaded: LoadedLanguageModel, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the model in float32 as trained, its configuration and its tokenizer; of an adapter, peft's two files.

    `metadata` goes into the headers of the weight files, beside what transformers writes there.
    """
    loaded.model.save_pretrained(folder)
    if not getattr(loaded.model, "_hf_peft_config_loaded", False):
        loaded.tokenizer.save_pretrained(folder)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            own = dict(stream.metadata() or {})
        write_tensors(file, load_file(file), {**own, **metadata})
