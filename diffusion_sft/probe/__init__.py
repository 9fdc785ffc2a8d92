"""What does the base know? Errors and gains in nats for held-out pictures, and answers in words and in pictures."""

from .config import ProbeConfig, SampleConfig
from .run import ProbeResult, probe
from .samples import SAMPLE_COLUMNS
from .scores import SCORE_COLUMNS

__all__ = ["SAMPLE_COLUMNS", "SCORE_COLUMNS", "ProbeConfig", "ProbeResult", "SampleConfig", "probe"]
