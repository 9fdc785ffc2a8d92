"""What a user may say about a concept set."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal

DEFAULT_CONCEPT_COLUMN = "concept"
DEFAULT_SPLIT_COLUMN = "split"


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig:
    """Where a concept set lies and how to read it."""

    path: str = ""
    """The folder of the set."""
    layout: Literal["auto", "imagefolder", "dreambooth"] = "auto"
    """imagefolder: metadata.jsonl, .csv or .parquet in the folder. dreambooth: one folder of photos per subject.
    auto: imagefolder where there is a metadata file, else dreambooth."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What to do about bad rows and files: stop and name them all, or go on without them."""
    image_column: str = "file_name"
    caption_column: str = "text"
    concept_column: str = DEFAULT_CONCEPT_COLUMN
    """Optional in the metadata; without it each distinct caption is a concept."""
    split_column: str = DEFAULT_SPLIT_COLUMN
    """Optional in the metadata; without it each concept's images are split by a hash of their file names."""
    template: str = "a photo of {concept} {class}"
    """The caption of a DreamBooth photo; {class} is left out where the subject's name already ends with it."""
    heldout_share: float = 0.25
    """Share of a concept's images to hold out, where the set has no splits of its own (at least one image)."""
    reference_share: float = 0.25
    """Share of a concept's images for the real side of FID, where the set has no splits of its own."""
    seed: int = 0
    """Seed of the split, where the set has none of its own."""

    def __post_init__(self) -> None:
        for name in ("heldout_share", "reference_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.heldout_share + self.reference_share >= 1:
            raise ValueError("heldout_share + reference_share must be below 1, or nothing is left to train on")
        names = [self.image_column, self.caption_column, self.concept_column, self.split_column]
        if len(set(names)) < len(names):
            raise ValueError(f"image_column, caption_column, concept_column and split_column must differ: {names}")
        fields = [field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None]
        if "concept" not in fields or set(fields) - {"concept", "class"}:
            raise ValueError(f"template must contain {{concept}} and may contain {{class}}: {self.template!r}")
