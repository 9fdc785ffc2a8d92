"""A small real pipeline as a learner: readings free of their company, losses by hand, diffusers' own pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Cue, Query, TrainingItem
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.numerics.noise import normal
from diffusion_sft.numerics.schedule import Schedule
from diffusion_sft.records import Draws, Example, identity_seed

SAMPLING = {"num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def learner(tiny_pipeline: Path) -> DiffusionLearner:
    return DiffusionLearner.load(tiny_pipeline)


@pytest.fixture(scope="module")
def examples(tiny_set: Path) -> list[Example]:
    files = {f: f.stem.split("-")[0] for f in sorted((tiny_set / "heldout").glob("*-[01].png"))}
    return [
        Example(id=f"heldout/{f.name}", concept=name, caption=f"a photo of a {name}", path=f, split="heldout")
        for f, name in files.items()
    ]


def plain(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_images(pipeline: StableDiffusionPipeline, cues: list[Cue]) -> np.ndarray:
    generators = [torch.Generator("cpu").manual_seed(cue.seed) for cue in cues]
    output = pipeline([cue.prompt for cue in cues], generator=generators, **SAMPLING)
    return np.stack([np.asarray(image) for image in output.images]).astype(int)


@pytest.mark.parametrize("estimator", ["default", "naive", "classifier"])
def test_readings_do_not_depend_on_batch_size_or_company(
    learner: DiffusionLearner, examples: list[Example], estimator: str
) -> None:
    """To a relative 1e-5: float32 sums in the network may be taken in another order, and nothing else differs."""
    queries = [Query(example=e, cues=(e.caption, "a dax", "", e.caption)) for e in examples[:3]]
    queries.append(Query(example=examples[0], cues=("a wug",), stream="other"))
    draws = Draws(seed=5, count=8, estimator=estimator)
    one = learner.surprise(queries, draws, batch_size=5)
    other = learner.surprise(queries[::-1], draws, batch_size=64)[::-1]
    (alone,) = learner.surprise(queries[1:2], draws, batch_size=7)
    for first, second in [*zip(one, other, strict=True), (one[1], alone)]:
        np.testing.assert_allclose(first.error_nats.mean(axis=1), second.error_nats.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(first.squared_error, second.squared_error, rtol=1e-5)
        np.testing.assert_allclose(first.opinion, second.opinion, rtol=1e-2, atol=1e-4)
        assert (first.log_snr == second.log_snr).all()


def test_the_empty_cue_and_repeats_are_read_once(learner: DiffusionLearner, examples: list[Example]) -> None:
    rows: list[int] = []
    handle = learner.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    query = Query(example=examples[0], cues=("a wug", "", "a wug"))
    (reading,) = learner.surprise([query], Draws(seed=0, count=4), batch_size=3)
    handle.remove()
    assert sum(rows) == 2 * 4
    assert max(rows) == 3
    assert (reading.squared_error[2] == reading.squared_error[0]).all()
    assert (reading.squared_error[1] == reading.squared_error[3]).all()
    assert (reading.opinion[[0, 2]] == 0).all()
    assert (reading.opinion[1] > 0).all()


def test_a_reading_is_what_a_hand_computation_gives(learner: DiffusionLearner, examples: list[Example]) -> None:
    """Three cues, two of a pair: encode, noise with diffusers' scheduler, predict, compare, for two draws."""
    pipeline = learner.pipeline
    query = Query(example=examples[2], cues=("a wug", "a dax"))
    (reading,) = learner.surprise([query], Draws(seed=9, count=2), batch_size=2)
    pixels = torch.from_numpy(np.array(Image.open(examples[2].path))).permute(2, 0, 1)[None] / 127.5 - 1
    seed = identity_seed(9, examples[2].id, "", "noise", 0)
    noise = normal(learner.targets([examples[2]])[0].shape, seed)
    timestep = int(np.abs(learner.schedule.log_snr - reading.log_snr[0, 0]).argmin())
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        for draw, sign in enumerate((1, -1)):
            noisy = pipeline.scheduler.add_noise(latents, sign * noise[None], torch.tensor([timestep]))
            predictions = []
            for cue in ("", "a wug", "a dax"):
                embeds = pipeline.encode_prompt(cue, "cpu", 1, False)[0]
                predictions.append(pipeline.unet(noisy, timestep, encoder_hidden_states=embeds).sample)
            errors = [float((sign * noise - p).square().sum()) for p in predictions]
            opinions = [float((predictions[0] - p).square().sum()) for p in predictions]
            assert reading.squared_error[:, draw] == pytest.approx(errors, rel=1e-4)
            assert reading.opinion[:, draw] == pytest.approx(opinions, rel=1e-2, abs=1e-4)
    assert (reading.log_snr == reading.log_snr[0, 0]).all()
    assert reading.num_dims == 4 * 8 * 8


