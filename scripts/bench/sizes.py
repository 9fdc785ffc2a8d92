"""What do probing and a whole study cost for 10, 100 and 1,000 concepts, in time and in memory?

    python scripts/bench/sizes.py                                 # a small pipeline of random weights, made here
    python scripts/bench/sizes.py --images 100 --shards           # from WebDataset shards
    python scripts/bench/sizes.py --study                         # all stages, with a few images and updates
    python scripts/bench/sizes.py --base FOLDER                   # any pipeline

Every size is read, probed and sorted into buckets in a process of its own. Pictures are patches of noise around each
concept's colour, names are invented; all images are held out and probed, but in a study, where the set's hash decides.
Encodings are kept in memory up to `--encodings-limit`, small here so that the largest set exceeds it; the package's own
limit is `learners.cache.MEMORY_LIMIT`.

`exponent` is the slope of log seconds over log concepts, 1 where cost is proportional to size and less where a fixed
cost shows; `from the last but one` is that of the two largest sizes alone, where anything quadratic would show. `memory
per concept` is the growth of the peak of resident memory between these two.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from diffusion_sft.answers import AnswerConfig, invented_words
from diffusion_sft.buckets import BucketConfig, bucket
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.evaluate import EvaluateConfig
from diffusion_sft.files import read_json, write_json
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.learners import cache
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.plan import StudyConfig
from diffusion_sft.pretrain.components import ArchitectureConfig, build_pipeline, build_tokenizer, save_pipeline
from diffusion_sft.probe import ProbeConfig, SampleConfig, probe
from diffusion_sft.records import HELDOUT
from diffusion_sft.solve.config import PictureGenerationConfig, PictureSolveConfig
from diffusion_sft.study import run_study

SMALL = ArchitectureConfig(
    resolution=16,
    vae_channels=[8, 8],
    latent_channels=4,
    unet_channels=[8, 16],
    unet_attention_heads=2,
    text_hidden_size=64,
    text_layers=1,
    text_attention_heads=2,
    max_caption_tokens=77,
    num_merges=100,
    norm_num_groups=4,
)
"""Latents of 1 KB and embeddings of 20 KB, and a UNet so small that what surrounds it shows in the times."""
SAMPLES_PER_SHARD = 1000
STUDY_STAGES = ("probe", "bucket", "finetune", "generate", "evaluate", "report")


@dataclass(frozen=True)
class Measured:
    """One size. Seconds are wall time, memory is the peak of resident memory when the stage had ended."""

    num_concepts: int
    num_examples: int
    num_evaluations: int
    seconds: dict[str, float]
    cpu_seconds: float
    peak_mib: dict[str, float]


class Clock:
    """Times the stages of this process, and reads its peak memory after each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mib = {"start": peak_mib()}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """The stage ends here."""
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now
        self.peak_mib[stage] = peak_mib()


