"""One fine-tuning in progress: what the loop's words (draw, clip, step, evaluate, save, ...) stand for."""

from __future__ import annotations

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

from ..errors import NotFinite, UserError
from ..learner import Learner, Question
from .checkpoints import (
    Trained,
    checkpoint_updates,
    load_checkpoint,
    remove_later,
    rotate_checkpoints,
    save_checkpoint,
)
from .config import FinetuneConfig
from .estimate import Pace
from .evaluations import Exam, ask, asked_rows, converged_update, early_stop_update, evaluation_rows
from .feeding import Feed, MicroBatch, micro_batches
from .grids import draw_grid, halving
from .journal import Journal
from .mix import Mix
from .nonfinite import Nonfinite
from .sampler import Sampler
from .sharding import is_sharded, own_part, total, whole_weights
from .stepping import Steps
from .stopping import StopRequest
from .summary import SUMMARY, keep_settings


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
    request: StopRequest = field(default_factory=StopRequest)
    seconds: float = 0.0
    """Spent by earlier processes on this run."""
    started: float = field(default_factory=time.monotonic)
    _best: tuple[int, int | None] = (0, None)
    """For so many rows of evaluations; so is the next."""
    _converged: tuple[int, int | None] = (0, None)

    def __post_init__(self) -> None:
        self.steps = Steps(
            trained=self.trained,
            optimizer=self.optimizer,
            accelerator=self.accelerator,
            config=self.config,
            sampler=self.sampler,
            journal=self.journal,
            folder=self.folder,
            request=self.request,
        )

    @property
    def quiet(self) -> bool | None:
        """tqdm's `disable`: never more than one bar, none where stderr is no terminal."""
        return None if self.accelerator.is_main_process else True

    def resume(self, update: int) -> None:
        """Go back to the checkpoint of this update, or begin with 0."""
        stamp = None
        if update > 0:
            state = load_checkpoint(self.folder, update, self.trained)
            self.seconds, self.steps.nonfinite = state["seconds"], Nonfinite(**state["nonfinite"])
            stamp = state["journal"]
            self.accelerator.print(f"{self.folder}: going on after update {update}")
        if self.accelerator.is_main_process:
            keep_settings(self.folder, self.config)
            (self.folder / SUMMARY).unlink(missing_ok=True)  # Of the run before it was made longer.
        self.journal.rewind(update, stamp)
        self.accelerator.wait_for_everyone()
        # Last, so that none is lost where the one that is gone back to cannot be read.
        for later in remove_later(self.folder, update) if self.accelerator.is_main_process else ():
            self.accelerator.print(f"{self.folder}: checkpoint-{later} is removed, to be made again")
        self._rotate()  # As a process that was killed between the two would have.

    def done(self, update: int) -> bool:
        """Whether this update was the last."""
        converged = self.config.stopping == "convergence" and self.converged() is not None
        return converged or update >= self.config.max_train_steps

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of every parameter group, as a multiple of this one."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def feed(self) -> Feed:
        """This process's micro-batches; those of the next update are made while a GPU is busy with this one."""
        process = self.accelerator.process_index, self.accelerator.num_processes
        make = partial(micro_batches, self.learner, self.sampler, self.config, process)
        return Feed(make, last=self.config.max_train_steps, ahead=self.accelerator.device.type == "cuda")

    def draw(self, feed: Feed, update: int) -> Iterator[tuple[MicroBatch, AbstractContextManager[Any]]]:
        """This process's micro-batches, each with the context in which processes do or do not add up gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        *others, last = feed.take(update)
        for batch in others:
            yield batch, self.accelerator.no_sync(self.wrapped)
        yield last, nullcontext()

    def losses(self, micro: MicroBatch) -> torch.Tensor:
        """The loss of each item times the item's weight, (num_items,)."""
        return self.learner.loss(micro.batch) * micro.weights

    def evaluates_at(self, update: int) -> bool:
        """Whether this update is an evaluation point."""
        every = self.config.validation_steps
        return every > 0 and (update % every == 0 or update >= self.config.max_train_steps)

    def evaluate(self, update: int) -> None:
        """Ask the exam, and draw the validation prompts, with the weights that would be exported now.

        Raises:
            UserError: weights, or what is said with them, are not finite.
        """
        if not self.config.validation_steps:
            return
        if update:  # Before, they are the base's.
            self._check_weights(update)
        with self._named(update), self.exported_weights(), whole_weights(self.network):
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
        return update == self.best_update() or update % self.config.checkpointing_steps == 0 or self.done(update)

    def save(self, update: int) -> None:
        """Write a checkpoint, then remove those that are no longer wanted; the main process does, of all one's parts.

        Raises:
            UserError: a weight is not finite, or the disk is full; the checkpoints before stay.
        """
        self._check_weights(update)
        self.journal.settle()
        if self.accelerator.is_main_process or is_sharded(self.trained.parameters.values()):
            state = {
                "record": dict(self.record),
                "seconds": self.elapsed_seconds(),
                "nonfinite": asdict(self.steps.nonfinite),
                "journal": self.journal.stamp(),
            }
            save_checkpoint(self.folder, update, self.trained, state)
        self._rotate()
        self.accelerator.wait_for_everyone()

    def _rotate(self) -> None:
        if self.accelerator.is_main_process:
            config = self.config
            rotate_checkpoints(
                self.folder, config.checkpoints_total_limit, config.checkpointing_steps, self.best_update()
            )

    def converged(self) -> int | None:
        """The first evaluation, after one pass over the set, at which all trained examples asked were fitted."""
        if (count := len(self.journal.evaluations)) != self._converged[0]:
            found = converged_update(self.journal.evaluations, self.sampler.updates_per_pass)
            self._converged = count, found
        return self._converged[1]

    def best_update(self) -> int | None:
        """The evaluation of the early stop, as far as the run has come."""
        if (count := len(self.journal.evaluations)) != self._best[0]:
            self._best = count, early_stop_update(self.journal.evaluations)
        return self._best[1]

    @contextmanager
    def exported_weights(self) -> Iterator[None]:
        """The bare network with the averaged weights, where there is an average, inside the block."""
        average = self.trained.average
        self.learner.network = self.network
        try:
            # Not compiled: batches of an evaluation are of many sizes, and each would be compiled for.
            with torch.compiler.set_stance("force_eager"), nullcontext() if average is None else average.swapped_in():
                yield
        finally:
            self.learner.network = self.wrapped

    def elapsed_seconds(self) -> float:
        """Spent on this run by all processes that worked on it one after another."""
        return self.seconds + time.monotonic() - self.started

    def _check_weights(self, update: int) -> None:
        """Raise UserError where a weight or its average is not finite, on every process alike."""
        tensors = [
            *self.trained.parameters.values(),
            *(self.trained.average.tensors.values() if self.trained.average else ()),
        ]
        flags = [(~torch.isfinite(own_part(tensor))).any().float().to(self.accelerator.device) for tensor in tensors]
        if float(total(torch.stack(flags).sum(), self.trained.parameters.values())) == 0:
            return
        raise UserError(f"{self.folder}: weights are not finite after update {update}; {self._way_back()}")

    def _way_back(self) -> str:
        last = max(checkpoint_updates(self.folder), default=None)
        good = f"checkpoint-{last} is the last good one" if last is not None else "there is no checkpoint yet"
        return f"{good}; lower learning_rate, or use mixed_precision bf16 or no"

    @contextmanager
    def _named(self, update: int) -> Iterator[None]:
        """What is not finite inside the block is of this run's weights after this update, and no base's."""
        try:
            yield
        except NotFinite as error:
            if update == 0:
                raise
            raise UserError(
                f"{self.folder}: evaluation after update {update}: {error.found}; {self._way_back()}"
            ) from error

    def _ask(self, questions: Sequence[Question]) -> pd.DataFrame:
        """Each process asks its share, and every process gets all answers."""
        share = questions[self.accelerator.process_index :: self.accelerator.num_processes]
        answers = halving(partial(ask, self.learner, share, self.config), self.config.validation_batch_size)
        rows: list[Any] = [None] * len(questions)
        for process, found in enumerate(gather_object([answers.to_dict("records")])):
            rows[process :: self.accelerator.num_processes] = found
        return pd.DataFrame(rows, columns=answers.columns)
