"""What model cards say differently of a fine-tuned Stable Diffusion and of a fine-tuned language model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..learner import PIPELINE_LAYOUT, Layout
from ..records import DEVELOPMENT, HELDOUT, OTHER_RELATIONS, TEST, TRAINED, UNTOUCHED
from .config import FinetuneConfig
from .evaluations import ROLES

LORA_FILE, KOHYA_FILE = PIPELINE_LAYOUT.adapters, "pytorch_lora_weights_kohya.safetensors"
ADAPTER_SETTINGS = "adapter_config.json"
"""Beside peft's adapters of a language model."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """One library's words."""

    library: str
    task: str
    """The Hub's name of what the model does."""
    kind: Callable[[Mapping[str, Any]], str]
    """A tag for the architecture, from the base's identity."""
    network: str
    weights: str
    """How the names of the network's weight files begin."""
    concepts: str
    what: Mapping[str, str]
    tags: Mapping[str, str]
    roles: Mapping[str, str]
    known_roles: Mapping[str, str]
    question: str
    not_measured: str


_OUTSIDE = {
    DEVELOPMENT: "development set",
    TEST: "test set",
    OTHER_RELATIONS: "test set of other relations",
}
WORDS: Mapping[str, Words] = {
    "diffusers": Words(
        library="diffusers",
        task="text-to-image",
        kind=lambda identity: "stable-diffusion-xl" if identity.get("architecture") == "sdxl" else "stable-diffusion",
        network="UNet",
        weights="unet/",
        concepts="concepts",
        what={
            "full": "All weights of the UNet",
            "cross_attention": "The cross-attention weights of the UNet",
            "lora": "LoRA adapters",
        },
        tags={"full": "full-fine-tune", "cross_attention": "cross-attention-fine-tune", "lora": "lora"},
        roles={
            TRAINED: "trained examples",
            HELDOUT: "other images of its concepts",
            UNTOUCHED: "concepts outside the mix",
            **_OUTSIDE,
        },
        known_roles={
            UNTOUCHED: "known concepts outside the mix (what may have been forgotten)",
            HELDOUT: "known concepts of the mix, on other images",
        },
        question="One question an example: which of several concepts' words fits the picture best?",
        not_measured="Image quality is no part of these numbers.",
    ),
    "transformers": Words(
        library="transformers",
        task="text-generation",
        kind=lambda identity: str(identity.get("architecture", "causal-lm")),
        network="language model",
        weights="",
        concepts="facts",
        what={"full": "All weights of the language model", "lora": "LoRA adapters"},
        tags={"full": "full-fine-tune", "lora": "lora"},
        roles={
            TRAINED: "trained examples",
            HELDOUT: "the same facts in other words",
            UNTOUCHED: "facts outside the mix",
            **_OUTSIDE,
        },
        known_roles={
            TEST: "known facts of the test set (what may have been forgotten)",
            UNTOUCHED: "known facts of the training set outside the mix",
            HELDOUT: "known facts of the mix, asked in other words",
        },
        question="Each question was asked closed-book and answered greedily; right is an exact match after normalisation.",
        not_measured="Fluency is no part of these numbers.",
    ),
}
assert all(set(words.roles) == set(ROLES) for words in WORDS.values())


def loading_of_language_model(base: str, config: FinetuneConfig, layout: Layout) -> str:
    """How to load what a run leaves, as Markdown."""
    code = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    place = config.hub_model_id if config.push_to_hub else None
    if config.method == "lora":
        code = ["from peft import PeftModel", *code, f"model = AutoModelForCausalLM.from_pretrained({base!r})"]
        code += [f"model = PeftModel.from_pretrained(model, {place or '.'!r})"]
        code += [f"tokenizer = AutoTokenizer.from_pretrained({base!r})"]
    else:
        folder = place or layout.folder
        code += [f"model = AutoModelForCausalLM.from_pretrained({folder!r})"]
        code += [f"tokenizer = AutoTokenizer.from_pretrained({folder!r})"]
    code += [
        "",
        'prompt = "Answer the following question.\\nYour question?\\n"',
        'output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=32)',
        "print(tokenizer.decode(output[0], skip_special_tokens=True))",
    ]
    return fenced("\n".join(code), "python")


def fenced(text: str, language: str) -> str:
    """A code block that its content cannot leave."""
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=2))
    return f"{fence}{language}\n{text}\n{fence}"


def is_hub_id(source: str) -> bool:
    """Whether a base's name is one of the Hub's, and not a folder or file here."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return source.count("/") == 1 and not Path(source).exists()


def base_name(source: str) -> str:
    """The base without the folders it lies in, which tell of the user's machine."""
    return source if is_hub_id(source) else Path(source).name or source
