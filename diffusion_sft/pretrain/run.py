"""Pretrain a base from nothing: tokenizer, autoencoder, readout, then text encoder and denoiser together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTokenizer

from ..files import replaced_folder, write_json
from ..machine import pick_device
from ..ranges import check_range
from ..records import identity_seed
from ..world.population import WorldConfig, log_spaced_exposures, populate
from ..world.readout import Readout, ReadoutNetwork
from .autoencoder import autoencoder_loss, encode_pictures, picture_bank, to_network
from .captions import CorpusConfig, build_corpus, tokenizer_corpus
from .components import (
    ArchitectureConfig,
    build_noise_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    save_pipeline,
)
from .denoiser import DenoiserTask, TextAndDenoiser, store_corpus
from .loop import FitConfig, fit
from .reader import HEADS, disturb, labelled_pictures, reading_accuracy, readout_loss, reconstruct


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The recipe of a base; with the same seed it gives the same base on the same machine."""

    seed: int = 0
    device: str = "cpu"
    world: WorldConfig = field(default_factory=WorldConfig)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    autoencoder: FitConfig = field(
        default_factory=lambda: FitConfig(num_updates=3000, batch_size=32, learning_rate=1.5e-3, weight_decay=0.0)
    )
    autoencoder_pictures: int = 24_000
    kl_weight: float = 1e-3
    readout_pictures: int = 16_000
    readout: FitConfig = field(
        default_factory=lambda: FitConfig(num_updates=1500, batch_size=64, learning_rate=2e-3, weight_decay=0.05)
    )
    denoiser: FitConfig = field(
        default_factory=lambda: FitConfig(num_updates=7000, batch_size=64, learning_rate=1e-3)
    )

    def __post_init__(self) -> None:
        check_range(self, "autoencoder_pictures", "readout_pictures", least=2)
        check_range(self, "seed", "kl_weight", least=0)
        taken = sum(log_spaced_exposures(self.world)) + sum(
            int(share * self.corpus.num_items) for share in (self.corpus.one_off_share, self.corpus.empty_share)
        )
        if taken > self.corpus.num_items:
            raise ValueError(
                f"corpus.num_items ({self.corpus.num_items}) must be at least {taken}, as many as the world's exposures "
                "and the corpus's shares take"
            )
        num_read = self.denoiser.num_updates * self.denoiser.batch_size
        if num_read != self.corpus.num_items:
            raise ValueError(
                f"denoiser.num_updates x denoiser.batch_size = {num_read} must equal corpus.num_items = "
                f"{self.corpus.num_items}: the corpus is read once, so that an exposure is one reading"
            )


def pretrain_autoencoder(config: PretrainConfig, folder: Path) -> AutoencoderKL:
    """Fit the autoencoder and set its scaling factor to one over the latents' standard deviation."""
    torch.manual_seed(identity_seed(config.seed, "autoencoder weights"))
    vae = build_vae(config.architecture).to(config.device)
    bank = picture_bank(config.autoencoder_pictures, config.seed)

    def loss_at(update: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(identity_seed(config.seed, "autoencoder", update))
        rows = torch.randint(len(bank), (config.autoencoder.batch_size,), generator=generator)
        return autoencoder_loss(vae, to_network(bank[rows]).to(config.device), generator, config.kl_weight)

    fit(vae, loss_at, config.autoencoder, folder)
    means = encode_pictures(vae, bank[:2048])[0]
    vae.register_to_config(scaling_factor=float(1.0 / means.std()))
    return vae


def pretrain_readout(config: PretrainConfig, vae: AutoencoderKL, folder: Path) -> tuple[Readout, dict[str, float]]:
    """Fit the readout on renderings and on their reconstructions; returns it with its held-out accuracy."""
    torch.manual_seed(identity_seed(config.seed, "readout weights"))
    network = ReadoutNetwork(HEADS).to(config.device)
    data = labelled_pictures(config.readout_pictures, config.seed, "train")
    pictures = torch.cat([data.pictures, reconstruct(vae, data.pictures)])
    labels = torch.cat([data.labels, data.labels])

    def loss_at(update: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(identity_seed(config.seed, "readout", update))
        rows = torch.randint(len(pictures), (config.readout.batch_size,), generator=generator)
        batch = disturb(to_network(pictures[rows]).to(config.device), generator)
        return readout_loss(network, batch, labels[rows].to(config.device))

    fit(network, loss_at, config.readout, folder)
    heldout = labelled_pictures(2000, config.seed, "heldout")
    accuracy = reading_accuracy(network, heldout)
    unscaled = Readout(network, HEADS)(heldout.pictures.permute(0, 2, 3, 1).numpy()).features
    return Readout(network, HEADS, feature_scale=float(np.sqrt(unscaled.var(axis=0).mean()))), accuracy


def pretrain_denoiser(
    config: PretrainConfig, vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path
) -> tuple[TextAndDenoiser, list[dict]]:
    """Fit text encoder and UNet on the corpus, read once from front to back; returns them and the log."""
    torch.manual_seed(identity_seed(config.seed, "denoiser weights"))
    unet = build_unet(config.architecture)
    # The fused kernel's backward pass is about half as fast as plain attention on CPUs.
    unet.set_attn_processor(AttnProcessor())
    network = TextAndDenoiser(build_text_encoder(tokenizer, config.architecture), unet).to(config.device)
    items = build_corpus(populate(config.world), config.corpus, config.seed)
    task = DenoiserTask(
        network=network,
        noise_scheduler=build_noise_scheduler(config.architecture),
        corpus=store_corpus(items, vae, tokenizer, config.corpus.scenes_per_look, config.seed),
        scaling_factor=vae.config.scaling_factor,
        batch_size=config.denoiser.batch_size,
        seed=config.seed,
    )
    return network, fit(network, task.loss_at, config.denoiser, folder)


def pretrain(config: PretrainConfig, folder: Path) -> Path:
    """Run or continue the recipe; `folder` then holds `pipeline/`, `readout/`, and `work/` to resume from."""
    config = replace(config, device=str(pick_device(config.device)))
    work = folder / "work"
    tokenizer = build_tokenizer(tokenizer_corpus(config.seed), config.architecture)
    vae = pretrain_autoencoder(config, work / "autoencoder")
    readout, reading = pretrain_readout(config, vae, work / "readout")
    network, log = pretrain_denoiser(config, vae, tokenizer, work / "denoiser")
    # The text encoder stays in float32: transformers keeps a file's precision where diffusers loads float32.
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=network.text_encoder,
        tokenizer=tokenizer,
        unet=network.unet.half(),
        scheduler=build_noise_scheduler(config.architecture),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with replaced_folder(folder / "pipeline") as temporary:
        save_pipeline(pipeline, temporary)
    with replaced_folder(folder / "readout") as temporary:
        readout.save(temporary, num_features=64, width=32)
    write_json(folder / "training.json", {"readout_heldout_accuracy": reading, "denoiser_log": log})
    return folder
