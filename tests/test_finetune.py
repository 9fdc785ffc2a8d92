"""The loop's parts against closed forms and diffusers' own, and whole runs on learners small enough to follow."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from taught import TABLE, taught
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.acceleration import arithmetic
from diffusion_sft.finetune.average import AveragedWeights, lent
from diffusion_sft.finetune.card_words import LORA_FILE
from diffusion_sft.finetune.command import FinetuneCommandConfig
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.dynamics import dynamics_points
from diffusion_sft.finetune.evaluations import (
    COLUMNS,
    Exam,
    converged_update,
    early_stop_update,
    evaluation_rows,
    make_exam,
)
from diffusion_sft.finetune.grids import halving, tiled
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import Mix, MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.run import Run
from diffusion_sft.finetune.sampler import Sampler
from diffusion_sft.finetune.schedules import learning_rate
from diffusion_sft.learner import Cue, Objective, TrainingItem
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner
from diffusion_sft.records import REGULARISATION, ConceptSet, Example
from diffusion_sft.settings import load_settings

ANSWERS = AnswerConfig(num_candidates=5, num_invented=1)


def examples(count: int) -> list[Example]:
    return [
        Example(id=f"{i}.png", concept="a", caption=f"photo {i}", path=Path(f"{i}.png"), split="train")
        for i in range(count)
    ]


# --- learning rate ---


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_the_learning_rate_is_that_of_diffusers(name: str) -> None:
    config = FinetuneConfig(lr_scheduler=name, lr_warmup_steps=7, max_train_steps=31, learning_rate=3e-4)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=7, num_training_steps=31)
    for update in range(1, 32):
        assert learning_rate(update, config) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-18)
        optimizer.step()
        scheduler.step()


# --- sampler ---


def test_every_pass_holds_every_example_once_and_no_draw_occurs_twice() -> None:
    sampler = Sampler(examples(7), seed=0, batch_size=5, proportion_empty_prompts=0.0)
    items = [item for update in range(1, 22) for item in sampler.items(update)]
    assert len(items) == 105
    passes = [[item.example.id for item in items[start : start + 7]] for start in range(0, 105, 7)]
    assert all(sorted(ids) == sorted(example.id for example in examples(7)) for ids in passes)
    assert len({tuple(ids) for ids in passes}) > 10
    assert len({(item.example.id, item.visit) for item in items}) == 105


def test_an_update_is_the_same_from_any_start_and_for_any_order_of_the_set() -> None:
    forward = Sampler(examples(7), seed=4, batch_size=3, proportion_empty_prompts=0.4)
    backward = Sampler(examples(7)[::-1], seed=4, batch_size=3, proportion_empty_prompts=0.4)
    assert [forward.items(u) for u in (9, 2, 30)] == [backward.items(u) for u in (9, 2, 30)]
    other = Sampler(examples(7), seed=5, batch_size=3, proportion_empty_prompts=0.4)
    assert [forward.items(u) for u in range(1, 8)] != [other.items(u) for u in range(1, 8)]


def test_a_batch_larger_than_the_set_repeats_examples_with_new_draws() -> None:
    items = Sampler(examples(3), seed=0, batch_size=8, proportion_empty_prompts=0.0).items(1)
    assert len({(item.example.id, item.visit) for item in items}) == 8


def test_captions_are_dropped_at_the_rate_asked_for() -> None:
    sampler = Sampler(examples(50), seed=0, batch_size=100, proportion_empty_prompts=0.2)
    dropped = [item.caption == "" for update in range(1, 101) for item in sampler.items(update)]
    assert abs(np.mean(dropped) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 10_000)


# --- average ---


def test_the_average_is_a_mean_first_and_exponential_after() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = AveragedWeights({"w": weight}, horizon=4)
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3, dtype=torch.float64)
    for update, value in enumerate(values, start=1):
        weight.data.copy_(value)
        average.update(update)
        expected = values[:update].double().mean(0) if update <= 4 else 0.75 * expected + 0.25 * value.double()
        torch.testing.assert_close(average.tensors["w"].double(), expected, rtol=1e-5, atol=1e-6)
    gap = float((average.tensors["w"] - weight.detach()).norm() / weight.detach().norm())
    assert average.distance() == pytest.approx(gap, rel=1e-6)


def test_an_average_of_every_third_update_forgets_as_fast() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = AveragedWeights({"w": weight}, horizon=10, every=3)
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3, dtype=torch.float64)
    decay = 0.9**3
    for update, value in enumerate(values, start=1):
        weight.data.copy_(value)
        average.update(update)
        if update % 3 == 0:
            # While the mean of so many forgets faster than the exponential, it is the mean.
            seen = update // 3
            share = max(1 / seen, 1 - decay)
            expected = expected + share * (value.double() - expected)
        torch.testing.assert_close(average.tensors["w"].double(), expected, rtol=1e-5, atol=1e-6)
    assert average.decay == pytest.approx(decay)
    assert average.count == 20


def test_lent_weights_go_back_where_the_exchange_itself_fails() -> None:
    network = torch.nn.Linear(4, 4)
    parameters = dict(network.named_parameters())
    own = {name: p.detach().clone() for name, p in parameters.items()}
    incomplete = {"weight": torch.zeros(4, 4)}
    with pytest.raises(KeyError), lent(parameters, incomplete):
        raise AssertionError("not reached")
    assert all(torch.equal(p, own[name]) for name, p in parameters.items())
    assert torch.equal(incomplete["weight"], torch.zeros(4, 4))


def test_weights_come_back_bit_for_bit_even_when_an_evaluation_fails() -> None:
    network = torch.nn.Linear(4, 4)
    average = AveragedWeights(dict(network.named_parameters()), horizon=10)
    own = {name: p.detach().clone() for name, p in network.named_parameters()}
    for tensor in average.tensors.values():
        tensor.add_(1.0)
    inside = {name: t.clone() for name, t in average.tensors.items()}

    def failing_evaluation() -> None:
        with average.swapped_in():
            assert all(torch.equal(p, inside[name]) for name, p in network.named_parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_evaluation()
    assert all(torch.equal(p, own[name]) for name, p in network.named_parameters())
    assert all(torch.equal(t, inside[name]) for name, t in average.tensors.items())


# --- evaluations and dynamics ---


def an_evaluation(update: int, role: str, category: str, correct: int, count: int, error: float = 1.0) -> list:
    return [update, role, category, count, correct, count, correct / count, 0.0, 1.0, 0.0, error]


def test_rows_count_answers_by_role_and_category_with_wilson_intervals() -> None:
    answers = pd.DataFrame(
        {
            "concept": ["a", "a", "b", "b"],
            "correct": [True, True, True, False],
            "answered": [True, True, True, False],
            "gain_nats": [1.0, 3.0, -1.0, 0.0],
            "error_nats": [5.0, 6.0, 7.0, 8.0],
        }
    )
    rows = evaluation_rows(20, {"heldout": answers}, {"a": "Unknown", "b": "HighlyKnown"})
    assert tuple(rows.columns) == COLUMNS
    assert rows[["role", "category"]].values.tolist() == [["heldout", "HighlyKnown"], ["heldout", "Unknown"]]
    assert rows.num_answered.tolist() == [1, 2]
    assert rows.gain_nats.tolist() == [-0.5, 2.0]
    assert rows.error_nats.tolist() == [7.5, 5.5]
    z, n = 1.959963984540054, 2
    for row, k in zip(rows.itertuples(), (1, 2), strict=True):
        p = k / n
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        reach = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        assert (row.num_correct, row.accuracy) == (k, p)
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


def test_convergence_and_early_stop_are_read_off_the_evaluations() -> None:
    points = {0: (4, 4), 10: (3, 1), 20: (4, 3), 30: (4, 3), 40: (4, 2)}
    rows = []
    for update, (fitted, kept) in points.items():
        rows.append(an_evaluation(update, "trained", "Unknown", fitted, 4))
        rows.append(an_evaluation(update, "heldout", "Unknown", 1, 2, error=50.0 - update))
        rows.append(an_evaluation(update, "untouched", "HighlyKnown", kept, 4, error=9.0))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    assert converged_update(table, 0.0) == 0
    assert converged_update(table, 1.0) == 20
    assert converged_update(table, 35.0) == 40
    assert converged_update(table[table["update"] == 10], 1.0) is None
    # 20 and 30 answer alike; the lower error decides. The base would have been better and is no candidate.
    assert early_stop_update(table) == 30
    assert early_stop_update(table[table.role == "trained"]) is None


def test_dynamics_count_fitted_examples_by_what_the_base_knew() -> None:
    rows = [
        an_evaluation(10, "trained", "HighlyKnown", 3, 4),
        an_evaluation(10, "trained", "MaybeKnown", 1, 4),
        an_evaluation(10, "trained", "Unknown", 2, 8),
        an_evaluation(10, "heldout", "Unknown", 8, 8),
        an_evaluation(10, "untouched", "HighlyKnown", 3, 5),
        an_evaluation(10, "untouched", "WeaklyKnown", 1, 3),
    ]
    points = dynamics_points(pd.DataFrame(rows, columns=list(COLUMNS)))
    assert points.values.tolist() == [[10, 4 / 16, 2 / 16, 4 / 8]]


# --- grids ---


def test_images_are_tiled_row_by_row() -> None:
    images = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    canvas = tiled(images, columns=2)
    assert canvas.shape == (6, 8, 3)
    assert (canvas[:2, :3] == 10).all()
    assert (canvas[:2, 5:] == 20).all()
    assert (canvas[4:, :3] == 30).all()
    assert (canvas[4:, 5:] == 255).all()


def test_a_full_device_halves_the_batch_down_to_one() -> None:
    tried = []

    def work(batch_size: int) -> str:
        tried.append(batch_size)
        if batch_size > 2:
            raise torch.cuda.OutOfMemoryError
        return "done"

    assert halving(work, 9) == "done"
    assert tried == [9, 4, 2]

    def hopeless(batch_size: int) -> str:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        halving(hopeless, 4)


# --- whole runs, exact learner ---

EXACT = FinetuneConfig(
    train_batch_size=8,
    max_train_steps=60,
    learning_rate=0.1,
    proportion_empty_prompts=0.0,
    adam_weight_decay=0.0,
    validation_steps=5,
    validation_draws=16,
    report_to=None,
)


def run_exact(config: FinetuneConfig, folder: Path, mix: MixConfig) -> tuple[dict, pd.DataFrame]:
    learner, concept_set = taught()
    composed = compose(mix, TABLE, concept_set, 0)
    exam = make_exam(composed, TABLE, concept_set, config, ANSWERS)
    summary = finetune(learner, composed, exam, config, folder)
    table = folder / "evaluations.parquet"
    return summary, pd.read_parquet(table) if table.is_file() else pd.DataFrame(columns=list(COLUMNS))


def test_the_unknown_is_learnt_and_the_run_stops_when_all_is_fitted(tmp_path: Path) -> None:
    config = FinetuneConfig(**{**vars(EXACT), "stopping": "convergence"})
    mix = MixConfig(name="unknown", num_concepts=2, unknown_share=1.0)
    summary, evaluations = run_exact(config, tmp_path / "run", mix)
    trained = evaluations[evaluations.role == "trained"].set_index("update")
    assert trained.accuracy[0] < 0.5
    assert trained.accuracy.iloc[-1] == 1.0
    assert summary["stopping_reason"] == "convergence"
    assert summary["updates"] == summary["converged_update"] == trained.index[-1] < 60
    assert (trained.accuracy.iloc[:-1] < 1.0).all()
    heldout = evaluations[evaluations.role == "heldout"].set_index("update")
    assert heldout.gain_nats.iloc[-1] > heldout.gain_nats.iloc[0] + 2
    assert summary["concepts"] == {"Unknown": ["dax", "fep"]}
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in metrics] == list(range(1, summary["updates"] + 1))
    assert [line["examples_seen"] for line in metrics] == [8 * line["update"] for line in metrics]


def test_the_budget_run_records_convergence_and_early_stop_and_keeps_both(tmp_path: Path) -> None:
    summary, evaluations = run_exact(
        EXACT, tmp_path / "run", MixConfig(name="half", num_concepts=2, unknown_share=0.5)
    )
    assert (summary["stopping_reason"], summary["updates"]) == ("budget", 60)
    assert summary["converged_update"] == converged_update(evaluations, 1.0)
    assert summary["converged_update"] is not None
    early = summary["early_stop_update"]
    assert early == early_stop_update(evaluations)
    assert (tmp_path / "run" / f"checkpoint-{early}").is_dir()
    exported = load_file(tmp_path / "run" / summary["exports"]["early"] / "means.safetensors")
    kept = load_file(tmp_path / "run" / f"checkpoint-{early}" / "weights.safetensors")
    assert kept.keys() == {f"unet.{name}" for name in exported}
    assert all(torch.equal(tensor, kept[f"unet.{name}"]) for name, tensor in exported.items())
    dynamics = pd.read_parquet(tmp_path / "run" / "dynamics.parquet")
    last = dynamics.iloc[-1]
    assert (last.fitted_known_share, last.fitted_unknown_share) == (0.5, 0.5)


def test_accumulated_micro_batches_are_one_large_batch(tmp_path: Path) -> None:
    mix = MixConfig(name="m", num_concepts=2, unknown_share=0.5)
    large = FinetuneConfig(**{**vars(EXACT), "max_train_steps": 12})
    small = FinetuneConfig(**{**vars(large), "train_batch_size": 2, "gradient_accumulation_steps": 4})
    run_exact(large, tmp_path / "large", mix)
    run_exact(small, tmp_path / "small", mix)
    means = []
    for name in ("large", "small"):
        with safe_open(tmp_path / name / "pipeline" / "means.safetensors", "pt") as file:
            means.append([file.get_tensor(key) for key in sorted(file.keys())])
    torch.testing.assert_close(means[0], means[1], rtol=1e-5, atol=1e-6)


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def spoil(monkeypatch: pytest.MonkeyPatch, bad: Callable[[TrainingItem], bool], value: float = math.nan) -> None:
    """Losses of these items are no numbers."""
    plain = ExactLearner.loss

    def spoilt(self: ExactLearner, batch: Any) -> torch.Tensor:
        wrong = torch.tensor([bad(item) for item in batch.items])
        return torch.where(wrong, value, plain(self, batch.inner))

    with_items(monkeypatch, spoilt)


def with_items(monkeypatch: pytest.MonkeyPatch, loss: Callable[[ExactLearner, Any], torch.Tensor]) -> None:
    """Let the exact learner's loss be this one, which sees a batch's `items` and the plain loss's batch, `inner`."""
    plain = ExactLearner.batch

    def batch(self: ExactLearner, items: list, *, seed: int, objective: Objective) -> Any:
        return SimpleNamespace(items=items, inner=plain(self, items, seed=seed, objective=objective))

    monkeypatch.setattr(ExactLearner, "batch", batch)
    monkeypatch.setattr(ExactLearner, "loss", loss)


