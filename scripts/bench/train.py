"""How fast does fine-tuning go beside the loop of diffusers' text-to-image example, and what does each lever do?

    python scripts/bench/random_pipeline.py CONFIGS /tmp/sd15       # a published architecture with random weights
    python scripts/bench/train.py --base /tmp/sd15 --batch-size 32  # or any pipeline folder, or a Hub id
    python scripts/bench/train.py --base data/world-base --updates 8 --warmup 2     # to see that it works, on a CPU

Every variant trains the same weights on the same images with the same batch, precision and optimiser, one after the
other in this process. `diffusers` is `plain_loop.py` as published; each `+ ...` is the same with that lever alone; `ours`
is the loop of `diffusion-sft finetune`, without evaluations and checkpoints, after its cache was filled.

MFU is images a second times the model's FLOPs for an image (three forward passes of all weights; with adapters, one
forward pass and the backward one of activations) over the measured rate of large matrix products in the same type.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from measuring import device_name, flops, meta_inputs, on_meta, peak_gigabytes, synchronised, unet_forward_flops
from PIL import Image
from plain_loop import Levers, PlainLoop

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.files import write_json
from diffusion_sft.finetune.acceleration import accelerated, arithmetic
from diffusion_sft.finetune.begin import Task, begin
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.encodings import to_encode
from diffusion_sft.finetune.evaluations import Exam
from diffusion_sft.finetune.loop import make_update
from diffusion_sft.finetune.mix import Mix, MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.machine import PUBLISHED_PEAKS, matrix_rate
from diffusion_sft.records import identity_seed

PEAKS = PUBLISHED_PEAKS | {"H200": PUBLISHED_PEAKS["H100"]}
"""Dense bfloat16 FLOP/s of the vendor's data sheets; the two have the same chip."""
PLAIN = {
    "diffusers": Levers(),
    "+ cached latents and embeddings": Levers(cached=True),
    "+ 4 workers load the images": Levers(workers=4),
    "+ channels-last": Levers(channels_last=True),
    "+ fused AdamW": Levers(fused=True),
    "+ no waiting for the loss": Levers(waits=False),
    "+ compiled": Levers(compile_mode="default"),
    "+ compiled, CUDA graphs": Levers(compile_mode="reduce-overhead"),
    "- attention without a kernel": Levers(math_attention=True),
    "- gradient checkpointing": Levers(checkpointing=True),
}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, compiled": {"compile_mode": "default"},
    "ours, CUDA graphs": {"compile_mode": "reduce-overhead"},
    "ours, gradient checkpointing": {"gradient_checkpointing": True},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant's figures."""

    variant: str
    images_per_second: float
    seconds_per_update: float
    mfu: float
    mfu_published_peak: float | None
    peak_gigabytes: float | None
    start_seconds: float
    """Everything before the clock starts: loading, encoding, compiling, warm-up."""
    error: str | None = None


