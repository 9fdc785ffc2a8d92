"""Which layout a set has, by what lies at its path."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError
from ..files import user_path
from ..parsing import few, printable, seen
from .config import ConceptSourceConfig
from .dreambooth import read_dreambooth
from .folders import folders, photos, repeats_and_name
from .hugging_face import MARKERS, read_datasets
from .image_folder import read_image_folder
from .metadata import METADATA_FILES, find_metadata
from .rows import Listing
from .shards import find_shards, read_shards
from .sidecars import has_captions, read_kohya, read_sidecars
from .store import Store

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", flags=re.ASCII)


def read_source(config: ConceptSourceConfig, store: Store) -> Listing:
    """Read one set in the layout that the user named, or in the one that it has.

    Raises:
        UserError: no such set, none of the layouts, two of them at once (it names what was found), or a folder in it
            that cannot be read.
    """
    if not config.path:
        raise UserError("the concept set's path is empty: give the folder that holds the images")
    root = user_path(config.path)
    try:
        return _read_at(root, config, store)
    except OSError as error:
        name = error.filename
        if not isinstance(name, (str, Path)) or not Path(name).is_relative_to(root):
            raise
        raise UserError(f"{printable(str(name))}: cannot be read ({error.strerror})") from None


def _read_at(root: Path, config: ConceptSourceConfig, store: Store) -> Listing:
    if not root.exists() and ("://" in config.path or (root.suffix == ".tar" and set("{*?[") & set(config.path))):
        raise UserError(
            f"{config.path}: a set is a local folder or .tar file, not an address or a pattern; put the shards into one"
            " folder and give that"
        )
    layout = recognise(root, config) if config.layout == "auto" else config.layout
    if layout == "datasets":
        return read_datasets(config, store)
    if not root.is_dir() and not (layout == "webdataset" and root.is_file()):
        raise UserError(f"{root}: {_no_folder(root)}")
    if layout == "webdataset":
        return read_shards(root, config, store)
    readers = {
        "imagefolder": read_image_folder,
        "sidecars": read_sidecars,
        "kohya": read_kohya,
        "dreambooth": read_dreambooth,
    }
    return readers[layout](root, config)


def recognise(root: Path, config: ConceptSourceConfig) -> str:
    """The layout of what lies at `root`, by the marks that only one layout has, then by where its images lie.

    Raises:
        UserError: nothing there, nothing that any layout would have, or marks of several.
    """
    if root.is_file() and root.suffix.lower() == ".tar":
        return "webdataset"
    if not root.exists() and _HUB_NAME.fullmatch(config.path):
        return "datasets"
    if not root.is_dir():
        raise UserError(f"{root}: {_no_folder(root)}")
    if any((root / marker).is_file() for marker in MARKERS):
        return "datasets"
    if find_metadata(root) is not None:
        return "imagefolder"
    inside = [folder for folder in folders(root) if photos(folder)]
    if find_shards(root):
        if inside or photos(root):
            raise UserError(f"{root}: holds .tar shards and images both; set layout to say which are meant")
        return "webdataset"
    if photos(root):
        return "kohya" if repeats_and_name(root.resolve().name) else "sidecars"
    if not inside:
        raise UserError(
            f"{root}: neither a metadata file ({', '.join(METADATA_FILES)}), nor images with captions beside them, nor a"
            f" folder of photos per subject, nor .tar shards, nor a saved data set here; found {seen(root)}"
        )
    return _of_folders(root, inside)


def _no_folder(root: Path) -> str:
    return "is a file, not a folder of concepts" if root.is_file() else "no such folder of concepts"


def _of_folders(root: Path, inside: list[Path]) -> str:
    """kohya, sidecars or dreambooth, for a folder of folders of images."""
    numbered = [folder.name for folder in inside if repeats_and_name(folder.name)]
    if len(numbered) == len(inside):
        return "kohya"
    if numbered:
        others = [folder.name for folder in inside if folder.name not in numbered]
        raise UserError(
            f"{root}: some folders start with repeats ({few(numbered, 3)}) and some do not ({few(others, 3)}); rename"
            " these, or set layout to kohya, sidecars or dreambooth"
        )
    return "sidecars" if any(has_captions(folder) for folder in inside) else "dreambooth"
