"""The model card (README.md): what the weights are, what they were trained on, what was measured, how to load them.

Nothing in it is a claim: numbers come from the run's own evaluations, and what nobody measured says so. Names come from
the user's data and may be anything; they are escaped for Markdown, YAML and Python alike.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pandas as pd

from ..learner import PIPELINE_LAYOUT, Layout
from ..parsing import printable
from ..records import CATEGORIES, UNKNOWN
from ..settings import settings_yaml
from .card_words import (
    KOHYA_FILE,
    LORA_FILE,
    WORDS,
    Words,
    base_name,
    fenced,
    is_hub_id,
    loading_of_language_model,
)
from .config import FinetuneConfig
from .mix import Mix

NAMES_SHOWN, LENGTH_SHOWN = 12, 80
KNOWN = tuple(category for category in CATEGORIES if category != UNKNOWN)


def model_card(
    mix: Mix,
    config: FinetuneConfig,
    summary: Mapping[str, Any],
    evaluations: pd.DataFrame,
    layout: Layout = PIPELINE_LAYOUT,
) -> str:
    """The card's text.

    Args:
        mix: what was trained on.
        config: how.
        summary: the content of `finetune.json`.
        evaluations: the run's `evaluations.parquet`; without rows where nothing was evaluated.
        layout: what the weights are called, and which library loads them.
    """
    words = WORDS[layout.library]
    base = base_name(str(summary["identity"].get("source", "the base")))
    sections = [
        _front_matter(config, summary, words),
        f"# {escaped(base)}, fine-tuned on the mix `{mix.name}`",
        _training(config, summary, words),
        "## What it was trained on",
        _contents(mix, words),
        "## What was measured",
        _measured(summary, evaluations, words),
        "## How to load it",
        _loading(mix, config, summary)
        if layout is PIPELINE_LAYOUT
        else loading_of_language_model(base, config, layout),
        "## Settings",
        fenced(settings_yaml(own_settings(config)).rstrip(), "yaml"),
        "## Versions",
        ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in summary["environment"].items() if value)
        + ".",
    ]
    return "\n\n".join(sections) + "\n"


def escaped(text: Any) -> str:
    """Any text as one piece of Markdown that shows it: no markup, no HTML, no table cell or line ends."""
    shown = printable(str(text))
    shown = shown if len(shown) <= LENGTH_SHOWN else shown[: LENGTH_SHOWN - 1] + "…"
    shown = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", shown)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def own_settings(config: FinetuneConfig) -> FinetuneConfig:
    """The loop's settings alone, without a command's paths."""
    return FinetuneConfig(**{field.name: getattr(config, field.name) for field in fields(FinetuneConfig)})


def _front_matter(config: FinetuneConfig, summary: Mapping[str, Any], words: Words) -> str:
    """The Hub's metadata. JSON is YAML, whatever the names contain."""
    source = str(summary["identity"].get("source", ""))
    library = "peft" if config.method == "lora" and words.task == "text-generation" else words.library
    content: dict[str, Any] = {"library_name": library, "pipeline_tag": words.task}
    if is_hub_id(source):
        content |= {"base_model": source, "base_model_relation": "adapter" if config.method == "lora" else "finetune"}
    content["tags"] = [words.task, words.kind(summary["identity"]), words.tags[config.method]]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in content.items()), "---"])


def _training(config: FinetuneConfig, summary: Mapping[str, Any], words: Words) -> str:
    what = words.what[config.method]
    if config.method == "lora":
        what = "DoRA adapters" if config.use_dora else what
        what += f" of rank {config.rank}, lora_alpha {config.lora_alpha or config.rank}"
        what += (
            f", on the {words.network} and the text encoders,"
            if config.train_text_encoder
            else f", on the {words.network},"
        )
    averaged = f", averaged over {config.ema_horizon} updates" if config.use_ema else ""
    identity, exports = summary["identity"], summary.get("exports", {})
    found = {"revision": identity.get("revision"), "commit": identity.get("commit")}
    hashes = identity.get("sha256") or {}
    own = (value for file, value in sorted(hashes.items()) if file.startswith(words.weights))
    found[f"SHA-256 of its {words.network}"] = next(own, None)
    origin = "".join(f", {name} {escaped(value)}" for name, value in found.items() if value)
    lines = [
        f"{what} after {summary['updates']} updates of {summary['examples_per_update']} examples "
        f"(stopped by the {summary['stopping_reason']} rule){averaged}.",
        "",
        f"- base: {escaped(base_name(str(identity.get('source', 'unknown'))))}{origin}",
        f"- every trained example that was asked was fitted: {_at(summary['converged_update'])}",
        f"- held-out answers were best: {_at(summary['early_stop_update'])}"
        + (
            f" (those weights: `{exports['early']}`)"
            if exports.get("early") not in (None, exports.get("last"))
            else ""
        ),
    ]
    if summary.get("skipped_updates"):
        lines.append(f"- updates skipped, as their loss or gradient was not finite: {summary['skipped_updates']}")
    return "\n".join(lines)


