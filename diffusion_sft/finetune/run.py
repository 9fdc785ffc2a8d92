"""One fine-tuning in progress: what the loop's words (draw, clip, step, evaluate, save, ...) stand for."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..answers import Question
from ..errors import UserError
from ..files import read_json, write_text
from ..learner import Learner, TrainingItem
from ..settings import settings_yaml
from .average import AveragedWeights, relative_distance
from .checkpoints import (
    STATE,
    Trained,
    check_same_run,
    checkpoint_folder,
    checkpoint_updates,
    load_checkpoint,
    remove_unfinished,
    rotate_checkpoints,
    save_checkpoint,
)
from .config import FinetuneConfig
from .evaluations import Exam, ask, converged_update, early_stop_update, evaluation_rows
from .grids import draw_grid, halving
from .journal import Journal
from .mixes import Mix
from .parts import trainable_parameters
from .sampler import Sampler
from .summary import run_record

INSPECTED = 10
"""At this update the run looks whether its weights move, and every so many how far the average is behind them."""
IMMOBILE = 1e-8
"""A relative change of the weights in one update below which training is most likely in vain."""
logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """What is being trained, with what, and where it is written."""

    learner: Learner
    mix: Mix
    exam: Exam
    config: FinetuneConfig
    folder: Path
    record: Mapping[str, Any]
    """What may not change when the run is resumed."""
    identity: Mapping[str, Any]
    """Of the base, before anything was done to it."""
    accelerator: Accelerator
    network: nn.Module
    """As evaluations and exports see it."""
    wrapped: nn.Module
    """As the loss sees it: accelerate's wrapper, which adds up gradients over processes."""
    optimizer: torch.optim.Optimizer
    """accelerate's wrapper too; `trained.optimizer` is the one inside."""
    trained: Trained
    sampler: Sampler
    journal: Journal
    seconds: float = 0.0
    """Spent by earlier processes on this run."""
    started: float = field(default_factory=time.monotonic)

    @property
    def quiet(self) -> bool | None:
        """tqdm's `disable`: never more than one bar, none where stderr is no terminal."""
        return None if self.accelerator.is_main_process else True

    def resume(self) -> int:
        """Go back to the latest checkpoint; returns its update, 0 where there is none."""
        if self.accelerator.is_main_process:
            remove_unfinished(self.folder)
            write_text(self.folder / "config.yaml", settings_yaml(self.config))
        update = max(checkpoint_updates(self.folder), default=0)
        if update > 0:
            load_checkpoint(self.folder, update, self.trained)
            self.seconds = read_json(checkpoint_folder(self.folder, update) / STATE)["seconds"]
            self.accelerator.print(f"{self.folder}: going on after update {update}")
        self.journal.rewind(update)
        return update

    def done(self, update: int) -> bool:
        """Whether this update was the last."""
        converged = self.config.stopping == "convergence" and self.converged() is not None
        return converged or update >= self.config.max_train_steps

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of every parameter group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def draw(self, update: int) -> Iterator[tuple[list[TrainingItem], AbstractContextManager[Any]]]:
        """This process's micro-batches, each with the context in which processes do or do not add up gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        items = self.sampler.items(update)
        size, processes = self.config.train_batch_size, self.accelerator.num_processes
        for number in range(self.config.gradient_accumulation_steps):
            start = (number * processes + self.accelerator.process_index) * size
            last = number == self.config.gradient_accumulation_steps - 1
            yield items[start : start + size], nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def finite_mean(self, losses: Sequence[torch.Tensor], update: int) -> float:
        """The mean loss over all processes; UserError naming the examples where it is not finite."""
        gathered = self.accelerator.gather(torch.cat(list(losses)))
        mean = gathered.mean().item()
        if math.isfinite(mean):
            return float(mean)
        shape = (self.accelerator.num_processes, self.config.gradient_accumulation_steps, -1)
        in_order = gathered.reshape(shape).transpose(0, 1).reshape(-1).tolist()
        items = self.sampler.items(update)
        names = [item.example.id for item, loss in zip(items, in_order, strict=True) if not math.isfinite(loss)]
        raise UserError(self._not_finite("loss", update) + f"; examples {', '.join(names)}")

    def clip(self, update: int) -> float | None:
        """Cut the gradient to max_grad_norm; its norm before, None where fp16 overflowed (the step is skipped)."""
        # A list, never an iterator: an iterator would be used up by its first reader and nothing would be clipped.
        weights = list(self.trained.parameters.values())
        norm = float(self.accelerator.clip_grad_norm_(weights, self.config.max_grad_norm or math.inf))
        if not math.isfinite(norm):
            if self.accelerator.scaler is None:
                raise UserError(self._not_finite("gradient", update))
            return None
        if update == 1 and norm == 0.0:
            raise RuntimeError("no gradient reaches the trained weights")
        return norm

    def step(self, update: int) -> dict[str, float]:
        """Step the optimiser, then the average; at every tenth update also measure what that did."""
        parameters, average = self.trained.parameters, self.trained.average
        measured: dict[str, float] = {}
        before = {name: p.detach().clone() for name, p in parameters.items()} if update == INSPECTED else {}
        self.optimizer.step()
        if average is not None:
            average.update(update)
        if average is not None and update % INSPECTED == 0:
            measured |= {"ema_decay": average.decay(update), "ema_distance": average.distance()}
        if before:
            measured["relative_update"] = relative_distance(parameters, before)
            self._check_movement(measured)
        return measured

    def log(self, update: int, values: Mapping[str, float | None]) -> None:
        """One line of metrics."""
        rate = self.optimizer.param_groups[0]["lr"]
        seen = update * self.sampler.batch_size
        self.journal.log({"update": update, "learning_rate": rate, "examples_seen": seen, **values})

    def evaluates_at(self, update: int) -> bool:
        """Whether this update is an evaluation point."""
        every = self.config.validation_steps
        return every > 0 and (update % every == 0 or update >= self.config.max_train_steps)

    def evaluate(self, update: int) -> None:
        """Ask the exam, and draw the validation prompts, with the weights that would be exported now."""
        if not self.config.validation_steps:
            return
        with self.exported_weights():
            answers = {role: self._ask(questions) for role, questions in self.exam.questions.items()}
            if self.config.validation_prompts and self.accelerator.is_main_process:
                draw_grid(self.learner, self.config, self.folder / "samples" / f"update-{update:06d}.png")
        self.journal.add_evaluation(evaluation_rows(update, answers, self.exam.categories))
        self.accelerator.wait_for_everyone()

    def saves_at(self, update: int) -> bool:
        """Whether this update's state is to be kept: on schedule, at the end, or as the best so far."""
        best = update == early_stop_update(self.journal.evaluations)
        return best or update % self.config.checkpointing_steps == 0 or self.done(update)

    def save(self, update: int) -> None:
        """Write a checkpoint, then remove those that are no longer wanted; only the main process does."""
        if self.accelerator.is_main_process:
            state = {"record": dict(self.record), "seconds": self.elapsed_seconds()}
            save_checkpoint(self.folder, update, self.trained, state)
            best = early_stop_update(self.journal.evaluations)
            rotate_checkpoints(self.folder, self.config.checkpoints_total_limit, best)
        self.accelerator.wait_for_everyone()

    def converged(self) -> int | None:
        """The first evaluation, after one pass over the set, at which all trained examples asked were fitted."""
        return converged_update(self.journal.evaluations, len(self.mix.examples) / self.sampler.batch_size)

    @contextmanager
    def exported_weights(self) -> Iterator[None]:
        """The bare network with the averaged weights, where there is an average, inside the block."""
        average = self.trained.average
        self.learner.network = self.network
        try:
            with nullcontext() if average is None else average.swapped_in():
                yield
        finally:
            self.learner.network = self.wrapped

    def elapsed_seconds(self) -> float:
        """Spent on this run by all processes that worked on it one after another."""
        return self.seconds + time.monotonic() - self.started

    def _ask(self, questions: Sequence[Question]) -> pd.DataFrame:
        """Each process asks its share, and every process gets all answers."""
        share = questions[self.accelerator.process_index :: self.accelerator.num_processes]
        answers = halving(partial(ask, self.learner, share, self.config), self.config.validation_batch_size)
        return pd.DataFrame(gather_object(answers.to_dict("records")), columns=answers.columns)

    def _check_movement(self, measured: Mapping[str, float]) -> None:
        moved = measured["relative_update"]
        if moved < IMMOBILE and not getattr(self.optimizer, "step_was_skipped", False):
            logger.warning("update %d changed the weights by only %.1e of their size", INSPECTED, moved)
        if moved > 0 and measured.get("ema_distance") == 0.0:
            raise RuntimeError("the moving average does not follow the weights")

    def _not_finite(self, what: str, update: int) -> str:
        last = max(checkpoint_updates(self.folder), default=None)
        good = f"the last good checkpoint is checkpoint-{last}" if last is not None else "there is no checkpoint yet"
        return (
            f"{self.folder}: the {what} of update {update} is not finite; {good}; lower learning_rate, or use "
            "mixed_precision bf16 or no"
        )