def peak_mib() -> float:
    """Of this process so far; Linux counts in KiB and macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def pictures(num_concepts: int, num_images: int, side: int) -> Iterator[tuple[str, dict[str, str], bytes]]:
    """Key, cells and PNG of every image of the set."""
    for number, name in enumerate(invented_words(num_concepts, seed=num_concepts)):
        colour = np.random.default_rng(number).uniform(40, 215, 3)
        for index in range(num_images):
            noise = np.random.default_rng([number, index]).normal(0, 30, (side, side, 3))
            stream = io.BytesIO()
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(stream, "png")
            yield f"{name}-{index:04d}", {"text": f"a photo of a {name}", "concept": name}, stream.getvalue()


def write_folder(folder: Path, num_concepts: int, num_images: int, side: int) -> None:
    """An ImageFolder with metadata.jsonl."""
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for key, cells, content in pictures(num_concepts, num_images, side):
            (folder / f"{key}.png").write_bytes(content)
            metadata.write(json.dumps({"file_name": f"{key}.png"} | cells) + "\n")


def write_shards(folder: Path, num_concepts: int, num_images: int, side: int) -> None:
    """The same as WebDataset shards."""
    folder.mkdir(parents=True)
    images = pictures(num_concepts, num_images, side)
    for number in range(-(-num_concepts * num_images // SAMPLES_PER_SHARD)):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as archive:
            for key, cells, content in islice(images, SAMPLES_PER_SHARD):
                for suffix, member in (("png", content), ("json", json.dumps(cells).encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(member)
                    archive.addfile(info, io.BytesIO(member))


def small_pipeline(folder: Path) -> str:
    """Save a pipeline of random weights (seed 0) and return its path."""
    torch.manual_seed(0)
    save_pipeline(build_pipeline(build_tokenizer(invented_words(200, seed=0), SMALL), SMALL), folder)
    return str(folder)


def probe_config(chosen: argparse.Namespace) -> ProbeConfig:
    """Few draws, few questions, no samples."""
    answers = AnswerConfig(num_renderings=2, num_candidates=5, num_invented=2, num_draws=2)
    return ProbeConfig(
        num_draws=chosen.num_draws,
        batch_size=chosen.batch_size,
        answers=answers,
        samples=SampleConfig(num_samples=0),
    )


def measure_probe(chosen: argparse.Namespace, folder: Path) -> Measured:
    """Read, probe and sort one set in this process."""
    clock = Clock()
    concepts = ConceptsConfig(path=chosen.concepts, role="heldout", cache_dir=str(folder / "unpacked"))
    concept_set = read_concept_set(concepts).concept_set
    clock.lap("read")
    learner = DiffusionLearner.load(chosen.base, device=chosen.device)
    clock.lap("load")
    result = probe(learner, concept_set, probe_config(chosen), folder / "probe")
    clock.lap("probe")
    bucket(result.scores, result.answers, result.samples, concept_set.table(), BucketConfig())
    clock.lap("bucket")
    evaluations = read_json(folder / "probe" / "probe.json")["num_evaluations"]
    num_examples = len(concept_set.split(HELDOUT))
    return Measured(
        len(concept_set.concepts), num_examples, evaluations, clock.seconds, time.process_time(), clock.peak_mib
    )


def measure_study(chosen: argparse.Namespace, folder: Path) -> Measured:
    """Run all stages of a small study in this process."""
    clock = Clock()
    config = StudyConfig(
        output_dir=str(folder / "study"),
        base=chosen.base,
        device=chosen.device,
        concepts=ConceptsConfig(path=chosen.concepts, cache_dir=str(folder / "unpacked")),
        probe=probe_config(chosen),
        mixes=[MixConfig(name="all")],
        finetune=FinetuneConfig(max_train_steps=20, train_batch_size=16, report_to=None),
        solve=PictureSolveConfig(generation=PictureGenerationConfig(num_renderings=0)),
        evaluate=EvaluateConfig(
            num_images_per_concept=2,
            num_inference_steps=4,
            batch_size=chosen.batch_size,
            weights=chosen.readout,
        ),
        figures=False,
    )
    run_study(config)
    clock.lap("all")
    record = read_json(folder / "study" / "probe" / "probe.json")
    stages = read_json(folder / "study" / "study.json")["seconds"]
    seconds = {stage: stages[stage] for stage in STUDY_STAGES if stage in stages} | clock.seconds
    concept_set = read_concept_set(config.concepts).concept_set
    return Measured(
        len(concept_set.concepts),
        len(concept_set.split(HELDOUT)),
        record["num_evaluations"],
        seconds,
        time.process_time(),
        clock.peak_mib,
    )


def measure_apart(chosen: argparse.Namespace, size: int, folder: Path, side: int) -> Measured:
    """Write the set of one size, and measure it in a fresh process."""
    write = write_shards if chosen.shards else write_folder
    write(folder / "concepts", size, chosen.images, side)
    command = [
        sys.executable,
        __file__,
        "--base",
        chosen.base,
        "--device",
        chosen.device,
        "--readout",
        chosen.readout,
    ]
    for name in ("num_draws", "batch_size", "encodings_limit"):
        command += [f"--{name.replace('_', '-')}", str(getattr(chosen, name))]
    command += ["--concepts", str(folder / "concepts"), "--output", str(folder / "measured.json")]
    with (folder / "output.txt").open("w") as output:
        finished = subprocess.run(command + ["--study"] * chosen.study, stdout=output, stderr=subprocess.STDOUT)
    if finished.returncode:
        sys.exit(f"{size} concepts:\n{(folder / 'output.txt').read_text()[-4000:]}")
    return Measured(**read_json(folder / "measured.json"))


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of log seconds over log sizes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(seconds, 1e-3)), 1)[0])


def fits(rows: list[Measured]) -> dict[str, dict[str, float]]:
    """The exponent of each stage's seconds over all sizes, and over the two largest."""
    sizes = [row.num_concepts for row in rows]
    found = {}
    for stage in rows[-1].seconds:
        seconds = [row.seconds[stage] for row in rows]
        found[stage] = {"exponent": slope(sizes, seconds), "last": slope(sizes[-2:], seconds[-2:])}
    return found


