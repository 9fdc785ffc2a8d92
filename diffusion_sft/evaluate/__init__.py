"""Generate images per concept and measure them against real ones, bucket by bucket."""

from .config import EvaluateConfig
from .evaluation import Evaluation, evaluate
from .features import Extractor, build_extractor
from .generation import generate_images, read_generated
from .looking import Instruments, Looking
from .pictures import GeneratedImage
from .readers import LabelReader, nearest_concept_reader, readout_reader
from .table import distance_table

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "Extractor",
    "GeneratedImage",
    "Instruments",
    "LabelReader",
    "Looking",
    "build_extractor",
    "distance_table",
    "evaluate",
    "generate_images",
    "nearest_concept_reader",
    "read_generated",
    "readout_reader",
]