UNKNOWN_MIX = MixConfig(name="m", num_concepts=2, unknown_share=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_whose_loss_is_not_finite_is_skipped_and_logged(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, lambda item: item.example.id == "dax/train-2" and item.visit == 6, value)
    config = replace(
        EXACT,
        max_train_steps=9,
        use_ema=True,
        checkpointing_steps=1,
        checkpoints_total_limit=None,
        validation_steps=0,
    )
    config = replace(config, train_batch_size=2, gradient_accumulation_steps=4)
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    (skipped,) = [line for line in lines_of(tmp_path / "run") if "skipped" in line]
    assert skipped["update"] == 7
    assert (skipped["loss"], skipped["grad_norm"], skipped["skipped"]) == (None, None, "loss")
    assert skipped["examples"] == ["dax/train-2"]
    assert "update 7 skipped: its loss is not finite; examples dax/train-2" in caplog.text
    # Neither weights nor moments nor average moved at that update; at the next one they did.
    for file in ("weights", "optimizer", "average"):
        before, at, after = (
            load_file(tmp_path / "run" / f"checkpoint-{n}" / f"{file}.safetensors") for n in (6, 7, 8)
        )
        assert all(torch.equal(before[name], at[name]) for name in before), file
        assert any(not torch.equal(at[name], after[name]) for name in at), file
    state = json.loads((tmp_path / "run" / "checkpoint-9" / "state.json").read_text())
    assert state["nonfinite"] == {"in_a_row": 0, "total": 1}
    assert state["average_count"] == 8


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ExactLearner.loss

    def steep(self: ExactLearner, batch: Any) -> torch.Tensor:
        losses = plain(self, batch.inner)
        if any(item.visit == 3 for item in batch.items):
            losses.register_hook(lambda gradient: gradient * math.inf)
        return losses

    with_items(monkeypatch, steep)
    run_exact(replace(EXACT, max_train_steps=6, validation_steps=0), tmp_path / "run", UNKNOWN_MIX)
    lines = lines_of(tmp_path / "run")
    assert [line.get("skipped") for line in lines] == [None, None, None, "gradient", None, None]
    assert math.isfinite(lines[3]["loss"])
    assert len(lines[3]["examples"]) == 8


def test_too_many_skipped_updates_in_a_row_end_the_run_with_a_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Visits 2, and 4 and later: one update that is skipped alone, then three in a row.
    spoil(monkeypatch, lambda item: item.example.concept == "dax" and (item.visit == 2 or item.visit >= 4))
    config = replace(EXACT, checkpointing_steps=2, max_nonfinite_steps=3, validation_steps=0)
    told = r"the loss of update 7 and of the 2 before it is not finite; .*nonfinite\.json has its examples, .*checkpoint-6;"
    with pytest.raises(UserError, match=told):
        run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    assert [line["update"] for line in lines_of(tmp_path / "run") if "skipped" in line] == [3, 5, 6, 7]
    dump = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert (dump["update"], dump["not_finite"], dump["seed"]) == (7, "loss", config.seed)
    assert len(dump["items"]) == 8
    for item in dump["items"]:
        assert (item["loss"] == "nan") == item["id"].startswith("dax/")
        assert (item["visit"], item["caption"]) == (6, f"a photo of a {item['id'].split('/')[0]}")
    # The count goes on where the run was stopped: the checkpoint of update 6 was the second in a row.
    with pytest.raises(UserError, match="update 7 and of the 2 before it"):
        run_exact(config, tmp_path / "run", UNKNOWN_MIX)


# --- weights of items, averages, records ---


def test_items_count_by_their_weight(tmp_path: Path) -> None:
    """Two of prior_loss_weight 0.25 among others: the loss is Σ w·l / n, as in DreamBooth's script but for a factor."""
    learner, concept_set = taught()
    mix = compose(UNKNOWN_MIX, TABLE, concept_set, 0)
    prior = tuple(replace(e, split=REGULARISATION) for e in concept_set.examples if e.concept == "blorp")[:2]
    config = replace(EXACT, max_train_steps=1, train_batch_size=4, prior_loss_weight=0.25, validation_steps=0)
    mix = replace(mix, regularisation=prior)
    items = Sampler.of(mix, config, 1, {}).items(1)
    weights = torch.tensor([item.weight for item in items])
    assert sorted(weights.tolist()) == [0.25, 0.25, 1.0, 1.0]
    objective = Objective(snr_gamma=config.snr_gamma, noise_offset=config.noise_offset)
    expected = (weights * learner.loss(learner.batch(items, seed=config.seed, objective=objective))).mean()
    finetune(learner, mix, Exam(questions={}, categories={}), config, tmp_path / "run")
    assert lines_of(tmp_path / "run")[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_dead_average_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(self: AveragedWeights, update: int) -> None:
        """What follows every weight at once does not average."""
        for name, parameter in self.parameters.items():
            self.tensors[name].copy_(parameter.detach())

    monkeypatch.setattr(AveragedWeights, "update", dead)
    config = replace(EXACT, max_train_steps=20, validation_steps=0, use_ema=True)
    with pytest.raises(RuntimeError, match="moving average does not follow"):
        run_exact(config, tmp_path / "run", UNKNOWN_MIX)


@pytest.mark.parametrize("every", [1, 5, 7])
def test_decay_distance_and_movement_are_logged(every: int, tmp_path: Path) -> None:
    config = replace(
        EXACT, max_train_steps=20, validation_steps=0, use_ema=True, ema_horizon=4, ema_update_every=every
    )
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    lines = {line["update"]: line for line in lines_of(tmp_path / "run")}
    assert [update for update, line in lines.items() if "ema_distance" in line] == [10, 20]
    assert all(lines[update]["ema_distance"] > 0 for update in (20,))
    count = 20 // every
    assert lines[20]["ema_decay"] == pytest.approx(1 - max(1 / count, 1 - 0.75**every))
    # At update 10 an average of every seventh has moved once, and is looked at later.
    assert [update for update, line in lines.items() if "relative_update" in line] == [20 if every == 7 else 10]
    with pytest.raises(UserError, match="ema_update_every"):
        run_exact(replace(config, ema_update_every=21), tmp_path / "never", UNKNOWN_MIX)


def test_an_evaluation_that_fails_leaves_the_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exported weights are lent to the network; the trained ones come back, whatever was raised."""
    learner, concept_set = taught()
    mix = compose(UNKNOWN_MIX, TABLE, concept_set, 0)
    config = replace(EXACT, use_ema=True, max_train_steps=10)
    exam = make_exam(mix, TABLE, concept_set, config, ANSWERS)
    held: list[list[torch.Tensor]] = []
    plain = Run.evaluate

    def failing(self: Run, update: int) -> None:
        weights = list(self.trained.parameters.values())
        held.append([p.detach().clone() for p in weights])
        if update < 10:
            return plain(self, update)
        monkeypatch.setattr(ExactLearner, "surprise", lambda *_, **__: 1 / 0)
        try:
            plain(self, update)
        finally:
            held.append([p.detach().clone() for p in weights])

    monkeypatch.setattr(Run, "evaluate", failing)
    with pytest.raises(ZeroDivisionError):
        finetune(learner, mix, exam, config, tmp_path / "run")
    before, after = held[-2:]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    own = list(learner.network.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, own, strict=True))


def test_deterministic_and_tf32_hold_for_the_run_alone() -> None:
    def state() -> tuple:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    before = state()
    with arithmetic(replace(EXACT, deterministic=True, allow_tf32=True)):
        assert state() == (True, True, True, False, ":4096:8")
    assert state() == before
    with pytest.raises(ZeroDivisionError), arithmetic(EXACT):
        assert state()[:3] == (False, False, False)
        raise ZeroDivisionError
    assert state() == before


def test_a_run_uses_the_arithmetic_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = ExactLearner.loss

    def watched(self: ExactLearner, batch: Any) -> torch.Tensor:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32))
        return plain(self, batch)

    monkeypatch.setattr(ExactLearner, "loss", watched)
    config = replace(EXACT, max_train_steps=1, validation_steps=0, deterministic=True, allow_tf32=True)
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    assert seen == [(True, True)]


def test_the_summary_says_with_what_the_run_was_made(tmp_path: Path) -> None:
    summary, _ = run_exact(replace(EXACT, max_train_steps=5), tmp_path / "run", UNKNOWN_MIX)
    environment = summary["environment"]
    assert environment["torch"] == version("torch")
    assert environment["threads"] == str(torch.get_num_threads())
    assert environment["diffusion_sft"] == version("diffusion_sft")
    assert environment["device"].startswith("cpu")
    assert summary["record"]["seed"] == 0
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if commit.returncode == 0:
        assert environment["commit"].rstrip("+") == commit.stdout.strip()


def test_weights_that_hardly_move_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_exact(
        replace(EXACT, max_train_steps=10, validation_steps=0, learning_rate=1e-12), tmp_path / "run", UNKNOWN_MIX
    )
    assert "update 10 changed the weights by only" in caplog.text
    caplog.clear()
    run_exact(replace(EXACT, max_train_steps=10, validation_steps=0), tmp_path / "moving", UNKNOWN_MIX)
    assert "changed the weights by only" not in caplog.text


def test_weights_without_a_gradient_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ExactLearner.loss

    def flat(self: ExactLearner, batch: Any) -> torch.Tensor:
        return 0.0 * plain(self, batch)

    monkeypatch.setattr(ExactLearner, "loss", flat)
    with pytest.raises(RuntimeError, match="no gradient reaches the trained weights"):
        run_exact(replace(EXACT, validation_steps=0), tmp_path / "run", UNKNOWN_MIX)


# --- trackers ---

TRACKED = replace(
    EXACT, max_train_steps=4, validation_steps=2, validation_prompts=["a photo of a dax"], num_validation_images=2
)


def test_tensorboard_has_settings_curves_and_pictures(tmp_path: Path) -> None:
    config = replace(TRACKED, report_to="tensorboard", tracker_project_name="mine")
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    logs = tmp_path / "run" / "logs" / "mine"
    events = EventAccumulator(str(logs), size_guidance={"images": 0, "scalars": 0}).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([line["loss"] for line in lines_of(tmp_path / "run")], rel=1e-6)
    pictures = events.Images("validation")
    assert [event.step for event in pictures] == [0, 2, 4]
    with Image.open(tmp_path / "run" / "samples" / "update-000004.png") as drawn:
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string))), np.asarray(drawn)
        )
    (written,) = logs.rglob("hparams.yml")
    settings = yaml.safe_load(written.read_text())
    assert (settings["learning_rate"], settings["method"], settings["rank"]) == (0.1, "full", 16)


def test_wandb_works_offline_and_takes_a_run_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: list[dict] = []
    begun: list[dict] = []
    plain = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: begun.append(options) or plain(**options))
    plain_log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run,
        "log",
        lambda self, data, step=None, **rest: (
            logged.append({"step": step, **data}) or plain_log(self, data, step=step)
        ),
    )
    config = replace(TRACKED, report_to="wandb", tracker_project_name="mine")
    run_exact(config, tmp_path / "run", UNKNOWN_MIX)
    run_exact(replace(config, max_train_steps=6), tmp_path / "run", UNKNOWN_MIX)
    assert [options["project"] for options in begun] == ["mine", "mine"]
    assert begun[0]["id"] == begun[1]["id"]
    assert [row["step"] for row in logged if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in logged if "validation" in row] == [0, 2, 4, 6]
    assert list((tmp_path / "run" / "logs" / "wandb").glob("offline-run-*/files/media/images/validation_*.png"))


def test_a_tracker_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no account\nand much more")

    monkeypatch.setattr(Accelerator, "init_trackers", fails)
    with pytest.raises(UserError, match="^report_to=tensorboard: no account; or set report_to=null$"):
        run_exact(replace(TRACKED, report_to="tensorboard"), tmp_path / "run", UNKNOWN_MIX)


# --- whole runs, diffusion ---


@pytest.fixture(scope="session")
def tiny_concepts(tiny_set: Path) -> ConceptSet:
    return read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set


@pytest.fixture(scope="session")
def tiny_mix(tiny_concepts: ConceptSet) -> Mix:
    return compose(MixConfig(name="half", num_concepts=2, unknown_share=0.5), TABLE, tiny_concepts, 0)


TINY = FinetuneConfig(
    train_batch_size=4,
    max_train_steps=10,
    learning_rate=2e-3,
    validation_steps=5,
    validation_draws=2,
    validation_prompts=["a photo of a dax", "a photo of a blorp"],
    num_validation_images=3,
    validation_inference_steps=2,
    report_to=None,
)


def run_tiny(
    config: FinetuneConfig, base: Path, mix: Mix, concepts: ConceptSet, folder: Path
) -> tuple[dict, DiffusionLearner]:
    learner = DiffusionLearner.load(base)
    exam = make_exam(mix, TABLE, concepts, config, ANSWERS)
    return finetune(learner, mix, exam, config, folder), learner


CUES = [Cue(prompt="a photo of a dax", seed=7), Cue(prompt="a red circle", seed=8)]


def plain_images(pipeline: StableDiffusionPipeline) -> np.ndarray:
    """As somebody who has nothing but diffusers would make them."""
    pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline(
            cue.prompt,
            generator=torch.Generator("cpu").manual_seed(cue.seed),
            num_inference_steps=4,
            guidance_scale=2.0,
            output_type="np",
        ).images[0]
        for cue in CUES
    ]
    return np.round(np.stack(images) * 255).astype(np.uint8)


def our_images(learner: DiffusionLearner) -> np.ndarray:
    return np.stack(learner.generate(CUES, num_inference_steps=4, guidance_scale=2.0, batch_size=2))


def test_a_full_run_exports_a_pipeline_that_plain_diffusers_loads(
    tiny_pipeline: Path, tiny_mix: Mix, tiny_concepts: ConceptSet, tmp_path: Path
) -> None:
    config = FinetuneConfig(**{**vars(TINY), "report_to": "tensorboard", "gradient_checkpointing": True})
    summary, learner = run_tiny(config, tiny_pipeline, tiny_mix, tiny_concepts, tmp_path / "run")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline", safety_checker=None)
    ours = our_images(learner)
    assert np.abs(plain_images(pipeline).astype(int) - ours).max() <= 1
    reloaded = DiffusionLearner.load(tmp_path / "run" / "pipeline")
    assert np.array_equal(our_images(reloaded), ours)
    assert np.abs(our_images(DiffusionLearner.load(tiny_pipeline)).astype(int) - ours).max() > 3
    evaluations = pd.read_parquet(tmp_path / "run" / "evaluations.parquet")
    error = evaluations[evaluations.role == "trained"].groupby("update").error_nats.mean()
    assert error[10] < error[5] < error[0]
    for update in (0, 5, 10):
        with Image.open(tmp_path / "run" / "samples" / f"update-{update:06d}.png") as grid:
            assert grid.size == (3 * 16 + 2 * 2, 2 * 16 + 2)
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents.*"))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "mix `half`" in card
    assert "10 updates of 4 examples" in card
    assert all(f"| {category} | 1 | {names[0]} |" in card for category, names in summary["concepts"].items())


def test_a_lora_file_loads_in_plain_diffusers_and_gives_the_same_images(
    tiny_pipeline: Path, tiny_mix: Mix, tiny_concepts: ConceptSet, tmp_path: Path
) -> None:
    config = FinetuneConfig(
        **{**vars(TINY), "method": "lora", "rank": 4, "lora_alpha": 12, "learning_rate": 3e-2, "use_ema": True}
    )
    summary, _ = run_tiny(config, tiny_pipeline, tiny_mix, tiny_concepts, tmp_path / "run")
    file = tmp_path / "run" / summary["exports"]["last"]
    assert file.name == LORA_FILE
    with safe_open(file, "pt") as tensors:
        adapter = json.loads(tensors.metadata()["lora_adapter_metadata"])
    assert (adapter["unet.r"], adapter["unet.lora_alpha"]) == (4, 12)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipeline.load_lora_weights(tmp_path / "run")
    ours = our_images(DiffusionLearner.load(tiny_pipeline, lora=tmp_path / "run"))
    assert np.abs(plain_images(pipeline).astype(int) - ours).max() <= 1
    assert np.abs(our_images(DiffusionLearner.load(tiny_pipeline)).astype(int) - ours).max() > 3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_are_clipped_and_the_norm_before_is_logged(
    method: str,
    tiny_pipeline: Path,
    tiny_mix: Mix,
    tiny_concepts: ConceptSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    plain = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, closure: None = None) -> None:
        weights = [p for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.stack([p.grad.square().sum() for p in weights]).sum().sqrt()))
        plain(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    settings = {"method": method, "max_grad_norm": 1e-3, "max_train_steps": 2, "validation_steps": 0}
    run_tiny(FinetuneConfig(**{**vars(TINY), **settings}), tiny_pipeline, tiny_mix, tiny_concepts, tmp_path / "run")
    logged = [json.loads(line)["grad_norm"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert seen == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert min(logged) > 2e-3


# --- settings ---


def test_the_shipped_configuration_takes_the_names_that_diffusers_users_type() -> None:
    path = Path(__file__).parents[1] / "configs" / "finetune.yaml"
    typed = [
        "pretrained_model_name_or_path=some/base",
        "learning_rate=1e-5",
        "lr_scheduler=cosine",
        "lr_warmup_steps=10",
        "max_train_steps=200",
        "mixed_precision=bf16",
        "use_ema=true",
        "resolution=512",
        "mix.unknown_share=0.5",
        "mix.num_concepts=20",
    ]
    config = load_settings(FinetuneCommandConfig, path, typed)
    assert (config.learning_rate, config.lr_scheduler, config.mixed_precision) == (1e-5, "cosine", "bf16")
    assert config.mix.unknown_share == 0.5
    with pytest.raises(UserError, match="did you mean max_train_steps"):
        load_settings(FinetuneCommandConfig, path, ["max_train_step=3"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"proportion_empty_prompts": 1.0}, "proportion_empty_prompts"),
        ({"stopping": "convergence"}, "validation_steps"),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 1000}, "lr_warmup_steps"),
        ({"use_ema": True, "ema_horizon": 1}, "ema_horizon"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**settings)
