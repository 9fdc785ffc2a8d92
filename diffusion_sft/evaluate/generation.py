"""Images of each concept from fixed seeds: what is there and unchanged is kept, so a broken run goes on.

`generated.json` beside the images says what each was made from and its SHA-256; an image is kept if and only if both
still hold. Several processes deal the batches out among themselves; each keeps its own record while it draws
(`generated-<number>.json`), and the main one puts them together.

With `keep_images: false` the files are those that the report shows, and the other images are known by their pixels:
they are drawn again when somebody is to look at them who has not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import file_hash, read_json, write_json
from ..learner import Learner
from ..processes import is_main, process_count, process_index, shared_file, wait_for_everyone
from ..records import HELDOUT, REFERENCE, TRAIN, ConceptSet, identity_seed
from .config import EvaluateConfig
from .drawing import Drawing, Entry
from .looking import Looking
from .pictures import GeneratedImage, image_of, recorded_images

MANIFEST, IMAGES = "generated.json", "images"
OTHERS = "generated-*.json"
"""What the processes other than the main one have drawn so far."""
BATCHES_PER_SAVE = 8
_PLAIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]|.*-[0-9a-f]{8}")


def slug(name: str) -> str:
    """A folder name for a concept, the same on any file system; different names never share one.

    Short lower-case ASCII names stay as they are; all others lose what is not and gain a hash of the name.
    """
    if len(name) <= 40 and _PLAIN.fullmatch(name) and not _RESERVED.fullmatch(name):
        return name
    kept = "-".join(re.findall(r"[a-z0-9]+", name.lower()))[:40].strip("-")
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{kept}-{digest}" if kept else f"x-{digest}"


def concept_prompts(concept_set: ConceptSet, concepts: Sequence[str]) -> dict[str, str]:
    """Each concept's own caption: that of its first held-out example, else of its first of any split.

    Raises:
        UserError: a concept has no example.
    """
    captions: dict[str, str] = {}
    for split in (HELDOUT, REFERENCE, TRAIN):
        for example in concept_set.split(split):
            captions.setdefault(example.concept, example.caption)
    for concept in concepts:
        if concept not in captions:
            raise UserError(f"concept {concept!r} has no example in the set, so there is no caption to generate from")
    return {concept: captions[concept] for concept in concepts}


def generate_images(
    learner: Learner,
    concept_set: ConceptSet,
    concepts: Sequence[str],
    config: EvaluateConfig,
    folder: Path,
    looking: Looking | None = None,
) -> list[GeneratedImage]:
    """Generate `num_images_per_concept` images of each concept into `folder`/images/<concept slug>/<index>.png.

    An image's start noise depends on the seed, the concept's name and the index alone, so two models asked for the
    same concepts make images that pair up one by one. Every process of a run calls this and gets all records.

    Args:
        looking: looks at each image while it is made, so that `evaluate` need not read it; images that are not kept
            need it.

    Returns:
        One record per image, by concept as given and index.

    Raises:
        UserError: an image that cannot be written, or a damaged record.
    """
    if looking is None and not config.keep_images:
        raise ValueError("keep_images=false needs somebody who looks at the images while they are made")
    planned = _plans(concept_set, concepts, config)
    settings = {
        "model_sha256": _digest(learner.identity()),
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
    }
    done = _kept(folder, settings, planned, looking if not config.keep_images else None)
    missing = [plan for plan in planned if plan["file"] not in done]
    learner.check_captions(sorted({plan["prompt"] for plan in missing}))
    _gather(folder, settings, planned, done)
    own = dict(done) if is_main() else {}
    record = _own_record(folder, process_index())
    _write_record(record, settings, planned, own)

    def tell(entries: dict[str, Entry]) -> None:
        own.update(entries)
        _write_record(record, settings, planned, own)

    Drawing(learner, config, folder, looking).draw(_own_chunks(missing, config.batch_size), tell)
    wait_for_everyone()
    records = [shared_file(_own_record(folder, number)) for number in range(process_count())]
    done = {image["file"]: image for file in records for image in read_json(file)["images"]}
    _gather(folder, settings, planned, done)
    return [image_of(folder, done[plan["file"]]) for plan in planned]


def read_generated(folder: Path) -> list[GeneratedImage]:
    """The images that `generate_images` recorded in a folder; UserError where there are none."""
    return recorded_images(folder / MANIFEST)


def _plans(concept_set: ConceptSet, concepts: Sequence[str], config: EvaluateConfig) -> list[Entry]:
    """What is to be there: by concept as given and index."""
    return [
        {
            "file": f"{IMAGES}/{slug(concept)}/{index:04d}.png",
            "concept": concept,
            "index": index,
            "prompt": prompt,
            "seed": identity_seed(config.seed, "generate", concept, index),
        }
        for concept, prompt in concept_prompts(concept_set, concepts).items()
        for index in range(config.num_images_per_concept)
    ]


def _own_chunks(missing: Sequence[Entry], batch_size: int) -> Iterator[list[Entry]]:
    """This process's share of the batches, some at a time; the batches are the same for any number of processes."""
    batches = [list(missing[start : start + batch_size]) for start in range(0, len(missing), batch_size)]
    mine = batches[process_index() :: process_count()]
    for start in range(0, len(mine), BATCHES_PER_SAVE):
        yield [plan for batch in mine[start : start + BATCHES_PER_SAVE] for plan in batch]


def _kept(
    folder: Path, settings: dict[str, Any], planned: Sequence[Entry], looking: Looking | None
) -> dict[str, Entry]:
    """The recorded images that are what would be generated now, by file; recorded files that no plan names go.

    Args:
        looking: who must have seen an image for it to do without a file; None if all must have one.
    """
    wanted = {plan["file"]: plan for plan in planned}
    kept: dict[str, Entry] = {}
    for record in (folder / MANIFEST, *sorted(folder.glob(OTHERS))):
        if not record.exists():
            continue
        recorded_images(record)  # which refuses what is not a record
        content = read_json(record)
        for entry in content["images"]:
            image, plan = image_of(folder, entry), wanted.get(entry["file"])
            if plan is None:
                if is_main() and image.path.resolve().is_relative_to(folder.resolve()):
                    image.path.unlink(missing_ok=True)
                continue
            unchanged = content.get("settings") == settings and all(entry.get(key) == plan[key] for key in plan)
            if unchanged and _is_there(image, looking):
                kept[entry["file"]] = entry
    return kept


def _is_there(image: GeneratedImage, looking: Looking | None) -> bool:
    if image.kept:
        return image.path.is_file() and file_hash(image.path) == image.sha256
    return looking is not None and looking.has(image)


def _own_record(folder: Path, number: int) -> Path:
    return folder / (f"generated-{number}.json" if number else MANIFEST)


def _gather(folder: Path, settings: dict[str, Any], planned: Sequence[Entry], done: dict[str, Entry]) -> None:
    """Put all processes' records into one, when all have read them."""
    wait_for_everyone()
    if is_main():
        _write_record(folder / MANIFEST, settings, planned, done)
        for other in folder.glob(OTHERS):
            other.unlink()
    wait_for_everyone()


def _write_record(file: Path, settings: dict[str, Any], planned: Sequence[Entry], done: dict[str, Entry]) -> None:
    """The images that are done, in the order of the plan."""
    write_json(file, {"settings": settings, "images": [done[p["file"]] for p in planned if p["file"] in done]})


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
