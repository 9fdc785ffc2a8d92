"""Concept sets on disk: ImageFolder and DreamBooth folders, checked file by file."""

from .config import ConceptsConfig
from .images import UnreadableImage, load_image
from .read import ReadResult, read_concept_set
from .rows import Problem

__all__ = ["ConceptsConfig", "Problem", "ReadResult", "UnreadableImage", "load_image", "read_concept_set"]
