"""What a weight file's header says of the model, in the words that other tools look for.

`modelspec.*` is Stability AI's ModelSpec 1.0, the versions' names are those of kohya's trainer.
"""

from __future__ import annotations

from collections.abc import Mapping

from .loading import LoadedPipeline

_KOHYA = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def kohya_version(loaded: LoadedPipeline) -> str:
    """sd_v1, sd_v2, sd_v2_v (velocity prediction) or sdxl_base_v1-0."""
    architecture = loaded.architecture
    return _KOHYA[architecture] + ("_v" if architecture == "sd2" and _predicts_velocity(loaded) else "")


def modelspec(loaded: LoadedPipeline, metadata: Mapping[str, str], *, lora: bool) -> dict[str, str]:
    """The `modelspec.*` entries: architecture, title, resolution and what the network predicts."""
    pipeline, architecture = loaded.pipeline, loaded.architecture
    velocity = _predicts_velocity(loaded)
    names = {
        "sd1": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-768-v" if velocity else "stable-diffusion-v2-512",
        "sdxl": "stable-diffusion-xl-v1-base",
    }
    code = "Stability-AI/generative-models" if architecture == "sdxl" else "CompVis/stable-diffusion"
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": names[architecture] + ("/lora" if lora else ""),
        "modelspec.implementation": f"https://github.com/{code}",
        "modelspec.title": metadata.get("mix", "diffusion_sft"),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if velocity else str(pipeline.scheduler.config.prediction_type),
    }


def _predicts_velocity(loaded: LoadedPipeline) -> bool:
    return bool(loaded.pipeline.scheduler.config.prediction_type == "v_prediction")
