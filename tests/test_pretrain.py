"""Pretraining: the parts load where they should, and an interrupted fit goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, WORDS
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from diffusion_sft.errors import UserError
from diffusion_sft.pretrain.autoencoder import picture_bank
from diffusion_sft.pretrain.components import build_tokenizer
from diffusion_sft.pretrain.loop import FitConfig, fit, learning_rate_at
from diffusion_sft.pretrain.reader import HEADS, labelled_pictures
from diffusion_sft.pretrain.run import PretrainConfig
from diffusion_sft.world.readout import Readout, ReadoutNetwork


def test_the_saved_pipeline_reads_text_like_the_one_in_memory(tiny_pipeline: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    expected = build_tokenizer(WORDS * 4, TINY)("a photo of a Blorp zz!").input_ids
    assert pipeline.tokenizer("a photo of a Blorp zz!").input_ids == expected
    assert pipeline.tokenizer.model_max_length == TINY.max_caption_tokens


def test_both_generations_of_transformers_find_the_text_encoder(tiny_pipeline: Path) -> None:
    keys = load_file(tiny_pipeline / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in keys)
    assert (tiny_pipeline / "tokenizer" / "vocab.json").exists()
    assert (tiny_pipeline / "tokenizer" / "merges.txt").read_text().startswith("#version")


def test_a_fit_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: Path, *lengths: int) -> dict[str, torch.Tensor]:
        for length in lengths:
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

            def loss_at(update: int, network: nn.Module = network) -> torch.Tensor:
                x = torch.randn(16, 3, generator=torch.Generator().manual_seed(update))
                return ((network(x).float() - x.sum(dim=1, keepdim=True)) ** 2).mean()

            settings = FitConfig(num_updates=30, batch_size=16, learning_rate=1e-2, warmup_updates=5)
            stopped = FitConfig(**{**settings.__dict__, "checkpointing_updates": length})
            try:
                fit(
                    network, lambda update, f=loss_at, n=length: f(update) if update < n else _stop(), stopped, folder
                )
            except KeyboardInterrupt:
                continue
        return network.state_dict()

    straight, resumed = trained(tmp_path / "a", 30), trained(tmp_path / "b", 10, 30)
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def _stop() -> torch.Tensor:
    raise KeyboardInterrupt


def small_fit(folder: Path, until: int = 100) -> list[dict]:
    """A hundred updates with a checkpoint every thirty, stopped within update `until`; returns the log."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1)

    def loss_at(update: int) -> torch.Tensor:
        if update >= until:
            raise KeyboardInterrupt
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(update))
        return ((network(x).float() - x.sum(dim=1, keepdim=True)) ** 2).mean()

    settings = FitConfig(
        num_updates=100, batch_size=16, learning_rate=1e-2, warmup_updates=5, checkpointing_updates=30
    )
    return fit(network, loss_at, settings, folder)


def test_the_log_of_a_fit_that_was_stopped_between_its_lines_is_the_same(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_fit(tmp_path / "b", until=45)
    log = small_fit(tmp_path / "b")
    assert [line["update"] for line in log] == [50, 100]
    assert log == small_fit(tmp_path / "a")


def test_a_checkpoint_that_was_cut_off_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_fit(tmp_path / "a", until=45)
    file = tmp_path / "a" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="its checkpoint is not of this training .*; remove it to start anew"):
        small_fit(tmp_path / "a")


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    settings = FitConfig(num_updates=100, batch_size=1, learning_rate=1.0, warmup_updates=10)
    assert learning_rate_at(0, settings) == pytest.approx(0.1)
    assert learning_rate_at(10, settings) == pytest.approx(1.0)
    assert learning_rate_at(55, settings) == pytest.approx(0.5)
    assert learning_rate_at(100, settings) == pytest.approx(0.0)


def test_the_corpus_is_read_exactly_once() -> None:
    with pytest.raises(ValueError, match="read once"):
        PretrainConfig(denoiser=FitConfig(num_updates=10, batch_size=4, learning_rate=1e-3))


def test_the_autoencoders_pictures_are_the_same_every_time() -> None:
    assert torch.equal(picture_bank(40, 0), picture_bank(40, 0))
    assert picture_bank(40, 0).shape == (40, 3, 64, 64)


def test_a_readout_comes_back_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    readout = Readout(ReadoutNetwork(HEADS), HEADS, feature_scale=2.0)
    readout.save(tmp_path, num_features=64, width=32)
    again = Readout.load(tmp_path)
    images = labelled_pictures(5, 0, "test").pictures.permute(0, 2, 3, 1).numpy()
    one, two = again(images), again(images[:2])
    assert one.features.shape == (5, 64)
    np.testing.assert_allclose(one.features[:2], two.features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.features, readout(images).features, rtol=2e-2, atol=2e-2)
    assert set(one.labels) == set(HEADS)
