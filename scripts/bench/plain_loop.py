"""The loop of diffusers' text-to-image examples, with each of our levers as a switch: the rival of `train.py`.

Written from the examples' published behaviour (`train_text_to_image.py`, `train_text_to_image_lora.py`): images are
resized, cropped and normalised by a DataLoader, encoded by the VAE and the text encoder in every step, noise and
timesteps come from the global generator, and the gathered loss is read on the host in every step. Adapters are float32
here (the example leaves them in bfloat16), as ours are, so that both have the same precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.parts import trainable_parameters
from diffusion_sft.learners.diffusion import DiffusionLearner


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What the plain loop does otherwise than published; by default nothing."""

    cached: bool = False
    """Latents and embeddings are made before the clock starts."""
    channels_last: bool = False
    fused: bool = False
    compile_mode: str | None = None
    math_attention: bool = False
    """Attention without a fused kernel."""
    workers: int = 0
    waits: bool = True
    """The loss is read on the host in every step."""
    checkpointing: bool = False


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images as the example's transforms make them, and their numbers."""

    def __init__(self, files: Sequence[Path], resolution: int) -> None:
        self.files = list(files)
        self.transform = transforms.Compose(
            [
                transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(resolution),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[number]) as image:
            return self.transform(image.convert("RGB")), number


class PlainLoop:
    """One training in progress; `step` is one update."""

    def __init__(
        self,
        learner: DiffusionLearner,
        pictures: Sequence[tuple[Path, str]],
        config: FinetuneConfig,
        levers: Levers,
    ) -> None:
        """Take a loaded pipeline, (file, caption) pairs, and what is trained how."""
        pipeline, self.levers = learner.pipeline, levers
        self.accelerator = Accelerator(cpu=learner.device.type == "cpu", mixed_precision=config.mixed_precision)
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
        self.dtype = kind
        self.vae, self.encode = pipeline.vae, pipeline.encode_prompt
        nn.Module.to(self.vae, dtype=kind)  # its own method warns of what this does on purpose
        for encoder in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if encoder is not None:
                encoder.to(dtype=kind)
        unet, self.noise_scheduler = pipeline.unet, learner.schedule
        if config.method == "lora":
            unet.to(dtype=kind)
        self.weights = list(trainable_parameters({"unet": unet}, config).values())
        if levers.checkpointing:
            unet.enable_gradient_checkpointing()
        if levers.channels_last:
            unet.to(memory_format=torch.channels_last)
        if levers.compile_mode is not None:
            unet.compile(mode=levers.compile_mode)
        optimizer = torch.optim.AdamW(self.weights, lr=config.learning_rate, fused=levers.fused or None)
        files, self.captions = [file for file, _ in pictures], [caption for _, caption in pictures]
        loader = DataLoader(
            Pictures(files, learner.resolution),
            batch_size=config.train_batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=levers.workers,
            persistent_workers=levers.workers > 0,
        )
        self.unet, self.optimizer, self.loader = self.accelerator.prepare(unet, optimizer, loader)
        self.unet.train()
        self.size = (learner.resolution, learner.resolution)
        self.max_grad_norm = config.max_grad_norm
        self.is_xl = hasattr(pipeline, "text_encoder_2")
        self.known = self._encoded_beforehand() if levers.cached else {}
        self.batches = self._batches()

    def step(self) -> None:
        """One update, as the example makes it."""
        with self._attention():
            pixels, numbers = next(self.batches)
            latents, text = self._inputs(pixels, numbers)
            noise = torch.randn_like(latents)
            total = self.noise_scheduler.num_train_timesteps
            timesteps = torch.randint(0, total, (len(latents),), device=latents.device)
            alphas = torch.as_tensor(self.noise_scheduler.alphas_cumprod, dtype=torch.float32)
            signal = alphas.to(latents.device)[timesteps].view(-1, 1, 1, 1).to(latents.dtype)
            noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
            prediction = self.unet(noisy, timesteps, return_dict=False, **text)[0]
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            average = self.accelerator.gather(loss.repeat(len(latents))).mean()
            if self.levers.waits:
                average.item()
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.weights, self.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _attention(self) -> Any:
        return sdpa_kernel(SDPBackend.MATH) if self.levers.math_attention else nullcontext()

    def _batches(self) -> Iterator[tuple[torch.Tensor | None, list[int]]]:
        """Batch after batch; with `cached` their numbers alone, so that no image is opened."""
        if self.levers.cached:
            size, total = self.loader.batch_size or 1, len(self.captions)
            while True:
                order = torch.randperm(total).tolist()
                yield from ((None, order[start : start + size]) for start in range(0, total - size + 1, size))
        while True:
            yield from ((pixels, numbers.tolist()) for pixels, numbers in self.loader)

    def _inputs(self, pixels: torch.Tensor | None, numbers: Sequence[int]) -> tuple[torch.Tensor, Mapping[str, Any]]:
        if pixels is None:
            rows = [self.known[number] for number in numbers]
            return torch.cat([latents for latents, _ in rows]), _stacked([text for _, text in rows])
        return self._latents(pixels), self._text([self.captions[number] for number in numbers])

    def _encoded_beforehand(self) -> dict[int, tuple[torch.Tensor, Mapping[str, Any]]]:
        known = {}
        for number in range(len(self.captions)):
            pixels = self.loader.dataset[number][0].unsqueeze(0).to(self.accelerator.device)
            known[number] = (self._latents(pixels), self._text([self.captions[number]]))
        return known

    @torch.no_grad()
    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.vae.encode(pixels.to(self.dtype)).latent_dist.sample()
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def _text(self, captions: Sequence[str]) -> Mapping[str, Any]:
        device = self.accelerator.device
        if not self.is_xl:
            return {"encoder_hidden_states": self.encode(list(captions), device, 1, False)[0]}
        embeds, _, pooled, _ = self.encode(list(captions), device=device, do_classifier_free_guidance=False)
        ids = torch.tensor([[*self.size, 0, 0, *self.size]] * len(captions), dtype=embeds.dtype, device=device)
        return {
            "encoder_hidden_states": embeds,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids},
        }


def _stacked(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The rows' tensors below one another, at any depth."""
    first = rows[0]
    return {
        name: _stacked([row[name] for row in rows])
        if isinstance(first[name], Mapping)
        else torch.cat([row[name] for row in rows])
        for name in first
    }
