"""Losses against plain diffusers: its schedulers' noise and velocity, its UNet call, its SNR, for every base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import tiny_pipeline as make_pipeline
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from PIL import Image

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Objective, TrainingItem
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.training import training_batch
from diffusion_sft.numerics.noise import normal
from diffusion_sft.numerics.schedule import Schedule
from diffusion_sft.records import Example, identity_seed

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
OBJECTIVES = {
    "plain": Objective(),
    "min-snr": Objective(snr_gamma=5.0),
    "offset": Objective(noise_offset=0.1),
    "both": Objective(snr_gamma=1.0, noise_offset=0.05),
}
SEED = 4


def make_items(folder: Path, count: int = 5) -> list[TrainingItem]:
    generator = np.random.default_rng(0)
    items = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
        example = Example(id=path.name, concept="wug", caption="a photo of a wug", path=path, split="train")
        items.append(TrainingItem(example=example, caption=["a wug", ""][number % 2], visit=number))
    return items


def plain_losses(pipeline: Any, items: list[TrainingItem], objective: Objective) -> torch.Tensor:
    """As train_text_to_image.py and train_text_to_image_sdxl.py; noise and timesteps from our seeds."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    seeds = [identity_seed(SEED, "loss", item.visit, item.example.id) for item in items]
    timesteps = torch.tensor([identity_seed(seed, "timestep") % 1000 for seed in seeds])
    pixels = [np.asarray(Image.open(item.example.path), dtype=np.float32) / 127.5 - 1 for item in items]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    latents = pipeline.vae.encode(batch).latent_dist.mean * pipeline.vae.config.scaling_factor
    noise = torch.stack([normal(latents.shape[1:], seed) for seed in seeds])
    if objective.noise_offset:
        constant = torch.stack([normal((4, 1, 1), identity_seed(seed, "noise offset")) for seed in seeds])
        noise += objective.noise_offset * constant
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = predict(pipeline, noisy, timesteps, [item.caption for item in items])
    kind = scheduler.config.prediction_type
    targets = {"epsilon": noise, "sample": latents}
    target = scheduler.get_velocity(latents, noise, timesteps) if kind == "v_prediction" else targets[kind]
    losses = torch.nn.functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    if objective.snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        least = torch.stack([snr, objective.snr_gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        losses = losses * {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[kind]
    return losses


def predict(pipeline: Any, noisy: torch.Tensor, timesteps: torch.Tensor, captions: list[str]) -> torch.Tensor:
    embeds = pipeline.encode_prompt(
        captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    added = {}
    if hasattr(pipeline, "text_encoder_2"):
        ids = pipeline._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 24)
        added = {"added_cond_kwargs": {"text_embeds": embeds[2], "time_ids": ids.repeat(len(captions), 1)}}
    output: torch.Tensor = pipeline.unet(noisy, timesteps, encoder_hidden_states=embeds[0], **added).sample
    return output


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_losses_are_those_of_plain_diffusers(
    architecture: str, prediction_type: str, objective: str, tmp_path: Path
) -> None:
    base = make_pipeline(tmp_path / "base", architecture, prediction_type=prediction_type)
    learner, items = DiffusionLearner.load(base), make_items(tmp_path)
    assert learner.schedule.prediction_type == prediction_type
    losses = learner.loss(learner.batch(items, seed=SEED, objective=OBJECTIVES[objective]))
    with torch.no_grad():
        expected = plain_losses(learner.pipeline, items, OBJECTIVES[objective])
    np.testing.assert_allclose(losses.detach(), expected, rtol=2e-5, atol=1e-6)
    assert losses.requires_grad
    backwards = learner.loss(learner.batch(items[::-1], seed=SEED, objective=OBJECTIVES[objective]))
    torch.testing.assert_close(backwards.flip(0), losses)


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_schedules_that_end_in_pure_noise_train(architecture: str, prediction_type: str, tmp_path: Path) -> None:
    base = make_pipeline(tmp_path / "base", architecture, prediction_type=prediction_type, zero_terminal_snr=True)
    learner = DiffusionLearner.load(base)
    assert learner.schedule.alphas_cumprod[-1] == 0
    item = make_items(tmp_path, 1)[0]
    # A visit that draws the last timestep, where there is no signal at all.
    last = next(v for v in range(100000) if _timestep(v, item) == 999)
    for objective in OBJECTIVES.values():
        at_last = TrainingItem(example=item.example, caption="a wug", visit=last)
        (loss,) = learner.loss(learner.batch([at_last], seed=SEED, objective=objective))
        assert torch.isfinite(loss)
        if objective.snr_gamma is not None:
            assert loss == 0
            continue
        with torch.no_grad():
            (expected,) = plain_losses(learner.pipeline, [at_last], objective)
        # The samplers keep 2⁻²⁴ of the signal.
        assert float(loss.detach()) == pytest.approx(float(expected), rel=2e-3)


def _timestep(visit: int, item: TrainingItem) -> int:
    return identity_seed(identity_seed(SEED, "loss", visit, item.example.id), "timestep") % 1000


def test_pure_noise_cannot_be_predicted_from_pure_noise(tmp_path: Path) -> None:
    base = make_pipeline(tmp_path / "base", "sd1", prediction_type="epsilon", zero_terminal_snr=True)
    with pytest.raises(UserError, match="base: .*pure noise.*v_prediction"):
        DiffusionLearner.load(base)


def test_offset_noise_is_constant_over_each_channel() -> None:
    """Its variance, over visits, is that of ε with noise_offset² added on the mean over a channel."""
    schedule = Schedule(alphas_cumprod=np.linspace(0.99, 0.01, 1000))
    example = Example(id="x", concept="x", caption="x", path=Path("x"), split="train")
    items = [TrainingItem(example=example, caption="x", visit=visit) for visit in range(3000)]
    clean = torch.zeros(3000, 2, 4, 4)
    plain = training_batch(schedule, clean, items, 0, Objective()).target
    moved = training_batch(schedule, clean, items, 0, Objective(noise_offset=0.5)).target
    offset = moved - plain
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset), rtol=0, atol=1e-6)
    assert float(offset[:, :, 0, 0].var()) == pytest.approx(0.25, rel=0.06)
    correlation = np.corrcoef(offset[:, 0, 0, 0], offset[:, 1, 0, 0])[0, 1]
    assert abs(correlation) < 0.07


def test_weights_are_one_number_for_each_timestep() -> None:
    schedule = Schedule(alphas_cumprod=np.array([0.9, 0.5, 0.0]), prediction_type="v_prediction")
    example = Example(id="x", concept="x", caption="x", path=Path("x"), split="train")
    items = [TrainingItem(example=example, caption="x", visit=visit) for visit in range(40)]
    batch = training_batch(schedule, torch.zeros(40, 1, 2, 2), items, 0, Objective(snr_gamma=5.0))
    expected = np.array([5 / 10, 1 / 2, 0.0])[batch.timesteps]
    np.testing.assert_allclose(batch.weights, expected, rtol=1e-6)
    assert set(batch.timesteps) == {0, 1, 2}
    losses = batch.losses(torch.zeros(40, 1, 2, 2))
    torch.testing.assert_close(losses, batch.target.square().mean(dim=(1, 2, 3)) * batch.weights)
