"""What did fine-tuning do? The tables of finished runs, the same for both learners, beside the published ones."""

from .runs import TunedRun
from .summarise import DynamicsResult, summarise_runs
from .text import dynamics_text

__all__ = ["DynamicsResult", "TunedRun", "dynamics_text", "summarise_runs"]
