"""What does the base know? Errors and gains in nats for held-out pictures, and answers in words and in pictures."""

from .config import AdaptiveConfig, LanguageProbeConfig, ProbeConfig, SampleConfig
from .run import ProbeResult, probe
from .samples import SAMPLE_COLUMNS, Sampling, picture_samples, text_samples
from .scores import SCORE_COLUMNS

__all__ = [
    "SAMPLE_COLUMNS",
    "SCORE_COLUMNS",
    "AdaptiveConfig",
    "LanguageProbeConfig",
    "ProbeConfig",
    "ProbeResult",
    "SampleConfig",
    "Sampling",
    "picture_samples",
    "probe",
    "text_samples",
]
