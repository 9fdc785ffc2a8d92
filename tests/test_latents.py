"""Images to latents and back: found again by content alone, fitted and mirrored, and finite in any precision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import tiny_pipeline as make_pipeline
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from diffusion_sft.errors import UserError
from diffusion_sft.files import file_hash
from diffusion_sft.learner import Cue, Query, Reconstruction, TrainingItem
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.records import Draws, Example

ARCHITECTURES = ("sd1", "sd2", "sdxl")
CUES = [Cue(prompt="a photo of a wug", seed=1), Cue(prompt="", seed=2), Cue(prompt="a red circle", seed=1)]
SAMPLING: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: make_pipeline(root / name, name) for name in ARCHITECTURES}


def write_image(path: Path, seed: int, size: tuple[int, int] = (16, 16)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")


def make_item(path: Path, **settings: Any) -> TrainingItem:
    example = Example(id=path.name, concept="wug", caption="a wug", path=path, split="train")
    return TrainingItem(example=example, caption="a wug", visit=0, **settings)


def latents_of(learner: DiffusionLearner, *items: TrainingItem) -> list[torch.Tensor]:
    return [found.latents for found in learner.encode_items(items)]


def count_encodings(learner: DiffusionLearner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encode = learner.pipeline.vae.encode

    def counted(pixels: torch.Tensor) -> Any:
        calls.append(1)
        return encode(pixels)

    monkeypatch.setattr(learner.pipeline.vae, "encode", counted)
    return calls


def by_hand(learner: DiffusionLearner, image: Image.Image) -> torch.Tensor:
    vae = learner.pipeline.vae
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents: torch.Tensor = vae.encode(pixels).latent_dist.mean[0] * vae.config.scaling_factor
    return latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_latents_are_found_again_bit_for_bit(
    dtype: torch.dtype, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.bmp", 0, (20, 40))
    items = [make_item(tmp_path / "a.bmp"), make_item(tmp_path / "a.bmp", flipped=True)]
    items.append(make_item(tmp_path / "a.bmp", size=(16, 32)))
    first = DiffusionLearner.load(bases["sdxl"], cache_dir=tmp_path / "cache", dtype=dtype)
    calls = count_encodings(first, monkeypatch)
    encoded = first.encode_items([*items, *items])
    first.encode_items(items)
    assert len(calls) == 3
    second = DiffusionLearner.load(bases["sdxl"], cache_dir=tmp_path / "cache", dtype=dtype)
    calls = count_encodings(second, monkeypatch)
    again = second.encode_items(items)
    assert calls == []
    for mine, theirs in zip(encoded[:3], again, strict=True):
        assert torch.equal(mine.latents, theirs.latents)
        assert mine.framing == theirs.framing
    fresh = DiffusionLearner.load(bases["sdxl"], dtype=dtype).encode_items(items)
    assert all(torch.equal(mine.latents, theirs.latents) for mine, theirs in zip(encoded[:3], fresh, strict=True))


@pytest.mark.parametrize("cached", [False, True])
def test_an_edited_image_of_the_same_size_and_time_is_encoded_anew(
    cached: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.bmp"
    learner = DiffusionLearner.load(bases["sd1"], cache_dir=tmp_path / "cache" if cached else None)
    write_image(path, 0)
    os.utime(path, ns=(10**18, 10**18))
    before = path.stat()
    (old,) = latents_of(learner, make_item(path))
    write_image(path, 1)
    os.utime(path, ns=(10**18, 10**18))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    (new,) = latents_of(learner, make_item(path))
    torch.testing.assert_close(new, by_hand(learner, Image.open(path)), rtol=0, atol=0)
    assert not torch.equal(old, new)


def test_a_settled_file_is_hashed_once(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bmp"
    write_image(path, 0)
    learner = DiffusionLearner.load(bases["sd1"])
    read: list[Path] = []

    def hashed(file: Path) -> str:
        read.append(file)
        return file_hash(file)

    monkeypatch.setattr("diffusion_sft.learners.latents.file_hash", hashed)
    monkeypatch.setattr("diffusion_sft.learners.latents.SETTLED_NS", 10**15)
    latents_of(learner, make_item(path))
    latents_of(learner, make_item(path))
    assert read == [path, path]
    read.clear()
    monkeypatch.setattr("diffusion_sft.learners.latents.SETTLED_NS", 0)
    for _ in range(3):
        latents_of(learner, make_item(path))
    assert read == [path]
    write_image(path, 1)
    latents_of(learner, make_item(path))
    assert read == [path, path]


def test_another_vae_or_type_has_other_entries(bases: dict[str, Path], tmp_path: Path) -> None:
    write_image(tmp_path / "a.bmp", 0)
    found = []
    for base, dtype in [
        (bases["sd1"], torch.float32),
        (bases["sd1"], torch.bfloat16),
        (make_pipeline(tmp_path / "other", "sd1", seed=1), torch.float32),
    ]:
        learner = DiffusionLearner.load(base, cache_dir=tmp_path / "cache", dtype=dtype)
        found += latents_of(learner, make_item(tmp_path / "a.bmp"))
        assert torch.equal(found[-1], by_hand(learner, Image.open(tmp_path / "a.bmp")))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("size", [None, (16, 24), (24, 16), (8, 32)])
@pytest.mark.parametrize("flipped", [False, True])
def test_images_cover_their_size_and_are_mirrored_after(
    size: tuple[int, int] | None, flipped: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    write_image(tmp_path / "a.bmp", 0, (30, 50))
    height, width = size or (16, 16)
    image = ImageOps.fit(Image.open(tmp_path / "a.bmp"), (width, height), Image.Resampling.LANCZOS)
    expected = by_hand(learner, ImageOps.mirror(image) if flipped else image)
    (latents,) = latents_of(learner, make_item(tmp_path / "a.bmp", size=size, flipped=flipped))
    assert latents.shape == (4, height // 2, width // 2)
    assert torch.equal(latents, expected)
    assert torch.isfinite(
        learner.loss(learner.batch([make_item(tmp_path / "a.bmp", size=size, flipped=flipped)], seed=0))
    )


def test_sizes_that_the_vae_cannot_make_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    write_image(tmp_path / "a.bmp", 0)
    with pytest.raises(UserError, match=r"a\.bmp: 16x15 pixels is not a multiple of 2"):
        DiffusionLearner.load(bases["sd1"]).encode_items([make_item(tmp_path / "a.bmp", size=(16, 15))])
    with pytest.raises(UserError, match="resolution: 15 pixels is not a multiple of 2"):
        DiffusionLearner.load(bases["sd1"], resolution=15)
    with pytest.raises(UserError, match=r"gone\.bmp: cannot be read"):
        DiffusionLearner.load(bases["sd1"]).encode_items([make_item(tmp_path / "gone.bmp")])


def test_an_image_without_finite_latents_is_named(bases: dict[str, Path], tmp_path: Path) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    for number in range(2):
        write_image(tmp_path / f"{number}.bmp", number)
    encode = learner.pipeline.vae.encode
    learner.encode_items([make_item(tmp_path / "0.bmp")])
    learner.pipeline.vae.encode = lambda pixels: encode(pixels * float("nan"))
    with pytest.raises(UserError, match=r"1\.bmp: its latents are not finite"):
        learner.encode_items([make_item(tmp_path / f"{number}.bmp") for number in range(2)])


def test_latents_with_statistics_of_their_own_are_normalised_by_them(tmp_path: Path) -> None:
    """As the SDXL pipeline undoes it before decoding."""
    base = make_pipeline(tmp_path / "base", "sdxl")
    write_image(tmp_path / "a.bmp", 0)
    plain = DiffusionLearner.load(base)
    (before,) = latents_of(plain, make_item(tmp_path / "a.bmp"))
    config = base / "vae" / "config.json"
    config.write_text(
        config.read_text().rstrip("}\n") + ', "latents_mean": [1, 2, 3, 4], "latents_std": [5, 6, 7, 8]}'
    )
    learner = DiffusionLearner.load(base)
    (after,) = latents_of(learner, make_item(tmp_path / "a.bmp"))
    mean, std = torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1), torch.tensor([5.0, 6, 7, 8]).view(4, 1, 1)
    factor = learner.pipeline.vae.config.scaling_factor
    torch.testing.assert_close(after * std / factor + mean, before / factor)
    ours, theirs = np.stack(learner.generate(CUES, **SAMPLING, batch_size=3)), plain_images(base, torch.float32)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def plain_images(base: Path, dtype: torch.dtype) -> np.ndarray:
    index = (base / "model_index.json").read_text()
    options: dict[str, Any] = {} if "XL" in index else {"safety_checker": None}
    pipeline = DiffusionPipeline.from_pretrained(base, dtype=dtype, **options)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(cue.seed) for cue in CUES]
    images = pipeline([cue.prompt for cue in CUES], generator=generators, height=16, width=16, **SAMPLING).images
    return np.stack([np.array(image) for image in images]).astype(int)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pictures_are_those_of_plain_diffusers_whatever_their_company(
    architecture: str, bases: dict[str, Path]
) -> None:
    learner = DiffusionLearner.load(bases[architecture])
    ours = np.stack(learner.generate(CUES, **SAMPLING, batch_size=2)).astype(int)
    assert np.abs(ours - plain_images(bases[architecture], torch.float32)).max() <= 1
    for number, cue in enumerate(CUES):
        (alone,) = learner.generate([cue], **SAMPLING, batch_size=1)
        assert np.abs(alone.astype(int) - ours[number]).max() <= 1
    assert np.abs(ours[0] - ours[1]).max() > 5
    assert np.abs(ours[0] - ours[2]).max() > 0


def overflowing(folder: Path, architecture: str) -> Path:
    """A base whose VAE leaves float16's range inside, and comes back to it, as SDXL's does."""
    make_pipeline(folder, architecture)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in ("encoder.conv_in", "decoder.conv_in"):
        for kind in ("weight", "bias"):
            tensors[f"{name}.{kind}"] *= 5e4 / tensors[f"{name}.weight"].abs().max()
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_precision_makes_the_vae_overflow(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = overflowing(tmp_path / "base", architecture)
    write_image(tmp_path / "a.bmp", 0)
    learner = DiffusionLearner.load(base, dtype=dtype)
    if dtype == torch.float16:
        vae = DiffusionLearner.load(base, dtype=dtype).pipeline.vae
        torch.nn.Module.to(vae, dtype=dtype)
        pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        with torch.no_grad():
            assert not torch.isfinite(vae.encode(pixels).latent_dist.mean).all()
    wide = DiffusionLearner.load(base)
    (latents,), (expected,) = (latents_of(some, make_item(tmp_path / "a.bmp")) for some in (learner, wide))
    assert torch.isfinite(latents).all()
    torch.testing.assert_close(latents, expected, rtol=0.05, atol=0.05)
    images = np.stack(learner.generate(CUES[:1], **SAMPLING, batch_size=1)).astype(int)
    theirs = np.stack(wide.generate(CUES[:1], **SAMPLING, batch_size=1)).astype(int)
    assert images.std() > 5
    assert np.abs(images - theirs).mean() < 8


def test_latents_that_are_not_finite_are_no_picture(bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    with torch.no_grad():
        learner.pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite.*bfloat16"):
        learner.generate(CUES[:1], **SAMPLING, batch_size=1)


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_a_wide_unet_draws_beside_narrow_text_encoders(architecture: str, bases: dict[str, Path]) -> None:
    """As in full fine-tuning of a base that was loaded in bfloat16, whose UNet alone is made float32."""
    learner = DiffusionLearner.load(bases[architecture], dtype=torch.bfloat16)
    learner.pipeline.unet.float()
    ours = np.stack(learner.generate(CUES, **SAMPLING, batch_size=2)).astype(int)
    wide = np.stack(DiffusionLearner.load(bases[architecture]).generate(CUES, **SAMPLING, batch_size=2)).astype(int)
    assert np.abs(ours - wide).mean() < 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_targets_are_brought_back(architecture: str, bases: dict[str, Path], tmp_path: Path) -> None:
    learner = DiffusionLearner.load(bases[architecture])
    write_image(tmp_path / "a.bmp", 0)
    query = Query(example=make_item(tmp_path / "a.bmp").example, cues=("a wug", "a dax"))
    plan = Reconstruction(kind="sdedit", num_inference_steps=4, strength=0.5)
    (errors,) = learner.reconstruct([query], plan, Draws(seed=0, count=2), batch_size=4)
    (again,) = learner.reconstruct([query, query], plan, Draws(seed=0, count=2), batch_size=3)[1:]
    assert errors.shape == (3, 2)
    assert (errors > 0).all()
    np.testing.assert_allclose(errors, again, rtol=1e-5)