def _contents(mix: Mix, words: Words) -> str:
    category = {name: label for label, names in mix.concepts.items() for name in names}
    counts = Counter(category[example.concept] for example in mix.examples)
    rows = [f"| category | {words.concepts} | names | training examples |", "|---|---|---|---|"]
    for label, names in mix.concepts.items():
        shown = ", ".join(escaped(name) for name in names[:NAMES_SHOWN]) + (
            ", ..." if len(names) > NAMES_SHOWN else ""
        )
        rows.append(f"| {escaped(label)} | {len(names)} | {shown} | {counts[label]} |")
    held = f" {len(mix.regularisation)} regularisation examples held the prior." if mix.regularisation else ""
    if mix.replay:
        held += f" The last {mix.replay_share:.0%} of the updates repeated {len(mix.replay)} known examples instead."
    return "\n".join(rows) + (
        f"\n\n{len(mix.examples)} training examples in all.{held} Categories say what the base knew before: "
        "HighlyKnown, MaybeKnown,\nWeaklyKnown, Unknown (Gekhman et al., 2024); `all` means that nobody asked."
    )


def _measured(summary: Mapping[str, Any], evaluations: pd.DataFrame, words: Words) -> str:
    if evaluations.empty:
        return "Not evaluated: the run asked nothing while it trained (`validation_steps: 0`)."
    start, end = evaluations[evaluations["update"] == 0], evaluations[evaluations["update"] == summary["updates"]]
    rows = [
        "| asked about | category | questions | right before | right after | change | 95 % interval after |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in end.to_dict("records"):
        before = start[(start.role == row["role"]) & (start.category == row["category"])]
        rows.append(f"| {words.roles.get(row['role'], row['role'])} | {row['category']} | {_change(before, row)} |")
    known = [f"- {text}: {_pooled(start, end, role)}" for role, text in words.known_roles.items()]
    if end.empty:
        rows = ["The last update was not evaluated."]
    return "\n".join(
        [
            f"{words.question} Before: the base. After: update {summary['updates']}.",
            "",
            *rows,
            "",
            *known,
            "",
            f"`evaluations.parquet` has every evaluation on the way. {words.not_measured}",
        ]
    )


def _change(before: pd.DataFrame, after: Mapping[str, Any]) -> str:
    interval = f"{after['accuracy_low']:.1%} – {after['accuracy_high']:.1%}"
    if before.empty:
        return f"{after['num_examples']} | not evaluated | {after['accuracy']:.1%} | not evaluated | {interval}"
    first = float(before.accuracy.iloc[0])
    change = 100 * (after["accuracy"] - first)
    return f"{after['num_examples']} | {first:.1%} | {after['accuracy']:.1%} | {change:+.1f} points | {interval}"


def _pooled(start: pd.DataFrame, end: pd.DataFrame, role: str) -> str:
    """Right answers about the known categories of a role together, before and after."""
    both = [table[(table.role == role) & table.category.isin(KNOWN)] for table in (start, end)]
    if any(table.empty for table in both):
        return "not evaluated"
    right, asked = ([int(table[name].sum()) for table in both] for name in ("num_correct", "num_examples"))
    change = 100 * (right[1] / asked[1] - right[0] / asked[0])
    return f"{right[0]} of {asked[0]} right before, {right[1]} of {asked[1]} after ({change:+.1f} points)"


def _loading(mix: Mix, config: FinetuneConfig, summary: Mapping[str, Any]) -> str:
    source = str(summary["identity"].get("source", ""))
    place = config.hub_model_id if config.push_to_hub else None
    code = ["import torch", "from diffusers import DiffusionPipeline", ""]
    if config.method != "lora":
        code.append(
            f"pipeline = DiffusionPipeline.from_pretrained({place or PIPELINE_LAYOUT.folder!r}, dtype=torch.float32)"
        )
    else:
        code += _base_code(source, summary)
        code.append(f"pipeline.load_lora_weights({place or '.'!r}, weight_name={LORA_FILE!r})")
    words = ["diffusers:", "", fenced("\n".join(code), "python")]
    if config.method == "lora":
        words += [
            "",
            f"kohya's tools, AUTOMATIC1111, ComfyUI: put `{KOHYA_FILE}` into `models/Lora` or `models/loras` under a name "
            "of your choice; full strength is 1."
            + (
                " They must know DoRA (`dora_scale`, one per output); diffusers does not read this file."
                * config.use_dora
            ),
        ]
    if config.save_single_file:
        words += ["", f"AUTOMATIC1111, ComfyUI: put `{mix.name}.safetensors` into their folder of checkpoints."]
    predicted = summary["identity"].get("prediction_type", "epsilon")
    if predicted != "epsilon":
        words += ["", f"The network predicts `{predicted}`; tools that do not read this from the files must be told."]
    return "\n".join(words)


def _base_code(source: str, summary: Mapping[str, Any]) -> list[str]:
    if source.endswith(".safetensors"):
        xl = summary["identity"].get("architecture") == "sdxl"
        kind = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
        line = f"pipeline = {kind}.from_single_file({base_name(source)!r}, dtype=torch.float32)"
        return [f"from diffusers import {kind}", "", line]
    options = "".join(
        f", {name}={summary['identity'][name]!r}" for name in ("revision", "variant") if summary["identity"].get(name)
    )
    return [f"pipeline = DiffusionPipeline.from_pretrained({base_name(source)!r}, dtype=torch.float32{options})"]


def _at(update: int | None) -> str:
    return "not seen" if update is None else f"at update {update}"
