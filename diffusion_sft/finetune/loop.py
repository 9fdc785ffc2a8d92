"""Fine-tuning: draw, loss, backward, clip, step, average, log, evaluate, checkpoint.

Everything random is a function of the seed and the update, so that a run that was killed and resumed is the run that
was not (bit for bit on a CPU). A learner comes in, files go out; the learner itself is used up.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..learner import Learner
from ..locks import locked
from ..processes import from_main
from ..records import identity_seed
from .acceleration import accelerated, arithmetic
from .begin import Task, begin
from .config import FinetuneConfig
from .evaluations import Exam
from .export import finish
from .feeding import Feed
from .hub import push
from .mix import Mix
from .resuming import chosen_update
from .run import Run
from .schedules import learning_rate
from .stopping import stop_on_sigterm
from .summary import finished_summary, keep_settings, run_record


def finetune(learner: Learner, mix: Mix, exam: Exam, config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    """Fine-tune `learner` on `mix` and write everything into `folder`; goes on where an earlier call was stopped.

    Writes `metrics.jsonl`, `evaluations.parquet`, `dynamics.parquet`, `checkpoint-<N>/`, `samples/`, and at the end
    `pipeline/` or `pytorch_lora_weights.safetensors` (the same under `early/` for the early stop), `README.md` and
    `finetune.json`.

    Args:
        learner: the base, on the device to train on; it holds trained weights afterwards (its parts of them, where
            they are sharded).
        mix: what is trained on (`mixes.compose`).
        exam: what is asked at evaluations (`evaluations.make_exam`).
        config: how.
        folder: of this run alone.

    Returns:
        The content of `finetune.json`.

    Raises:
        UserError: another run or another process in the folder, captions that are too long, losses or weights that are
            not finite, a full disk.
        SystemExit: 143 after SIGTERM, with a checkpoint written.
    """
    task = Task(learner=learner, mix=mix, exam=exam, config=config, folder=folder)
    with arithmetic(config), accelerated(learner.device, config, folder) as accelerator, ExitStack() as stack:
        stack.enter_context(locked(folder) if accelerator.is_main_process else nullcontext())
        update = from_main(lambda: chosen_update(folder, config.resume_from_checkpoint))
        record = run_record(learner, mix, exam, config, accelerator)
        summary = from_main(lambda: finished_summary(folder, record))
        if summary is not None:
            accelerator.print(f"{folder}: finished already after {summary['updates']} updates; nothing to do")
            if accelerator.is_main_process:
                keep_settings(folder, config)
                push(folder, config)
            return summary
        run = begin(task, record, accelerator, update)
        try:
            run.resume(update)
            with stop_on_sigterm(run.request), run.feed() as feed:
                update = _train(run, feed, update)
            return finish(run, update)
        finally:
            learner.network = accelerator.unwrap_model(run.wrapped, keep_fp32_wrapper=False).eval()


def _train(run: Run, feed: Feed, update: int) -> int:
    """The loop, from the state after `update` to the last update, whose number is returned."""
    config, steps = run.config, run.steps
    bar = tqdm(total=config.max_train_steps, initial=update, desc=run.mix.name, unit="update", disable=run.quiet)
    if update == 0:
        run.evaluate(0)
    while not run.done(update):
        update += 1
        with run.pace.timed(update):
            make_update(run, feed, update)
        if run.evaluates_at(update):
            steps.settle()
            run.evaluate(update)
        stopped = steps.stopped
        if stopped or run.saves_at(update):
            steps.settle()
            run.save(update)
        if stopped:
            raise SystemExit(128 + signal.SIGTERM)
        bar.update()
        bar.set_postfix(loss="skipped" if steps.mean_loss is None else f"{steps.mean_loss:.4f}")
    bar.close()
    return update


def make_update(run: Run, feed: Feed, update: int) -> None:
    """One update: what it came to is known after `run.steps.settle()`, or when the next one is made."""
    torch.manual_seed(identity_seed(run.config.seed, "dropout", update, run.accelerator.process_index))
    run.set_learning_rate(learning_rate(update, run.config))
    losses = []
    for micro, synchronised in run.draw(feed, update):
        with synchronised:
            loss = run.losses(micro)
            run.accelerator.backward(loss.mean())
        losses.append(loss.detach())
    run.steps.finish(update, losses)
