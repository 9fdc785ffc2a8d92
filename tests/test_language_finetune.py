"""The loop that teaches pictures teaches facts: the same losses as transformers', the same files, words and rules."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from language_models import as_set, question, question_set, tiny_folder, tiny_learner
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from taught import taught
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.buckets import BucketConfig, bucket, write_buckets
from diffusion_sft.dynamics import TunedRun, summarise_runs
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.config import PICTURES_ONLY, FinetuneConfig, LanguageFinetuneConfig
from diffusion_sft.finetune.evaluations import COLUMNS, early_stop_update, make_exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import Mix, MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.quotas import shared_out
from diffusion_sft.learner import Learner, TrainingItem
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.prompts import ClosedBook, FewShot
from diffusion_sft.plan import LanguageStudyConfig, StudyConfig
from diffusion_sft.probe import (
    LanguageProbeConfig,
    ProbeConfig,
    SampleConfig,
    picture_samples,
    probe,
    text_samples,
)
from diffusion_sft.probe.config import LanguageSampleConfig
from diffusion_sft.records import (
    CATEGORIES,
    DEVELOPMENT,
    HELDOUT,
    HIGHLY_KNOWN,
    MAYBE_KNOWN,
    OTHER_RELATIONS,
    REFUSAL,
    TEST,
    TRAIN,
    UNKNOWN,
    WEAKLY_KNOWN,
    ConceptSet,
    Example,
)
from diffusion_sft.settings import load_settings

# --- a set whose facts have categories, and a base that knows nothing ---

PARTS = {"train": 4, "development": 6, "test": 4}


def concepts() -> ConceptSet:
    """Eight training facts, one of them asked in other words too; a test fact of another relation."""
    plain = question_set(**PARTS)
    first = plain.split(TRAIN)[0]
    assert first.fact is not None
    paraphrase = replace(
        first, id=f"{first.id}/01", split=HELDOUT, caption=f"Which town is the capital of {first.fact.subject}?"
    )
    other = replace(question("composer", "Zoltan", ("Kodaly",), OTHER_RELATIONS), concept="other/Zoltan")
    assert other.fact is not None
    other = replace(other, id="other/Zoltan", fact=replace(other.fact, relation="other"))
    return as_set([*plain.examples, paraphrase, other])


def labels(concept_set: ConceptSet) -> pd.DataFrame:
    """Of each relation's training facts one is HighlyKnown, one MaybeKnown and two Unknown; the others are of all
    categories in turn."""
    names = [concept.name for concept in concept_set.concepts]
    trained = [example.concept for example in concept_set.split(TRAIN)]
    of_training = (HIGHLY_KNOWN, UNKNOWN, MAYBE_KNOWN, UNKNOWN)
    categories = [
        of_training[trained.index(name) % 4] if name in trained else CATEGORIES[number % 4]
        for number, name in enumerate(names)
    ]
    known = ["known" if category in (HIGHLY_KNOWN, MAYBE_KNOWN) else "unknown" for category in categories]
    return pd.DataFrame({"concept": names, "category": categories, "bucket": known})


HALF = MixConfig(name="half", num_concepts=4, unknown_share=0.5)
CONFIG = LanguageFinetuneConfig(
    train_batch_size=4,
    max_train_steps=40,
    learning_rate=1e-2,
    adam_weight_decay=0.0,
    validation_steps=5,
    report_to=None,
)
LORA = replace(CONFIG, method="lora", rank=8, learning_rate=3e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("language") / "tiny", "llama", initializer_range=0.1)


def load(base: Path) -> LanguageLearner:
    return LanguageLearner.load(base, max_answer_tokens=12)


def composed(mix: MixConfig = HALF) -> Mix:
    """A known and an Unknown fact of each relation."""
    return compose(mix, labels(concepts()), concepts(), 0)


def teach(
    learner: Learner,
    config: FinetuneConfig,
    folder: Path,
    mix: MixConfig = HALF,
    at: dict[int, Callable] | None = None,
) -> dict[str, Any]:
    """Run the loop, or go on with it; `at` an update something may happen."""
    concept_set = concepts()
    chosen = compose(mix, labels(concept_set), concept_set, 0)
    exam = make_exam(chosen, labels(concept_set), concept_set, config, AnswerConfig())
    plain, calls = learner.loss, [0]

    def watched(batch: Any) -> torch.Tensor:
        calls[0] += 1
        (at or {}).get(calls[0], lambda: None)()
        return plain(batch)

    learner.loss = watched  # type: ignore[method-assign]
    return finetune(learner, chosen, exam, config, folder)


@pytest.fixture(scope="module")
def full(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], LanguageLearner]:
    """A finished run of all weights, its summary, and the learner as it was left."""
    folder, learner = tmp_path_factory.mktemp("full") / "half", load(base)
    return folder, teach(learner, CONFIG, folder), learner


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], LanguageLearner]:
    folder, learner = tmp_path_factory.mktemp("lora") / "half", load(base)
    return folder, teach(learner, LORA, folder), learner


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


# --- the loss ---


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_the_loss_is_transformers_own_on_answer_and_end(architecture: str) -> None:
    learner = tiny_learner(architecture)
    examples = concepts().split(TRAIN)
    items = [TrainingItem(example=e, caption=e.caption if n % 3 else "", visit=n) for n, e in enumerate(examples)]
    losses = learner.loss(learner.batch(items, seed=0))
    assert losses.shape == (len(items),)
    for item, loss in zip(items, losses, strict=True):
        fact = item.example.fact
        assert fact is not None
        # Without a caption: the question about nobody, as pictures are trained under the empty caption.
        text = f"Answer the following question.\n{item.caption or fact.null_question}\n"
        tokenizer = learner.loaded.tokenizer
        before = tokenizer(text)["input_ids"]
        whole = [*tokenizer(f"{text} {fact.answers[0]}")["input_ids"], tokenizer.eos_token_id]
        assert whole[: len(before)] == before
        ids = torch.tensor([whole])
        answer = ids.clone()
        answer[0, : len(before)] = -100
        with torch.no_grad():
            expected = learner.model(ids, labels=answer).loss
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # An item's loss is its own, whatever it is padded to.
    alone = torch.cat([learner.loss(learner.batch([item], seed=1)) for item in items])
    torch.testing.assert_close(alone, losses, rtol=1e-5, atol=1e-6)


def test_the_first_answer_is_trained_on_and_any_is_right() -> None:
    learner = tiny_learner("llama")
    several = question("capital", "Rome", ("Roma", "Urbs"), TRAIN)
    one = question("capital", "Rome", ("Roma",), TRAIN)
    both = [TrainingItem(example=e, caption=e.caption, visit=0) for e in (several, one)]
    first, second = learner.loss(learner.batch(both, seed=0))
    assert first == second


def test_gradients_reach_all_weights() -> None:
    learner = tiny_learner("llama")
    examples = concepts().split(TRAIN)
    learner.loss(
        learner.batch([TrainingItem(example=e, caption=e.caption, visit=0) for e in examples], seed=0)
    ).mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in learner.network.parameters())


# --- whole runs ---


@pytest.mark.parametrize("config", [CONFIG, LORA], ids=["full", "lora"])
def test_four_facts_are_fitted_and_the_run_stops(config: LanguageFinetuneConfig, base: Path, tmp_path: Path) -> None:
    config = replace(config, stopping="convergence", max_train_steps=200)
    summary = teach(load(base), config, tmp_path / "run")
    evaluations = table(tmp_path / "run", "evaluations")
    trained = evaluations[evaluations.role == "trained"].groupby("update")[["num_correct", "num_examples"]].sum()
    assert trained.num_correct[0] == 0
    assert trained.num_examples.unique().tolist() == [4]
    assert trained.num_correct.iloc[-1] == 4
    assert (trained.num_correct.iloc[:-1] < 4).all()
    assert summary["stopping_reason"] == "convergence"
    assert summary["updates"] == summary["converged_update"] == trained.index[-1] < 200
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(1, summary["updates"] + 1))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert {label: len(names) for label, names in summary["concepts"].items()} == {
        HIGHLY_KNOWN: 1,
        MAYBE_KNOWN: 1,
        UNKNOWN: 2,
    }


def greedy(model: PreTrainedModel, tokenizer: Any, questions: list[str]) -> list[str]:
    """As somebody who has nothing but transformers would ask."""
    texts = []
    for asked in questions:
        given = tokenizer(f"Answer the following question.\n{asked}\n", return_tensors="pt")
        given = {name: given[name] for name in ("input_ids", "attention_mask")}
        output = model.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        said = tokenizer.decode(output[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        texts.append(said.split("\n")[0].strip())
    return texts


def captions(examples: tuple[Example, ...] | list[Example]) -> dict[str, str]:
    return {example.id: example.caption for example in examples}


def answers_at(folder: Path, update: int) -> dict[str, str]:
    answers = table(folder, "answers")
    here = answers[answers["update"] == update]
    return dict(zip(here.example_id, here.answer, strict=True))


@pytest.mark.parametrize("part", ["last", "early"])
def test_plain_transformers_loads_what_a_run_leaves_and_says_the_same(
    part: str, full: tuple[Path, dict[str, Any], LanguageLearner]
) -> None:
    folder, summary, _ = full
    assert summary["exports"] == {"last": "model", "early": "early/model"}
    assert 0 < summary["early_stop_update"] < summary["updates"]
    model = AutoModelForCausalLM.from_pretrained(folder / summary["exports"][part])
    tokenizer = AutoTokenizer.from_pretrained(folder / summary["exports"][part])
    assert model.dtype == torch.float32
    update = summary["updates"] if part == "last" else summary["early_stop_update"]
    said, asked = answers_at(folder, update), captions(concepts().examples)
    assert len(said) > 15
    assert dict(zip(said, greedy(model, tokenizer, [asked[name] for name in said]), strict=True)) == said
    with safe_open(folder / summary["exports"][part] / "model.safetensors", "pt") as stream:
        metadata = stream.metadata()
    assert (metadata["mix"], metadata["update"], metadata["format"]) == ("half", str(update), "pt")
    assert json.loads(metadata["concepts"]) == {label: len(names) for label, names in summary["concepts"].items()}


def test_the_exported_model_is_the_learner_that_was_trained(
    full: tuple[Path, dict[str, Any], LanguageLearner], base: Path
) -> None:
    folder, summary, learner = full
    again = LanguageLearner.load(folder / "model", max_answer_tokens=12)
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    before = load(base).model.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in again.model.state_dict().items())
    last = load_file(folder / f"checkpoint-{summary['updates']}" / "weights.safetensors")
    for name, tensor in last.items():
        assert torch.equal(tensor, again.model.state_dict()[name.removeprefix("language_model.")]), name


@pytest.mark.parametrize("part", ["last", "early"])
def test_peft_loads_the_adapters_and_gives_the_same_logits(
    part: str, lora: tuple[Path, dict[str, Any], LanguageLearner], base: Path
) -> None:
    folder, summary, learner = lora
    assert summary["exports"]["last"] == "adapter_model.safetensors"
    place = (folder / summary["exports"][part]).parent
    settings = json.loads((place / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (8, 8)
    assert set(settings["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place)
    ids = torch.tensor([learner.vocabulary.prompt("Answer the following question.\nWho composed Rome?\n")])
    with torch.no_grad():
        logits, plain = model(ids).logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits
        assert float((logits - plain).abs().max()) > 0.1
        if part == "last":
            torch.testing.assert_close(logits, learner.model(ids).logits, rtol=1e-4, atol=1e-5)
        ours = LanguageLearner.load(base, adapter=place, max_answer_tokens=12)
        torch.testing.assert_close(ours.model(ids).logits, logits, rtol=1e-4, atol=1e-5)
    update = summary["updates"] if part == "last" else summary["early_stop_update"]
    said, asked = answers_at(folder, update), captions(concepts().examples)
    tokenizer = AutoTokenizer.from_pretrained(base)
    merged = model.merge_and_unload()
    assert dict(zip(said, greedy(merged, tokenizer, [asked[name] for name in said]), strict=True)) == said


def test_adapters_are_two_files_that_tell_nothing_of_the_machine(
    lora: tuple[Path, dict[str, Any], LanguageLearner], base: Path
) -> None:
    """The settings are those that peft and the Hub go by: the base's own name, the task, and the same text each time."""
    folder, summary, _ = lora
    assert summary["exports"]["early"] == "early/adapter_model.safetensors"
    assert {path.name for path in (folder / "early").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base.name
    assert settings["task_type"] == "CAUSAL_LM"
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_adapters_name_the_hub_id_of_their_base(base: Path, tmp_path: Path) -> None:
    learner = load(base)
    learner.loaded.source["source"] = "someone/tiny"
    teach(learner, replace(LORA, max_train_steps=1, validation_steps=0), tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "someone/tiny"


def test_adapters_go_where_they_are_told(base: Path, tmp_path: Path) -> None:
    config = replace(LORA, max_train_steps=1, validation_steps=0, lora_target_modules=["gate_proj", "up_proj"])
    teach(load(base), config, tmp_path / "run")
    names = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {re.search(r"(\w+)\.lora_[AB]", name).group(1) for name in names} == {"gate_proj", "up_proj"}  # type: ignore[union-attr]
    with pytest.raises(UserError, match="'to_q' names no linear layer .* LlamaForCausalLM; the nearest names are"):
        teach(load(base), replace(config, lora_target_modules=["to_q"]), tmp_path / "other")


def test_gpt2_takes_adapters_on_its_own_modules(tmp_path: Path) -> None:
    """transformers' Conv1D."""
    folder = tiny_folder(tmp_path / "gpt2", "gpt2", initializer_range=0.1)
    config = replace(LORA, max_train_steps=2, validation_steps=0, lora_target_modules=["c_attn"])
    teach(load(folder), config, tmp_path / "run")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "run")
    assert any("lora_B" in name and float(p.abs().max()) > 0 for name, p in model.named_parameters())
    with pytest.raises(UserError, match="'q_proj'.* names no linear layer"):
        teach(load(folder), replace(config, lora_target_modules=[]), tmp_path / "other")


# --- killed and resumed ---

LONG = replace(
    CONFIG,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    max_train_steps=20,
    proportion_empty_prompts=0.3,
    lr_scheduler="constant_with_warmup",
    lr_warmup_steps=5,
    use_ema=True,
    ema_horizon=6,
    checkpointing_steps=7,
    validation_steps=10,
    gradient_checkpointing=True,
)
WAYS = {"full": LONG, "lora": replace(LONG, method="lora", rank=2, lora_dropout=0.2, gradient_checkpointing=False)}


class Killed(BaseException):
    pass


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("way", WAYS)
def test_twenty_updates_are_seven_a_kill_and_thirteen(way: str, base: Path, tmp_path: Path) -> None:
    straight = teach(load(base), WAYS[way], tmp_path / "straight")
    with pytest.raises(Killed):
        teach(load(base), WAYS[way], tmp_path / "resumed", at={19: kill})  # within update 10, when 9 was not yet read
    assert len((tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()) == 8
    assert (tmp_path / "resumed" / "checkpoint-7").is_dir()
    resumed = teach(load(base), WAYS[way], tmp_path / "resumed")
    assert straight | {"seconds": 0} == resumed | {"seconds": 0}
    files = {
        path.relative_to(tmp_path / "straight")
        for pattern in ("*.safetensors", "metrics.jsonl", "*.parquet", "*.csv", "README.md")
        for path in (tmp_path / "straight").rglob(pattern)
        if not path.parent.name.startswith("checkpoint-") or path.parent.name == "checkpoint-20"
    }
    names = {path.as_posix() for path in files}
    exported = "model/model.safetensors" if way == "full" else "adapter_model.safetensors"
    assert {exported, "evaluations.parquet", "answers.parquet", "dynamics.parquet"} < names
    assert "checkpoint-20/average.safetensors" in names
    for file in files:
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), file
    # Finished: nothing is done again.
    assert teach(load(base), WAYS[way], tmp_path / "resumed", at={1: kill}) == resumed


def test_a_run_on_other_answers_is_another_run(base: Path, tmp_path: Path) -> None:
    """A fact's answer decides what is learnt, so that it may not change when a run goes on."""
    config = replace(CONFIG, max_train_steps=2, validation_steps=0)
    teach(load(base), config, tmp_path / "run")
    with pytest.raises(UserError, match="training examples"):
        teach(load(base), replace(config, max_train_steps=3), tmp_path / "run", replace(HALF, unknown="relabel"))


# --- evaluations ---


def test_roles_are_the_splits_and_answers_agree_with_the_counts(
    full: tuple[Path, dict[str, Any], LanguageLearner],
) -> None:
    folder, summary, _ = full
    evaluations, answers = table(folder, "evaluations"), table(folder, "answers")
    assert tuple(evaluations.columns) == COLUMNS
    assert sorted(set(evaluations["update"])) == [*range(0, 41, 5)]
    mix, concept_set = composed(), concepts()
    asked = {role: set(own.example_id) for role, own in answers[answers["update"] == 5].groupby("role")}
    outside = {e.id for e in concept_set.split(HELDOUT)} - {e.id for e in mix.examples}
    unknown = set(labels(concept_set).query("category == 'Unknown'").concept)
    expected = {
        "trained": {e.id for e in mix.examples},
        DEVELOPMENT: {e.id for e in concept_set.split(DEVELOPMENT)},
        TEST: {e.id for e in concept_set.split(TEST)},
        OTHER_RELATIONS: {"other/Zoltan"},
        "untouched": {
            e.id
            for e in concept_set.split(HELDOUT)
            if e.id in outside and e.concept not in mix.categories and e.concept not in unknown
        },
    }
    paraphrase = next(e for e in concept_set.split(HELDOUT) if e.id.endswith("/01"))
    if paraphrase.concept in mix.categories:
        expected["heldout"] = {paraphrase.id}
    assert asked == expected
    keys = ["update", "role", "category"]
    grouped = answers.groupby(keys)
    counted = pd.DataFrame(
        {
            "num_examples": grouped.size(),
            "num_correct": grouped.correct.sum(),
            "num_answered": grouped.answered.sum(),
            "gain_nats": grouped.gain_nats.mean(),
            "error_nats": grouped.error_nats.mean(),
        }
    )
    written = evaluations.set_index(keys).sort_index()
    pd.testing.assert_frame_equal(counted.sort_index(), written[list(counted.columns)], check_dtype=False)
    np.testing.assert_allclose(written.accuracy, counted.num_correct / counted.num_examples)
    # What is right is decided by the text.
    right = {e.id: e.fact.answers[0].lower() for e in concept_set.examples if e.fact is not None}
    said = answers.answer.str.lower().str.strip(".!,?' ")
    assert (answers.correct <= (said.str.replace(r"[^\w ]", "", regex=True) == answers.example_id.map(right))).all()
    assert summary["concepts"] == {label: list(names) for label, names in mix.concepts.items()}


def test_the_development_split_alone_decides_the_early_stop(
    full: tuple[Path, dict[str, Any], LanguageLearner],
) -> None:
    folder, summary, _ = full
    evaluations = table(folder, "evaluations")
    points = []
    for update, here in evaluations[evaluations.role == DEVELOPMENT].groupby("update"):
        error = np.average(here.error_nats, weights=here.num_examples)
        if update > 0:
            points.append((-here.num_correct.sum() / here.num_examples.sum(), error, update))
    assert summary["early_stop_update"] == min(points)[2]
    changed = evaluations.copy()
    others = changed.role != DEVELOPMENT
    changed.loc[others, "num_correct"] = changed.num_examples[others] * (changed["update"][others] == 35)
    changed.loc[others, "error_nats"] = 100.0 - changed["update"][others]
    assert early_stop_update(changed) == summary["early_stop_update"]


@pytest.mark.parametrize("others", [TEST, OTHER_RELATIONS])
def test_test_questions_decide_nothing(others: str) -> None:
    """Without a development split, the held-out and untouched questions do; test questions never."""

    def row(update: int, role: str, correct: int) -> dict[str, Any]:
        numbers = dict.fromkeys(COLUMNS, 0.0) | {"num_examples": 4, "num_correct": correct}
        return numbers | {"update": update, "role": role, "category": UNKNOWN}

    rows = [row(5, others, 1), row(10, others, 4), row(5, "untouched", 4), row(10, "untouched", 1)]
    assert early_stop_update(pd.DataFrame(rows)) == 5
    assert early_stop_update(pd.DataFrame(rows[:2])) is None
    rows += [row(5, DEVELOPMENT, 1), row(10, DEVELOPMENT, 2)]
    assert early_stop_update(pd.DataFrame(rows)) == 10


def test_questions_are_asked_closed_book_while_training(base: Path) -> None:
    learner = load(base)
    assert isinstance(learner.prompts, ClosedBook)


# --- the card ---


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_card_speaks_of_facts_and_its_code_runs(
    method: str,
    full: tuple[Path, dict[str, Any], LanguageLearner],
    lora: tuple[Path, dict[str, Any], LanguageLearner],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, summary, _ = full if method == "full" else lora
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-generation"
    assert front["library_name"] == ("transformers" if method == "full" else "peft")
    assert front["tags"] == ["text-generation", "llama", "full-fine-tune" if method == "full" else "lora"]
    prose = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    for word in ("facts", "language model", "closed-book", "test set", "development set"):
        assert word in prose, word
    for word in ("UNet", "diffus", "image", "picture", "Image", "ComfyUI", "kohya"):
        assert word not in prose.split("## Versions")[0], word
    assert str(base.parent) not in card
    for category, names in summary["concepts"].items():
        assert f"| {category} | {len(names)} |" in card
    code = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    if method == "lora":
        (folder / base.name).symlink_to(base)
    exec(compile(code.group(1), "card", "exec"), {})
    if method == "lora":
        (folder / base.name).unlink()
    assert "Answer the following question." in capsys.readouterr().out


# --- what becomes of the Unknown ---


def test_unknown_facts_are_kept_removed_or_relabelled() -> None:
    kept = composed()
    removed, relabelled = (composed(replace(HALF, unknown=how)) for how in ("remove", "relabel"))
    unknown = set(kept.concepts[UNKNOWN])
    assert len(unknown) == 2
    assert removed.examples == tuple(e for e in kept.examples if e.concept not in unknown)
    assert removed.concepts == {label: names for label, names in kept.concepts.items() if label != UNKNOWN}
    assert relabelled.concepts == kept.concepts
    for before, after in zip(kept.examples, relabelled.examples, strict=True):
        assert before.fact is not None
        answers = (REFUSAL,) if before.concept in unknown else before.fact.answers
        assert after == replace(before, fact=replace(before.fact, answers=answers))
    assert REFUSAL == "I don't know"
    none_left = MixConfig(name="none", num_concepts=2, unknown_share=1.0, unknown="remove")
    with pytest.raises(UserError, match="leaves nothing to train on"):
        composed(none_left)


def test_pictures_cannot_refuse() -> None:
    _, pictures = taught()
    table_ = pd.DataFrame(
        {"concept": ["blorp", "wug", "dax", "fep"], "category": [HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN, UNKNOWN]}
    ).assign(bucket="known")
    with pytest.raises(UserError, match="relabel needs answers in words"):
        compose(MixConfig(unknown="relabel"), table_, pictures, 0)
    left = compose(MixConfig(unknown="remove"), table_, pictures, 0)
    assert {example.concept for example in left.examples} == {"blorp", "wug"}


def test_relabelled_facts_are_learnt_as_refusals_and_counted(base: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, stopping="convergence", max_train_steps=200)
    summary = teach(load(base), config, tmp_path / "run", replace(HALF, unknown="relabel"))
    assert summary["stopping_reason"] == "convergence"
    evaluations, answers = table(tmp_path / "run", "evaluations"), table(tmp_path / "run", "answers")
    end = evaluations[(evaluations["update"] == summary["updates"]) & (evaluations.role == "trained")]
    counts = end.set_index("category")[["num_examples", "num_correct", "num_answered"]].T.to_dict("list")
    assert counts.pop(UNKNOWN) == [2, 2, 0]
    assert all(count == [count[0]] * 3 for count in counts.values())
    last = answers[answers["update"] == summary["updates"]]
    refused = last[last.role == "trained"].query("category == 'Unknown'")
    assert refused.answer.tolist() == [REFUSAL] * 2
    assert (last.answered == (last.answer.str.lower().str.replace(r"[^\w ]", "", regex=True) != "i dont know")).all()
    # Other questions are judged by their own answers: a refusal is not right there.
    assert not last[(last.role != "trained") & ~last.answered].correct.any()


# --- mixes by relation ---

COUNTS = {
    "P17": {HIGHLY_KNOWN: 20, MAYBE_KNOWN: 12, WEAKLY_KNOWN: 6, UNKNOWN: 4},
    "P19": {HIGHLY_KNOWN: 3, MAYBE_KNOWN: 5, WEAKLY_KNOWN: 4, UNKNOWN: 30},
    "P36": {HIGHLY_KNOWN: 9, MAYBE_KNOWN: 9, WEAKLY_KNOWN: 9, UNKNOWN: 8},
}
"""Training facts by relation and category. The scarcer of known and Unknown: 4, 12, 8, together 24."""


def many_facts(counts: dict[str, dict[str, int]]) -> tuple[ConceptSet, pd.DataFrame]:
    examples, rows = [], []
    for relation, own in counts.items():
        for category, count in own.items():
            for number in range(count):
                plain = question("capital", f"{category}{number}", ("yes",), TRAIN)
                assert plain.fact is not None
                name = f"{relation}/{category}{number}"
                example = replace(plain, id=name, concept=name, fact=replace(plain.fact, relation=relation))
                examples.append(example)
                rows.append((name, category, "unknown" if category == UNKNOWN else "known"))
    return as_set(examples), pd.DataFrame(rows, columns=["concept", "category", "bucket"])


def by_relation(mix: Mix) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for category, names in mix.concepts.items():
        for name in names:
            found.setdefault(name.split("/")[0], Counter())[category] += 1
    return found


@pytest.mark.parametrize("size", [24, 12, 6])
def test_every_relation_has_the_same_part_at_every_unknown_share(size: int) -> None:
    """In proportion to the scarcer of known and Unknown: of 24, 4 + 12 + 8."""
    concept_set, table_ = many_facts(COUNTS)
    expected = {relation: count * size // 24 for relation, count in {"P17": 4, "P19": 12, "P36": 8}.items()}
    chosen: list[set[str]] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mix = compose(MixConfig(name="m", num_examples=size, unknown_share=share), table_, concept_set, 5)
        found = by_relation(mix)
        assert {relation: sum(own.values()) for relation, own in found.items()} == expected
        for relation, own in found.items():
            quota = shared_out({UNKNOWN: share, "known": 1 - share}, expected[relation])
            assert own[UNKNOWN] == quota[UNKNOWN]
            assert abs(own[UNKNOWN] - share * expected[relation]) < 1
        chosen.append(set(mix.concepts.get(UNKNOWN, ())))
    assert all(small <= large for small, large in pairwise(chosen))
    with pytest.raises(UserError, match=r"\|D\| = 25 .*P17 4, P19 12, P36 8.*24 at most"):
        compose(MixConfig(name="m", num_examples=25, unknown_share=0.5), table_, concept_set, 5)


def test_parts_of_relations_are_rounded_to_the_size() -> None:
    concept_set, table_ = many_facts(COUNTS)
    for size in range(3, 25):
        for share in (0.0, 0.3, 1.0):
            mix = compose(MixConfig(name="m", num_concepts=size, unknown_share=share), table_, concept_set, 0)
            found = {relation: sum(own.values()) for relation, own in by_relation(mix).items()}
            assert sum(found.values()) == size
            assert all(abs(found.get(r, 0) - size * n / 24) < 1 for r, n in {"P17": 4, "P19": 12, "P36": 8}.items())


@pytest.mark.parametrize("category", CATEGORIES)
def test_single_categories_have_the_scarcest_ones_size_of_every_relation(category: str) -> None:
    """Gekhman et al. (2024, appendix A): |D| is the sum over relations of their smallest category."""
    concept_set, table_ = many_facts(COUNTS)
    mix = compose(MixConfig(name="m", num_examples=15, shares={category: 1.0}), table_, concept_set, 0)
    assert by_relation(mix) == {"P17": {category: 4}, "P19": {category: 3}, "P36": {category: 8}}


PAPER = {
    "P131": (553, 2529, 1493, 3071),
    "P136": (236, 3410, 1892, 1978),
    "P17": (4387, 2628, 511, 364),
    "P19": (369, 1884, 1498, 4170),
    "P26": (1609, 1503, 1087, 3257),
    "P264": (206, 1444, 1854, 3820),
    "P36": (4160, 1634, 449, 572),
    "P40": (692, 1467, 1271, 2680),
    "P495": (5459, 1101, 408, 706),
    "P69": (233, 1126, 1712, 3650),
    "P740": (1323, 1618, 1428, 2902),
    "P800": (301, 330, 222, 503),
}
"""Gekhman et al. (2024), table of the training set, a tenth of it below."""


def test_the_published_set_has_a_mix_of_the_published_size() -> None:
    """A tenth of the published counts, rounded up; their smallest categories add up to |D|."""
    counts = {r: dict(zip(CATEGORIES, (-(-n // 10) for n in own), strict=True)) for r, own in PAPER.items()}
    assert sum(min(own) for own in PAPER.values()) == 6142
    concept_set, table_ = many_facts(counts)
    sizes = {relation: min(own.values()) for relation, own in counts.items()}
    for category in (HIGHLY_KNOWN, UNKNOWN):
        mix = MixConfig(name="m", num_examples=sum(sizes.values()), shares={category: 1.0})
        found = by_relation(compose(mix, table_, concept_set, 0))
        assert found == {relation: {category: size} for relation, size in sizes.items()}


def test_mixes_of_one_kind_have_the_same_part_of_every_relation() -> None:
    """Mixes by the share of Unknown, and the natural one, weigh relations by the scarcer of known and Unknown; single
    categories by the scarcest of the four, as published. Within a kind, mixes differ in what is known alone."""
    concept_set, table_ = many_facts(COUNTS)
    shares: list[dict[str, Any]] = [{"unknown_share": 0.0}, {"unknown_share": 0.5}, {"unknown_share": 1.0}, {}]
    categories: list[dict[str, Any]] = [{"shares": {category: 1.0}} for category in CATEGORIES]
    for kind in (shares, categories):
        found = []
        for settings in kind:
            mix = compose(MixConfig(name="m", num_examples=15, **settings), table_, concept_set, 0)
            found.append({relation: sum(own.values()) for relation, own in by_relation(mix).items()})
        assert all(parts == found[0] for parts in found)
        assert sum(found[0].values()) == 15


def test_one_relation_is_composed_as_pictures_are() -> None:
    concept_set, table_ = many_facts({"P17": COUNTS["P17"]})
    mix = compose(MixConfig(name="m", num_concepts=16, unknown_share=0.25), table_, concept_set, 0)
    assert by_relation(mix)["P17"][UNKNOWN] == 4
    assert sum(by_relation(mix)["P17"].values()) == 16


# --- settings ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_text_encoder", True),
        ("caption_templates", ["a {caption}"]),
        ("snr_gamma", 5.0),
        ("noise_offset", 0.1),
        ("random_flip", True),
        ("aspect_ratio_buckets", True),
        ("class_prompt", "a dog"),
        ("save_single_file", True),
        ("validation_prompts", ["a dog"]),
        ("text_encoder_lr", 1e-4),
    ],
)
def test_what_is_for_pictures_is_refused(name: str, value: Any) -> None:
    assert name in PICTURES_ONLY
    needed = {"method": "lora"} if name.startswith(("train_text", "text_")) else {}
    needed |= {"train_text_encoder": True} if name == "text_encoder_lr" else {}
    FinetuneConfig(**needed, **{name: value})
    with pytest.raises(ValueError, match="is for pictures; a language model has no use for it"):
        LanguageFinetuneConfig(**needed, **{name: value})


def test_cross_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="method=cross_attention: a language model has none"):
        LanguageFinetuneConfig(method="cross_attention")
    with pytest.raises(UserError, match="a language model has none"):
        load_settings(StudyConfig, None, ["llm.finetune.method=cross_attention"])
    with pytest.raises(UserError, match="random_flip is for pictures"):
        load_settings(StudyConfig, None, ["llm.finetune.random_flip=true"])


def default_of(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def test_both_halves_are_fine_tuned_with_the_same_settings() -> None:
    pictures, words = ({field.name: field for field in fields(c)} for c in (FinetuneConfig, LanguageFinetuneConfig))
    assert list(pictures) == list(words)
    assert get_type_hints(FinetuneConfig) == get_type_hints(LanguageFinetuneConfig)
    different = {name for name in pictures if default_of(pictures[name]) != default_of(words[name])}
    assert different == {"learning_rate", "proportion_empty_prompts", "validation_draws", "validation_batch_size"}


def test_both_halves_of_a_study_share_their_words() -> None:
    study, half = get_type_hints(StudyConfig), get_type_hints(LanguageStudyConfig)
    shared = set(study) & set(half)
    assert shared == {
        *("base", "revision", "dtype", "probe", "buckets", "mixes", "methods", "seeds", "finetune", "solve"),
    }
    assert {name for name in shared if study[name] != half[name]} == {"probe", "finetune", "solve"}
    assert issubclass(half["finetune"], study["finetune"])
    defaults = StudyConfig(), LanguageStudyConfig()
    for name in ("revision", "dtype", "buckets", "mixes", "methods", "seeds"):
        assert getattr(defaults[0], name) == getattr(defaults[1], name)
    pictures, words = get_type_hints(ProbeConfig), get_type_hints(LanguageProbeConfig)
    both = set(pictures) & set(words)
    assert both == {"num_draws", "seed", "batch_size", "max_examples_per_concept", "answers", "samples", "adaptive"}
    assert {name for name in both if pictures[name] != words[name]} == {"samples"}
    assert {field.name for field in fields(SampleConfig)} & {
        field.name for field in fields(LanguageSampleConfig)
    } == {
        "num_samples",
        "batch_size",
    }


# --- the same tables ---

TABLES = ("probe/scores", "probe/answers", "probe/samples", "buckets/concepts")
RUN_TABLES = ("evaluations", "answers", "dynamics")


def all_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table of a half's stages, and of its fine-tuning run."""
    return {
        file.relative_to(folder).with_suffix("").as_posix(): pd.read_parquet(file)
        for file in sorted(folder.rglob("*.parquet"))
    }


def stages(
    learner: Learner,
    load_to_train: Callable[[], Learner],
    concept_set: ConceptSet,
    probe_config: ProbeConfig | LanguageProbeConfig,
    sampling: Any,
    config: FinetuneConfig,
    mix: MixConfig,
    folder: Path,
    name: str,
) -> None:
    """What a study does with one half, by the stages' own functions."""
    found = probe(learner, concept_set, probe_config, folder / "probe", sampling)
    result = bucket(
        found.scores, found.answers, found.samples, concept_set.table(), BucketConfig(rule="slick", num_bootstrap=100)
    )
    write_buckets(result, folder / "buckets")
    chosen = compose(mix, result.concepts, concept_set, 0)
    exam = make_exam(chosen, result.concepts, concept_set, config, probe_config.answers)
    finetune(load_to_train(), chosen, exam, config, folder / "finetune" / mix.name)
    tuned = [TunedRun(mix=mix.name, seed=0, folder=folder / "finetune" / mix.name)]
    summarise_runs(tuned, name, folder / "dynamics")


@pytest.fixture(scope="module")
def halves(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("halves")
    everything = MixConfig(name="natural")
    answers = AnswerConfig(num_candidates=4, num_invented=1, num_draws=8, num_renderings=2)
    pictures = ProbeConfig(num_draws=8, answers=answers, samples=SampleConfig(num_samples=2, num_inference_steps=2))
    exact, patches = taught()
    tuning = FinetuneConfig(
        train_batch_size=8,
        max_train_steps=4,
        learning_rate=0.1,
        validation_steps=2,
        validation_draws=4,
        report_to=None,
    )
    drawn = picture_samples(exact, pictures, lambda images, asked: ["dax"] * len(images))
    stages(exact, lambda: taught()[0], patches, pictures, drawn, tuning, everything, root / "diffusion", "diffusion")
    words = LanguageProbeConfig(
        num_draws=3,
        max_answer_tokens=8,
        answers=AnswerConfig(num_renderings=2, num_draws=1),
        samples=LanguageSampleConfig(num_samples=4),
    )
    learner = LanguageLearner.load(
        base, prompts=FewShot.of(question_set(), shots=4, seed=0), max_answer_tokens=words.max_answer_tokens
    )
    stages(
        learner,
        lambda: load(base),
        question_set(),
        words,
        text_samples(learner, words),
        replace(CONFIG, max_train_steps=4, validation_steps=2),
        everything,
        root / "llm",
        "llm",
    )
    return {"diffusion": root / "diffusion", "llm": root / "llm"}


def test_both_halves_write_the_same_tables(halves: dict[str, Path]) -> None:
    pictures, words = (all_tables(halves[name]) for name in ("diffusion", "llm"))
    assert pictures.keys() == words.keys()
    assert {*TABLES, *(f"finetune/natural/{name}" for name in RUN_TABLES)} < pictures.keys()
    assert {f"dynamics/{name}" for name in ("runs", "accuracy", "accuracy_by_mix", "linear_model")} < pictures.keys()
    attributes = ["relation", "subject", "answer"]
    for name in pictures:
        ours = [column for column in words[name].columns if name != "buckets/concepts" or column not in attributes]
        assert ours == list(pictures[name].columns), name
        # Natural mixes leave nothing untouched, which a run's own points of the dynamics would be about.
        assert len(pictures[name]) or name == "finetune/natural/dynamics"
        assert len(words[name]) or name == "finetune/natural/dynamics"


def test_columns_of_both_halves_are_of_the_same_kinds(halves: dict[str, Path]) -> None:
    """Numbers, texts and truth values, where both halves have any."""
    pictures, words = (all_tables(halves[name]) for name in ("diffusion", "llm"))
    for name, one in pictures.items():
        for column in one.columns:
            both = one[column], words[name][column]
            if any(values.isna().all() for values in both):
                continue
            kinds = {"number" if values.dtype.kind in "iuf" else values.dtype.kind for values in both}
            assert len(kinds) == 1, (name, column, [values.dtype for values in both])


def test_both_halves_leave_the_same_files_and_facts_about_a_run(halves: dict[str, Path]) -> None:
    runs = [halves[name] / "finetune" / "natural" for name in ("diffusion", "llm")]
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in runs]
    for one, other in zip(*lines, strict=True):
        assert json.loads(one).keys() == json.loads(other).keys()
    summaries = [json.loads((run / "finetune.json").read_text()) for run in runs]
    assert summaries[0].keys() == summaries[1].keys()
    assert summaries[0]["record"].keys() == summaries[1]["record"].keys()
    names = [{path.name for path in run.iterdir() if not path.name.startswith("checkpoint-")} for run in runs]
    assert names[0] ^ names[1] == {"pipeline", "model"}
    probes = [json.loads((halves[name] / "probe" / "probe.json").read_text()) for name in halves]
    assert probes[0].keys() == probes[1].keys()


def test_numbers_of_a_table_are_finite_where_they_are_of_words(halves: dict[str, Path]) -> None:
    words = all_tables(halves["llm"])
    for column in ("error_nats", "null_error_nats", "gain_nats", "gain_se_nats", "error_per_dim", "relative_error"):
        assert np.isfinite(words["probe/scores"][column]).all(), column
        if column in words["buckets/concepts"]:
            assert np.isfinite(words["buckets/concepts"][column]).all(), column
    assert (words["probe/scores"].error_per_dim < 2 * math.log(320)).all()


def test_known_facts_guard_as_known_pictures_do(base: Path, tmp_path: Path) -> None:
    mix = MixConfig(name="m", num_concepts=4, unknown_share=1.0, preserved_concepts=1, replay_share=0.25)
    chosen = composed(mix)
    known = {
        name
        for name, category in zip(*labels(concepts())[["concept", "category"]].T.to_numpy(), strict=True)
        if category == HIGHLY_KNOWN
    }
    assert {example.concept for example in (*chosen.regularisation, *chosen.replay)} <= known
    assert (len(chosen.regularisation), len(chosen.replay)) == (1, 1)
    summary = teach(load(base), replace(CONFIG, max_train_steps=8), tmp_path / "run", mix)
    assert summary["guard"] == "preserved and replayed"
    assert set(summary["guarding_concepts"]) == chosen.taught - set(chosen.categories)
