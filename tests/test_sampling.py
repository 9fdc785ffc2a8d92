"""The sampler as equations: its numbers, its solution and its pictures against diffusers' own scheduler and pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import tiny_pipeline as tiny_architecture
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from diffusion_sft.errors import UserError
from diffusion_sft.generating import GenerateConfig, run_generate
from diffusion_sft.learner import Cue
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.sampling import (
    coefficients,
    ddim_steps,
    generate_in_parallel,
    sampling_system,
    uses_ddim,
)
from diffusion_sft.numerics.fixed_point import Anderson, Parareal, Picard, Sequential
from diffusion_sft.settings import load_settings

DATA = Path(__file__).parents[1] / "data"
CUES = [Cue(prompt="a photo of a wug", seed=11), Cue(prompt="", seed=12), Cue(prompt="a red circle", seed=13)]
KINDS = {
    "sd1": ("sd1", None, False),
    "sd1_sample": ("sd1", "sample", False),
    "sd1_v_zero_snr": ("sd1", "v_prediction", True),
    "sd1_sample_zero_snr": ("sd1", "sample", True),
    "sd2": ("sd2", None, False),
    "sdxl": ("sdxl", None, False),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny pipeline of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    return {
        name: tiny_architecture(root / name, kind, prediction_type=predicted, zero_terminal_snr=zero)
        for name, (kind, predicted, zero) in KINDS.items()
    }


@pytest.fixture(scope="module")
def world() -> DiffusionLearner:
    return DiffusionLearner.load(DATA / "world-base")


def plain_latents(folder: Path, cues: list[Cue], steps: int, guidance_scale: float, eta: float) -> torch.Tensor:
    """What diffusers' own pipeline with its own DDIM scheduler draws."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    latents: torch.Tensor = pipeline(
        [cue.prompt for cue in cues],
        generator=[torch.Generator("cpu").manual_seed(cue.seed) for cue in cues],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        eta=eta,
        output_type="latent",
    ).images
    return latents


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest relative error of a row."""
    difference = (found.double() - truth.double()).flatten(1).norm(dim=1)
    return float((difference / truth.double().flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize(("guidance_scale", "eta"), [(1.0, 0.0), (2.5, 0.0), (2.5, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_solution_is_what_diffusers_pipeline_draws(
    folders: dict[str, Path], kind: str, guidance_scale: float, eta: float
) -> None:
    learner = DiffusionLearner.load(folders[kind])
    settings = {"num_inference_steps": 8, "guidance_scale": guidance_scale, "eta": eta}
    system = sampling_system(learner, CUES, **settings, batch_size=32)  # type: ignore[arg-type]
    truth = plain_latents(folders[kind], CUES, 8, guidance_scale, eta)
    assert relative(torch.stack([solution.states[-1] for solution in Sequential()(system)]), truth) < 2e-5
    assert relative(torch.stack([solution.states[-1] for solution in Picard()(system)]), truth) < 5e-4
    assert system.start.dtype == torch.float64


@pytest.mark.parametrize("guidance_scale", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_the_shipped_base_is_solved_in_fewer_rounds_than_steps(
    world: DiffusionLearner, guidance_scale: float
) -> None:
    cues = [Cue(prompt="a photo of a red striped star", seed=3), Cue(prompt="", seed=4)]
    truth = plain_latents(DATA / "world-base", cues, 20, guidance_scale, 0.0)
    system = sampling_system(world, cues, num_inference_steps=20, guidance_scale=guidance_scale, batch_size=64)
    for solver in (Picard(window=12), Anderson(), Parareal()):
        solutions = solver(system)
        assert relative(torch.stack([solution.states[-1] for solution in solutions]), truth) < 1e-3
        assert all(solution.rounds < 19 for solution in solutions)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction", "sample"])
def test_the_numbers_are_those_of_diffusers_steps(
    world: DiffusionLearner, predicted: str, eta: float, to_one: bool, spacing: str
) -> None:
    zero = predicted != "epsilon"
    config = dict(world.pipeline.scheduler.config) | {"prediction_type": predicted, "rescale_betas_zero_snr": zero}
    scheduler = DDIMScheduler.from_config(config | {"set_alpha_to_one": to_one, "timestep_spacing": spacing})
    own = world.pipeline.scheduler
    world.pipeline.scheduler = scheduler
    try:
        steps = ddim_steps(world, 7, eta)
    finally:
        world.pipeline.scheduler = own
    scheduler.set_timesteps(7)
    assert steps.timesteps.tolist() == scheduler.timesteps.tolist()
    assert np.isfinite([steps.decay, steps.gain, steps.noise]).all()
    assert (steps.scale > 0).all()
    generator = torch.Generator().manual_seed(0)
    for n, t in enumerate(scheduler.timesteps):
        state, output, noise = torch.randn(3, 50, generator=generator)
        expected = scheduler.step(output, t, state, eta=eta, variance_noise=noise if eta else None).prev_sample
        ours = steps.decay[n] * state + steps.gain[n] * output + steps.noise[n] * noise
        torch.testing.assert_close(ours, expected.double(), rtol=2e-4, atol=2e-5, check_dtype=False)


def test_a_jump_with_frozen_noise_is_one_long_step(world: DiffusionLearner) -> None:
    system = sampling_system(world, CUES[:1], num_inference_steps=20, guidance_scale=1.0, batch_size=8)
    levels = world.pipeline.scheduler.alphas_cumprod.double().numpy()
    timesteps = ddim_steps(world, 20).timesteps
    chain = system.chain(0)
    value = torch.randn(1, len(chain.start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jumped = chain.sweep(5, chain.start[None], chain.drive(5, value.expand(7, -1)))[-1]
    (decay,), (gain,), _ = coefficients(levels[timesteps[5:6]], levels[timesteps[12:13]], "epsilon", 0.0)
    torch.testing.assert_close(jumped, decay * chain.start + gain * value[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_network_never_gets_more_rows_than_allowed(world: DiffusionLearner, guidance_scale: float) -> None:
    rows: list[int] = []
    hook = world.network.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        system = sampling_system(world, CUES, num_inference_steps=9, guidance_scale=guidance_scale, batch_size=8)
        solutions = Picard(max_rounds=2)(system)
    finally:
        hook.remove()
    assert max(rows) == 8
    assert sum(rows) == sum(solution.num_evaluations for solution in solutions) * (2 if guidance_scale > 1 else 1)


def test_half_precision_closes_as_far_as_it_can() -> None:
    half = DiffusionLearner.load(DATA / "world-base", dtype=torch.bfloat16)
    system = sampling_system(half, CUES[1:2], num_inference_steps=20, guidance_scale=1.0, batch_size=32)
    (solution,), (truth,) = Picard()(system), Sequential()(system)
    assert solution.rounds < 18
    assert relative(solution.states[-1:], truth.states[-1:]) < 0.02


def test_pictures_are_those_of_the_pipelines_own_call(world: DiffusionLearner) -> None:
    cues = [Cue(prompt="a photo of a red striped star", seed=1), Cue(prompt="a photo of a blue circle", seed=2)]
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0}
    images, solutions = generate_in_parallel(world, cues, Picard(), **settings, batch_size=1)  # type: ignore[arg-type]
    plain = world.generate(cues, **settings, batch_size=2)  # type: ignore[arg-type]
    assert np.abs(np.stack(images).astype(int) - np.stack(plain)).max() <= 1
    assert [len(solution.states) for solution in solutions] == [11, 11]


def test_what_is_no_linear_system_and_what_there_is_not_is_named(folders: dict[str, Path]) -> None:
    settings = {"guidance_scale": 1.0, "batch_size": 4}
    learner = DiffusionLearner.load(folders["sd1_sample"])
    own = learner.pipeline.scheduler
    for setting in ("clip_sample", "thresholding"):
        learner.pipeline.scheduler = DDIMScheduler.from_config(own.config, **{setting: True})
        with pytest.raises(UserError, match=rf"sd1_sample: its scheduler's {setting} is on"):
            sampling_system(learner, CUES, num_inference_steps=4, **settings)  # type: ignore[arg-type]
    learner = DiffusionLearner.load(folders["sd1"])
    assert not uses_ddim(learner)
    for steps, eta, message in ((0, 0, "from 1 to"), (1001, 0, "from 1 to"), (1000, 0, "fewer"), (4, 1.5, "eta=1.5")):
        with pytest.raises(UserError, match=message):
            ddim_steps(learner, steps, eta)


def test_generate_says_how_fast_it_was_and_draws_the_same(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"prompts": ["a wug"], "num_images": 2, "num_inference_steps": 6, "device": "cpu"}

    def draw(folder: Path, **settings: object) -> np.ndarray:
        name = "-".join(map(str, settings.values())) or "plain"
        config = GenerateConfig(
            pretrained_model_name_or_path=str(folder), output_dir=str(tmp_path / name), **common, **settings
        )
        assert run_generate(config) == 0
        return np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / name).glob("*.png"))]).astype(
            int
        )

    world = DATA / "world-base"
    plain = draw(world)
    assert "rounds" not in capsys.readouterr().out
    for solver in ("picard", "anderson", "parareal"):
        assert np.abs(draw(world, solver=solver) - plain).max() <= 1
        assert f"{solver}: 6 steps in" in capsys.readouterr().out
    assert np.abs(draw(world, solver="picard", eta=1.0) - plain).max() > 20
    assert "note" not in capsys.readouterr().out
    draw(folders["sd1"], solver="picard", window=3)
    assert "note: the pipeline's sampler is PNDMScheduler; solver=picard draws by DDIM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eta=0.5"], "eta=0.5 needs one of the parallel solvers"),
        (["solver=parareal", "window=4"], "window=4 belongs to solver=picard"),
        (["solver=picard", "window=0"], "window must be at least 1"),
        (["solver=picard", "tolerance=-1"], "tolerance must be at least 0"),
        (["solver=newton"], "newton"),
    ],
)
def test_settings_of_solvers_that_make_no_sense_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(GenerateConfig, None, overrides)
