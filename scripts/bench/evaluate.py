"""How many pictures a second are drawn and looked at, and what holds them up?

    python scripts/bench/evaluate.py                                   # shipped base, embedded world, random Inception
    python scripts/bench/evaluate.py --extractor readout --weights data/world-readout
    python scripts/bench/evaluate.py --base FOLDER --concepts FOLDER --device cuda --dtype bfloat16 \
        --extractor inception --weights inception-2015-12-05.pt --num-concepts 32 --images-per-concept 16

The same pictures (prompts, start noises, batches, steps) go four ways, one after the other in one process:

    plain      diffusers' pipeline call for each batch, `image.save`, and clean-fid's loop over the folder (its data
               loader, its resize, the network); the whole pipeline in --dtype, as `from_pretrained` loads it
    folder     ours, looked at when all are drawn: every file read again
    in flight  ours, looked at while they are drawn, the files kept
    no files   the same with keep_images=false

`network` is the denoising, `decode` the VAE, `write` what the device waits for on behalf of files, `features` looking
and, of the folder ways, reading. `floor` is the time that the network's, the VAE's and the extractor's operations
take at the measured rate of large matrix products (for float32 parts the rate that convolutions get, TF32 where it is
allowed). Fréchet distances are to the same real pictures, by our arithmetic for all; `plain` also differs in the VAE's
precision. Without weights, torchvision's inception_v3 with random weights stands in: its distances mean nothing,
their differences and times do.

Parallel solvers are not among the ways: they lower the latency of one picture by spending evaluations that an idle
device gives away. 100 DDIM steps take Picard and Anderson 13 to 28 rounds of 4.6 to 15 times the evaluations, and
Parareal 3.4 to 4.4 times (`samplers.py`, docs/benchmarks.md). On an H100 a row of Stable Diffusion 1.5's UNet costs
28 ms alone and 2.9 ms in a batch of 100, be the rows one picture's steps or as many pictures: a batch that fills the
device has nothing to give away, and a solver would draw a 5th to a 15th of the pictures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from cleanfid.fid import get_files_features
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import make_resizer
from diffusers import DiffusionPipeline
from measuring import device_name, flops, peak_gigabytes, synchronised, unet_forward_flops
from torch import nn

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.evaluate import (
    EvaluateConfig,
    Extractor,
    GeneratedImage,
    Instruments,
    Looking,
    build_extractor,
    generate_images,
    read_generated,
)
from diffusion_sft.evaluate.cache import FeatureCache
from diffusion_sft.files import write_json
from diffusion_sft.learner import Cue
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.machine import matrix_rate
from diffusion_sft.numerics.frechet import frechet_distance
from diffusion_sft.records import HELDOUT, REFERENCE, ConceptSet
from diffusion_sft.world.population import WorldConfig
from diffusion_sft.world.readout import Readout
from diffusion_sft.world.write import write_world

STAND_IN = "inception_v3"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way: seconds by phase, pictures a second, and what came out."""

    way: str
    num_images: int
    network_seconds: float
    decode_seconds: float
    write_seconds: float
    features_seconds: float
    total_seconds: float
    images_per_second: float
    frechet_distance: float
    peak_gigabytes: float | None


