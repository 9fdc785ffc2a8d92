"""Concept sets on disk in every usual layout, one or several with a role each, checked file by file."""

from ..parsing import Problem
from .config import ConceptsConfig, ConceptSourceConfig
from .images import UnreadableImage, load_image
from .read import ReadResult, read_concept_set

__all__ = [
    "ConceptSourceConfig",
    "ConceptsConfig",
    "Problem",
    "ReadResult",
    "UnreadableImage",
    "load_image",
    "read_concept_set",
]
