"""What a run will take: memory and disk computed from shapes before it starts, time and peak measured once it runs.

Activations are not guessed: on a GPU the peak after the first update says what they came to. Nor is time: it is the
mean of a few updates of this very run.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ..errors import UserError
from ..tensor_files import Layout, file_bytes, tensor_bytes
from .checkpoints import checkpoint_folder, checkpoint_updates
from .config import FinetuneConfig

MIN_8BIT_SIZE, BLOCK = 4096, 256
"""bitsandbytes keeps the moments of smaller weights in float32; of others one scale for each block of this many."""
LAST_TIMED = 6
"""Updates 2 to 6 of this process give the speed; the first also compiles, allocates and encodes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes in bytes; memory is that of one process."""

    num_parameters: int
    num_trained: int
    num_shards: int
    """Over so many processes the trained network is divided; 1: each process has a whole one."""
    weights: int
    """Of the denoiser and the text encoders, as they are in memory."""
    at_evaluations: int
    """So much more is held while a divided network is evaluated, which is whole then; at most."""
    gradients: int
    optimizer: int
    average: int
    average_on_cpu: bool
    checkpoint: int
    """Its tensor files, to the byte; `state.json` comes to a few KiB more."""
    num_checkpoints: int
    """At most so many are on disk at one time, one of them not yet whole."""
    exports: int
    """At least: the trained weights, and what is copied of the other parts; the autoencoder is not counted."""
    updates: int
    examples_per_update: int
    updates_per_pass: float

    @property
    def disk(self) -> int:
        """What the run needs at its end, with room for the checkpoint that is being written."""
        return self.checkpoint * self.num_checkpoints + self.exports

    @property
    def on_device(self) -> int:
        """What is held all the time on the device that trains, before activations."""
        return self.weights + self.gradients + self.optimizer + (0 if self.average_on_cpu else self.average)


def make_plan(
    parts: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
    config: FinetuneConfig,
    examples_per_update: int,
    updates_per_pass: float,
    num_shards: int = 1,
) -> Plan:
    """Compute the plan of a run; nothing is allocated.

    Args:
        parts: of the learner, after `trainable_parameters` went over them; on any device, `meta` too.
        parameters: what that returned.
        examples_per_update: over all processes and micro-batches.
        updates_per_pass: `Sampler.updates_per_pass`.
        num_shards: over how many processes the first part is divided (`sharding`); memory is that of the largest share.
    """
    held = {id(t): t for part in parts.values() for t in (*part.parameters(), *part.buffers())}
    weights, trained = _bytes(held.values()), _bytes(parameters.values())
    divided = {id(p): p for p in next(iter(parts.values())).parameters()} if num_shards > 1 else {}
    saved = _bytes(divided.values()) - _bytes(_share(p, num_shards) for p in divided.values())
    shares = {name: _share(p, num_shards) for name, p in parameters.items()}
    layout = optimizer_layout(parameters, config)
    shapes: Layout = {name: ("F32", tuple(p.shape)) for name, p in parameters.items()}
    checkpoint = file_bytes(shapes) * (2 if config.use_ema else 1) + file_bytes(layout)
    return Plan(
        num_parameters=sum(t.numel() for part in parts.values() for t in part.parameters()),
        num_trained=sum(p.numel() for p in parameters.values()),
        num_shards=num_shards,
        weights=weights - saved,
        at_evaluations=_bytes(divided.values()),
        gradients=_bytes(shares.values()),
        optimizer=_optimizer_bytes(optimizer_layout(shares, config)),
        average=_bytes(shares.values()) if config.use_ema else 0,
        average_on_cpu=config.ema_device == "cpu",
        checkpoint=checkpoint,
        num_checkpoints=_num_checkpoints(config),
        exports=_export_bytes(weights, trained, config),
        updates=config.max_train_steps,
        examples_per_update=examples_per_update,
        updates_per_pass=updates_per_pass,
    )


def plan_text(plan: Plan, config: FinetuneConfig) -> str:
    """The plan in lines that say what is computed and what remains to be measured."""
    passes = plan.updates / plan.updates_per_pass
    average = ""
    if plan.average:
        average = f", average {size(plan.average)}" + (" in the CPU's memory" if plan.average_on_cpu else "")
    divided = []
    if plan.num_shards > 1:
        divided = [
            f"  memory, computed: divided over {plan.num_shards} processes; at evaluations the network is whole on each "
            f"device, which takes up to {size(plan.at_evaluations)} more"
        ]
    return "\n".join(
        [
            f"plan: {plan.updates} updates of {plan.examples_per_update} examples = "
            f"{plan.updates * plan.examples_per_update} examples, {passes:.3g} passes over the set",
            f"  memory, computed: weights {size(plan.weights)} ({plan.num_parameters:,} parameters, "
            f"{plan.num_trained:,} trained), gradients {size(plan.gradients)}, {config.optimizer} "
            f"{size(plan.optimizer)}{average}; {size(plan.on_device)} on the device of each process",
            *divided,
            "  memory, not computed: activations, an autoencoder; on a GPU the first update measures the peak",
            f"  disk, computed: a checkpoint {size(plan.checkpoint)}, at most {plan.num_checkpoints} at a time, exports "
            f"at least {size(plan.exports)}; {size(plan.disk)} in all",
            f"  time: measured over updates 2 to {LAST_TIMED}",
        ]
    )


def check_disk(plan: Plan, folder: Path) -> None:
    """Raise UserError if the disk of an existing folder has less room than the run still needs."""
    there = sum(
        file.stat().st_size
        for update in checkpoint_updates(folder)
        for file in checkpoint_folder(folder, update).iterdir()
    )
    need, free = plan.disk - there, shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: the run needs {size(need)} of disk (checkpoints of {size(plan.checkpoint)}, at most "
            f"{plan.num_checkpoints} at a time, and exports), and {size(free)} are free; lower "
            "checkpoints_total_limit or choose another output_dir"
        )


def optimizer_layout(parameters: Mapping[str, nn.Parameter], config: FinetuneConfig) -> Layout:
    """The tensors of the optimiser's state after its first step, as a checkpoint names them."""
    layout: Layout = {}
    for name, parameter in parameters.items():
        states = _STATES[config.optimizer](parameter)
        layout |= {f"{kind}/{name}": value for kind, value in states.items()}
    return layout


