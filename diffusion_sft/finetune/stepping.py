"""Clip, step, average and account for updates, without waiting for the device.

What an update came to (its losses and the norm of its gradient) is sent home as it is computed, and read just before
the next update moves the weights, when it has long arrived. Whether a step is made at all is decided on the device by
then: the optimiser leaves out a step whose `found_inf` is 1, as under a gradient scaler. Of an optimiser that cannot do
that the numbers are waited for, and the step is left out here. The weights that come out are the same either way.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .average import relative_distance
from .checkpoints import Trained, checkpoint_updates
from .config import FinetuneConfig
from .journal import Journal
from .nonfinite import Nonfinite, dump, end_of_run, offenders
from .sampler import Sampler
from .sharding import own_part, whole
from .stopping import StopRequest

INSPECTED = 10
"""At this update the run looks whether its weights move, and every so many how far the average is behind them."""
IMMOBILE = 1e-8
"""A relative change of the weights in one update below which training is most likely in vain."""
LOWEST_SCALE = 2.0**-10
"""Gradients that overflow under a loss scaled down this far are no numbers at any scale."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What one update came to, on its way to the CPU."""

    update: int
    numbers: torch.Tensor
    """Losses in the order of the update's items, one stop request per process, the gradient's norm."""
    arrived: torch.cuda.Event | None
    rates: Mapping[str, float]
    before: Mapping[str, torch.Tensor]
    """The weights before the step, where it is looked at what the step did to them."""

    def read(self) -> list[float]:
        """Wait until the numbers are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        found: list[float] = self.numbers.tolist()
        return found


@dataclass(kw_only=True)
class Steps:
    """The optimiser's steps of one run, and what is known of them."""

    trained: Trained
    optimizer: torch.optim.Optimizer
    """accelerate's wrapper; `trained.optimizer` is the one inside."""
    accelerator: Accelerator
    config: FinetuneConfig
    sampler: Sampler
    journal: Journal
    folder: Path
    request: StopRequest
    nonfinite: Nonfinite = field(default_factory=Nonfinite)
    mean_loss: float | None = None
    """Of the last update that was read; None where it was skipped."""
    _stop_asked: bool = False
    _report: _Report | None = None

    @property
    def stopped(self) -> bool:
        """Whether some process was asked to stop; all processes say the same."""
        return self._stop_asked or (self.accelerator.num_processes == 1 and self.request.asked)

    @property
    def leaves_out_steps(self) -> bool:
        """Whether a step with a bad gradient is left out on the device: by a gradient scaler, or by the optimiser."""
        fused = bool(getattr(self.trained.optimizer, "_step_supports_amp_scaling", False))
        return fused or self.accelerator.scaler is not None

    def finish(self, update: int, losses: Sequence[torch.Tensor]) -> None:
        """Clip and step; what the update came to is known after the next `settle`.

        Args:
            update: its number, from 1; gradients are those of all its micro-batches.
            losses: of each micro-batch of this process, (train_batch_size,), on the device.

        Raises:
            As `settle`, for the update before this one.
        """
        numbers = self._gathered(losses, self._clip())
        self.settle()
        report = self._sent(update, numbers)
        if self.leaves_out_steps:
            self._step(None if self.accelerator.scaler is not None else ~torch.isfinite(numbers).all())
        elif all(map(math.isfinite, report.read())):
            self.optimizer.step()
        self._report = report
        if report.before or not self.leaves_out_steps:
            self.settle()

    def settle(self) -> None:
        """Read what the last update came to: count it, move the average, log; nothing where that was done.

        An update whose loss or gradient is not finite was skipped; that is counted. A gradient that overflowed under
        fp16 is no such case: the scaler left the step out and lowers its scale.

        Raises:
            UserError: too many were skipped in a row.
            RuntimeError: no gradient reaches the weights, or the average does not follow them.
        """
        if self._report is None:
            return
        report, self._report = self._report, None
        count = self.sampler.batch_size
        numbers = report.read()
        losses, requests, norm = numbers[:count], numbers[count:-1], numbers[-1]
        self._stop_asked = self._stop_asked or any(requests)
        self.mean_loss, mean = None, sum(losses) / count
        if not math.isfinite(mean):
            self._skip(report, "loss", losses, None)
            return
        if not math.isfinite(norm) and self._no_search_for_a_scale():
            self._skip(report, "gradient", losses, mean)
            return
        if report.update == 1 and norm == 0.0:
            raise RuntimeError("no gradient reaches the trained weights")
        measured = self._averaged(report, math.isfinite(norm))
        self.nonfinite.took()
        self.mean_loss = mean
        self._log(report, {"loss": mean, "grad_norm": norm if math.isfinite(norm) else None, **measured})

    def _no_search_for_a_scale(self) -> bool:
        """Whether a gradient that is not finite is a fault, and no overflow that a gradient scaler is still to lower."""
        scaler = self.accelerator.scaler
        return scaler is None or scaler.get_scale() < LOWEST_SCALE

    def _clip(self) -> torch.Tensor:
        """Cut the gradient to max_grad_norm; its norm before, which may be infinite or no number."""
        # A list, never an iterator: an iterator would be used up by its first reader and nothing would be clipped.
        weights = list(self.trained.parameters.values())
        return whole(self.accelerator.clip_grad_norm_(weights, self.config.max_grad_norm or math.inf))

    def _gathered(self, losses: Sequence[torch.Tensor], norm: torch.Tensor) -> torch.Tensor:
        """The numbers of a report: all processes' losses in the order of the update's items, requests, norm."""
        own = torch.cat(list(losses)).float()
        request = own.new_full((1,), float(self.request.asked))
        found = self.accelerator.gather(torch.cat([own, request])).reshape(self.accelerator.num_processes, -1)
        shape = (self.accelerator.num_processes, self.config.gradient_accumulation_steps, -1)
        in_order = found[:, :-1].reshape(shape).transpose(0, 1).reshape(-1)
        return torch.cat([in_order, found[:, -1], norm.detach().float().reshape(1)])

    def _sent(self, update: int, numbers: torch.Tensor) -> _Report:
        """The report of an update whose step is about to be made."""
        before = {}
        if self._inspects(update):
            before = {name: own_part(p).to("cpu", copy=True) for name, p in self.trained.parameters.items()}
        arrived = None
        if numbers.device.type == "cuda":
            here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            here.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            here = numbers
        return _Report(update=update, numbers=here, arrived=arrived, rates=self._rates(), before=before)

    def _step(self, left_out: torch.Tensor | None) -> None:
        """Step, unless `left_out` turns out true on the device; None: as a gradient scaler says."""
        if left_out is None:
            self.optimizer.step()
            return
        inner: Any = self.trained.optimizer
        inner.found_inf = left_out.float()
        try:
            self.optimizer.step()
        finally:
            del inner.found_inf

    def _averaged(self, report: _Report, stepped: bool) -> dict[str, float]:
        """Move the average after a step; at every tenth update also measure what was done."""
        parameters, average = self.trained.parameters, self.trained.average
        measured: dict[str, float] = {}
        if average is not None and stepped:
            average.update(report.update)
        if average is not None and report.update % INSPECTED == 0:
            measured |= {"ema_decay": average.decay, "ema_distance": average.distance()}
        if report.before:
            measured["relative_update"] = relative_distance(parameters, report.before)
            self._check_movement(report.update, measured, stepped)
        return measured

    def _inspects(self, update: int) -> bool:
        """Once, when the average has moved at least twice: after its first move it is where the weights are."""
        average = self.trained.average
        moves = 2 * average.every if average is not None else 1
        return update == INSPECTED * -(-max(INSPECTED, moves) // INSPECTED)

    def _check_movement(self, update: int, measured: Mapping[str, float], stepped: bool) -> None:
        moved, average = measured["relative_update"], self.trained.average
        if moved < IMMOBILE and stepped:
            logger.warning("update %d changed the weights by only %.1e of their size", update, moved)
        if moved > 0 and average is not None and average.distance() == 0.0:
            raise RuntimeError("the moving average does not follow the weights")

    def _skip(self, report: _Report, what: str, losses: Sequence[float], mean: float | None) -> None:
        items = self.sampler.items(report.update)
        examples = offenders(items, losses)
        self.nonfinite.skipped(report.update, what, examples)
        self._log(report, {"loss": mean, "grad_norm": None, "skipped": what, "examples": examples})
        if self.nonfinite.in_a_row < self.config.max_nonfinite_steps:
            return
        if self.accelerator.is_main_process:
            dump(self.folder, report.update, what, items, losses, self.config.seed)
        self.accelerator.wait_for_everyone()
        last = max(checkpoint_updates(self.folder), default=None)
        raise end_of_run(self.folder, report.update, what, self.nonfinite.in_a_row, last)

    def _rates(self) -> dict[str, float]:
        first, *others = self.optimizer.param_groups
        rates = {"learning_rate": float(first["lr"])}
        if others:
            rates["text_encoder_lr"] = float(others[0]["lr"])
        return rates

    def _log(self, report: _Report, values: Mapping[str, Any]) -> None:
        """One line of metrics: rates and examples seen beside the values."""
        rates = dict(report.rates)
        if "d" in (first := self.optimizer.param_groups[0]):
            rates["prodigy_d"] = float(first["d"])  # What Prodigy multiplies the rate by; it is never read late.
        seen = report.update * self.sampler.batch_size
        self.journal.log({"update": report.update, **rates, "examples_seen": seen, **values})
