"""Latents to pictures: the pipeline's own rounding, alone on a CPU, several at once elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import tiny_pipeline as make_pipeline

from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.latents import LatentCodec


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> LatentCodec:
    return DiffusionLearner.load(make_pipeline(tmp_path_factory.mktemp("base") / "sd1", "sd1"))._codec


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return 3 * torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_pictures_are_the_pipelines_own_to_the_last_bit(codec: LatentCodec, latents: torch.Tensor) -> None:
    with torch.no_grad():
        pixels = [codec.vae.decode(codec._unscaled(row[None])).sample for row in latents]
    theirs = [np.array(codec.processor.postprocess(p, output_type="pil")[0]) for p in pixels]
    ours = codec.decode(latents)
    assert len(ours) == 5
    for picture, expected in zip(ours, theirs, strict=True):
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        np.testing.assert_array_equal(picture, expected)
    # Whatever their company.
    for picture, row in zip(ours, latents, strict=True):
        np.testing.assert_array_equal(codec.decode(row[None])[0], picture)


def test_several_at_once_give_the_same_pictures(
    codec: LatentCodec, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = np.stack(codec.decode(latents)).astype(int)
    monkeypatch.setattr(codec, "_decoded_at_once", lambda latents: 2)
    together = np.stack(codec.decode(latents)).astype(int)
    assert np.abs(alone - together).max() <= 1


def test_memory_bounds_how_many_are_decoded_at_once(codec: LatentCodec) -> None:
    factor = codec.processor.config.vae_scale_factor

    def at_once(side: int, device: str) -> int:
        shape = (64, 4, side // factor, side // factor)
        return codec._decoded_at_once(torch.empty(shape, device=device))

    assert [at_once(side, "meta") for side in (64, 256, 512, 1024)] == [64, 4, 1, 1]
    assert at_once(64, "cpu") == 1
