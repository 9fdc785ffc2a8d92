"""The batches of each update, made while the device is still at the update before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from ..learner import Learner, Objective, TrainingItem
from .config import FinetuneConfig
from .sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass is made on."""

    batch: Any
    """As the learner's `batch` made it."""
    weights: torch.Tensor
    """Of each item's loss, (num_items,), on the device."""


class Feed:
    """Gives out the micro-batches of update after update; with `ahead`, those of the next are made by a thread.

    A batch is a function of the update alone, so that it does not matter who makes it, or when.
    """

    def __init__(self, make: Callable[[int], list[MicroBatch]], *, last: int, ahead: bool) -> None:
        """Take what makes the micro-batches of an update, and the number of the last update."""
        self._make, self._last = make, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None
        self._next: tuple[int, Future[list[MicroBatch]]] | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def take(self, update: int) -> list[MicroBatch]:
        """The micro-batches of this update; whatever went wrong while they were made is raised here."""
        number, found = self._next or (None, None)
        batches = found.result() if found is not None and number == update else self._make(update)
        if self._thread is not None and update < self._last:
            self._next = update + 1, self._thread.submit(self._make, update + 1)
        return batches


def micro_batches(
    learner: Learner, sampler: Sampler, config: FinetuneConfig, process: tuple[int, int], update: int
) -> list[MicroBatch]:
    """This process's micro-batches of an update, on its device.

    Args:
        process: its number, from 0, and how many there are.
        update: counted from 1.
    """
    (index, count), size = process, config.train_batch_size
    items = sampler.items(update)
    starts = [(number * count + index) * size for number in range(config.gradient_accumulation_steps)]
    objective = Objective(snr_gamma=config.snr_gamma, noise_offset=config.noise_offset)
    return [_micro_batch(learner, items[start : start + size], config.seed, objective) for start in starts]


def _micro_batch(learner: Learner, items: Sequence[TrainingItem], seed: int, objective: Objective) -> MicroBatch:
    weights = torch.tensor([item.weight for item in items])
    if learner.device.type == "cuda":
        weights = weights.pin_memory()
    batch = learner.batch(items, seed=seed, objective=objective)
    return MicroBatch(batch=batch, weights=weights.to(learner.device, non_blocking=True))
