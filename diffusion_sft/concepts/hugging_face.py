"""Hugging Face data sets, from the Hub or from `save_to_disk`: rows of cells, images unpacked to files as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import UserError
from ..files import read_object, user_path
from ..parsing import Problem, confined, described, few, first_line, printable, seen, shortened
from ..records import HELDOUT
from .cells import SPLIT_WORDS, check_columns, row_of
from .config import ConceptSourceConfig
from .rows import Listing
from .store import Store

MARKERS = ("dataset_dict.json", "state.json")
"""One of these lies in a folder that `save_to_disk` wrote: of a DatasetDict, of a single Dataset."""
_DEFAULT_IMAGE_COLUMN = "file_name"
_ANSWER_SECONDS = 10.0
"""How long the Hub may take to say whether it has a data set."""
_BATCH = 16
"""Rows with their images that are in memory at a time."""


def read_datasets(config: ConceptSourceConfig, store: Store) -> Listing:
    """One row per row of the data set, in its order; image bytes go to the store byte for byte.

    Splits named train, validation, test, heldout or reference are the set's splits where one of them is held out.
    A set of one split, as most on the Hub, has none.

    Raises:
        UserError: the extra is not installed, no such data set, no image column or several, a missing column.
    """
    parts = _loaded(config)
    first = next(iter(parts.values()))
    config = replace(config, image_column=_image_column(first, config))
    columns = [str(name) for name in first.column_names]
    has_splits = any(SPLIT_WORDS.get(str(name).lower()) == HELDOUT for name in parts)
    takes_splits = has_splits and config.split_column not in columns
    if takes_splits and (unknown := [str(name) for name in parts if str(name).lower() not in SPLIT_WORDS]):
        raise UserError(f"{config.path}: split {few(unknown)} is none of {', '.join(SPLIT_WORDS)}; rename it")
    notes = check_columns(config.path, columns, config)
    listing = Listing(rows=[], problems=[], notes=notes)
    for name, part in parts.items():
        if sorted(part.column_names) != sorted(columns):
            raise UserError(f"{config.path}: split {name} has other columns than the first; found {few(columns)}")
        _read_part(listing, str(name), part, config, store, str(name) if takes_splits else None)
    return listing


def _read_part(
    listing: Listing, name: str, part: Any, config: ConceptSourceConfig, store: Store, split: str | None
) -> None:
    columns = [*part.column_names, config.split_column] if split is not None else list(part.column_names)
    for number, record in enumerate(_records(part, config.image_column), start=1):
        where = f"{name} row {number}"
        image = record.get(config.image_column)
        file = str((image or {}).get("path") or "")
        try:
            record[config.image_column] = store.put(_bytes_of(image, Path(config.path)))
            if split is not None:
                record[config.split_column] = split
            listing.rows.append(row_of(store.folder, where, record, columns, config))
        except ValueError as error:
            listing.problems.append(Problem(where=where, file=file, reason=str(error)))


def _loaded(config: ConceptSourceConfig) -> dict[Any, Any]:
    """The data set's splits by name; one without splits is called train."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{config.path}: reading Hugging Face data sets needs: pip install 'diffusion_sft[datasets]'"
        ) from None
    folder = user_path(config.path)
    try:
        if folder.is_dir():
            if not any((folder / marker).is_file() for marker in MARKERS):
                raise UserError(
                    f"{folder}: was not written by save_to_disk (no {' or '.join(MARKERS)}); found {seen(folder)}"
                )
            _check_files(folder)
            found = datasets.load_from_disk(str(folder))
        else:
            _check_hub(config)
            found = datasets.load_dataset(config.path, config.dataset_config_name, revision=config.revision)
    except UserError:
        raise
    except Exception as error:  # the library answers with every kind: offline, gated, damaged, unknown names
        text = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        what = "" if folder.is_dir() else "no such folder, and "
        raise UserError(f"{config.path}: {what}not readable as a data set ({text})") from None
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    if not parts or not any(len(part) for part in parts.values()):
        raise UserError(f"{config.path}: the data set is empty")
    return parts


