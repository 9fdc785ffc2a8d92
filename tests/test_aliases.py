"""Names of diffusers and kohya: read as ours, or refused with what to write instead; and the page that lists them."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from diffusion_sft.aliases import ALIASES
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.command import FinetuneCommandConfig
from diffusion_sft.plan import StudyConfig
from diffusion_sft.settings import load_settings, settings_dict

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
READ = {name: alias for name, alias in ALIASES.items() if alias.ours}
REFUSED = {name: alias for name, alias in ALIASES.items() if not alias.ours}
KNOWN_TOOLS = ("diffusers", "kohya", "both")


def value_at(settings: Any, dotted: str) -> Any:
    found = settings_dict(settings)
    for name in dotted.split("."):
        found = found[name]
    return found


def load(*overrides: str) -> FinetuneCommandConfig:
    return load_settings(FinetuneCommandConfig, None, overrides)


@pytest.mark.parametrize(
    ("override", "ours", "value"),
    [
        ("network_dim=8", "rank", 8),
        ("network_alpha=4", "lora_alpha", 4),
        ("network_dropout=0.1", "lora_dropout", 0.1),
        ("min_snr_gamma=5", "snr_gamma", 5.0),
        ("caption_dropout_rate=0.2", "proportion_empty_prompts", 0.2),
        ("train_data_dir=/data/x", "concepts.path", "/data/x"),
        ("dataset_name=a/b", "concepts.path", "a/b"),
        ("caption_column=caption", "concepts.caption_column", "caption"),
        ("unet_lr=3e-4", "learning_rate", 3e-4),
        ("enable_bucket=true", "aspect_ratio_buckets", True),
        ("use_8bit_adam=true", "optimizer", "adamw8bit"),
        ("use_8bit_adam=false", "optimizer", "adamw"),
        ("optimizer_type=Prodigy", "optimizer", "prodigy"),
        ("save_every_n_steps=70", "checkpointing_steps", 70),
        ("flip_aug=true", "random_flip", True),
        ("network_module=networks.lora", "method", "lora"),
        ("network_train_unet_only=true", "train_text_encoder", False),
        ("offload_ema=true", "ema_device", "cpu"),
        ("validation_prompt=a photo of a dog, running", "validation_prompts", ["a photo of a dog, running"]),
        ("sample_every_n_steps=9", "validation_steps", 9),
        ("sample_batch_size=4", "validation_batch_size", 4),
        ("log_with=wandb", "report_to", "wandb"),
        ("huggingface_repo_id=a/b", "hub_model_id", "a/b"),
        ("huggingface_repo_visibility=public", "hub_private", False),
        # Our own names with values as others write them.
        ("resolution=512,512", "resolution", 512),
        ("resolution=512", "resolution", 512),
        ("mixed_precision=no", "mixed_precision", "no"),
    ],
)
def test_a_name_that_means_the_same_is_read_as_ours(
    override: str, ours: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load(override)
    assert value_at(settings, ours) == value
    lines = capsys.readouterr().err.splitlines()
    theirs = override.split("=")[0]
    assert len(lines) == (theirs in ALIASES)
    assert all(theirs in line and ours in line for line in lines)


def test_what_is_read_is_tested_above_or_needs_others() -> None:
    """Every accepted name leads to a setting that exists."""
    for name, alias in READ.items():
        owner: Any = load() if alias.ours != "base" else StudyConfig()
        value_at(owner, alias.ours)
        assert name not in {field.name for field in fields(type(owner))}, name
        if alias.values:
            value_at(load("method=lora", f"{name}={next(iter(alias.values))}"), alias.ours)


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_means_nothing_here_says_what_to_write(name: str) -> None:
    assert name not in {field.name for field in fields(FinetuneCommandConfig)}
    with pytest.raises(UserError) as caught:
        load(f"{name}=1")
    assert str(caught.value).endswith(f"no setting {name}: {REFUSED[name].note}")
    assert "\n" not in str(caught.value)


def test_settings_that_notes_advise_exist() -> None:
    """Every word that looks like one of our settings is one (or theirs, or a value)."""
    known = {field.name for field in fields(FinetuneCommandConfig)} | {"caption_templates"}
    for name, alias in ALIASES.items():
        for key in re.findall(r"\b([a-z]+(?:_[a-z0-9]+)+)\b(?=[ =,;)]|$)", alias.note):
            inner = {"train_on_all_images", "num_examples", "file_name", "constant_with_warmup"}
            assert key in known | inner, f"{name}: {key}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimizer_type=Lion"],
            "optimizer_type=Lion has nothing here that means the same; known are adamw, adamw8bit",
        ),
        (["network_module=lycoris.kohya"], "known are networks.lora"),
        (["resolution=512,768"], "resolution=512,768: give one number"),
        (["network_dim=many"], "rank"),
        (["network_dimm=8"], "no setting network_dimm"),
        (["concepts.network_dim=8"], "no setting concepts.network_dim; write rank"),
        (["hub_token=hf_secret"], "override of a token: no setting hub_token: log in"),
    ],
)
def test_mistakes_are_named_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "network_dim: 8\nrank: 4\n",
        "rank: 4\nnetwork_dim: 8\n",
        "train_data_dir: a\nconcepts: {path: b}\n",
        "concepts: {path: b}\ntrain_data_dir: a\n",
        "train_data_dir: a\ndataset_name: b\n",
        "concepts: folder\ntrain_data_dir: a\n",
    ],
)
def test_one_setting_under_two_names_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="two.yaml") as caught:
        load_settings(FinetuneCommandConfig, file)
    assert "\n" not in str(caught.value)


def test_a_file_and_a_later_override_are_two_places(tmp_path: Path) -> None:
    file = tmp_path / "kohya.yaml"
    file.write_text("network_dim: 8\nconcepts: {seed: 3}\ntrain_data_dir: a\n")
    settings = load_settings(FinetuneCommandConfig, file, ["rank=2", "concepts.on_bad=skip"])
    assert (settings.rank, settings.concepts.path, settings.concepts.seed) == (2, "a", 3)
    assert settings.concepts.on_bad == "skip"


def test_a_study_has_them_under_finetune() -> None:
    settings = load_settings(StudyConfig, None, ["finetune.network_dim=8", "pretrained_model_name_or_path=x"])
    assert (settings.finetune.rank, settings.base) == (8, "x")
    with pytest.raises(UserError, match="no setting network_dim; write finetune.rank"):
        load_settings(StudyConfig, None, ["network_dim=8"])


def test_a_schema_of_ones_own_is_not_touched() -> None:
    """Where a schema has a setting of that name, it is that setting."""
    settings = load_settings(FinetuneCommandConfig, None, ["pretrained_model_name_or_path=x", "class_prompt=a dog"])
    assert (settings.pretrained_model_name_or_path, settings.class_prompt) == ("x", "a dog")


# --- the page ---


def test_the_page_shows_the_table_row_by_row() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    expected = [
        f"| `{name}` | {alias.tool} | {f'`{alias.ours}`' if alias.ours else '–'} | {alias.note} |"
        for name, alias in ALIASES.items()
    ]
    assert rows == expected
    assert {alias.tool for alias in ALIASES.values()} <= set(KNOWN_TOOLS)
    assert all("|" not in alias.note and "\n" not in alias.note for alias in ALIASES.values())
    assert all(alias.note for alias in REFUSED.values())


def test_names_that_are_the_same_are_settings() -> None:
    text = PAGE.read_text(encoding="utf-8")
    same = re.findall(r"`(\w+)`", text.split("<!-- same -->")[1].split("<!-- /same -->")[0])
    names = {field.name for field in fields(FinetuneCommandConfig)}
    assert len(same) > 30
    assert set(same) <= names
    assert not set(same) & set(ALIASES) - {"pretrained_model_name_or_path"}


def commands() -> list[list[str]]:
    """Our commands of the page, as words."""
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    words = [shlex.split(block.replace("\\\n", " ")) for block in blocks]
    return [command for command in words if not any(word.startswith("--") for word in command)]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[-1])
def test_the_pages_commands_are_read(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [word for word in command if "=" in word]
    settings = load(*overrides)
    assert settings.method == "lora"
    assert settings.mix.train_on_all_images
    assert len(capsys.readouterr().err.splitlines()) == sum(
        word.split("=")[0] in READ for word in overrides if not word.startswith("pretrained")
    )


def test_the_page_has_a_command_of_ours_for_each_of_theirs() -> None:
    assert len(commands()) == 3
