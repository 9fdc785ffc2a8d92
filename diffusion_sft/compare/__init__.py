"""Both learners side by side: one table of shared metrics beside the published figures, and the verdict."""

from .config import CompareConfig
from .run import Comparison, compare, run_compare

__all__ = ["CompareConfig", "Comparison", "compare", "run_compare"]
