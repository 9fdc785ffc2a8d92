"""A Stable Diffusion pipeline as a learner: readings, losses and pictures of any SD 1, SD 2 or SDXL diffusers loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..answers import judge
from ..errors import UserError
from ..files import file_hash
from ..learner import (
    NULL_CUE,
    PIPELINE_LAYOUT,
    PLAIN_OBJECTIVE,
    Answer,
    Cue,
    Learner,
    Objective,
    Query,
    Question,
    Reading,
    Reconstruction,
    TrainingItem,
)
from ..records import Draws, Example
from .adapters import has_lora, save_lora
from .cache import TensorCache
from .conditioning import Framing, Size, TextConditioning, time_ids
from .denoising import read_surprise
from .exporting import save_full, save_single_file
from .latents import Fit, FittedLatents, LatentCodec
from .loading import LoadedPipeline, load_lora, load_pipeline, place, schedule_of, weight_hashes
from .lora import LORA_FILE
from .modes import evaluating
from .network import POOLED, PROMPT_EMBEDS, ConditionedUNet, to_device
from .reconstruction import read_reconstruction
from .training import TrainingBatch, training_batch


class DiffusionLearner(Learner):
    """Latents are the VAE's posterior mean as the UNet was trained on it; the VAE stays frozen, and so do the text
    encoders unless their weights are made trainable."""

    resolution: int
    layout = PIPELINE_LAYOUT

    def __init__(
        self, loaded: LoadedPipeline, *, resolution: int | None = None, cache_dir: Path | None = None
    ) -> None:
        """Use `load`; this takes a pipeline that is already on its device."""
        pipeline = loaded.pipeline
        self.loaded, self.pipeline = loaded, pipeline
        self.schedule = schedule_of(pipeline)
        # Of a network for sizes that are not square, the square of its height.
        trained_size = pipeline.unet.config.sample_size
        side = trained_size if isinstance(trained_size, int) else trained_size[0]
        self.resolution = resolution or side * pipeline.vae_scale_factor
        self._check(str(loaded.source["source"]))
        for frozen in (pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if frozen is not None:
                frozen.requires_grad_(False)
        self._networks = ConditionedUNet(
            pipeline.unet, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)
        )
        self.network: nn.Module = self._networks.eval()
        self._hashes: dict[str, str] = {}
        cache = TensorCache(cache_dir)
        self._text = TextConditioning(pipeline, self._networks, cache, lambda: self._weights_of("text_encoder"))
        self._codec = LatentCodec(pipeline, cache, lambda: self._weights_of("vae"))

    @classmethod
    def load(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        single_file_config: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        lora: Path | None = None,
        resolution: int | None = None,
        cache_dir: Path | None = None,
        compile_mode: str | None = None,
    ) -> DiffusionLearner:
        """Load a pipeline folder, a single checkpoint file or a Hub id.

        Args:
            pretrained_model_name_or_path: as in diffusers.
            revision: branch, tag or commit of a Hub repository.
            variant: of the weight files, for example fp16.
            single_file_config: for a checkpoint file, where its settings and tokenizers are taken from.
            device: where all networks go.
            dtype: of the UNet and the text encoders; fine-tuning wants float32 and autocast. The VAE is float32.
            lora: weights to put on the networks, as `save` writes them, or in kohya's names.
            resolution: pixels of a side; default is what the UNet was trained on.
            cache_dir: where encoded images and captions are kept from run to run; None keeps them in memory
                alone, up to 4 GiB; what does not fit is encoded again.
            compile_mode: of torch.compile, for the UNet; None leaves it as it is.

        Raises:
            UserError: anything missing, unreadable, or of another kind.
        """
        name = str(pretrained_model_name_or_path)
        loaded = load_pipeline(
            name, revision=revision, variant=variant, dtype=dtype, single_file_config=single_file_config
        )
        if lora is not None:
            load_lora(loaded.pipeline, lora)
            loaded.source["lora"] = file_hash(lora / LORA_FILE if lora.is_dir() else lora)
        place(loaded.pipeline, torch.device(device), compile_mode)
        return cls(loaded, resolution=resolution, cache_dir=cache_dir)

    def parts(self) -> dict[str, nn.Module]:
        """`unet`, `text_encoder` and, of an SDXL, `text_encoder_2`."""
        return dict(self._networks.named_children())

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
        """Raise UserError naming the captions that a tokenizer would cut."""
        self._text.check(captions)

    def targets(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        """The latents of each example's image at the learner's square, (latent_channels, height, width) float32 on the
        CPU; encoded once."""
        square = (self.resolution, self.resolution)
        return [found.latents for found in self._codec.fitted([Fit(e.path, square) for e in examples])]

    def encode_items(self, items: Sequence[TrainingItem]) -> list[FittedLatents]:
        """The latents of each item's image at its size, mirrored where it says so; encoded once.

        Raises:
            UserError: a size that is not a multiple of the VAE's factor, or an image that cannot be encoded.
        """
        fits = []
        for item in items:
            size = item.size or (self.resolution, self.resolution)
            self._check_size(size, item.example.id)
            fits.append(Fit(item.example.path, size, item.flipped))
        return self._codec.fitted(fits)

    def encode_captions(self, captions: Sequence[str]) -> None:
        """Encode each caption once, so that it is not encoded while training."""
        self._text.remember(captions)

    def predict(self, noisy: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
        """The network's output for each row, float32, in the scheduler's prediction type; an SDXL is told that the
        image always had its size."""
        prediction: torch.Tensor = self.network(*self.inputs(noisy, timesteps, cues))
        return prediction.float()

    def inputs(
        self,
        noisy: torch.Tensor,
        timesteps: np.ndarray,
        cues: Sequence[str],
        framings: Sequence[Framing] | None = None,
        *,
        through_text: bool = False,
    ) -> tuple[Any, ...]:
        """What `network` takes for these rows; images always had their size where no framings say otherwise. Cues are
        token ids where text encoders are trained or `through_text` asks for it, else their embeddings."""
        factor = self.pipeline.vae_scale_factor
        whole = Framing.whole((noisy.shape[-2] * factor, noisy.shape[-1] * factor))
        ids = to_device(time_ids(framings or [whole] * len(cues)), self.device) if self._text.is_xl else None
        text = self._text.tokens(cues) if through_text else self._text.text(cues)
        return noisy.to(self.dtype), to_device(torch.from_numpy(timesteps), self.device), text, ids

    def surprise(self, queries: Sequence[Query], draws: Draws, *, batch_size: int) -> list[Reading]:
        """Read each query's cues and ∅ on its target, with common draws (no guidance); order as given."""
        self._encode_cues(queries)
        with evaluating(self.network):
            return read_surprise(self, queries, draws, batch_size)

    def answer(self, questions: Sequence[Question], draws: Draws, *, batch_size: int) -> list[Answer]:
        """The candidate of the highest gain for each question (`judge`)."""
        return judge(questions, self.surprise([q.query for q in questions], draws, batch_size=batch_size))

    def reconstruct(
        self, queries: Sequence[Query], reconstruction: Reconstruction, draws: Draws, *, batch_size: int
    ) -> list[np.ndarray]:
        """‖x − x̃‖² / d of each query's latents under ∅ and each cue; see `read_reconstruction`."""
        self._encode_cues(queries)
        with evaluating(self.network):
            return read_reconstruction(self, queries, reconstruction, draws, batch_size=batch_size)

    def batch(
        self, items: Sequence[TrainingItem], *, seed: int, objective: Objective = PLAIN_OBJECTIVE
    ) -> tuple[tuple[Any, ...], TrainingBatch]:
        """The network's inputs for noisy latents of the items, and what is to be predicted of them at a uniform
        timestep, weighted as the objective says; an SDXL is told each image's own size and crop."""
        encoded = self.encode_items(items)
        clean = to_device(torch.stack([found.latents for found in encoded]), self.device)
        batch = training_batch(self.schedule, clean, items, seed, objective)
        captions, framings = [item.caption for item in items], [found.framing for found in encoded]
        return self.inputs(batch.noisy, batch.timesteps, captions, framings), batch

    def loss(self, batch: tuple[tuple[Any, ...], TrainingBatch]) -> torch.Tensor:
        """The weighted mean squared error of the scheduler's training target, per item (num_items,)."""
        inputs, wanted = batch
        prediction: torch.Tensor = self.network(*inputs)
        return wanted.losses(prediction)

    def generate(
        self, cues: Sequence[Cue], *, num_inference_steps: int, guidance_scale: float, batch_size: int
    ) -> list[np.ndarray]:
        """One image per cue by the pipeline's own call, uint8 (height, width, 3), from its seed's noise alone."""
        images: list[np.ndarray] = []
        pipeline = self._without_text_encoders()
        bar = tqdm(total=len(cues), desc="generating", unit="image", disable=None)
        with torch.no_grad(), evaluating(self.network), bar:
            for start in range(0, len(cues), batch_size):
                chunk = cues[start : start + batch_size]
                latents = pipeline(
                    **self._prompts([cue.prompt for cue in chunk]),
                    generator=[torch.Generator("cpu").manual_seed(cue.seed) for cue in chunk],
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    height=self.resolution,
                    width=self.resolution,
                    output_type="latent",
                ).images
                images += self._codec.decode(latents, [cue.prompt for cue in chunk])
                bar.update(len(chunk))
        return images

    def save(self, folder: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write what was trained: a whole pipeline folder, or the LoRA files where a network carries an adapter."""
        if has_lora(self.pipeline):
            save_lora(self.loaded, folder, metadata)
        else:
            save_full(self.loaded, folder, metadata)

    def save_single_file(self, file: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write the whole model as one checkpoint in the original layout; UserError where it carries adapters."""
        save_single_file(self.loaded, file, metadata)

    def identity(self) -> dict[str, Any]:
        """Where the base came from, SHA-256 of its weight files as loaded, its schedule and resolution."""
        low, high = self.schedule.log_snr_range
        return self.loaded.source | {
            "sha256": dict(self._weight_hashes()),
            "resolution": self.resolution,
            "prediction_type": self.schedule.prediction_type,
            "num_train_timesteps": self.schedule.num_train_timesteps,
            "log_snr_range": [low, high],
            "num_parameters": sum(p.numel() for p in self.pipeline.unet.parameters()),
        }

    def _prompts(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """The pipeline call's arguments for these prompts and the unconditional side of guidance."""
        given, null = self._text.embeddings(captions), self._text.null_embeddings(len(captions))
        named = {"prompt_embeds": given[PROMPT_EMBEDS], "negative_prompt_embeds": null[PROMPT_EMBEDS]}
        if self._text.is_xl:
            named |= {"pooled_prompt_embeds": given[POOLED], "negative_pooled_prompt_embeds": null[POOLED]}
        return {name: tensor.to(self.dtype) for name, tensor in named.items()}

    def _without_text_encoders(self) -> Any:
        """A pipeline of the same UNet and scheduler. Without text encoders, it takes the embeddings in the type that
        they are given in, which is the UNet's; with them, it would turn them back into the encoders' type."""
        parts: dict[str, Any] = dict.fromkeys(self.pipeline.components)
        parts |= {name: getattr(self.pipeline, name) for name in ("unet", "vae", "scheduler")}
        extra = {"add_watermarker": False} if self._text.is_xl else {"requires_safety_checker": False}
        pipeline = type(self.pipeline)(**parts, **extra)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _encode_cues(self, queries: Sequence[Query]) -> None:
        self.encode_captions([NULL_CUE, *(cue for query in queries for cue in query.cues)])

    def _weights_of(self, part: str) -> dict[str, str]:
        """Hashes of what decides a part's outputs: its own files, or the one file of all, and any adapters."""
        hashes = self._weight_hashes()
        own = {file: digest for file, digest in hashes.items() if file.split("/")[0].startswith(part)}
        adapters = {"lora": self.loaded.source["lora"]} if "lora" in self.loaded.source and part != "vae" else {}
        return (own or hashes) | adapters

    def _weight_hashes(self) -> dict[str, str]:
        if not self._hashes:
            self._hashes = weight_hashes(self.loaded)
        return self._hashes

    def _check(self, name: str) -> None:
        self._check_size((self.resolution, self.resolution), "resolution")
        if self.schedule.prediction_type == "epsilon" and self.schedule.alphas_cumprod[-1] == 0:
            raise UserError(
                f"{name}: its schedule ends in pure noise (rescale_betas_zero_snr), where predicting the noise says "
                "nothing; its scheduler's prediction_type must be v_prediction or sample"
            )

    def _check_size(self, size: Size, what: str) -> None:
        factor = self.pipeline.vae_scale_factor
        if any(side % factor or side < factor for side in size):
            shown = size[0] if size[0] == size[1] else f"{size[0]}x{size[1]}"
            raise UserError(f"{what}: {shown} pixels is not a multiple of {factor}")