def growth_kib(rows: list[Measured]) -> float:
    """Peak memory that the last size takes beyond the last but one, per concept."""
    one, other = rows[-2:]
    return (
        1024 * (max(other.peak_mib.values()) - max(one.peak_mib.values())) / (other.num_concepts - one.num_concepts)
    )


def print_table(rows: list[Measured]) -> None:
    """A line for each size, then the exponents."""
    stages = list(rows[-1].seconds)
    print(f"\n{'':>10} {'':>9} {'':>12} {'seconds':^{9 * len(stages)}} {'CPU':>9} {'probe s per':>12} {'peak':>8}")
    print(
        f"{'concepts':>10} {'examples':>9} {'evaluations':>12}"
        f"{''.join(f'{stage:>9}' for stage in stages)} {'seconds':>9} {'1,000 evals':>12} {'MiB':>8}"
    )
    for row in rows:
        per_thousand = 1000 * row.seconds["probe"] / row.num_evaluations
        print(
            f"{row.num_concepts:10,} {row.num_examples:9,} {row.num_evaluations:12,}"
            f"{''.join(f'{row.seconds[stage]:9.2f}' for stage in stages)} {row.cpu_seconds:9.1f} {per_thousand:12.3f}"
            f" {max(row.peak_mib.values()):8.0f}"
        )
    if len(rows) < 2:
        return
    fitted = fits(rows)
    for key, words in (("exponent", "exponent"), ("last", "from the last but one")):
        print(f"{words:>33}{''.join(f'{fitted[stage][key]:9.2f}' for stage in stages)}")
    print(f"memory per concept: {growth_kib(rows):.1f} KiB")


def arguments() -> argparse.Namespace:
    """Which sizes, of what."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="numbers of concepts")
    parser.add_argument("--images", type=int, default=10, help="of each concept")
    parser.add_argument("--shards", action="store_true", help="WebDataset shards instead of a folder")
    parser.add_argument("--study", action="store_true", help="all stages of a study, not the probe alone")
    parser.add_argument("--base", help="a pipeline folder or Hub id; default is a small one of random weights")
    parser.add_argument("--readout", default="data/world-readout", help="the extractor of a study's distances")
    parser.add_argument("--num-draws", type=int, default=6, help="of each example; two evaluations each")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--encodings-limit", type=int, default=16, help="MiB of encodings that are kept in memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--concepts", help="measure this one set in this process")
    parser.add_argument("--output", default="runs/bench/sizes.json")
    return parser.parse_args()


def main() -> None:
    """Write, measure, fit, print."""
    chosen = arguments()
    output = Path(chosen.output)
    if chosen.concepts is not None:
        cache.MEMORY_LIMIT = chosen.encodings_limit * 2**20
        measure = measure_study if chosen.study else measure_probe
        write_json(output, asdict(measure(chosen, output.parent)))
        return
    settings: dict[str, Any] = {name: value for name, value in vars(chosen).items() if name != "output"}
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        chosen.base = chosen.base or small_pipeline(Path(folder) / "base")
        side = DiffusionLearner.load(chosen.base).resolution
        for size in tqdm(sorted(chosen.sizes), desc="sizes", unit="set", disable=None):
            rows.append(measure_apart(chosen, size, Path(folder) / str(size), side))
    print_table(rows)
    fitted = {"fits": fits(rows), "memory_per_concept_kib": growth_kib(rows)} if len(rows) > 1 else {}
    write_json(output, {"settings": settings, "rows": [asdict(row) for row in rows]} | fitted)
    print(f"\nwritten to {output}")


if __name__ == "__main__":
    main()
