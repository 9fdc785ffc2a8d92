"""The noise schedule that a base was trained under, read from its scheduler's settings.

Samplers bend the schedule for their own ends: some write 2⁻²⁴ where no signal is left at all. What a network was
trained under is the formula in the settings, and that is what fine-tuning and probing must use.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

from ..errors import UserError
from ..numerics.schedule import PredictionType, Schedule


def schedule_of(pipeline: Any) -> Schedule:
    """ᾱ_t of the pipeline's scheduler and what its network predicts.

    With `rescale_betas_zero_snr` (Lin et al., 2024, algorithm 1) ᾱ of the last timestep is 0, also where the sampler
    holds 2⁻²⁴ to keep clear of dividing by it.
    """
    return _schedule(pipeline.scheduler)


def _schedule(scheduler: Any) -> Schedule:
    values = scheduler.alphas_cumprod.double().cpu().numpy().copy()
    if scheduler.config.get("rescale_betas_zero_snr"):
        values[-1] = 0.0
    prediction_type: PredictionType = scheduler.config.get("prediction_type", "epsilon")
    return Schedule(alphas_cumprod=values, prediction_type=prediction_type)


def check_scheduler(scheduler: Any, place: Path) -> None:
    """Raise UserError for schedulers of other families and for settings that would go unheeded."""
    kind, config = type(scheduler).__name__, scheduler.config
    advice = "use for example DDIMScheduler with the settings the base was trained under"
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(f"{place}: {kind} has no discrete noise schedule (alphas_cumprod); {advice}")
    if config.get("timestep_type") == "continuous" or config.get("use_flow_sigmas"):
        raise UserError(
            f"{place}: {kind} with continuous noise levels (EDM, flow) has no discrete schedule; {advice}"
        )
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in get_args(PredictionType):
        known = ", ".join(get_args(PredictionType))
        raise UserError(f"{place}: the scheduler's prediction_type {predicted!r} is none of {known}")
    if config.get("rescale_betas_zero_snr") and not knows_rescaling(type(scheduler)):
        raise UserError(
            f"{place}: {kind} does not heed rescale_betas_zero_snr, which the base was trained with; {advice}"
        )
    try:
        _schedule(scheduler)
    except ValueError as error:
        raise UserError(f"{place}: {error}; look at its betas and num_train_timesteps") from None


def knows_rescaling(kind: type) -> bool:
    """Whether a class of schedulers can rescale its betas to zero terminal SNR."""
    return "rescale_betas_zero_snr" in inspect.signature(kind).parameters