def _check_hub(config: ConceptSourceConfig) -> None:
    """Ask the Hub for the data set before the library does, which goes on trying for half a minute.

    Raises:
        UserError: there is no answer; whatever the answer is, the library will say it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(config.path, revision=config.revision, timeout=_ANSWER_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, ValueError):
        return
    except Exception as error:  # Every kind of the library underneath.
        raise UserError(
            f"{config.path}: no such folder, and the Hugging Face Hub cannot be reached ({first_line(error)}); correct"
            " the path, or set HF_HUB_OFFLINE=1 to read what was downloaded before"
        ) from None


def _check_files(folder: Path) -> None:
    """Demand that a saved data set names no files but its own: whoever wrote it may have named any."""
    parts = [folder]
    if (index := folder / "dataset_dict.json").is_file():
        names = _names(index, read_object(confined(folder, index)).get("splits"))
        parts = [_own(folder, folder, index, name) for name in names]
    for part in parts:
        state = part / "state.json"
        if not state.is_file():
            continue
        files = read_object(confined(folder, state)).get("_data_files")
        entries = [entry.get("filename") if isinstance(entry, dict) else None for entry in _list(state, files)]
        for name in _names(state, entries):
            _own(folder, part, state, name)


def _list(file: Path, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{file}: was not written by save_to_disk (what it lists is {described(value)})")
    return value


def _names(file: Path, value: Any) -> list[str]:
    names = _list(file, value)
    if strange := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{file}: was not written by save_to_disk (it lists {described(strange[0])} for a name)")
    return names


def _own(folder: Path, part: Path, file: Path, name: str) -> Path:
    """What `file` calls by this name, where that lies directly in `part` and inside the data set."""
    if Path(name).name != name or not (part / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file}: names a file outside the data set ({printable(shortened(name))}); nothing is read")
    return part / name


def _image_column(part: Any, config: ConceptSourceConfig) -> str:
    """The column that the user named, else the only one of images."""
    import datasets

    if config.image_column != _DEFAULT_IMAGE_COLUMN and config.image_column in part.column_names:
        return config.image_column
    images = [str(name) for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    if len(images) == 1 and config.image_column == _DEFAULT_IMAGE_COLUMN:
        return images[0]
    what = f"several columns of images ({few(images)})" if images else "no column of images"
    if config.image_column != _DEFAULT_IMAGE_COLUMN:
        what = f"no column {config.image_column!r}"
    raise UserError(f"{config.path}: {what}; found {few(list(part.column_names))}; set image_column to the right one")


def _records(part: Any, image_column: str) -> Iterator[dict[str, Any]]:
    """The rows as plain cells: images as they are stored, class labels by their names.

    Nothing is decoded, because what is to be decoded may lie anywhere, in a file of the user's or on the net.
    """
    import datasets

    others = [
        n for n, f in part.features.items() if isinstance(f, (datasets.Image, datasets.Audio)) and n != image_column
    ]
    part = part.remove_columns(others) if others else part
    labels = {name: f for name, f in part.features.items() if isinstance(f, datasets.ClassLabel)}
    progress = tqdm(total=len(part), desc="unpacking images", unit="image", disable=None)
    with progress:
        for batch in part.with_format("arrow").iter(batch_size=_BATCH):
            for record in batch.to_pylist():
                yield record | {name: _label(kind, record[name]) for name, kind in labels.items()}
                progress.update()


def _label(kind: Any, number: int | None) -> str | None:
    """A class by its name; None where none is given, or one that the set has no name for."""
    return kind.names[number] if number is not None and 0 <= number < len(kind.names) else None


def _bytes_of(image: Any, root: Path) -> bytes:
    """An image cell's bytes, from the data set or from a file that belongs to it; ValueError where there are none."""
    if not isinstance(image, dict):
        raise ValueError("the image is missing" if image is None else "the image column holds no image")
    if image.get("bytes"):
        return bytes(image["bytes"])
    if not image.get("path"):
        raise ValueError("the image is missing")
    import datasets
    from huggingface_hub import constants

    path = Path(image["path"])
    # Not all of the cache's home: the user's token lies there.
    allowed = [root.expanduser(), Path(datasets.config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
    if not any(path.resolve().is_relative_to(folder.resolve()) for folder in allowed):
        raise ValueError("the image lies outside the data set; save the set with its images embedded")
    try:
        if not path.is_file():
            raise ValueError("the image is no plain file")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the image cannot be read ({error.strerror})") from None
