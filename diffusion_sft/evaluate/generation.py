"""Images of each concept from fixed seeds: what is there and unchanged is kept, so a broken run goes on.

`generated.json` beside the images says what each was made from and its SHA-256; an image is kept if and only if both
still hold. Several processes deal the batches out among themselves; each keeps its own record while it draws
(`generated-<number>.json`), and the main one puts them together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from ..files import file_hash, read_json, replaced, write_json
from ..learner import Cue, Learner
from ..processes import is_main, process_count, process_index, shared_file, wait_for_everyone
from ..records import HELDOUT, REFERENCE, TRAIN, ConceptSet, identity_seed
from .config import EvaluateConfig

MANIFEST, IMAGES = "generated.json", "images"
OTHERS = "generated-*.json"
"""What the processes other than the main one have drawn so far."""
BATCHES_PER_SAVE = 8
_PLAIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]|.*-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One generated image: what it shows, what it was made from, and the file's SHA-256."""

    path: Path
    concept: str
    index: int
    prompt: str
    seed: int
    sha256: str


def slug(name: str) -> str:
    """A folder name for a concept, the same on any file system; different names never share one.

    Short lower-case ASCII names stay as they are; all others lose what is not and gain a hash of the name.
    """
    if len(name) <= 40 and _PLAIN.fullmatch(name) and not _RESERVED.fullmatch(name):
        return name
    kept = "-".join(re.findall(r"[a-z0-9]+", name.lower()))[:40].strip("-")
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{kept}-{digest}" if kept else f"x-{digest}"


def concept_prompt(concept_set: ConceptSet, concept: str) -> str:
    """The concept's own caption: that of its first held-out example, else of its first of any split.

    Raises:
        UserError: the concept has no example.
    """
    for split in (HELDOUT, REFERENCE, TRAIN):
        for example in concept_set.split(split):
            if example.concept == concept:
                return example.caption
    raise UserError(f"concept {concept!r} has no example in the set, so there is no caption to generate from")


def generate_images(
    learner: Learner, concept_set: ConceptSet, concepts: Sequence[str], config: EvaluateConfig, folder: Path
) -> list[GeneratedImage]:
    """Generate `num_images_per_concept` images of each concept into `folder`/images/<concept slug>/<index>.png.

    An image's start noise depends on the seed, the concept's name and the index alone, so two models asked for the
    same concepts make images that pair up one by one. Every process of a run calls this and gets all records.

    Returns:
        One record per image, by concept as given and index.
    """
    planned = [_planned(concept_set, concept, index, config) for concept in concepts for index in _indices(config)]
    settings = {
        "model_sha256": _digest(learner.identity()),
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
    }
    done = _kept(folder, settings, planned)
    missing = [plan for plan in planned if plan["file"] not in done]
    learner.check_captions(sorted({plan["prompt"] for plan in missing}))
    _gather(folder, settings, planned, done)
    own = dict(done) if is_main() else {}
    record = _own_record(folder, process_index())
    _write_record(record, settings, planned, own)
    for chunk in _own_chunks(missing, config.batch_size):
        own |= _draw(learner, chunk, config, folder)
        _write_record(record, settings, planned, own)
    wait_for_everyone()
    records = [shared_file(_own_record(folder, number)) for number in range(process_count())]
    done = {image["file"]: image for file in records for image in read_json(file)["images"]}
    _gather(folder, settings, planned, done)
    return [_record(folder, done[plan["file"]]) for plan in planned]


def read_generated(folder: Path) -> list[GeneratedImage]:
    """The images that `generate_images` recorded in a folder; UserError where there are none."""
    return _recorded(folder / MANIFEST)


def _indices(config: EvaluateConfig) -> Iterator[int]:
    return iter(range(config.num_images_per_concept))


def _planned(concept_set: ConceptSet, concept: str, index: int, config: EvaluateConfig) -> dict[str, Any]:
    return {
        "file": f"{IMAGES}/{slug(concept)}/{index:04d}.png",
        "concept": concept,
        "index": index,
        "prompt": concept_prompt(concept_set, concept),
        "seed": identity_seed(config.seed, "generate", concept, index),
    }


def _own_chunks(missing: Sequence[dict[str, Any]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    """This process's share of the batches, some at a time; the batches are the same for any number of processes."""
    batches = [list(missing[start : start + batch_size]) for start in range(0, len(missing), batch_size)]
    mine = batches[process_index() :: process_count()]
    for start in range(0, len(mine), BATCHES_PER_SAVE):
        yield [plan for batch in mine[start : start + BATCHES_PER_SAVE] for plan in batch]


def _draw(
    learner: Learner, chunk: Sequence[dict[str, Any]], config: EvaluateConfig, folder: Path
) -> dict[str, dict[str, Any]]:
    """Draw and write some images; what is to be recorded of them, by file."""
    images = learner.generate(
        [Cue(prompt=plan["prompt"], seed=plan["seed"]) for plan in chunk],
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
    drawn = {}
    for plan, image in zip(chunk, images, strict=True):
        path = folder / plan["file"]
        with replaced(path) as temporary:
            Image.fromarray(image).save(temporary)
        drawn[plan["file"]] = plan | {"sha256": file_hash(path)}
    return drawn


def _kept(folder: Path, settings: dict[str, Any], planned: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recorded images that are what would be generated now, by file; recorded files that no plan names go."""
    wanted = {plan["file"]: plan for plan in planned}
    kept = {}
    for record in (folder / MANIFEST, *sorted(folder.glob(OTHERS))):
        if not record.exists():
            continue
        recorded = _recorded(record)
        same_settings = read_json(record).get("settings") == settings
        for image in recorded:
            file = image.path.relative_to(folder).as_posix()
            if file not in wanted:
                if is_main():
                    image.path.unlink(missing_ok=True)
                continue
            entry = wanted[file] | {"sha256": image.sha256}
            unchanged = same_settings and _record(folder, entry) == image
            if unchanged and image.path.is_file() and file_hash(image.path) == image.sha256:
                kept[file] = entry
    return kept


def _recorded(record: Path) -> list[GeneratedImage]:
    content = read_json(record)
    try:
        return [_record(record.parent, image) for image in content["images"]]
    except (KeyError, TypeError):
        raise UserError(f"{record}: not a record of generated images; delete it and generate again") from None


def _own_record(folder: Path, number: int) -> Path:
    return folder / (f"generated-{number}.json" if number else MANIFEST)


def _gather(
    folder: Path, settings: dict[str, Any], planned: Sequence[dict[str, Any]], done: dict[str, dict[str, Any]]
) -> None:
    """Put all processes' records into one, when all have read them."""
    wait_for_everyone()
    if is_main():
        _write_record(folder / MANIFEST, settings, planned, done)
        for other in folder.glob(OTHERS):
            other.unlink()
    wait_for_everyone()


def _write_record(
    file: Path, settings: dict[str, Any], planned: Sequence[dict[str, Any]], done: dict[str, dict[str, Any]]
) -> None:
    """The images that are done, in the order of the plan."""
    write_json(file, {"settings": settings, "images": [done[p["file"]] for p in planned if p["file"] in done]})


def _record(folder: Path, image: dict[str, Any]) -> GeneratedImage:
    return GeneratedImage(path=folder / image["file"], **{key: image[key] for key in image if key != "file"})


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
