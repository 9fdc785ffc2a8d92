"""DDIM inversion and SDEdit against the linear map that a Gaussian makes of them, and against diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from scipy.special import expit
from test_schedule import SD, stable_diffusion

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Query, Reconstruction
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.exact import ExactLearner, Mixture
from diffusion_sft.learners.reconstruction import read_reconstruction, trajectory
from diffusion_sft.numerics.noise import normal
from diffusion_sft.numerics.schedule import PredictionType, Schedule
from diffusion_sft.records import Draws, Example, identity_seed

NUM_DIMS = 6
RNG = np.random.default_rng(11)
LAWS = {
    "": (np.zeros(NUM_DIMS), RNG.uniform(0.8, 1.6, NUM_DIMS)),
    "wug": (RNG.normal(0, 1, NUM_DIMS), RNG.uniform(0.05, 0.6, NUM_DIMS)),
}
TARGETS = {str(i): RNG.normal(0, 1, NUM_DIMS) for i in range(5)}
QUERIES = [
    Query(example=Example(id=i, concept="wug", caption="wug", path=Path(i), split="heldout"), cues=("wug",))
    for i in TARGETS
]
DRAWS = Draws(seed=3, count=4)
TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
INVERSION = Reconstruction(kind="inversion", num_inference_steps=20)
SDEDIT = Reconstruction(kind="sdedit", num_inference_steps=20, strength=0.6)


class Gaussian:
    """A denoiser in float64 of one Gaussian under each cue, with its output worked out from E[x | x_t]."""

    device = torch.device("cpu")

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.num_rows: list[int] = []

    def targets(self, examples: Sequence[Example]) -> list[torch.Tensor]:
        return [torch.from_numpy(TARGETS[example.id]) for example in examples]

    def predict(self, noisy: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
        self.num_rows.append(len(noisy))
        rows = []
        for x, t, cue in zip(noisy.numpy(), timesteps, cues, strict=True):
            (mean, variance), a, s = LAWS[cue], self.schedule.alpha[t], self.schedule.sigma[t]
            clean = mean + a * variance / (a * a * variance + s * s) * (x - a * mean)
            noise = s / (a * a * variance + s * s) * (x - a * mean)
            rows.append({"epsilon": noise, "sample": clean, "v_prediction": a * noise - s * clean})
        return torch.from_numpy(np.stack([row[self.schedule.prediction_type] for row in rows]))


def read(denoiser: Gaussian, how: Reconstruction, batch_size: int = 7) -> list[np.ndarray]:
    return read_reconstruction(denoiser, QUERIES, how, DRAWS, batch_size=batch_size)


def linear_map(schedule: Schedule, cue: str, timesteps: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Where the DDIM steps take a state: in z = x − alpha m each step is a number per dimension,
    (alpha_s alpha_t v + sigma_s sigma_t) / (alpha_t² v + sigma_t²)."""
    mean, variance = LAWS[cue]
    alpha, sigma = schedule.alpha[timesteps], schedule.sigma[timesteps]
    z = start - alpha[0] * mean
    for k in range(len(timesteps) - 1):
        now, then = alpha[k], alpha[k + 1]
        z = z * (now * then * variance + sigma[k] * sigma[k + 1]) / (now**2 * variance + sigma[k] ** 2)
    return np.asarray(z + alpha[-1] * mean)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_inversion_and_back_is_the_gaussians_linear_map(prediction_type: PredictionType) -> None:
    schedule = stable_diffusion(prediction_type)
    path = np.rint(np.linspace(0, 999, 21)).astype(int)
    for query, errors in zip(QUERIES, read(Gaussian(schedule), INVERSION), strict=True):
        target = TARGETS[query.example.id]
        expected = []
        for cue in ("", "wug"):
            noise = linear_map(schedule, cue, path, target)
            back = linear_map(schedule, cue, path[::-1], noise)
            expected.append([np.mean((back - target) ** 2)])
        assert errors.shape == (2, 1)
        assert errors.min() > 1e-7
        np.testing.assert_allclose(errors, expected, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_sdedit_is_the_gaussians_linear_map_of_the_draws_noise(prediction_type: PredictionType) -> None:
    schedule = stable_diffusion(prediction_type)
    path = np.rint(np.linspace(0, 999, 21)).astype(int)[:13]  # 12 of 20 steps
    for query, errors in zip(QUERIES, read(Gaussian(schedule), SDEDIT), strict=True):
        target, expected = TARGETS[query.example.id], np.empty((2, 4))
        for draw in range(4):
            noise = normal((NUM_DIMS,), identity_seed(3, query.example.id, "", "noise", draw)).numpy()
            noisy = schedule.alpha[path[-1]] * target + schedule.sigma[path[-1]] * noise
            for row, cue in enumerate(("", "wug")):
                back = linear_map(schedule, cue, path[::-1], noisy)
                expected[row, draw] = np.mean((back - target) ** 2)
        np.testing.assert_allclose(errors, expected, rtol=1e-6)


def test_the_error_of_inversion_falls_with_the_square_of_the_steps() -> None:
    """Each DDIM step is Euler's (Song et al., 2021, equation 13), so x̃ − x is O(1/S) and its square O(1/S²)."""
    schedule = Schedule(alphas_cumprod=expit(np.linspace(6, -6, 3201)))
    steps = np.array([100, 200, 400, 800, 1600])
    found = [
        np.stack(read(Gaussian(schedule), Reconstruction(kind="inversion", num_inference_steps=int(s))))
        for s in steps
    ]
    errors = np.stack(found).mean(axis=(1, 3))  # (steps, cues)
    slopes = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slopes == pytest.approx([-2, -2], abs=0.1)
    assert (errors[-1] < 1e-4).all()


def test_readings_do_not_depend_on_batch_size_or_company() -> None:
    for how in (INVERSION, SDEDIT):
        together = read(Gaussian(stable_diffusion()), how, 7)
        for number, query in enumerate(QUERIES):
            denoiser = Gaussian(stable_diffusion())
            (alone,) = read_reconstruction(denoiser, [query], how, DRAWS, batch_size=1)
            np.testing.assert_array_equal(alone, together[number])
            assert set(denoiser.num_rows) == {1}


def test_each_distinct_cue_is_read_once_and_rows_follow_the_cues() -> None:
    denoiser = Gaussian(stable_diffusion())
    query = Query(example=QUERIES[0].example, cues=("wug", "", "wug"))
    (errors,) = read_reconstruction(denoiser, [query], INVERSION, DRAWS, batch_size=8)
    assert denoiser.num_rows == [2] * 40
    assert errors.shape == (4, 1)
    assert errors[1] == errors[3] != errors[0] == errors[2]
    assert read_reconstruction(denoiser, [], INVERSION, DRAWS, batch_size=8) == []


def test_the_exact_learner_is_read_to_its_float32() -> None:
    """The same numbers through the learner of the package, whose outputs are float32."""
    laws = {cue: Mixture.gaussian(*law) for cue, law in LAWS.items()}
    learner = ExactLearner(laws, TARGETS, stable_diffusion())
    for how in (INVERSION, SDEDIT):
        single = read_reconstruction(learner, QUERIES, how, DRAWS, batch_size=64)
        np.testing.assert_allclose(np.stack(single), np.stack(read(Gaussian(stable_diffusion()), how)), rtol=1e-4)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_diffusers_schedulers_take_the_same_steps(
    prediction_type: PredictionType, tiny_pipeline: Path, tiny_set: Path
) -> None:
    """999 = 27 · 37, so that 27 of diffusers' steps (of T // 27 = 37 timesteps) span the trajectory from 0 to 999."""
    learner = DiffusionLearner.load(tiny_pipeline)
    # What random weights put out may mean anything, so that one network serves for the three types.
    learner.schedule = stable_diffusion(prediction_type)
    file = "heldout/wug-0.png"
    example = Example(id=file, concept="wug", caption="a photo of a wug", path=tiny_set / file, split="heldout")
    query = Query(example=example, cues=("a photo of a wug",))
    settings = {**SD, "prediction_type": prediction_type, "set_alpha_to_one": False, "clip_sample": False}
    there, back = DDIMInverseScheduler(**settings), DDIMScheduler(**settings)
    for scheduler in (there, back):
        scheduler.set_timesteps(27)
    (target,) = learner.targets([example])
    cues = ["", "a photo of a wug"]
    clean = torch.stack([target] * 2)

    def ask(states: torch.Tensor, timestep: int) -> torch.Tensor:
        with torch.no_grad():
            return learner.predict(states, np.full(2, timestep), cues)

    def returned(states: torch.Tensor, first: int) -> np.ndarray:
        for t in range(first, 0, -37):
            states = back.step(ask(states, t), t, states).prev_sample
        return (states - clean).flatten(1).square().mean(dim=1).numpy()

    states = clean
    for t in range(0, 999, 37):
        states = there.step(ask(states, t), t + 37, states).prev_sample
    how = Reconstruction(kind="inversion", num_inference_steps=27)
    (errors,) = read_reconstruction(learner, [query], how, DRAWS, batch_size=2)
    np.testing.assert_allclose(errors[:, 0], returned(states, 999), rtol=1e-3)
    noise = normal(target.shape, identity_seed(3, file, "", "noise", 0))
    how = Reconstruction(kind="sdedit", num_inference_steps=27, strength=0.5)  # 13 steps, from 13 · 37
    (errors,) = read_reconstruction(learner, [query], how, Draws(seed=3, count=1), batch_size=2)
    noisy = back.add_noise(clean, torch.stack([noise] * 2), torch.tensor([13 * 37]))
    np.testing.assert_allclose(errors[:, 0], returned(noisy, 13 * 37), rtol=1e-3)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_timesteps_without_signal_are_left_out(prediction_type: PredictionType) -> None:
    """After diffusers' rescaling to zero terminal SNR (Lin et al., 2024) the last ᾱ is 0."""
    alphas_cumprod = DDIMScheduler(**SD, rescale_betas_zero_snr=True).alphas_cumprod.double().numpy()
    alphas_cumprod[-1] = 0
    schedule = Schedule(alphas_cumprod=alphas_cumprod, prediction_type=prediction_type)
    assert trajectory(schedule, INVERSION)[-1] == 998
    for errors in read(Gaussian(schedule), INVERSION):
        assert np.isfinite(errors).all()
        assert errors.max() < 1


def test_the_trajectory_takes_its_share_of_the_steps() -> None:
    schedule = stable_diffusion()
    assert trajectory(schedule, Reconstruction(kind="sdedit", num_inference_steps=9)).tolist() == [
        *range(0, 1000, 111)
    ]
    half = Reconstruction(kind="sdedit", num_inference_steps=9, strength=0.5)
    assert trajectory(schedule, half).tolist() == [0, 111, 222, 333, 444]
    finest = trajectory(schedule, Reconstruction(kind="inversion", num_inference_steps=999))
    assert finest.tolist() == [*range(1000)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Reconstruction(kind="inversion", num_inference_steps=1000), "num_inference_steps=1000"),
        (Reconstruction(kind="inversion", num_inference_steps=0), "num_inference_steps=0"),
        (Reconstruction(kind="sdedit", num_inference_steps=10, strength=0.05), "strength=0.05"),
        (Reconstruction(kind="sdedit", num_inference_steps=10, strength=1.5), "strength=1.5"),
    ],
)
def test_impossible_trajectories_are_refused(how: Reconstruction, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(Gaussian(stable_diffusion()), how)


def test_what_is_not_finite_is_named() -> None:
    class Broken(Gaussian):
        def predict(self, noisy: torch.Tensor, timesteps: np.ndarray, cues: Sequence[str]) -> torch.Tensor:
            return super().predict(noisy, timesteps, cues) * float("nan")

    with pytest.raises(UserError, match="0: its reconstruction is not finite"):
        read(Broken(stable_diffusion()), INVERSION)