class _Perfect(torch.nn.Module):
    """Predicts the target of a known clean image exactly, in the prediction type of its schedule."""

    def __init__(self, schedule: Schedule, clean: torch.Tensor, offset: float) -> None:
        super().__init__()
        self.schedule, self.clean, self.offset = schedule, clean, offset

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, *_: object) -> torch.Tensor:
        timesteps = timestep.numpy()
        unit = Schedule(alphas_cumprod=self.schedule.alphas_cumprod, prediction_type="sample")
        clean = self.clean.expand_as(noisy).double()
        # ε = (z − alpha x) / sigma, moved by the offset, then told in the words of the schedule.
        sigma = torch.from_numpy(unit.sigma[timesteps])[:, None, None, None]
        alpha = torch.from_numpy(unit.alpha[timesteps])[:, None, None, None]
        noise = (noisy.double() - alpha * clean) / sigma + self.offset
        return self.schedule.training_target((noisy - sigma * noise) / alpha, noise, timesteps).float()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_types_agree_for_a_known_network(
    tiny_pipeline: Path, examples: list[Example], prediction_type: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    settings["prediction_type"] = prediction_type
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    learner = DiffusionLearner.load(folder)
    assert learner.schedule.prediction_type == prediction_type
    (clean,) = learner.targets(examples[:1])
    learner.network = _Perfect(learner.schedule, clean, offset=0.1)
    (reading,) = learner.surprise([Query(example=examples[0], cues=("a wug",))], Draws(seed=0, count=8), batch_size=4)
    assert reading.squared_error == pytest.approx(np.full((2, 8), 0.01 * clean.numel()), rel=2e-2)
    learner.network = _Perfect(learner.schedule, clean, offset=0.0)
    item = TrainingItem(example=examples[0], caption="a wug", visit=0)
    assert float(learner.loss(learner.batch([item], seed=0)).detach()) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_a_hand_computation_and_knows_no_order(
    learner: DiffusionLearner, examples: list[Example]
) -> None:
    items = [TrainingItem(example=e, caption=e.caption, visit=3) for e in examples[:3]]
    losses = learner.loss(learner.batch(items, seed=1))
    torch.testing.assert_close(losses, learner.loss(learner.batch(items[::-1], seed=1)).flip(0))
    assert losses.requires_grad
    losses = losses.detach()
    later = learner.loss(
        learner.batch([TrainingItem(example=examples[0], caption=examples[0].caption, visit=4)], seed=1)
    )
    assert float(later.detach()) != float(losses[0])
    seed = identity_seed(1, "loss", 3, examples[1].id)
    timestep = torch.tensor([identity_seed(seed, "timestep") % 1000])
    (latents,) = learner.targets(examples[1:2])
    noise = normal(latents.shape, seed)[None]
    noisy = learner.pipeline.scheduler.add_noise(latents[None], noise, timestep)
    embeds = learner.pipeline.encode_prompt(examples[1].caption, "cpu", 1, False)[0]
    with torch.no_grad():
        predicted = learner.pipeline.unet(noisy, timestep, encoder_hidden_states=embeds).sample
    assert float(losses[1]) == pytest.approx(float((predicted - noise).square().mean()), rel=1e-5)


class _Wrapped(torch.nn.Module):
    """As a training loop may wrap the network: its attributes are out of reach."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: object, **named: object) -> object:
        return self.module(*inputs, **named)


def test_a_wrapped_network_does_all_of_it(
    tiny_pipeline: Path, learner: DiffusionLearner, examples: list[Example], tmp_path: Path
) -> None:
    wrapped = DiffusionLearner.load(tiny_pipeline)
    wrapped.network = _Wrapped(wrapped.network).train()
    query, item = Query(example=examples[0], cues=("a wug",)), TrainingItem(example=examples[0], caption="a", visit=0)
    draws = Draws(seed=0, count=2)
    ours, theirs = (some.surprise([query], draws, batch_size=4)[0] for some in (wrapped, learner))
    assert (ours.squared_error == theirs.squared_error).all()
    assert wrapped.network.training
    assert not learner.network.training
    assert float(wrapped.loss(wrapped.batch([item], seed=0)).detach()) == float(
        learner.loss(learner.batch([item], seed=0)).detach()
    )
    assert len(wrapped.generate([Cue(prompt="a", seed=0)], **SAMPLING, batch_size=1)) == 1  # type: ignore[arg-type]
    wrapped.save(tmp_path)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()


def test_pictures_are_those_of_plain_diffusers(learner: DiffusionLearner, tiny_pipeline: Path) -> None:
    """To one grey level of 255: attention is computed by another kernel."""
    cues = [Cue(prompt="a photo of a wug", seed=11), Cue(prompt="", seed=12), Cue(prompt="a dax", seed=11)]
    ours = np.stack(learner.generate(cues, **SAMPLING, batch_size=2)).astype(int)  # type: ignore[arg-type]
    assert np.abs(ours - plain_images(plain(tiny_pipeline), cues)).max() <= 1
    assert np.abs(ours[0] - ours[1]).max() > 5
    (alone,) = learner.generate(cues[2:], **SAMPLING, batch_size=1)  # type: ignore[arg-type]
    assert np.abs(alone.astype(int) - ours[2]).max() <= 1


def test_images_are_fitted_to_the_resolution(learner: DiffusionLearner, tmp_path: Path) -> None:
    """Twice the size, with margins that the centre crop takes away: nearly the same latents."""
    generator = np.random.default_rng(0)
    small = np.kron(generator.integers(60, 200, (4, 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")
    large = np.zeros((32, 64, 3), dtype=np.uint8)
    large[:, 16:48] = np.kron(small, np.ones((2, 2, 1), dtype=np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    pair = [
        Example(id=name, concept="x", caption="x", path=tmp_path / f"{name}.png", split="train")
        for name in ("small", "large")
    ]
    first, second = learner.targets(pair)
    assert first.shape == (4, 8, 8)
    assert float((first - second).square().mean() / first.square().mean()) < 0.05
    assert learner.targets(pair)[0] is first
    Image.fromarray(255 - small).save(tmp_path / "small.png")
    assert learner.targets(pair)[0] is not first


def test_bfloat16_reads_the_same_latents(
    tiny_pipeline: Path, learner: DiffusionLearner, examples: list[Example]
) -> None:
    half = DiffusionLearner.load(tiny_pipeline, dtype=torch.bfloat16)
    assert half.targets(examples[:1])[0].dtype == torch.float32
    query = [Query(example=examples[0], cues=("a wug",))]
    narrow = half.surprise(query, Draws(seed=0, count=8), batch_size=8)[0].error_nats.mean(axis=1)
    wide = learner.surprise(query, Draws(seed=0, count=8), batch_size=8)[0].error_nats.mean(axis=1)
    assert narrow == pytest.approx(wide, rel=0.02)


def test_long_captions_are_named(learner: DiffusionLearner) -> None:
    learner.check_captions(["a photo of a wug"])
    learner.check_captions([])
    with pytest.raises(UserError, match=r"star star.*tokens.*shorten"):
        learner.check_captions(["a photo", "star " * 40])


def test_a_network_that_overflows_is_an_error_and_not_a_number(
    learner: DiffusionLearner, examples: list[Example]
) -> None:
    network = learner.network
    learner.network = _Perfect(learner.schedule, learner.targets(examples[:1])[0], offset=float("nan"))
    try:
        with pytest.raises(UserError, match="not finite"):
            learner.surprise([Query(example=examples[0], cues=("a",))], Draws(seed=0, count=2), batch_size=2)
    finally:
        learner.network = network