def begin(
    learner: Learner,
    mix: Mix,
    exam: Exam,
    config: FinetuneConfig,
    folder: Path,
    accelerator: Accelerator,
) -> Run:
    """Make the learner's network trainable and put everything in place; refuses another run's folder."""
    record, identity = run_record(learner, mix, exam, config, accelerator), learner.identity()
    for update in checkpoint_updates(folder)[-1:]:
        check_same_run(read_json(checkpoint_folder(folder, update) / STATE)["record"], record, folder)
    network = learner.network
    parameters = trainable_parameters(network, config)
    optimizer = _optimizer(parameters, config)
    wrapped, prepared = accelerator.prepare(network, optimizer)
    accelerator.init_trackers("finetune")
    wrapped.train()
    learner.network = wrapped
    average = AveragedWeights(parameters, horizon=config.ema_horizon) if config.use_ema else None
    return Run(
        learner=learner,
        mix=mix,
        exam=exam,
        config=config,
        folder=folder,
        record=record,
        identity=identity,
        accelerator=accelerator,
        network=network,
        wrapped=wrapped,
        optimizer=prepared,
        trained=Trained(parameters=parameters, optimizer=optimizer, average=average, scaler=accelerator.scaler),
        sampler=_sampler(mix, config, accelerator.num_processes),
        journal=Journal(folder, accelerator),
    )


def _optimizer(parameters: Mapping[str, nn.Parameter], config: FinetuneConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )


def _sampler(mix: Mix, config: FinetuneConfig, num_processes: int) -> Sampler:
    return Sampler(
        mix.examples,
        seed=config.seed,
        batch_size=config.train_batch_size * config.gradient_accumulation_steps * num_processes,
        proportion_empty_prompts=config.proportion_empty_prompts,
    )