@dataclass
class Watch:
    """Seconds that a function took, of the device's time where it has one."""

    device: torch.device

    def __post_init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def over(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched; the device is not made to wait."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            started, ended = time.perf_counter(), None
            if self.device.type == "cuda":
                ended = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
                ended[0].record()
            result = function(*args, **kwargs)
            if ended is None:
                self._seconds += time.perf_counter() - started
            else:
                ended[1].record()
                self._events.append(ended)
            return result

        return watched

    @property
    def seconds(self) -> float:
        """In all."""
        synchronised(self.device)
        return self._seconds + sum(first.elapsed_time(last) for first, last in self._events) / 1000


class Bench:
    """What all ways share: pictures to draw, a learner, an extractor and real pictures."""

    def __init__(self, chosen: argparse.Namespace, folder: Path) -> None:
        self.chosen, self.folder = chosen, folder
        self.device, self.dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
        self.concept_set = read_concepts(chosen, folder / "world")
        probed = {example.concept for example in self.concept_set.split(HELDOUT)}
        self.names = [c.name for c in self.concept_set.concepts if c.name in probed][: chosen.num_concepts]
        self.config = EvaluateConfig(
            num_images_per_concept=chosen.images_per_concept,
            num_inference_steps=chosen.num_inference_steps,
            guidance_scale=chosen.guidance_scale,
            batch_size=chosen.batch_size,
            extractor=chosen.extractor,
            weights=chosen.weights or str(random_weights(folder)),
            torchvision_model=STAND_IN if chosen.extractor == "torchvision" else None,
        )
        self.learner = DiffusionLearner.load(chosen.base, device=self.device, dtype=self.dtype)
        self.extractor = build_extractor(self.config, self.device)
        self.size = (self.learner.resolution, self.learner.resolution)
        split = self.concept_set.split(REFERENCE) or self.concept_set.split(HELDOUT)
        self.real_files = [e.path for e in split if e.concept in self.names]
        self.real = self.cache("real", self.extractor).features(self.real_files)

    @property
    def num_images(self) -> int:
        """Of each way."""
        return len(self.names) * self.config.num_images_per_concept

    def cache(self, name: str, extractor: Extractor) -> FeatureCache:
        """An empty cache of features."""
        return FeatureCache(self.folder / name / "features", extractor, self.size, self.config.batch_size)

    def ours(self, way: str, *, in_flight: bool, keep_images: bool = True) -> Row:
        """Draw and look, at once or one after the other."""
        drawing, decoding, looking_at = Watch(torch.device("cpu")), Watch(self.device), Watch(torch.device("cpu"))
        extractor = replace(self.extractor, function=looking_at.over(self.extractor.function))
        config, folder = replace(self.config, keep_images=keep_images), self.folder / way
        looking = Looking(Instruments(extractor=extractor), folder / "features", config.batch_size)
        with patched(self.learner, "generate", drawing), patched(self.learner.pipeline.vae, "decode", decoding):
            started = fresh_start(self.device)
            images = generate_images(
                self.learner, self.concept_set, self.names, config, folder, looking if in_flight else None
            )
            drawn = synchronised(self.device)
            features = self.cache(way, extractor).generated_features(images)
            ended = synchronised(self.device)
        looked = looking_at.seconds if in_flight else ended - drawn
        total, network = ended - started, drawing.seconds - decoding.seconds
        phases = {"network": network, "decode": decoding.seconds, "features": looked}
        phases["write"] = total - sum(phases.values())
        return self.row(way, phases, frechet_distance(self.real, features))

    def plain(self, plans: Sequence[GeneratedImage]) -> Row:
        """Diffusers and clean-fid, by their own calls, for the prompts and seeds of ours."""
        options = {} if "XL" in type(self.learner.pipeline).__name__ else {"safety_checker": None}
        pipeline = DiffusionPipeline.from_pretrained(self.chosen.base, dtype=self.dtype, **options)
        pipeline.to(self.device).set_progress_bar_config(disable=True)
        network, resize = rival_network(self.config, self.device)
        folder = self.folder / "plain"
        folder.mkdir()
        call = {
            "num_inference_steps": self.config.num_inference_steps,
            "guidance_scale": self.config.guidance_scale,
            "height": self.size[0],
            "width": self.size[1],
        }
        pipeline([""] * self.warm_up_images, **(call | {"num_inference_steps": 2}))
        decoding, files = Watch(self.device), []
        phases = {"network": 0.0, "write": 0.0}
        with patched(pipeline.vae, "decode", decoding):
            begun = started = fresh_start(self.device)
            for start in range(0, len(plans), self.config.batch_size):
                batch = plans[start : start + self.config.batch_size]
                generators = [torch.Generator("cpu").manual_seed(plan.seed) for plan in batch]
                images = pipeline([plan.prompt for plan in batch], generator=generators, **call).images
                drawn = synchronised(self.device)
                for image in images:
                    files.append(folder / f"{len(files):05d}.png")
                    image.save(files[-1])
                phases["network"] += drawn - started
                started = time.perf_counter()
                phases["write"] += started - drawn
            features = self.clean_fids(files, network, resize)
            phases["features"] = synchronised(self.device) - started
        phases |= {"decode": decoding.seconds, "network": phases["network"] - decoding.seconds}
        assert sum(phases.values()) <= time.perf_counter() - begun
        real = self.clean_fids(self.real_files, network, resize)
        return self.row("plain", phases, frechet_distance(real, features))

    def clean_fids(self, files: Sequence[Path], network: nn.Module, resize: Callable[..., Any]) -> np.ndarray:
        """Clean-fid's loop over files."""
        return np.asarray(
            get_files_features(
                files,
                network,
                num_workers=self.chosen.num_workers,
                batch_size=self.config.batch_size,
                device=self.device,
                custom_fn_resize=resize,
                verbose=False,
            )
        )

    def row(self, way: str, phases: dict[str, float], distance: float) -> Row:
        """The figures of one way."""
        total = sum(phases.values())
        return Row(
            way=way,
            num_images=self.num_images,
            **{f"{name}_seconds": seconds for name, seconds in phases.items()},
            total_seconds=total,
            images_per_second=self.num_images / total,
            frechet_distance=distance,
            peak_gigabytes=peak_gigabytes(self.device),
        )

    def floor(self) -> dict[str, float]:
        """TFLOP of one picture by part, the rates of the device, and the seconds that they come to."""
        evaluations = self.evaluations_per_image()
        vae, latent = self.learner.pipeline.vae, self.size[0] // self.learner.pipeline.vae_scale_factor
        with torch.device("meta"):
            copy = type(vae).from_config(vae.config)
            latents = torch.empty(1, vae.config.latent_channels, latent, latent)
        picture = np.zeros((*self.size, 3), dtype=np.uint8)
        network = evaluations * unet_forward_flops(self.learner.pipeline.unet, latent)
        decode, look = flops(lambda: copy.decode(latents)), flops(lambda: self.extractor([picture]))
        rate, wide = matrix_rate(self.device, self.dtype), float32_rate(self.device)
        return {
            "evaluations_per_image": evaluations,
            "network_tflop": network / 1e12,
            "decode_tflop": decode / 1e12,
            "features_tflop": look / 1e12,
            "matrix_tflop_per_second": rate / 1e12,
            "float32_tflop_per_second": wide / 1e12,
            "network_seconds": self.num_images * network / rate,
            "decode_seconds": self.num_images * decode / wide,
            "features_seconds": self.num_images * look / wide,
            "total_seconds": self.num_images * (network / rate + (decode + look) / wide),
        }

    def evaluations_per_image(self) -> float:
        """Rows that the UNet is given for one picture, both sides of guidance; some schedulers add a step. What is
        drawn for it also warms the device up."""
        rows: list[int] = []
        unet = self.learner.pipeline.unet
        hook = unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
        cues = [Cue(prompt="", seed=seed) for seed in range(self.warm_up_images)]
        self.learner.generate(
            cues,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            batch_size=len(cues),
        )
        hook.remove()
        return sum(rows) / len(cues)

    @property
    def warm_up_images(self) -> int:
        """A GPU chooses its kernels at the first batch of a shape."""
        return self.config.batch_size if self.device.type == "cuda" else 1


class patched:
    """A method of one object, watched for a while."""

    def __init__(self, owner: Any, name: str, watch: Watch) -> None:
        self._owner, self._name, self._watch = owner, name, watch

    def __enter__(self) -> None:
        setattr(self._owner, self._name, self._watch.over(getattr(self._owner, self._name)))

    def __exit__(self, *_: object) -> None:
        delattr(self._owner, self._name)


def fresh_start(device: torch.device) -> float:
    """The time, once memory is counted anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return synchronised(device)


def float32_rate(device: torch.device) -> float:
    """FLOP/s of float32 products in the arithmetic that float32 convolutions get on this device."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    rate = matrix_rate(device, torch.float32)
    torch.set_float32_matmul_precision(before)
    return rate


def random_weights(folder: Path) -> Path:
    """A state dict of the stand-in, whose features keep the scale of its input."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = torchvision.models.get_model(STAND_IN, weights=None, init_weights=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # so that features neither vanish nor explode over 94 layers
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    file = folder / f"{STAND_IN}.pth"
    torch.save(network.state_dict(), file)
    return file


def rival_network(config: EvaluateConfig, device: torch.device) -> tuple[nn.Module, Callable[..., Any]]:
    """The extractor's network as clean-fid calls it, on pictures in 0..255, and clean-fid's resize to its size."""
    assert config.weights is not None
    if config.extractor == "inception":
        given = Path(config.weights)
        folder = given if given.is_dir() else given.parent
        network, size = InceptionV3W(str(folder), download=False).to(device).eval(), 299
        return network, make_resizer("PIL", False, "bicubic", (size, size))
    if config.extractor == "readout":
        readout = Readout.load(Path(config.weights), device)
        size = readout.resolution
        return _ReadoutFeatures(readout), make_resizer("PIL", False, "bicubic", (size, size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = torchvision.models.get_model(STAND_IN, weights=None, init_weights=False)
    inner.load_state_dict(torch.load(config.weights, weights_only=True))
    inner.fc = nn.Identity()
    preset = torchvision.models.get_model_weights(STAND_IN).DEFAULT.transforms()
    network = _Normalised(inner, preset.mean, preset.std).to(device).eval()
    return network, make_resizer("PIL", False, "bicubic", (preset.crop_size[0], preset.crop_size[0]))


class _Normalised(nn.Module):
    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of pictures in 0..255, (n, 3, side, side)."""
        return self.network((pictures / 255 - self.mean) / self.std)  # type: ignore[no-any-return]


class _ReadoutFeatures(nn.Module):
    def __init__(self, readout: Readout) -> None:
        super().__init__()
        self.network, self.scale = readout.network, readout.feature_scale

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of pictures in 0..255, (n, 3, side, side)."""
        return self.network(pictures / 127.5 - 1)[1] / self.scale  # type: ignore[no-any-return]


def read_concepts(chosen: argparse.Namespace, folder: Path) -> ConceptSet:
    """The given concept set, or the embedded world written to a temporary folder."""
    path = chosen.concepts
    if path is None:
        every = max(1, 40 // chosen.num_concepts)
        config = WorldConfig(written_every=every, train_images=1, reference_images=chosen.images_per_concept)
        path = str(write_world(folder, config))
    return read_concept_set(ConceptsConfig(path=path)).concept_set


def print_table(rows: Sequence[Row], floor: dict[str, float], title: str) -> None:
    """Milliseconds a picture by phase, ratios to plain, and the floor."""
    print(f"\n{title}")
    names = ("network", "decode", "write", "features", "total")
    print(
        f"{'ms a picture':>12}" + "".join(f"{name:>10}" for name in names) + f"{'images/s':>10}{'x plain':>9}", end=""
    )
    print(f"{'Fréchet distance':>18}{'from plain':>12}{'GB':>7}")
    for row in rows:
        each = [1000 * getattr(row, f"{name}_seconds") / row.num_images for name in names]
        ratio, moved = rows[0].total_seconds / row.total_seconds, row.frechet_distance - rows[0].frechet_distance
        memory = "-" if row.peak_gigabytes is None else f"{row.peak_gigabytes:.1f}"
        print(f"{row.way:>12}" + "".join(f"{ms:10.2f}" for ms in each), end="")
        print(f"{row.images_per_second:10.2f}{ratio:9.2f}{row.frechet_distance:18.6g}{moved:12.2g}{memory:>7}")
    each = [1000 * floor.get(f"{name}_seconds", 0.0) / rows[0].num_images for name in names]
    print(f"{'floor':>12}" + "".join(f"{ms:10.2f}" for ms in each) + f"{1000 / each[-1]:10.2f}", end="")
    print(f"{rows[0].total_seconds / floor['total_seconds']:9.2f}")
    print(
        f"one picture: {floor['evaluations_per_image']:.0f} evaluations of {floor['network_tflop']:.4g} TFLOP in all, "
        f"VAE {floor['decode_tflop']:.4g}, extractor {floor['features_tflop']:.4g}; matrix products "
        f"{floor['matrix_tflop_per_second']:.4g} TFLOP/s, float32 {floor['float32_tflop_per_second']:.4g}"
    )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What to draw, with what, and who looks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="data/world-base", help="a pipeline folder or Hub id")
    parser.add_argument("--concepts", help="a concept set; default is the embedded world")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--extractor", choices=("inception", "torchvision", "readout"), default="torchvision")
    parser.add_argument("--weights", help="the extractor's; of torchvision a state dict, default random")
    parser.add_argument("--num-concepts", type=int, default=8)
    parser.add_argument("--images-per-concept", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-inference-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--num-workers", type=int, default=min(12, os.cpu_count() or 1), help="of clean-fid's loader")
    parser.add_argument("--output", default="runs/bench/evaluate.json")
    chosen = parser.parse_args(given)
    if chosen.extractor != "torchvision" and chosen.weights is None:
        parser.error(f"--extractor {chosen.extractor} needs --weights")
    chosen.dtype = chosen.dtype or ("bfloat16" if chosen.device.startswith("cuda") else "float32")
    return chosen


def main(given: Sequence[str] | None = None) -> None:
    """Draw, look, compare, print, write."""
    chosen = arguments(given)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(chosen, Path(folder))
        floor = bench.floor()
        ours = [
            bench.ours("folder", in_flight=False),
            bench.ours("in flight", in_flight=True),
            bench.ours("no files", in_flight=True, keep_images=False),
        ]
        rows = [bench.plain(read_generated(Path(folder) / "folder")), *ours]
    title = (
        f"{chosen.base}, {bench.num_images} pictures of {bench.size[0]} px in batches of {chosen.batch_size}, "
        f"{chosen.num_inference_steps} steps, guidance {chosen.guidance_scale:g}, {chosen.dtype}, "
        f"{bench.extractor.label}; {device_name(bench.device)}"
    )
    print_table(rows, floor, title)
    settings = {name: value for name, value in vars(chosen).items() if name != "output"}
    content = {"settings": settings, "device": device_name(bench.device), "floor": floor}
    write_json(Path(chosen.output), content | {"rows": [asdict(row) for row in rows]})
    print(f"\nwritten to {chosen.output}")


if __name__ == "__main__":
    main()
