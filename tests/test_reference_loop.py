"""Twenty updates of ours against the same twenty written out in plain diffusers: losses and weights to 1e-6.

The reference below is what diffusers' text-to-image examples do, from its own classes: scheduler, text encoders, VAE,
UNet, `compute_snr`, torch's AdamW and gradient clipping. Only batches, noise and timesteps are handed to it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import tiny_pipeline
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import compute_snr
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from diffusion_sft.answers import AnswerConfig
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.evaluations import make_exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import Mix, MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.sampler import Sampler
from diffusion_sft.learner import TrainingItem
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.numerics.noise import normal
from diffusion_sft.records import identity_seed

UPDATES = 20
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def _settings(snr_gamma: float | None) -> FinetuneConfig:
    return FinetuneConfig(
        train_batch_size=4,
        max_train_steps=UPDATES,
        learning_rate=1e-5,
        proportion_empty_prompts=0.25,
        snr_gamma=snr_gamma,
        seed=3,
        report_to=None,
    )


def _items(mix: Mix, config: FinetuneConfig) -> list[list[TrainingItem]]:
    sampler = Sampler(
        mix.examples,
        seed=config.seed,
        batch_size=config.train_batch_size,
        proportion_empty_prompts=config.proportion_empty_prompts,
    )
    return [sampler.items(update) for update in range(1, UPDATES + 1)]


def _ours(base: Path, images: Path, config: FinetuneConfig, folder: Path) -> tuple[list[float], Path, Mix]:
    concept_set = read_concept_set(ConceptsConfig(path=str(images))).concept_set
    mix = compose(MixConfig(name="all"), None, concept_set, config.seed)
    learner = DiffusionLearner.load(base)
    finetune(learner, mix, make_exam(mix, None, concept_set, config, AnswerConfig()), config, folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines], folder / "pipeline" / "unet", mix


def _encode_text(pipeline: Any, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As train_text_to_image.py and train_text_to_image_sdxl.py encode captions."""

    def tokens(tokenizer: Any) -> torch.Tensor:
        length = tokenizer.model_max_length
        return tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    if not isinstance(pipeline, StableDiffusionXLPipeline):
        return pipeline.text_encoder(tokens(pipeline.tokenizer))[0], None
    one = pipeline.text_encoder(tokens(pipeline.tokenizer), output_hidden_states=True)
    two = pipeline.text_encoder_2(tokens(pipeline.tokenizer_2), output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two[0]


def _encode_images(pipeline: Any, items: Sequence[TrainingItem]) -> torch.Tensor:
    pixels = [np.asarray(Image.open(item.example.path).convert("RGB"), np.float32) / 127.5 - 1 for item in items]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    latents = [pipeline.vae.encode(image[None]).latent_dist.mean for image in batch]
    return torch.cat(latents) * pipeline.vae.config.scaling_factor


def _loss(
    pipeline: Any, scheduler: DDPMScheduler, items: Sequence[TrainingItem], config: FinetuneConfig
) -> torch.Tensor:
    with torch.no_grad():
        latents = _encode_images(pipeline, items)
        embeds, pooled = _encode_text(pipeline, [item.caption for item in items])
    seeds = [identity_seed(config.seed, "loss", item.visit, item.example.id) for item in items]
    noise = torch.stack([normal(latents.shape[1:], seed) for seed in seeds])
    timesteps = torch.tensor([identity_seed(seed, "timestep") % 1000 for seed in seeds])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    side = latents.shape[-1] * pipeline.vae_scale_factor
    added = {}
    if pooled is not None:
        added = {
            "text_embeds": pooled,
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * len(items)).float(),
        }
    prediction = pipeline.unet(noisy, timesteps, embeds, added_cond_kwargs=added).sample
    kind = scheduler.config.prediction_type
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    target = {"epsilon": noise, "v_prediction": velocity, "sample": latents}[kind]
    losses = functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    if config.snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        weights = snr.clamp(max=config.snr_gamma)
        losses = losses * {"epsilon": weights / snr, "v_prediction": weights / (snr + 1), "sample": weights}[kind]
    return losses.mean()


def _reference(base: Path, batches: list[list[TrainingItem]], config: FinetuneConfig) -> tuple[list[float], Any]:
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    kind = StableDiffusionXLPipeline if "XL" in index["_class_name"] else StableDiffusionPipeline
    options: dict[str, Any] = {} if kind is StableDiffusionXLPipeline else {"safety_checker": None}
    pipeline = kind.from_pretrained(base, **options)
    pipeline.unet.train()
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    weights = list(pipeline.unet.parameters())
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.adam_weight_decay)
    losses = []
    for items in batches:
        loss = _loss(pipeline, scheduler, items, config)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, pipeline.unet


COMBINATIONS = [
    # Of SDXL one; all: pytest -m slow.
    pytest.param(
        *found,
        id="-".join(map(str, found)),
        marks=[pytest.mark.slow] if place % 2 != place // 6 % 2 or place > 7 else [],
    )
    for place, found in enumerate(itertools.product(("sd1", "sdxl"), PREDICTION_TYPES, (None, 5.0)))
]


@pytest.mark.parametrize(("architecture", "prediction_type", "snr_gamma"), COMBINATIONS)
def test_twenty_updates_equal_plain_diffusers(
    architecture: str, prediction_type: str, snr_gamma: float | None, tiny_set: Path, tmp_path: Path
) -> None:
    base, config = tmp_path / "base", _settings(snr_gamma)
    tiny_pipeline(base, architecture, prediction_type=prediction_type)
    losses, exported, mix = _ours(base, tiny_set, config, tmp_path / "run")
    expected_losses, unet = _reference(base, _items(mix, config), config)
    assert len(losses) == UPDATES
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6, atol=1e-6)
    weights = load_file(exported / "diffusion_pytorch_model.safetensors")
    before = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    expected = dict(unet.named_parameters())
    assert weights.keys() == expected.keys()
    differences = torch.cat([(tensor - expected[name].detach()).abs().flatten() for name, tensor in weights.items()])
    # A gradient of the size of rounding errors is a step of full size to Adam: a weight in ten thousand may feel it.
    assert float((differences > 1e-6).float().mean()) < 1e-4
    assert float(differences.max()) < config.learning_rate
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