def size(count: int) -> str:
    """Bytes in words, by powers of 1000."""
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:.{2 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


class Pace:
    """Times the first updates of this process, and says once how long the rest will take."""

    def __init__(self, accelerator: Accelerator, updates: int) -> None:
        """Take what is to be printed with, and the number of updates of the run."""
        self.accelerator = accelerator
        self.updates = updates
        self.seconds: list[float] = []

    @contextmanager
    def timed(self, update: int) -> Iterator[None]:
        """Around one update, without its evaluation and checkpoint."""
        device = self.accelerator.device
        if not self.seconds and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.monotonic()
        yield
        if len(self.seconds) >= LAST_TIMED:
            return
        self.seconds.append(time.monotonic() - started)
        if len(self.seconds) == 1 and device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
            self.accelerator.print(f"measured: GPU memory peaked at {size(peak)} in update {update}")
        if len(self.seconds) == LAST_TIMED and update < self.updates:
            self.accelerator.print(time_text(statistics.mean(self.seconds[1:]), self.updates - update))


def time_text(seconds: float, remaining: int) -> str:
    """How long the remaining updates take at this speed."""
    hours, rest = divmod(round(seconds * remaining), 3600)
    return (
        f"measured: {seconds:.3g} s an update; {remaining} to go take {hours}:{rest // 60:02d}:{rest % 60:02d} (h:mm:ss) "
        "besides evaluations and checkpoints"
    )


def _adamw(parameter: nn.Parameter) -> Layout:
    shape = tuple(parameter.shape)
    return {"step": ("F32", ()), "exp_avg": ("F32", shape), "exp_avg_sq": ("F32", shape)}


def _adamw8bit(parameter: nn.Parameter) -> Layout:
    shape = tuple(parameter.shape)
    if parameter.numel() < MIN_8BIT_SIZE:
        return {"state1": ("F32", shape), "state2": ("F32", shape)}
    blocks = (-(-parameter.numel() // BLOCK),)
    return {
        f"{kind}{number}": value
        for number in (1, 2)
        for kind, value in (("state", ("U8", shape)), ("qmap", ("F32", (256,))), ("absmax", ("F32", blocks)))
    }


def _adafactor(parameter: nn.Parameter) -> Layout:
    shape = tuple(parameter.shape)
    if len(shape) < 2:
        return {"exp_avg_sq": ("F32", shape), "RMS": ("F32", ())}
    return {
        "exp_avg_sq_row": ("F32", shape[:-1]),
        "exp_avg_sq_col": ("F32", shape[:-2] + shape[-1:]),
        "RMS": ("F32", ()),
    }


def _prodigy(parameter: nn.Parameter) -> Layout:
    shape, flat = tuple(parameter.shape), (parameter.numel(),)
    # The start of a weight that starts at zero (as half of LoRA's) is kept as one number.
    start = flat if parameter.is_meta or bool(parameter.detach().any()) else ()
    return {"s": ("F32", flat), "p0": ("F32", start), "exp_avg": ("F32", shape), "exp_avg_sq": ("F32", shape)}


_STATES = {"adamw": _adamw, "adamw8bit": _adamw8bit, "adafactor": _adafactor, "prodigy": _prodigy}


def _share(parameter: nn.Parameter, num_shards: int) -> nn.Parameter:
    """What the first of the processes keeps of a divided weight: some of its rows; nothing is allocated."""
    if num_shards == 1:
        return parameter
    rows, *others = parameter.shape
    shape = (-(-rows // num_shards), *others)
    return nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta"), requires_grad=False)


def _optimizer_bytes(layout: Layout) -> int:
    """In memory; all weights share the two tables of 8-bit values."""
    tables = {name.split("/", 1)[0]: value for name, value in layout.items() if name.startswith("qmap")}
    own = [value for name, value in layout.items() if not name.startswith("qmap")]
    return sum(tensor_bytes(*value) for value in (*own, *tables.values()))


def _bytes(tensors: object) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)  # type: ignore[attr-defined]


def _num_checkpoints(config: FinetuneConfig) -> int:
    evaluations = -(-config.max_train_steps // config.validation_steps) if config.validation_steps else 0
    most = min(-(-config.max_train_steps // config.checkpointing_steps) + evaluations, config.max_train_steps)
    if config.checkpoints_total_limit is None:
        return most
    # The best one beside them, and a new one before the oldest goes.
    return min(most, config.checkpoints_total_limit + (1 if evaluations else 0) + 1)


def _export_bytes(weights: int, trained: int, config: FinetuneConfig) -> int:
    """Of the last weights, and of the best where there are evaluations; adapters are written under two names."""
    each = 2 * trained if config.method == "lora" else weights * (2 if config.save_single_file else 1)
    return each * (2 if config.validation_steps else 1)
