"""What a run leaves behind: weights that plain diffusers loads, a model card, and a summary."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import read_json, replaced, replaced_folder, write_json, write_text
from ..learner import Learner
from ..settings import settings_yaml
from .average import lent
from .checkpoints import evaluated_weights
from .config import FinetuneConfig
from .evaluations import early_stop_update
from .run import Run
from .summary import SUMMARY, run_environment

LORA_FILE = "pytorch_lora_weights.safetensors"
PIPELINE_FOLDER = "pipeline"


def finish(run: Run, update: int) -> dict[str, Any]:
    """Export the last and the best weights, and write the model card and, at the very end, the summary."""
    if run.accelerator.is_main_process:
        summary = _summary(run, update)
        summary["exports"] = _exports(run, update, summary["early_stop_update"])
        write_model_card(run, summary)
        write_json(run.folder / SUMMARY, summary)
    run.accelerator.wait_for_everyone()
    final: dict[str, Any] = read_json(run.folder / SUMMARY)
    return final


def export_weights(learner: Learner, config: FinetuneConfig, folder: Path) -> Path:
    """Write the learner's present weights into `folder`; returns the pipeline folder or the LoRA file."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.method == "full":
        with replaced_folder(folder / PIPELINE_FOLDER) as target:
            learner.save(target)
        return folder / PIPELINE_FOLDER
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as saved, replaced(folder / LORA_FILE) as target:
        learner.save(Path(saved))
        os.replace(Path(saved) / LORA_FILE, target)
    return folder / LORA_FILE


def write_model_card(run: Run, summary: dict[str, Any]) -> None:
    """Write README.md: what the weights are, what they were trained on and for how long, and how to load them."""
    mix, config = run.mix, run.config
    source = str(summary["identity"].get("source", "the base"))
    concepts = "\n".join(_concepts_row(category, names) for category, names in mix.concepts.items())
    what = "LoRA adapters on the attention projections" if config.method == "lora" else "All weights of the network"
    averaged = f", averaged over {config.ema_horizon} updates" if config.use_ema else ""
    text = f"""---
library_name: diffusers
base_model: {json.dumps(source)}
tags: [text-to-image, {"lora" if config.method == "lora" else "full-fine-tune"}]
---

# {source}, fine-tuned on the mix `{mix.name}`

{what} after {summary["updates"]} updates of {summary["examples_per_update"]} examples
(stopped by the {summary["stopping_reason"]} rule){averaged}.

- every trained example that was asked was fitted: {_at(summary["converged_update"])}
- held-out answers were best: {_at(summary["early_stop_update"])}

| category | concepts | names |
|---|---|---|
{concepts}

{len(mix.examples)} training examples in all. Categories say what the base knew before: HighlyKnown, MaybeKnown,
WeaklyKnown, Unknown (Gekhman et al., 2024); `all` means that nobody asked.

```python
{_loading_code(source, config)}
```

`evaluations.parquet` has what the network knew along the way, `finetune.json` the summary. Settings:

```yaml
{settings_yaml(config).rstrip()}
```
"""
    write_text(run.folder / "README.md", text)


def _exports(run: Run, update: int, early: int | None) -> dict[str, str]:
    """Paths of the exported weights in the run's folder: of the last update, and of the early stop where known."""
    with run.exported_weights():
        last = export_weights(run.learner, run.config, run.folder)
    exports = {"last": last.relative_to(run.folder).as_posix()}
    if early == update:
        return exports | {"early": exports["last"]}
    if early is not None:
        with lent(run.trained.parameters, evaluated_weights(run.folder, early, run.trained)):
            best = export_weights(run.learner, run.config, run.folder / "early")
        exports["early"] = best.relative_to(run.folder).as_posix()
    return exports


def _summary(run: Run, update: int) -> dict[str, Any]:
    converged = run.converged()
    fitted = run.config.stopping == "convergence" and converged is not None
    return {
        "mix": run.mix.name,
        "method": run.config.method,
        "stopping_reason": "convergence" if fitted else "budget",
        "updates": update,
        "converged_update": converged,
        "early_stop_update": early_stop_update(run.journal.evaluations),
        "examples_per_update": run.sampler.batch_size,
        "num_examples": len(run.mix.examples),
        "concepts": {category: list(names) for category, names in run.mix.concepts.items()},
        "seconds": round(run.elapsed_seconds(), 2),
        "identity": dict(run.identity),
        "environment": run_environment(run.accelerator.device),
        "record": dict(run.record),
    }


def _concepts_row(category: str, names: Sequence[str]) -> str:
    return f"| {category} | {len(names)} | {', '.join(names[:12])}{', ...' if len(names) > 12 else ''} |"


def _at(update: int | None) -> str:
    return "not seen" if update is None else f"at update {update}"


def _loading_code(source: str, config: FinetuneConfig) -> str:
    if config.method == "full":
        return f'pipeline = StableDiffusionPipeline.from_pretrained("{PIPELINE_FOLDER}", safety_checker=None)'
    return (
        f"pipeline = StableDiffusionPipeline.from_pretrained({json.dumps(source)}, safety_checker=None)\n"
        f'pipeline.load_lora_weights(".", weight_name="{LORA_FILE}")'
    )