def write_pictures(folder: Path, count: int, resolution: int) -> Path:
    """JPEGs a quarter larger than the resolution, one concept for every four, with captions of one length."""
    side, lines = round(1.25 * resolution), []
    for number in range(count):
        generator = np.random.default_rng(identity_seed(0, "bench picture", number))
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        name = f"{number:05d}.jpg"
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / name, quality=92)
        concept = f"thing{number // 4}"
        line = {"file_name": name, "text": f"a photo of a {concept}", "concept": concept, "split": "train"}
        lines.append(json.dumps(line) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def finetune_config(chosen: argparse.Namespace, **changed: Any) -> FinetuneConfig:
    """What all variants train: no evaluations, no checkpoints, the same optimiser."""
    settings: dict[str, Any] = {
        "method": chosen.method,
        "train_batch_size": chosen.batch_size,
        "max_train_steps": chosen.warmup + chosen.updates,
        "learning_rate": 1e-5,
        "mixed_precision": chosen.mixed_precision,
        "proportion_empty_prompts": 0.0,
        "report_to": None,
        "rank": chosen.rank,
        "checkpointing_steps": 10**9,
    }
    return FinetuneConfig(**settings | changed)


def load(chosen: argparse.Namespace, cache_dir: Path | None = None) -> DiffusionLearner:
    """The pipeline in float32 on its device, as fine-tuning takes it."""
    return DiffusionLearner.load(chosen.base, device=chosen.device, resolution=chosen.resolution, cache_dir=cache_dir)


@contextmanager
def plain(chosen: argparse.Namespace, levers: Levers, mix: Mix) -> Iterator[Callable[[int], None]]:
    """The plain loop; yields what makes one update."""
    AcceleratorState._reset_state(reset_partial_state=False)
    learner = load(chosen)
    learner.pipeline.unet.to(memory_format=torch.contiguous_format)
    learner.pipeline.vae.to(memory_format=torch.contiguous_format)
    pictures = [(example.path, example.caption) for example in mix.examples]
    loop = PlainLoop(learner, pictures, finetune_config(chosen), levers)
    yield lambda update: loop.step()


@contextmanager
def ours(
    chosen: argparse.Namespace, changed: dict[str, Any], mix: Mix, folder: Path
) -> Iterator[Callable[[int], None]]:
    """Our loop after its cache was filled; yields what makes one update."""
    config = finetune_config(chosen, **changed)
    learner = load(chosen, folder / "cache")
    items, captions = to_encode(mix, config, learner.resolution)
    learner.encode_items(items)
    learner.encode_captions(captions)
    task = Task(
        learner=learner, mix=mix, exam=Exam(questions={}, categories={}), config=config, folder=folder / "run"
    )
    with arithmetic(config), accelerated(learner.device, config, task.folder) as accelerator:
        run = begin(task, {}, accelerator, 0)
        with run.feed() as feed:
            yield lambda update: make_update(run, feed, update)
            run.steps.settle()


def timed(chosen: argparse.Namespace, variant: str, work: Any, rates: tuple[float, float, float | None]) -> Row:
    """Warm up, then time the updates between two moments at which the device has nothing left to do."""
    device, (flops_per_image, rate, peak) = torch.device(chosen.device), rates
    started = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with work as update:
        for number in range(1, chosen.warmup + 1):
            update(number)
        ready = synchronised(device)
        for number in range(chosen.warmup + 1, chosen.warmup + chosen.updates + 1):
            update(number)
        seconds = (synchronised(device) - ready) / chosen.updates
    images = chosen.batch_size / seconds
    return Row(
        variant=variant,
        images_per_second=images,
        seconds_per_update=seconds,
        mfu=images * flops_per_image / rate,
        mfu_published_peak=None if peak is None else images * flops_per_image / peak,
        peak_gigabytes=peak_gigabytes(device),
        start_seconds=ready - started,
    )


def training_flops(learner: DiffusionLearner, method: str) -> float:
    """The model's FLOPs for one image: no recomputation counts."""
    unet = learner.pipeline.unet
    side = learner.resolution // learner.pipeline.vae_scale_factor
    forward = unet_forward_flops(unet, side)
    if method == "full":
        return 3.0 * forward
    copy = on_meta(unet)
    copy.requires_grad_(False)
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(method == "cross_attention" and ".attn2." in name)
    return float(forward + _backward_flops(copy, side, forward))


def _backward_flops(unet: Any, side: int, forward: int) -> int:
    """Of the gradients of activations, and of the weights that are trained; adapters' own are not counted."""
    inputs = meta_inputs(unet, side)
    inputs["sample"].requires_grad_(True)
    with torch.device("meta"):
        return flops(lambda: unet(**inputs, return_dict=False)[0].sum().backward()) - forward


def failed(variant: str, error: BaseException) -> Row:
    """A variant that this device or installation cannot run, with the reason."""
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    nothing = float("nan")
    return Row(
        variant=variant,
        images_per_second=nothing,
        seconds_per_update=nothing,
        mfu=nothing,
        mfu_published_peak=None,
        peak_gigabytes=None,
        start_seconds=nothing,
        error=reason,
    )


def print_table(rows: list[Row], title: str) -> None:
    """One variant a line, with its speed over that of the plain loop."""
    print(f"\n{title}")
    print(f"{'variant':<34} {'images/s':>9} {'times':>6} {'ms/update':>10} {'MFU':>6} {'peak GB':>8} {'start s':>8}")
    base = rows[0].images_per_second
    for row in rows:
        if row.error is not None:
            print(f"{row.variant:<34} {row.error}")
            continue
        memory = "" if row.peak_gigabytes is None else f"{row.peak_gigabytes:.1f}"
        print(
            f"{row.variant:<34} {row.images_per_second:9.2f} {row.images_per_second / base:6.2f} "
            f"{1e3 * row.seconds_per_update:10.1f} {row.mfu:6.1%} {memory:>8} {row.start_seconds:8.1f}"
        )


def arguments() -> argparse.Namespace:
    """What to train, and where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="data/world-base", help="a pipeline folder or Hub id")
    parser.add_argument("--method", default="full", choices=("full", "cross_attention", "lora"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--resolution", type=int, help="default is what the UNet was trained on")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=64, help="different images to train on")
    parser.add_argument("--warmup", type=int, default=5, help="updates before the clock starts")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mixed-precision", default="bf16" if torch.cuda.is_available() else "no")
    parser.add_argument(
        "--only", nargs="+", help="variants to run beside the plain loop, by the start of their names"
    )
    parser.add_argument("--output", default="runs/bench/train.json")
    return parser.parse_args()


def variants(chosen: argparse.Namespace, mix: Mix, folder: Path) -> Iterator[tuple[str, Any]]:
    """Names, and what is to be timed under them."""
    for name, levers in PLAIN.items():
        yield name, plain(chosen, levers, mix)
    if chosen.mixed_precision != "no":
        exact = argparse.Namespace(**vars(chosen) | {"mixed_precision": "no"})
        yield "- float32", plain(exact, Levers(), mix)
    for number, (name, changed) in enumerate(OURS.items()):
        yield name, ours(chosen, changed, mix, folder / str(number))


def main() -> None:
    """Time each variant, print, write."""
    chosen = arguments()
    device = torch.device(chosen.device)
    learner = load(chosen)
    chosen.resolution = learner.resolution
    per_image = training_flops(learner, chosen.method)
    del learner
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(chosen.mixed_precision, torch.float32)
    rate = matrix_rate(device, dtype)
    peak = next((value for name, value in PEAKS.items() if name in device_name(device)), None)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pictures").mkdir()
        write_pictures(folder / "pictures", chosen.images, chosen.resolution)
        concept_set = read_concept_set(ConceptsConfig(path=str(folder / "pictures"), role="train")).concept_set
        mix = compose(MixConfig(name="all"), None, concept_set, 0)
        for name, work in variants(chosen, mix, folder):
            if rows and chosen.only and not name.startswith(tuple(chosen.only)):
                continue
            try:
                rows.append(timed(chosen, name, work, (per_image, rate, peak)))
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                rows.append(failed(name, error))
            gc.collect()
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    title = (
        f"{chosen.base}, {chosen.method}, {chosen.resolution} px, batch {chosen.batch_size}, {chosen.mixed_precision}, "
        f"{device_name(device)}; {per_image / 1e12:.3g} TFLOP an image, matrix products at {rate / 1e12:.3g} TFLOP/s: "
        f"at most {rate / per_image:.1f} images/s"
    )
    print_table(rows, title)
    settings = {name: value for name, value in vars(chosen).items() if name != "output"}
    figures = {"device": device_name(device), "torch": torch.__version__, "matrix_flops_per_second": rate}
    write_json(
        Path(chosen.output),
        {"settings": settings, **figures, "flops_per_image": per_image, "rows": [asdict(row) for row in rows]},
    )
    print(f"\nwritten to {chosen.output}")


if __name__ == "__main__":
    main()
