"""What guards a mix: known concepts beside it, known concepts repeated after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_finetune import ANSWERS, EXACT, run_exact
from test_mixes import a_set, a_table

from diffusion_sft.dynamics.runs import TunedRun, read_runs
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.captions import possible_captions
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.encodings import to_encode
from diffusion_sft.finetune.evaluations import make_exam
from diffusion_sft.finetune.mix import Mix, MixConfig
from diffusion_sft.finetune.mixes import compose, concept_order
from diffusion_sft.finetune.sampler import Sampler
from diffusion_sft.plan import MethodConfig, StudyConfig, planned_runs
from diffusion_sft.records import HELDOUT, TRAIN

CONFIG = FinetuneConfig(train_batch_size=6, max_train_steps=20, proportion_empty_prompts=0.0)


def composed(seed: int = 0, **guards: float) -> Mix:
    return compose(MixConfig(name="m", num_concepts=6, unknown_share=0.5, **guards), a_table(), a_set(), seed)  # type: ignore[arg-type]


def names(examples: tuple) -> list[str]:
    return list(dict.fromkeys(example.concept for example in examples))


@pytest.mark.parametrize("seed", range(3))
def test_guards_are_the_first_highly_known_concepts_outside_the_mix(seed: int) -> None:
    plain, mix = composed(seed), composed(seed, preserved_concepts=2, replay_share=0.5)
    assert (mix.examples, mix.concepts) == (plain.examples, plain.concepts)
    known = [name for name in concept_order(a_table().concept, seed) if name.startswith("HighlyKnown")]
    outside = [name for name in known if name not in plain.categories]
    assert names(mix.regularisation) == outside[:2]
    assert names(mix.replay) == outside[2:5]  # Half of six.
    assert {example.split for example in (*mix.regularisation, *mix.replay)} == {TRAIN}
    assert mix.taught == {*plain.categories, *outside[:5]}
    assert (mix.guard, plain.guard) == ("preserved and replayed", "")


def test_no_more_guards_than_there_are_known_concepts() -> None:
    with pytest.raises(UserError, match=r"ask for 13 HighlyKnown concepts outside the mix, and there are (9|1[0-2])"):
        composed(preserved_concepts=10, replay_share=0.5)
    with pytest.raises(UserError, match="and there are 0"):
        compose(MixConfig(name="m", num_concepts=6, preserved_concepts=1), None, a_set(), 0)
    for wrong in ({"replay_share": 1.0}, {"replay_share": -0.1}, {"preserved_concepts": -1}):
        with pytest.raises(ValueError, match="must be"):
            MixConfig(name="m", **wrong)  # type: ignore[arg-type]


def test_the_last_updates_are_the_replays_and_each_of_its_passes_is_whole() -> None:
    mix = composed(replay_share=0.3)  # Two concepts of at least three examples each.
    sampler, plain = (Sampler.of(each, CONFIG, 1, {}) for each in (mix, composed()))
    for update in range(1, 15):
        assert sampler.items(update) == plain.items(update)
    items = [item for update in range(15, 21) for item in sampler.items(update)]
    assert {item.example.id for item in items} == {example.id for example in mix.replay}
    visits = [(item.example.id, item.visit) for item in items]
    assert len(set(visits)) == len(visits) == 36
    whole = len(mix.replay)
    assert {visit for _, visit in visits[:whole]} == {0}
    assert sampler.updates_per_pass == plain.updates_per_pass


def test_every_other_item_is_preserved_and_weighs_as_asked() -> None:
    mix = composed(preserved_concepts=2)
    items = Sampler.of(mix, replace(CONFIG, prior_loss_weight=0.3), 1, {}).items(1)
    assert [item.weight for item in items] == [1.0, 0.3] * 3
    assert {item.example.concept for item in items[1::2]} <= set(names(mix.regularisation))
    assert (Sampler.of(mix, CONFIG, 1, {}).own_per_update, Sampler.of(composed(), CONFIG, 1, {}).own_per_update) == (
        3,
        6,
    )


def test_what_guards_is_not_asked_as_untouched_and_is_encoded_before() -> None:
    mix = composed(preserved_concepts=2, replay_share=0.3)
    config = replace(CONFIG, validation_steps=5, validation_untouched_concepts=None)
    asked = {q.concept for q in make_exam(mix, a_table(), a_set(), config, ANSWERS).questions["untouched"]}
    known = {
        concept
        for concept, category in zip(a_table().concept, a_table().category, strict=True)
        if category != "Unknown"
    }
    assert asked == known - mix.taught
    trained = {example.id for example in (*mix.examples, *mix.regularisation, *mix.replay)}
    items, captions = to_encode(mix, config, 64)
    assert {item.example.id for item in items} == trained
    assert {f"a photo of {name}" for name in mix.taught} <= set(captions)
    templated = replace(config, caption_templates=["the {concept}"])
    assert {f"the {name}" for name in names(mix.replay)} <= set(possible_captions(mix, templated))


HALF = MixConfig(name="half", num_concepts=2, unknown_share=1.0, replay_share=0.5)


def test_a_run_resumed_within_the_replay_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    config = replace(EXACT, max_train_steps=12, checkpointing_steps=9, validation_steps=6)
    summary, _ = run_exact(config, tmp_path / "whole", HALF)
    assert (summary["guard"], summary["examples_per_update"]) == ("replayed", 8)
    assert summary["guarding_concepts"] == ["blorp"]
    run_exact(config, tmp_path / "stopped", HALF)
    for late in ("finetune.json", "checkpoint-12/state.json"):
        (tmp_path / "stopped" / late).unlink()
    (tmp_path / "stopped" / "checkpoint-12").rename(tmp_path / "away")
    run_exact(config, tmp_path / "stopped", HALF)
    whole, again = (load_file(tmp_path / n / "checkpoint-12" / "weights.safetensors") for n in ("whole", "stopped"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    (run,) = read_runs([TunedRun(mix="half", seed=0, folder=tmp_path / "whole")])
    assert (run.guard, run.kind) == ("replayed", "")


def test_a_replay_has_an_end_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mix half: replay_share .* set finetune.stopping=budget"):
        run_exact(replace(EXACT, stopping="convergence"), tmp_path / "run", HALF)
    assert not (tmp_path / "run").exists()
    short = replace(EXACT, max_train_steps=6)
    run_exact(short, tmp_path / "run", HALF)
    with pytest.raises(UserError, match="updates before the replay=3"):
        run_exact(replace(short, max_train_steps=12), tmp_path / "run", HALF)


def test_a_method_may_be_for_some_mixes_alone() -> None:
    mixes = [MixConfig(name="a"), MixConfig(name="b")]
    methods = [MethodConfig(), MethodConfig(method="lora", mixes=["b"])]
    runs = planned_runs(mixes, [0, 1], 0, methods)
    assert [run.name for run in runs] == [
        f"{name}-seed{seed}" for name in ("a-full", "b-full", "b-lora") for seed in (0, 1)
    ]
    assert runs[-1].settings(FinetuneConfig()).method == "lora"
    with pytest.raises(ValueError, match="methods: lora: there is no mix c, but a, b"):
        StudyConfig(mixes=mixes, methods=[MethodConfig(method="lora", mixes=["c"])])


def test_held_out_examples_of_guards_are_never_trained_on() -> None:
    mix = composed(preserved_concepts=3, replay_share=0.5)
    held_out = {example.id for example in a_set().split(HELDOUT)}
    assert not held_out & {example.id for example in (*mix.regularisation, *mix.replay)}
