"""The model card: numbers that were measured, names that may be anything, code that runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from diffusion_sft.finetune.card import KOHYA_FILE, LORA_FILE, escaped, fenced, is_hub_id, model_card
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import COLUMNS
from diffusion_sft.finetune.export import Export, export_weights
from diffusion_sft.finetune.mix import Mix
from diffusion_sft.learner import PIPELINE_LAYOUT
from diffusion_sft.records import HELDOUT, HIGHLY_KNOWN, TRAINED, UNKNOWN, UNTOUCHED, WEAKLY_KNOWN, Example

HOSTILE = (
    "a|b",
    "<script>alert(1)</script>",
    "x\n# heading\n",
    "[click](http://evil)",
    "![](http://evil/pixel.png)",
    "`code`",
    "**bold** _it_",
    "\x1b[31mred",
    "| --- |",
    "&lt;",
    "~~gone~~",
)


def example(concept: str, number: int, split: str = "train") -> Example:
    name = f"{concept}-{number}.png"
    return Example(id=name, concept=concept, caption=f"a {concept}", path=Path(name), split=split)


def mix(concepts: Mapping[str, tuple[str, ...]], regularisation: int = 0) -> Mix:
    names = [name for group in concepts.values() for name in group]
    return Mix(
        name="half",
        concepts=concepts,
        examples=tuple(example(name, number) for name in names for number in range(3)),
        regularisation=tuple(example("class", number, "regularisation") for number in range(regularisation)),
    )


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "mix": "half",
        "method": "full",
        "stopping_reason": "budget",
        "updates": 20,
        "converged_update": 15,
        "early_stop_update": 10,
        "examples_per_update": 8,
        "identity": {
            "source": "someone/some-base",
            "revision": "abc123",
            "sha256": {"unet/diffusion_pytorch_model.safetensors": "f00d", "vae/x.safetensors": "beef"},
            "prediction_type": "epsilon",
        },
        "environment": {"torch": "2.15.0", "device": "cpu: x86_64", "commit": None},
        "exports": {"last": "pipeline", "early": "early/pipeline"},
    } | changes


def evaluations(*rows: tuple[int, str, str, int, int]) -> pd.DataFrame:
    """From (update, role, category, questions, right answers)."""
    filled = [
        [
            update,
            role,
            category,
            asked,
            right,
            asked,
            right / asked,
            right / asked - 0.1,
            right / asked + 0.1,
            1.0,
            2.0,
        ]
        for update, role, category, asked, right in rows
    ]
    return pd.DataFrame(filled, columns=list(COLUMNS))


CONCEPTS = {HIGHLY_KNOWN: ("blorp",), UNKNOWN: ("wug", "dax")}
NOTHING = evaluations()
CONFIG = FinetuneConfig()


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def code_of(card: str) -> str:
    blocks = [t.content for t in MarkdownIt().parse(card) if t.type == "fence" and t.info == "python"]
    assert len(blocks) == 1
    return blocks[0]


def test_the_card_says_what_was_trained_on_what() -> None:
    card = model_card(mix(CONCEPTS, regularisation=4), CONFIG, summary(), NOTHING)
    assert "All weights of the UNet after 20 updates of 8 examples" in card
    assert "base: someone/some-base, revision abc123, SHA-256 of its UNet f00d\n" in card
    assert f"| {HIGHLY_KNOWN} | 1 | blorp | 3 |" in card
    assert f"| {UNKNOWN} | 2 | wug, dax | 6 |" in card
    assert "9 training examples in all. 4 regularisation examples held the prior." in card
    assert "held-out answers were best: at update 10 (those weights: `early/pipeline`)" in card
    assert "torch 2.15.0, device cpu: x86\\_64." in card
    assert "skipped" not in card
    assert "not finite: 3" in model_card(mix(CONCEPTS), CONFIG, summary(skipped_updates=3), NOTHING)
    assert "learning_rate: 0.0001" in card
    assert front_matter(card) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": "someone/some-base",
        "base_model_relation": "finetune",
        "tags": ["text-to-image", "stable-diffusion", "full-fine-tune"],
    }


def test_effects_are_the_measured_ones() -> None:
    table = evaluations(
        (0, TRAINED, UNKNOWN, 6, 1),
        (0, HELDOUT, UNKNOWN, 4, 1),
        (0, HELDOUT, HIGHLY_KNOWN, 4, 4),
        (0, UNTOUCHED, HIGHLY_KNOWN, 10, 9),
        (0, UNTOUCHED, WEAKLY_KNOWN, 10, 5),
        (10, UNTOUCHED, HIGHLY_KNOWN, 10, 10),
        (20, TRAINED, UNKNOWN, 6, 6),
        (20, HELDOUT, UNKNOWN, 4, 2),
        (20, HELDOUT, HIGHLY_KNOWN, 4, 3),
        (20, UNTOUCHED, HIGHLY_KNOWN, 10, 8),
        (20, UNTOUCHED, WEAKLY_KNOWN, 10, 2),
    )
    card = model_card(mix(CONCEPTS), CONFIG, summary(), table)
    assert f"| trained examples | {UNKNOWN} | 6 | 16.7% | 100.0% | +83.3 points | 90.0% – 110.0% |" in card
    assert (
        f"| concepts outside the mix | {HIGHLY_KNOWN} | 10 | 90.0% | 80.0% | -10.0 points | 70.0% – 90.0% |" in card
    )
    assert "(what may have been forgotten): 14 of 20 right before, 10 of 20 after (-20.0 points)" in card
    assert "known concepts of the mix, on other images: 4 of 4 right before, 3 of 4 after (-25.0 points)" in card


def test_what_nobody_measured_is_said_to_be_so() -> None:
    card = model_card(mix(CONCEPTS), CONFIG, summary(converged_update=None, early_stop_update=None), NOTHING)
    assert "Not evaluated: the run asked nothing" in card
    assert " points" not in card
    assert "fitted: not seen" in card
    only_after = model_card(mix(CONCEPTS), CONFIG, summary(), evaluations((20, TRAINED, UNKNOWN, 6, 6)))
    assert f"| trained examples | {UNKNOWN} | 6 | not evaluated | 100.0% | not evaluated |" in only_after
    assert only_after.count(": not evaluated") == 2
    stopped_between = model_card(mix(CONCEPTS), CONFIG, summary(), evaluations((0, TRAINED, UNKNOWN, 6, 6)))
    assert "The last update was not evaluated." in stopped_between
    assert "| trained examples" not in stopped_between


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name: str) -> None:
    given = summary(identity={"source": f"/home/me/{name.replace('/', '')}", "prediction_type": "epsilon"})
    card = model_card(mix({UNKNOWN: (name, "plain")}), CONFIG, given, NOTHING)
    front_matter(card)
    tokens = (
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(card.split("---\n", 2)[2])
    )
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} <= {"text", "code_inline", "softbreak"}
    assert [t.content for t in tokens if t.type == "html_block"] == []
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h2"]
    assert headings == [
        "What it was trained on",
        "What was measured",
        "How to load it",
        "Settings",
        "Versions",
    ]
    rows = [[t.content for t in tokens if t.type == "inline"]]
    shown = [
        "".join(c.content for c in t.children)
        for t in tokens
        if t.type == "inline" and "plain" in t.content and t.children
    ]
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert shown == [f"{visible}, plain"], rows
    assert "\x1b" not in card
    assert "/home/me" not in card
    ast.parse(code_of(card))


def test_code_blocks_cannot_be_left() -> None:
    config = FinetuneConfig(validation_prompts=["```\n# out\n````", "a"], validation_steps=5)
    card = model_card(mix(CONCEPTS), config, summary(), NOTHING)
    blocks = [t.content for t in MarkdownIt().parse(card) if t.type == "fence" and t.info == "yaml"]
    assert len(blocks) == 1
    assert yaml.safe_load(blocks[0])["validation_prompts"] == ["```\n# out\n````", "a"]
    assert fenced("a ```` b", "").startswith("`````\n")


def test_the_code_loads_what_is_there() -> None:
    plain = code_of(model_card(mix(CONCEPTS), CONFIG, summary(), NOTHING))
    assert "DiffusionPipeline.from_pretrained('pipeline', dtype=torch.float32)" in plain
    pushed = FinetuneConfig(push_to_hub=True, hub_model_id="me/mine")
    assert "from_pretrained('me/mine'" in code_of(model_card(mix(CONCEPTS), pushed, summary(), NOTHING))
    config = FinetuneConfig(method="lora", rank=4, lora_alpha=8, train_text_encoder=True)
    card = model_card(mix(CONCEPTS), config, summary(method="lora"), NOTHING)
    assert "LoRA adapters of rank 4, lora_alpha 8, on the UNet and the text encoders, after 20 updates" in card
    assert "from_pretrained('someone/some-base', dtype=torch.float32, revision='abc123')" in code_of(card)
    assert f"load_lora_weights('.', weight_name='{LORA_FILE}')" in code_of(card)
    assert KOHYA_FILE in card
    assert "dora_scale" not in card
    assert front_matter(card)["base_model_relation"] == "adapter"
    dora = FinetuneConfig(method="lora", use_dora=True)
    assert "dora_scale" in model_card(mix(CONCEPTS), dora, summary(method="lora"), NOTHING)
    one_file = {"source": "/models/base's.safetensors", "architecture": "sdxl", "prediction_type": "v_prediction"}
    card = model_card(mix(CONCEPTS), config, summary(identity=one_file), NOTHING)
    tree = ast.parse(code_of(card))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert "base's.safetensors" in strings
    assert "StableDiffusionXLPipeline.from_single_file" in card
    assert "predicts `v_prediction`" in card
    assert "base_model" not in front_matter(card)
    single = FinetuneConfig(save_single_file=True)
    assert "`half.safetensors`" in model_card(mix(CONCEPTS), single, summary(), NOTHING)


def test_only_names_of_the_hub_are_given_as_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_id("someone/some-base")
    for other in ("/models/sd15", "../sd15", "sd15", "a b/c", "x/y/z", "", "some/base\nlicense: mit"):
        assert not is_hub_id(other), other
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "some-base").mkdir(parents=True)
    assert not is_hub_id("someone/some-base")


def test_escaped_text_is_cut() -> None:
    assert escaped("x" * 500) == "x" * 79 + "…"
    assert re.fullmatch(r"\\\\n", escaped("\n"))


class Saver:
    layout = PIPELINE_LAYOUT

    """Stands for a learner: what it is asked to save, it notes."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self.files = files
        self.seen: list[dict[str, str]] = []

    def save(self, folder: Path, metadata: Mapping[str, str]) -> None:
        assert not list(folder.iterdir())
        self.seen.append(dict(metadata))
        for name in self.files:
            (folder / name).write_text(name)

    def save_single_file(self, file: Path, metadata: Mapping[str, str]) -> None:
        self.seen.append(dict(metadata))
        file.write_text("whole")


def export(config: FinetuneConfig) -> Export:
    return Export(config=config, name="half", metadata={"update": "20"})


def test_every_format_that_is_asked_for_is_written(tmp_path: Path) -> None:
    saver: Any = Saver((LORA_FILE, KOHYA_FILE))
    last = export_weights(saver, export(FinetuneConfig(method="lora")), tmp_path / "lora")
    assert last == tmp_path / "lora" / LORA_FILE
    assert {file.name for file in (tmp_path / "lora").iterdir()} == {LORA_FILE, KOHYA_FILE}
    saver = Saver(("model_index.json",))
    (tmp_path / "full" / ".pipeline.old.0123abcd").mkdir(parents=True)
    (tmp_path / "full" / ".keep").touch()
    last = export_weights(
        saver, export(FinetuneConfig(method="cross_attention", save_single_file=True)), tmp_path / "full"
    )
    assert last == tmp_path / "full" / "pipeline"
    assert {file.name for file in (tmp_path / "full").iterdir()} == {"pipeline", "half.safetensors", ".keep"}
    assert saver.seen == [{"update": "20"}] * 2
