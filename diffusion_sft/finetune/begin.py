"""Everything that happens before the first update: refuse what cannot be done, and put the run in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import UserError
from ..learner import Learner
from ..records import REGULARISATION, Example
from .acceleration import start_trackers
from .aspect import example_sizes
from .average import AveragedWeights
from .captions import possible_captions
from .checkpoints import Trained, checkpoint_state, foreign_folders
from .config import FinetuneConfig
from .estimate import Pace, check_disk, make_plan, plan_text
from .evaluations import Exam
from .hub import check_hub
from .journal import Journal
from .mix import Mix
from .optimizers import make_optimizer
from .parts import trainable_parameters
from .prior import class_images
from .resuming import check_same_run
from .run import Run
from .sampler import Sampler
from .sharding import shard, sharding_asked


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run is asked for."""

    learner: Learner
    mix: Mix
    exam: Exam
    config: FinetuneConfig
    folder: Path


def begin(task: Task, record: Mapping[str, Any], accelerator: Accelerator, after: int) -> Run:
    """Draw class images, make the learner's network trainable, and put everything in place.

    Args:
        after: the update that the run goes on from, 0 for a new one.

    Raises:
        UserError: the folder is another run's, captions are too long, the disk is too small, or settings ask for what
            this base or machine does not have.
    """
    learner, config, folder = task.learner, task.config, task.folder
    _check(task, record, after)
    accelerator.wait_for_everyone()
    folder.mkdir(parents=True, exist_ok=True)
    identity = learner.identity()
    sizes = example_sizes(task.mix.lessons, config, learner.resolution)
    mix = replace(task.mix, regularisation=class_images(learner, task.mix, config, folder, accelerator))
    network, parts = learner.network, learner.parts()
    parameters = trainable_parameters(parts, config, learner.layout.default_targets)
    sampler = Sampler.of(mix, config, accelerator.num_processes, sizes)
    num_shards = accelerator.num_processes if sharding_asked() else 1
    plan = make_plan(parts, parameters, config, sampler.batch_size, sampler.updates_per_pass, num_shards)
    if accelerator.is_main_process:
        check_disk(plan, folder)
        accelerator.print(plan_text(plan, config))
    if num_shards > 1:
        wrapped = accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)  # autocast alone
        parameters = shard(parts, parameters, accelerator.mixed_precision)
    else:
        wrapped = accelerator.prepare_model(network)
    if config.compile_mode is not None:
        next(iter(parts.values())).compile(mode=config.compile_mode)
    optimizer = make_optimizer(parameters, config)
    prepared = accelerator.prepare_optimizer(optimizer)
    start_trackers(accelerator, config, folder, after)
    wrapped.train()
    learner.network = wrapped
    average = _average(parameters, config)
    return Run(
        learner=learner,
        mix=mix,
        exam=task.exam,
        config=config,
        folder=folder,
        record=record,
        identity=identity,
        accelerator=accelerator,
        network=network,
        wrapped=wrapped,
        optimizer=prepared,
        trained=Trained(parameters=parameters, optimizer=optimizer, average=average, scaler=accelerator.scaler),
        sampler=sampler,
        journal=Journal(folder, accelerator),
        pace=Pace(accelerator, config.max_train_steps),
    )


def dry_plan(learner: Learner, mix: Mix, config: FinetuneConfig, num_processes: int = 1) -> str:
    """The plan of a run that is not begun (`--dry-run`); nothing is drawn, encoded or written.

    Args:
        learner: the base, on any device; its parameters are those of the method afterwards, so that it is used up.

    Raises:
        UserError: as a run would.
    """
    learner.check_captions(possible_captions(mix, config))
    _check_replay(mix, config)
    if config.class_prompt is not None and not mix.regularisation:
        # One that is still to be drawn makes a pass as long as all of them do.
        prompt = config.class_prompt
        drawn = Example(id=prompt, concept=prompt, caption=prompt, path=Path(), split=REGULARISATION)
        mix = replace(mix, regularisation=(drawn,))
    parts = learner.parts()
    parameters = trainable_parameters(parts, config, learner.layout.default_targets)
    sampler = Sampler.of(mix, config, num_processes, example_sizes(mix.lessons, config, learner.resolution))
    num_shards = num_processes if sharding_asked(num_processes) else 1
    plan = make_plan(parts, parameters, config, sampler.batch_size, sampler.updates_per_pass, num_shards)
    return plan_text(plan, config)


def _check(task: Task, record: Mapping[str, Any], after: int) -> None:
    """What every process sees alike, before any of them writes."""
    folder, config = task.folder, task.config
    check_hub(config)
    prompts = [*config.validation_prompts, *([config.class_prompt] if config.class_prompt else [])]
    task.learner.check_captions([*possible_captions(task.mix, config), *prompts])
    _check_replay(task.mix, config)
    if config.use_ema and config.ema_update_every > config.max_train_steps:
        raise UserError(
            f"ema_update_every ({config.ema_update_every}) is above max_train_steps ({config.max_train_steps}): the "
            "average would never move"
        )
    for foreign in foreign_folders(folder):
        raise UserError(
            f"{foreign}: is no whole checkpoint of this program; move it away or choose another output_dir"
        )
    if after > 0:
        check_same_run(checkpoint_state(folder, after)["record"], record, folder)


def _check_replay(mix: Mix, config: FinetuneConfig) -> None:
    if mix.replay and config.stopping == "convergence":
        raise UserError(
            f"mix {mix.name}: replay_share is of the last updates, and with stopping=convergence nobody knows which they "
            "are; set finetune.stopping=budget"
        )


def _average(parameters: Mapping[str, torch.nn.Parameter], config: FinetuneConfig) -> AveragedWeights | None:
    if not config.use_ema:
        return None
    device = torch.device("cpu") if config.ema_device == "cpu" else None
    return AveragedWeights(parameters, horizon=config.ema_horizon, every=config.ema_update_every, device=device)
