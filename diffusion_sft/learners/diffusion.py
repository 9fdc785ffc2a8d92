"""A Stable Diffusion pipeline as a learner: readings, losses and pictures of any folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image, ImageOps
from torch import nn
from tqdm.auto import tqdm

from ..concepts.images import load_image
from ..errors import UserError
from ..files import file_hash
from ..learner import NULL_CUE, Cue, Learner, Query, Reading, TrainingItem
from ..numerics.noise import normal
from ..records import Draws, Example, identity_seed
from .denoising import read_surprise
from .stable_diffusion import (
    has_lora,
    load_lora,
    load_pipeline,
    locate,
    save_full,
    save_lora,
    schedule_of,
    weight_hashes,
)

ENCODE_BATCH = 1
"""Images or captions that are encoded at a time. One, because company changes the last bits: a resumed run, which
meets them in another order, would not be the run that was never stopped."""


class DiffusionLearner(Learner):
    """Latents are the VAE's posterior mean times its scaling factor; the text encoder and the VAE stay frozen."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        source: dict[str, Any],
        *,
        folder: Path,
        variant: str | None = None,
        resolution: int | None = None,
    ) -> None:
        """Use `load`; this wraps a pipeline that is already on its device and was read from `folder`."""
        self.pipeline = pipeline
        self.network: nn.Module = pipeline.unet
        self.schedule = schedule_of(pipeline)
        self.resolution: int = resolution or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        self._source, self._folder, self._variant = source, folder, variant
        self._hashes: dict[str, str] = {}
        self._prompt_embeds: dict[str, torch.Tensor] = {}
        self._latents: dict[tuple[str, int], torch.Tensor] = {}
        if self.resolution % pipeline.vae_scale_factor:
            raise UserError(f"resolution {self.resolution} is not a multiple of {pipeline.vae_scale_factor}")

    @classmethod
    def load(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        lora: Path | None = None,
        resolution: int | None = None,
    ) -> DiffusionLearner:
        """Load a pipeline folder or Hub id.

        Args:
            pretrained_model_name_or_path: as in diffusers.
            revision: branch, tag or commit of a Hub repository.
            variant: of the weight files, for example fp16.
            device: where all networks go.
            dtype: of all networks; fine-tuning wants float32 and autocast.
            lora: weights to put on the UNet, as `save` writes them.
            resolution: pixels of a side; default is what the UNet was trained on.

        Raises:
            UserError: anything missing, unreadable, or of another kind.
        """
        name = str(pretrained_model_name_or_path)
        folder = locate(name, revision=revision, variant=variant)
        pipeline = load_pipeline(folder, variant=variant, dtype=dtype)
        source: dict[str, Any] = {"source": name, "revision": revision, "variant": variant}
        source["dtype"] = str(dtype).removeprefix("torch.")
        if lora is not None:
            load_lora(pipeline, lora)
            file = lora / "pytorch_lora_weights.safetensors" if lora.is_dir() else lora
            source["lora"] = file_hash(file)
        pipeline.to(device)
        if torch.device(device).type == "cpu":
            # The fused kernel's backward is several times slower than plain attention on a CPU.
            pipeline.unet.set_attn_processor(AttnProcessor())
        pipeline.vae.requires_grad_(False)
        pipeline.text_encoder.requires_grad_(False)
        return cls(pipeline, source, folder=folder, variant=variant, resolution=resolution)

    @property
    def device(self) -> torch.device:
        """Where the pipeline lives."""
        device: torch.device = self.pipeline.vae.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the UNet's own weights (an adapter's may differ)."""
        dtype: torch.dtype = self.pipeline.unet.conv_in.weight.dtype
        return dtype

    def check_captions(self, captions: Sequence[str]) -> None:
        """Raise UserError naming the captions that the tokenizer would cut."""
        tokenizer = self.pipeline.tokenizer
        if not captions:
            return
        limit = min(tokenizer.model_max_length, self.pipeline.text_encoder.config.max_position_embeddings)
        distinct = list(dict.fromkeys(captions))
        lengths = [len(ids) for ids in tokenizer(distinct, truncation=False, verbose=False).input_ids]
        cut = [f"{text!r} ({n} tokens)" for text, n in zip(distinct, lengths, strict=True) if n > limit]
        if cut:
            listed = ", ".join(cut[:5]) + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")
            raise UserError(f"captions longer than the tokenizer's {limit} tokens: {listed}; shorten them")

    def targets(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """The latents of each example's image, (latent_channels, height, width) float32 on the CPU; encoded once."""
        keys = [(str(example.path), _changed(example.path)) for example in examples]
        missing = [key for key in dict.fromkeys(keys) if key not in self._latents]
        starts = range(0, len(missing), ENCODE_BATCH)
        for start in tqdm(starts, desc="encoding images", disable=None if len(starts) > 8 else True, leave=False):
            chunk = missing[start : start + ENCODE_BATCH]
            latents = self._encode([load_image(Path(path)) for path, _ in chunk])
            self._latents.update(zip(chunk, latents, strict=True))
        return [self._latents[key] for key in keys]

    def prompt_embeds(self, captions: Sequence[str]) -> torch.Tensor:
        """The text encoder's states, (num_captions, tokens, width) on the device; each caption encoded once."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._prompt_embeds]
        for start in range(0, len(missing), ENCODE_BATCH):
            chunk = missing[start : start + ENCODE_BATCH]
            with torch.no_grad():
                embeds, _ = self.pipeline.encode_prompt(chunk, self.device, 1, False)
            self._prompt_embeds.update(zip(chunk, embeds.to("cpu", self.dtype), strict=True))
        return torch.stack([self._prompt_embeds[caption] for caption in captions]).to(self.device)

    def predict(self, noisy: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
        """The network's output for each row, float32, in the scheduler's prediction type."""
        prediction = self.network(
            noisy.to(self.dtype),
            torch.from_numpy(timesteps).to(self.device),
            encoder_hidden_states=self.prompt_embeds(cues),
            return_dict=False,
        )[0]
        return prediction.float()

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        """Read each query's cues and ∅ on its target, with common draws (no guidance); order as given."""
        self.prompt_embeds([NULL_CUE, *(cue for query in queries for cue in query.cues)])
        with _evaluating(self.network):
            return read_surprise(self, queries, draws, batch_size)

    def loss(self, items: Sequence[TrainingItem], *, seed: int) -> torch.Tensor:
        """The mean squared error of the scheduler's training target, per item (num_items,), at a uniform timestep."""
        latents = torch.stack(self.targets([item.example for item in items])).to(self.device)
        seeds = [identity_seed(seed, "loss", item.visit, item.example.id) for item in items]
        noise = torch.stack([normal(latents.shape[1:], number) for number in seeds]).to(self.device)
        # A stream of its own for the timestep, so that it does not hang on how many numbers the noise takes.
        total = self.schedule.num_train_timesteps
        timesteps = np.array([identity_seed(number, "timestep") % total for number in seeds])
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        prediction = self.predict(noisy, timesteps, [item.caption for item in items])
        target = self.schedule.training_target(latents, noise, timesteps)
        return (prediction - target).square().flatten(1).mean(dim=1)

    def generate(
        self, cues: Sequence[Cue], *, num_inference_steps: int, guidance_scale: float, batch_size: int
    ) -> list[np.ndarray]:
        """One image per cue by the pipeline's own call, uint8 (height, width, 3), from its seed's noise alone."""
        images: list[np.ndarray] = []
        bar = tqdm(total=len(cues), desc="generating", unit="image", disable=None)
        with torch.no_grad(), _evaluating(self.network), bar:
            for start in range(0, len(cues), batch_size):
                chunk = cues[start : start + batch_size]
                output = self.pipeline(
                    prompt_embeds=self.prompt_embeds([cue.prompt for cue in chunk]),
                    negative_prompt_embeds=self.prompt_embeds([NULL_CUE] * len(chunk)),
                    generator=[torch.Generator("cpu").manual_seed(cue.seed) for cue in chunk],
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    height=self.resolution,
                    width=self.resolution,
                    output_type="pil",
                )
                images += [np.array(image) for image in output.images]
                bar.update(len(chunk))
        return images

    def save(self, folder: Path) -> None:
        """Write what was trained: a whole pipeline folder, or the LoRA file where the UNet carries an adapter."""
        if has_lora(self.pipeline):
            save_lora(self.pipeline, folder)
        else:
            save_full(self.pipeline, self._folder, self._variant, folder)

    def identity(self) -> dict[str, Any]:
        """Where the base came from, SHA-256 of its weight files as loaded, its schedule and resolution."""
        if not self._hashes:
            self._hashes = weight_hashes(self._folder, self._variant)
        low, high = self.schedule.log_snr_range
        return self._source | {
            "sha256": dict(self._hashes),
            "resolution": self.resolution,
            "prediction_type": self.schedule.prediction_type,
            "num_train_timesteps": self.schedule.num_train_timesteps,
            "log_snr_range": [low, high],
            "num_parameters": sum(p.numel() for p in self.pipeline.unet.parameters()),
        }

    def _encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Short side to the resolution, centre crop, [−1, 1], posterior mean times scaling factor, on the CPU."""
        vae, side = self.pipeline.vae, (self.resolution, self.resolution)
        arrays = [np.asarray(ImageOps.fit(image, side, Image.Resampling.LANCZOS)) for image in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(self.device, torch.float32) / 127.5 - 1
        dtype = vae.dtype
        # At the cleanest levels σ is 0.03, below what bfloat16 resolves: the VAE always encodes in float32.
        nn.Module.to(vae, dtype=torch.float32)
        with torch.no_grad():
            mean = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        nn.Module.to(vae, dtype=dtype)
        latents: torch.Tensor = mean.cpu()
        return latents


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Dropout off for a while."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _changed(path: Path) -> int:
    """The file's modification time in nanoseconds; 0 where there is no file, which loading it then reports."""
    return path.stat().st_mtime_ns if path.exists() else 0
