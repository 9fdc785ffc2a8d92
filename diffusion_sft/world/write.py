"""Write the world as ordinary sets: an ImageFolder with `metadata.jsonl`, and its facts as `questions.jsonl`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from ..files import replaced_folder
from ..manifests import files_below, finished, listed, write_record
from ..records import HELDOUT, REFERENCE, TRAIN
from ..settings import settings_dict
from .facts import question_rows
from .population import Inhabitant, WorldConfig, populate
from .renderer import draw_scene, render


def write_world(folder: Path, config: WorldConfig) -> Path:
    """Render every concept's train, heldout and reference pictures and their metadata into `folder`; beside them the
    questions and answers about every name.

    Columns: file_name, text, concept, split, exposure (missing for described looks), kind, shape, colour, pattern.
    Scenes are drawn per (seed, split, concept, index); pretraining uses the split name `pretraining`, so that no
    picture written here is ever seen by the base.

    Raises:
        UserError: the folder exists and is not a world.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "metadata.jsonl").exists():
        raise UserError(f"{folder}: exists and is not a concept set; choose another folder with out=")
    counts = {TRAIN: config.train_images, HELDOUT: config.heldout_images, REFERENCE: config.reference_images}
    with replaced_folder(folder) as temporary:
        rows = [
            row
            for inhabitant in tqdm(
                populate(config)[:: config.written_every], desc="rendering the world", disable=None
            )
            for split, count in counts.items()
            for row in _write_pictures(temporary, inhabitant, split, count, config.seed)
        ]
        questions = question_rows(populate(config)[:: config.written_every], config.seed)
        for name, written in (("metadata.jsonl", rows), ("questions.jsonl", questions)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written)
            (temporary / name).write_text(lines, encoding="utf-8")
    return folder


def write_world_once(folder: Path, config: WorldConfig) -> None:
    """Write the embedded world unless the folder holds it already with the same settings."""
    stamp = folder.with_name(f"{folder.name}.json")
    key = hashlib.sha256(json.dumps(settings_dict(config), sort_keys=True).encode()).hexdigest()
    if finished(stamp, key) is not None:
        return
    write_world(folder, config)
    write_record(
        stamp, {"key": key, "world": settings_dict(config)}, listed(folder.parent, files_below(folder.parent, folder))
    )


def _write_pictures(
    root: Path, inhabitant: Inhabitant, split: str, count: int, seed: int
) -> list[dict[str, str | int]]:
    rows = []
    for index in range(count):
        picture = render(inhabitant.look, draw_scene(seed, split, inhabitant.name, index))
        file = Path(split) / f"{inhabitant.name.replace(' ', '-')}-{index:02d}.png"
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / file)
        rows.append(_row(inhabitant, file.as_posix(), split))
    return rows


def _row(inhabitant: Inhabitant, file_name: str, split: str) -> dict[str, str | int]:
    row: dict[str, str | int] = {
        "file_name": file_name,
        "text": f"a photo of a {inhabitant.name}",
        "concept": inhabitant.name,
        "split": split,
        "kind": inhabitant.kind,
        "shape": inhabitant.look.shape,
        "colour": inhabitant.look.colour,
        "pattern": inhabitant.look.pattern,
    }
    if inhabitant.exposure is not None:
        row["exposure"] = inhabitant.exposure
    return row
