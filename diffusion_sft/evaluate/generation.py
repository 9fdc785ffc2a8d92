"""Images of each concept from fixed seeds: what is there and unchanged is kept, so a broken run goes on.

`generated.json` beside the images says what each was made from and its SHA-256; an image is kept if and only if both
still hold.
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
from ..records import HELDOUT, REFERENCE, TRAIN, ConceptSet, identity_seed
from .config import EvaluateConfig

MANIFEST, IMAGES = "generated.json", "images"
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
    same concepts make images that pair up one by one.

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
    chunk_size = config.batch_size * BATCHES_PER_SAVE
    for start in range(0, len(missing), chunk_size):
        chunk = missing[start : start + chunk_size]
        images = learner.generate(
            [Cue(prompt=plan["prompt"], seed=plan["seed"]) for plan in chunk],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            batch_size=config.batch_size,
        )
        for plan, image in zip(chunk, images, strict=True):
            path = folder / plan["file"]
            with replaced(path) as temporary:
                Image.fromarray(image).save(temporary)
            done[plan["file"]] = plan | {"sha256": file_hash(path)}
        _write_manifest(folder, settings, [done[plan["file"]] for plan in planned if plan["file"] in done])
    if not missing:
        _write_manifest(folder, settings, [done[plan["file"]] for plan in planned])
    return [_record(folder, done[plan["file"]]) for plan in planned]


def read_generated(folder: Path) -> list[GeneratedImage]:
    """The images that `generate_images` recorded in a folder; UserError where there are none."""
    manifest = read_json(folder / MANIFEST)
    try:
        return [_record(folder, image) for image in manifest["images"]]
    except (KeyError, TypeError):
        raise UserError(
            f"{folder / MANIFEST}: not a record of generated images; delete it and generate again"
        ) from None


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


def _kept(folder: Path, settings: dict[str, Any], planned: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recorded images that are what would be generated now, by file; recorded files that no plan names go."""
    if not (folder / MANIFEST).exists():
        return {}
    recorded = read_generated(folder)
    wanted = {plan["file"]: plan for plan in planned}
    same_settings = read_json(folder / MANIFEST).get("settings") == settings
    kept = {}
    for image in recorded:
        file = image.path.relative_to(folder).as_posix()
        if file not in wanted:
            image.path.unlink(missing_ok=True)
            continue
        entry = wanted[file] | {"sha256": image.sha256}
        unchanged = same_settings and _record(folder, entry) == image
        if unchanged and image.path.is_file() and file_hash(image.path) == image.sha256:
            kept[file] = entry
    return kept


def _write_manifest(folder: Path, settings: dict[str, Any], images: Sequence[dict[str, Any]]) -> None:
    write_json(folder / MANIFEST, {"settings": settings, "images": list(images)})


def _record(folder: Path, image: dict[str, Any]) -> GeneratedImage:
    return GeneratedImage(path=folder / image["file"], **{key: image[key] for key in image if key != "file"})


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
