"""What a UNet is told of captions and sizes is what diffusers' pipelines and SDXL scripts tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import TOKENS
from architectures import tiny_pipeline as make_pipeline
from peft import LoraConfig
from PIL import Image

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Cue, Query, TrainingItem
from diffusion_sft.learners.conditioning import Framing, time_ids
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.latents import crop_offsets
from diffusion_sft.learners.network import ConditionedUNet
from diffusion_sft.records import Draws, Example

ARCHITECTURES = ("sd1", "sd2", "sdxl")
CAPTIONS = ["a photo of a wug", "", "a red circle", "a photo of a wug"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: make_pipeline(root / name, name) for name in ARCHITECTURES}


@pytest.fixture
def example(tmp_path: Path) -> Example:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tall.png")
    return Example(id="tall.png", concept="wug", caption="a wug", path=tmp_path / "tall.png", split="train")


def encode_prompt(pipeline: Any, captions: list[str], guidance: bool) -> tuple[torch.Tensor, ...]:
    """diffusers' own: embeddings, unconditional embeddings, and both pooled ones of an SDXL."""
    with torch.no_grad():
        found = pipeline.encode_prompt(
            captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=guidance
        )
    return tuple(found)


def calls_of(module: torch.nn.Module) -> list[int]:
    """Grows by one whenever the module is called."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_are_those_of_the_pipeline(architecture: str, bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases[architecture])
    ours = learner._text.embeddings(CAPTIONS)
    null = learner._text.null_embeddings(len(CAPTIONS))
    theirs = encode_prompt(learner.pipeline, CAPTIONS, guidance=True)
    torch.testing.assert_close(ours["prompt_embeds"], theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(null["prompt_embeds"], theirs[1], rtol=0, atol=1e-6)
    assert ours.keys() == ({"prompt_embeds", "pooled"} if architecture == "sdxl" else {"prompt_embeds"})
    if architecture == "sdxl":
        torch.testing.assert_close(ours["pooled"], theirs[2], rtol=0, atol=1e-6)
        torch.testing.assert_close(null["pooled"], theirs[3], rtol=0, atol=0)
        assert (null["prompt_embeds"] == 0).all()
        # In scores and for caption dropout, ∅ is encoded.
        assert ours["prompt_embeds"][1].abs().max() > 0
    assert (ours["prompt_embeds"][0] == ours["prompt_embeds"][3]).all()


def test_without_forced_zeros_guidance_goes_away_from_the_encoded_empty_caption(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = make_pipeline(tmp_path / "base", "sdxl")
    index = folder / "model_index.json"
    index.write_text(
        index.read_text().replace('"force_zeros_for_empty_prompt": true', '"force_zeros_for_empty_prompt": false')
    )
    learner = DiffusionLearner.load(folder)
    theirs = encode_prompt(learner.pipeline, CAPTIONS, guidance=True)
    null = learner._text.null_embeddings(len(CAPTIONS))
    torch.testing.assert_close(null["prompt_embeds"], theirs[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(null["pooled"], theirs[3], rtol=0, atol=1e-6)
    assert null["prompt_embeds"].abs().max() > 0


def test_time_ids_are_those_of_the_pipeline(bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases["sdxl"])
    framings = [
        Framing(original_size=(1365, 999), crop=(3, 171), target_size=(1024, 768)),
        Framing.whole((16, 24)),
    ]
    expected = [
        learner.pipeline._get_add_time_ids(
            framing.original_size,
            framing.crop,
            framing.target_size,
            dtype=torch.float32,
            text_encoder_projection_dim=learner.pipeline.text_encoder_2.config.projection_dim,
        )
        for framing in framings
    ]
    assert (time_ids(framings) == torch.cat(expected)).all()


@pytest.mark.parametrize("original", [(512, 512), (1365, 2048), (777, 333), (1000, 1001), (64, 500), (31, 17)])
def test_crops_are_those_of_the_sdxl_script(original: tuple[int, int]) -> None:
    """Resize(512) and a centre crop, written as train_text_to_image_sdxl.py does it."""
    height, width = original
    side = 512
    wide, tall = (side, int(side * width / height)), (int(side * height / width), side)
    expected = tuple(max(0, round((length - side) / 2.0)) for length in (wide if height < width else tall))
    assert crop_offsets(original, (side, side)) == expected


def test_crops_of_other_shapes() -> None:
    assert crop_offsets((1000, 1000), (512, 768)) == (128, 0)
    assert crop_offsets((1000, 1000), (768, 512)) == (0, 128)
    assert crop_offsets((1536, 1024), (768, 512)) == (0, 0)


def test_training_is_told_the_true_frame_and_scores_the_square(bases: dict[str, Path], example: Example) -> None:
    learner = DiffusionLearner.load(bases["sdxl"])
    seen: list[torch.Tensor] = []
    learner.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    learner.loss(learner.batch([TrainingItem(example=example, caption="a wug", visit=0)], seed=0))
    learner.loss(
        learner.batch([TrainingItem(example=example, caption="a wug", visit=0, size=(24, 16), flipped=True)], seed=0)
    )
    learner.surprise([Query(example=example, cues=())], Draws(seed=0, count=2), batch_size=1)
    # 32x20 covers 16x16 as 25x16, of which four rows and a half go at the top; it covers 24x16 likewise.
    assert seen[0].tolist() == [[32, 20, 4, 0, 16, 16]]
    assert seen[1].tolist() == [[32, 20, 0, 0, 24, 16]]
    assert [row.tolist() for row in seen[2:]] == [[[16, 16, 0, 0, 16, 16]]] * 2


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_long_captions_are_named_by_every_tokenizer(architecture: str, bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases[architecture])
    learner.check_captions([])
    learner.check_captions(["a photo of a wug"])
    with pytest.raises(UserError, match=rf"circle circle.*longer|longer.*{TOKENS} tokens.*circle circle.*shorten"):
        learner.check_captions(["a photo", "circle " * 30])
    if architecture == "sdxl":
        learner.pipeline.tokenizer_2.model_max_length = 4
        with pytest.raises(UserError, match="4 tokens.*a photo of a wug"):
            learner.check_captions(["a photo of a wug"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_captions_are_encoded_once_and_found_by_the_next_process(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    first = DiffusionLearner.load(bases[architecture], cache_dir=tmp_path)
    calls = calls_of(first.pipeline.text_encoder)
    embeddings = first._text.text(CAPTIONS)
    first.encode_captions(CAPTIONS)
    assert len(calls) == 3
    second = DiffusionLearner.load(bases[architecture], cache_dir=tmp_path)
    calls = calls_of(second.pipeline.text_encoder)
    again = second._text.text(CAPTIONS)
    assert calls == []
    assert again.keys() == embeddings.keys()
    assert all(torch.equal(again[name], embeddings[name]) for name in again)


def test_other_weights_or_types_have_other_entries(bases: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    learners = [
        DiffusionLearner.load(bases["sd1"], cache_dir=cache),
        DiffusionLearner.load(bases["sd1"], cache_dir=cache, dtype=torch.bfloat16),
        DiffusionLearner.load(make_pipeline(tmp_path / "other", "sd1", seed=1), cache_dir=cache),
    ]
    for learner in learners:
        calls = calls_of(learner.pipeline.text_encoder)
        expected = encode_prompt(learner.pipeline, ["a wug"], guidance=False)[0]
        calls.clear()
        assert torch.equal(learner._text.embeddings(["a wug"])["prompt_embeds"], expected)
        assert len(calls) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trained_text_encoders_are_never_remembered(
    architecture: str, bases: dict[str, Path], example: Example, tmp_path: Path
) -> None:
    """An embedding from before training, from memory or from disk, is used nowhere once the encoders are trained."""
    learner = DiffusionLearner.load(bases[architecture], cache_dir=tmp_path / "cache")
    query, draws = Query(example=example, cues=("a wug", "a dax", "a wug")), Draws(seed=0, count=2)
    before = learner.surprise([query], draws, batch_size=4)[0].squared_error
    encoders: list[Any] = list(learner.parts().values())[1:]
    for encoder in encoders:
        encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "out_proj"], init_lora_weights=False))
    item = TrainingItem(example=example, caption="a wug", visit=0)
    learner.pipeline.unet.requires_grad_(False)
    learner.network.train()
    optimizer = torch.optim.SGD([p for p in learner.network.parameters() if p.requires_grad], lr=0.1)
    learner.loss(learner.batch([item], seed=0)).sum().backward()
    for encoder in encoders:
        gradients = [p.grad for p in encoder.parameters() if p.requires_grad]
        # All of them, also of a layer that nobody reads: DistributedDataParallel waits for each.
        assert all(gradient is not None for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients)
    optimizer.step()
    trained = learner.surprise([query], draws, batch_size=4)[0].squared_error
    assert not np.allclose(trained[1:], before[1:], rtol=1e-4)
    for encoder in encoders:
        encoder.requires_grad_(False)
    with torch.no_grad():
        for encoder in encoders:
            for name, parameter in encoder.named_parameters():
                if "lora" in name:
                    parameter.zero_()
    # As before, because without its adapter an encoder is the base's.
    after = learner.surprise([query], draws, batch_size=4)[0].squared_error
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_token_ids_and_embeddings_give_the_same_prediction(architecture: str, bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases[architecture])
    noisy = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = np.array([5, 900, 400, 20])
    with torch.no_grad():
        frozen = learner.predict(noisy, timesteps, CAPTIONS)
        learner.pipeline.text_encoder.requires_grad_(True)
        assert "rows" in learner._text.text(CAPTIONS)
        trained = learner.predict(noisy, timesteps, CAPTIONS)
    torch.testing.assert_close(trained, frozen, rtol=1e-4, atol=1e-5)


def test_frozen_encoders_stay_without_dropout(bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases["sdxl"])
    learner.network.train()
    parts = learner.parts()
    assert list(parts) == ["unet", "text_encoder", "text_encoder_2"]
    assert [part.training for part in parts.values()] == [True, False, False]
    parts["text_encoder_2"].requires_grad_(True)
    learner.network.train()
    assert [part.training for part in parts.values()] == [True, False, True]


def test_the_network_is_the_pipelines_own(bases: dict[str, Path]) -> None:
    for architecture in ARCHITECTURES:
        learner = DiffusionLearner.load(bases[architecture])
        assert isinstance(learner.network, ConditionedUNet)
        for name, part in learner.parts().items():
            assert part is getattr(learner.pipeline, name)
            assert part is getattr(learner.network, name)


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_pictures_of_a_trained_text_encoder_follow_it(architecture: str, bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases[architecture])
    cues = [Cue(prompt="a wug", seed=1)]
    (before,) = learner.generate(cues, num_inference_steps=2, guidance_scale=2.0, batch_size=1)
    learner.pipeline.text_encoder.requires_grad_(True)
    with torch.no_grad():
        for parameter in learner.pipeline.text_encoder.parameters():
            parameter.mul_(3.0)
    (after,) = learner.generate(cues, num_inference_steps=2, guidance_scale=2.0, batch_size=1)
    assert np.abs(after.astype(int) - before.astype(int)).max() > 1
