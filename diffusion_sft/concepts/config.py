"""What a user may say about concept sets: one folder, or several with a role each."""

from __future__ import annotations

import string
from dataclasses import dataclass, field, fields
from typing import Literal

from ..ranges import check_range

DEFAULT_CONCEPT_COLUMN = "concept"
DEFAULT_SPLIT_COLUMN = "split"
Role = Literal["all", "train", "heldout", "reference", "regularisation"]
Layout = Literal["auto", "imagefolder", "sidecars", "kohya", "dreambooth", "datasets", "webdataset"]


@dataclass(frozen=True, kw_only=True)
class ConceptSourceConfig:
    """Where one set lies, how to read it, and what its images are for."""

    name: str = ""
    """Stands before the set's image ids where there are several sets; empty means the last part of the path."""
    path: str = ""
    """A folder, a .tar shard, or the name of a data set on the Hugging Face Hub (owner/name)."""
    layout: Layout = "auto"
    """imagefolder: metadata.jsonl, .csv or .parquet in the folder. sidecars: a .txt or .caption file beside every
    image, in the folder itself or in one folder per concept. kohya: the same in folders named 10_concept, 10 being
    the repeats. dreambooth: one folder of photos per subject, captions from the template. datasets: save_to_disk or
    the Hub. webdataset: .tar shards. auto: what the files look like."""
    role: Role = "all"
    """What the images are for. all: the set's own splits, else each concept's images are split by a hash of their
    file names. regularisation: class images for prior preservation, trained beside the others and never probed."""
    concept: str = ""
    """The one concept that all images of the set show, whatever folders and columns say."""
    template: str | None = None
    """The caption of an image that has none, with {concept} and, for dreambooth, {class}. Unset, a missing caption is
    an error, except in the layout dreambooth, where it is "a photo of {concept} {class}"."""
    allow_empty: bool = False
    """Take images without a caption under the empty one."""
    repeats: int = 1
    """How often one pass over the set comes to each image; a kohya folder's number multiplies it."""
    image_column: str = "file_name"
    caption_column: str = "text"
    concept_column: str = DEFAULT_CONCEPT_COLUMN
    """Optional; without it each distinct caption is a concept."""
    split_column: str = DEFAULT_SPLIT_COLUMN
    """Optional; words are train, heldout (or validation, val, test), reference and regularisation."""
    dataset_config_name: str | None = None
    """Of a data set on the Hub that has several configurations."""
    revision: str | None = None
    """Of a data set on the Hub: a branch, tag or commit."""

    def __post_init__(self) -> None:
        names = [self.image_column, self.caption_column, self.concept_column, self.split_column]
        if len(set(names)) < len(names):
            raise ValueError(f"image_column, caption_column, concept_column and split_column must differ: {names}")
        check_range(self, "repeats", least=1, most=1_000_000)
        if self.template is not None:
            slots = [slot for _, slot, _, _ in string.Formatter().parse(self.template) if slot is not None]
            if "concept" not in slots or set(slots) - {"concept", "class"}:
                raise ValueError(f"template must contain {{concept}} and may contain {{class}}: {self.template!r}")


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig(ConceptSourceConfig):
    """One set by its `path`, or several in `sets`; all are merged into one."""

    sets: list[ConceptSourceConfig] = field(default_factory=list)
    """Several sets instead of `path`, for example [{path: a, role: train}, {path: b, role: heldout}]. Each has the
    settings path, layout, role, concept, template, allow_empty, repeats and the columns of its own."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What to do about bad rows and files: stop and name them all, or go on without them."""
    heldout_share: float = 0.25
    """Share of a concept's images to hold out, where the set has no splits of its own (at least one image)."""
    reference_share: float = 0.25
    """Share of a concept's images for the real side of FID, where the set has no splits of its own."""
    seed: int = 0
    """Seed of the split, where the set has none of its own."""
    cache_dir: str | None = None
    """Where images out of data sets and shards are unpacked to; None means ~/.cache/diffusion_sft."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "seed", least=0)
        check_range(self, "heldout_share", "reference_share", above=0, below=1)
        if self.heldout_share + self.reference_share >= 1:
            raise ValueError("heldout_share + reference_share must be below 1, or nothing is left to train on")
        own = [f.name for f in fields(ConceptSourceConfig) if getattr(self, f.name) != f.default]
        if self.sets and own:
            raise ValueError(f"{own[0]} and sets are both given; with sets, give it in each of them")

    @property
    def given(self) -> bool:
        """Whether any set is named at all."""
        return bool(self.path or self.sets)
