"""One fine-tuning in progress: what the loop's words (draw, clip, step, evaluate, save, ...) stand for."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..files import write_text
from ..learner import Learner, Objective, Question, TrainingItem
from ..settings import settings_yaml
from .average import relative_distance
from .checkpoints import (
    Trained,
    checkpoint_updates,
    load_checkpoint,
    remove_later,
    remove_unfinished,
    rotate_checkpoints,
    save_checkpoint,
)
from .config import FinetuneConfig
from .estimate import Pace
from .evaluations import Exam, ask, asked_rows, converged_update, early_stop_update, evaluation_rows
from .grids import draw_grid, halving
from .journal import Journal
from .mixes import Mix
from .nonfinite import Nonfinite, dump, end_of_run, offenders
from .sampler import Sampler

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
    pace: Pace
    nonfinite: Nonfinite = field(default_factory=Nonfinite)
    seconds: float = 0.0
    """Spent by earlier processes on this run."""
    started: float = field(default_factory=time.monotonic)

    @property
    def quiet(self) -> bool | None:
        """tqdm's `disable`: never more than one bar, none where stderr is no terminal."""
        return None if self.accelerator.is_main_process else True

    def resume(self, update: int) -> None:
        """Go back to the checkpoint of this update, or begin with 0."""
        if self.accelerator.is_main_process:
            remove_unfinished(self.folder)
            write_text(self.folder / "config.yaml", settings_yaml(self.config))
            for later in remove_later(self.folder, update):
                self.accelerator.print(f"{self.folder}: checkpoint-{later} is removed, to be made again")
        if update > 0:
            state = load_checkpoint(self.folder, update, self.trained)
            self.seconds, self.nonfinite = state["seconds"], Nonfinite(**state["nonfinite"])
            self.accelerator.print(f"{self.folder}: going on after update {update}")
        self.journal.rewind(update)

    def done(self, update: int) -> bool:
        """Whether this update was the last."""
        converged = self.config.stopping == "convergence" and self.converged() is not None
        return converged or update >= self.config.max_train_steps

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of every parameter group, as a multiple of this one."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def draw(self, update: int) -> Iterator[tuple[list[TrainingItem], AbstractContextManager[Any]]]:
        """This process's micro-batches, each with the context in which processes do or do not add up gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        items = self.sampler.items(update)
        size, processes = self.config.train_batch_size, self.accelerator.num_processes
        for number in range(self.config.gradient_accumulation_steps):
            start = (number * processes + self.accelerator.process_index) * size
            last = number == self.config.gradient_accumulation_steps - 1
            yield items[start : start + size], nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def losses(self, items: Sequence[TrainingItem]) -> torch.Tensor:
        """The loss of each item times the item's weight, (num_items,)."""
        objective = Objective(snr_gamma=self.config.snr_gamma, noise_offset=self.config.noise_offset)
        losses = self.learner.loss(items, seed=self.config.seed, objective=objective)
        return losses * losses.new_tensor([item.weight for item in items])

    def gathered(self, losses: Sequence[torch.Tensor]) -> list[float]:
        """The losses of all processes' micro-batches, in the order of the update's items."""
        found = self.accelerator.gather(torch.cat(list(losses)))
        shape = (self.accelerator.num_processes, self.config.gradient_accumulation_steps, -1)
        in_order: list[float] = found.reshape(shape).transpose(0, 1).reshape(-1).tolist()
        return in_order

    def clip(self) -> float:
        """Cut the gradient to max_grad_norm; its norm before, which may be infinite or no number."""
        # A list, never an iterator: an iterator would be used up by its first reader and nothing would be clipped.
        weights = list(self.trained.parameters.values())
        return float(self.accelerator.clip_grad_norm_(weights, self.config.max_grad_norm or math.inf))

    def finish_update(self, update: int, losses: Sequence[float]) -> float | None:
        """Clip, step and log, or skip the update where loss or gradient is not finite; returns the mean loss.

        A gradient that overflowed under fp16 is no such case: the scaler leaves the step out and lowers its scale.

        Raises:
            UserError: too many were skipped in a row.
            RuntimeError: no gradient reaches the weights, or the average does not follow them.
        """
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            self._skip(update, "loss", losses, None)
            return None
        norm = self.clip()
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            self._skip(update, "gradient", losses, mean)
            return None
        if update == 1 and norm == 0.0:
            raise RuntimeError("no gradient reaches the trained weights")
        measured = self._step(update)
        self.nonfinite.took()
        self._log(update, {"loss": mean, "grad_norm": norm if math.isfinite(norm) else None, **measured})
        return mean

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
                grid = self.folder / "samples" / f"update-{update:06d}.png"
                draw_grid(self.learner, self.config, grid)
                self.journal.add_images(update, grid)
        self.journal.add_evaluation(
            evaluation_rows(update, answers, self.exam.categories), asked_rows(update, answers, self.exam.categories)
        )
        self.accelerator.wait_for_everyone()

    def saves_at(self, update: int) -> bool:
        """Whether this update's state is to be kept: on schedule, at the end, or as the best so far."""
        best = update == early_stop_update(self.journal.evaluations)
        return best or update % self.config.checkpointing_steps == 0 or self.done(update)

    def save(self, update: int) -> None:
        """Write a checkpoint, then remove those that are no longer wanted; only the main process does."""
        if self.accelerator.is_main_process:
            state = {
                "record": dict(self.record),
                "seconds": self.elapsed_seconds(),
                "nonfinite": asdict(self.nonfinite),
            }
            save_checkpoint(self.folder, update, self.trained, state)
            best = early_stop_update(self.journal.evaluations)
            rotate_checkpoints(self.folder, self.config.checkpoints_total_limit, best)
        self.accelerator.wait_for_everyone()

    def converged(self) -> int | None:
        """The first evaluation, after one pass over the set, at which all trained examples asked were fitted."""
        return converged_update(self.journal.evaluations, self.sampler.updates_per_pass)

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

    def _step(self, update: int) -> dict[str, float]:
        """Step the optimiser, then the average; at every tenth update also measure what that did."""
        parameters, average = self.trained.parameters, self.trained.average
        measured: dict[str, float] = {}
        before = (
            {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
            if self._inspects(update)
            else {}
        )
        self.optimizer.step()
        skipped = getattr(self.optimizer, "step_was_skipped", False)
        if average is not None and not skipped:
            average.update(update)
        if average is not None and update % INSPECTED == 0:
            measured |= {"ema_decay": average.decay, "ema_distance": average.distance()}
        if before:
            measured["relative_update"] = relative_distance(parameters, before)
            self._check_movement(update, measured, skipped)
        return measured

    def _inspects(self, update: int) -> bool:
        """Once, when the average has moved at least twice: after its first move it is where the weights are."""
        average = self.trained.average
        moves = 2 * average.every if average is not None else 1
        return update == INSPECTED * -(-max(INSPECTED, moves) // INSPECTED)

    def _check_movement(self, update: int, measured: Mapping[str, float], skipped: bool) -> None:
        moved, average = measured["relative_update"], self.trained.average
        if moved < IMMOBILE and not skipped:
            logger.warning("update %d changed the weights by only %.1e of their size", update, moved)
        if moved > 0 and average is not None and average.distance() == 0.0:
            raise RuntimeError("the moving average does not follow the weights")

    def _skip(self, update: int, what: str, losses: Sequence[float], mean: float | None) -> None:
        items = self.sampler.items(update)
        examples = offenders(items, losses)
        self.nonfinite.skipped(update, what, examples)
        self._log(update, {"loss": mean, "grad_norm": None, "skipped": what, "examples": examples})
        if self.nonfinite.in_a_row < self.config.max_nonfinite_steps:
            return
        if self.accelerator.is_main_process:
            dump(self.folder, update, what, items, losses, self.config.seed)
        self.accelerator.wait_for_everyone()
        last = max(checkpoint_updates(self.folder), default=None)
        raise end_of_run(self.folder, update, what, self.nonfinite.in_a_row, last)

    def _log(self, update: int, values: Mapping[str, Any]) -> None:
        """One line of metrics: rates and examples seen beside the values."""
        first, *others = self.optimizer.param_groups
        rates = {"learning_rate": first["lr"]}
        if others:
            rates["text_encoder_lr"] = others[0]["lr"]
        if "d" in first:
            rates["prodigy_d"] = float(first["d"])  # What Prodigy multiplies the rate by.
        seen = update * self.sampler.batch_size
        self.journal.log({"update": update, **rates, "examples_seen": seen, **values})
