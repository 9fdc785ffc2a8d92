"""Readings in nats against closed forms, for data whose score is known: Gaussians and mixtures of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.integrate import quad
from scipy.special import expit, logsumexp
from test_schedule import stable_diffusion

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Cue, Objective, Query, Reconstruction, TrainingItem
from diffusion_sft.learners.exact import ExactLearner, Mixture
from diffusion_sft.numerics.quadrature import ESTIMATORS, standard_error
from diffusion_sft.numerics.schedule import PredictionType, Schedule
from diffusion_sft.records import Draws, Example, identity_seed

NUM_DIMS = 12
RNG = np.random.default_rng(7)
MEAN, VARIANCE = RNG.normal(0, 0.7, NUM_DIMS), RNG.uniform(0.1, 0.8, NUM_DIMS)
NULL_VARIANCE = VARIANCE + 0.49
TARGETS = {str(i): MEAN + np.sqrt(VARIANCE) * RNG.normal(size=NUM_DIMS) for i in range(6)}
LAWS = {"": Mixture.gaussian(np.zeros(NUM_DIMS), NULL_VARIANCE), "wug": Mixture.gaussian(MEAN, VARIANCE)}


def example(number: str) -> Example:
    return Example(id=number, concept="wug", caption="wug", path=Path(number), split="heldout")


EXAMPLES = [example(number) for number in TARGETS]
QUERIES = [Query(example=e, cues=("wug",)) for e in EXAMPLES]


def wide_schedule() -> Schedule:
    """Log-SNRs from 16 down to −16 in even steps: all but the whole line."""
    return Schedule(alphas_cumprod=expit(np.linspace(16, -16, 1601)))


def expected_error(log_snr: float, target: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """E over ε of ‖ε − ε̂‖² at one target, worked out for a Gaussian independently of the code under test."""
    signal, noise = 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))
    gain = math.sqrt(noise) / (signal * variance + noise)  # ε̂ = gain · (z − √signal · mean)
    of_noise = 1 - gain * math.sqrt(noise)
    of_target = gain * math.sqrt(signal) * (target - mean)
    return float((of_noise**2 + of_target**2).sum())


def integrated_error(schedule: Schedule, target: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    value, _ = quad(lambda a: 0.5 * expected_error(a, target, mean, variance), *schedule.log_snr_range, limit=200)
    return float(value)


def moments(cue: str) -> tuple[np.ndarray, np.ndarray]:
    return LAWS[cue].means[0], LAWS[cue].variances[0]


def log_density(target: np.ndarray, law: Mixture) -> float:
    exponents = -0.5 * ((target - law.means) ** 2 / law.variances + np.log(2 * np.pi * law.variances)).sum(axis=1)
    return float(logsumexp(exponents, b=law.shares))


def test_errors_and_gains_match_the_closed_form_within_their_standard_error() -> None:
    schedule = stable_diffusion()
    learner = ExactLearner(LAWS, TARGETS, schedule)
    readings = learner.surprise(
        [Query(example=e, cues=("wug",)) for e in EXAMPLES], Draws(seed=0, count=400), batch_size=999
    )
    for e, reading in zip(EXAMPLES, readings, strict=True):
        target = TARGETS[e.id]
        truth = np.array(
            [integrated_error(schedule, target, law.means[0], law.variances[0]) for law in LAWS.values()]
        )
        errors = reading.error_nats
        claimed = standard_error(errors, ESTIMATORS["default"])
        assert (np.abs(errors.mean(axis=1) - truth) < 4 * claimed + 2e-3 * truth).all()
        gains = errors[0] - errors[1]
        gain_error = standard_error(gains, ESTIMATORS["default"])
        assert abs(gains.mean() - (truth[0] - truth[1])) < 4 * gain_error + 2e-3 * abs(truth[0] - truth[1])
        assert gain_error < 0.1 * abs(truth[0] - truth[1]) + 0.2


def test_the_likelihood_in_nats_is_the_gaussians_own() -> None:
    """−log p(x) = d/2 log 2πe + ½∫dα (E‖ε − ε̂‖² − d σ(α)), Kong, Brekelmans & Ver Steeg (2023), equation 8."""
    schedule = wide_schedule()
    learner = ExactLearner(LAWS, TARGETS, schedule)
    readings = learner.surprise(
        [Query(example=e, cues=("wug",)) for e in EXAMPLES], Draws(seed=1, count=2000), batch_size=4000
    )
    low, high = schedule.log_snr_range
    baseline = 0.5 * NUM_DIMS * (np.logaddexp(0, high) - np.logaddexp(0, low))
    for e, reading in zip(EXAMPLES, readings, strict=True):
        errors = reading.error_nats
        claimed = standard_error(errors, ESTIMATORS["default"])
        nll = NUM_DIMS / 2 * math.log(2 * math.pi * math.e) + errors.mean(axis=1) - baseline
        truth = np.array([-log_density(TARGETS[e.id], law) for law in LAWS.values()])
        assert (np.abs(nll - truth) < 4 * claimed + 0.02).all()
        gains = errors[0] - errors[1]
        tolerance = 4 * float(standard_error(gains, ESTIMATORS["default"])) + 0.02
        assert gains.mean() == pytest.approx(truth[0] - truth[1], abs=tolerance)


def test_a_mixtures_gain_is_its_pointwise_mutual_information() -> None:
    means = RNG.normal(0, 0.8, (3, NUM_DIMS))
    variances = np.full((3, NUM_DIMS), 0.3)
    mixture = Mixture(shares=np.array([0.5, 0.3, 0.2]), means=means, variances=variances)
    laws = {"": mixture} | {f"class {i}": Mixture.gaussian(means[i], variances[i]) for i in range(3)}
    target = means[1] + np.sqrt(0.3) * RNG.normal(size=NUM_DIMS)
    learner = ExactLearner(laws, {"x": target}, wide_schedule())
    cues = tuple(laws)[1:]
    (reading,) = learner.surprise(
        [Query(example=example("x"), cues=cues)], Draws(seed=0, count=4000), batch_size=4000
    )
    gains = reading.error_nats[0] - reading.error_nats[1:]
    claimed = standard_error(gains, ESTIMATORS["default"])
    truth = [log_density(target, laws[cue]) - log_density(target, mixture) for cue in cues]
    assert (np.abs(gains.mean(axis=1) - truth) < 4 * claimed + 0.05).all()


@pytest.mark.parametrize("estimator", ["default", "naive", "classifier"])
def test_the_standard_error_of_the_gain_is_honest(estimator: str) -> None:
    """The claimed standard errors against the spread over seeds; a grid of 32 is too coarse to know its own."""
    schedule = stable_diffusion()
    learner = ExactLearner(LAWS, TARGETS, schedule)
    pairs = [[integrated_error(schedule, TARGETS[e.id], *moments(cue)) for cue in LAWS] for e in EXAMPLES]
    truth = -np.diff(pairs)[:, 0]
    gains, claimed = [], []
    for seed in range(200):
        readings = learner.surprise(QUERIES, Draws(seed=seed, count=32, estimator=estimator), batch_size=999)
        errors = np.array([reading.error_nats for reading in readings])
        gains.append((errors[:, 0] - errors[:, 1]).mean(axis=1))
        if ESTIMATORS[estimator].common:
            claimed.append(standard_error(errors[:, 0] - errors[:, 1], ESTIMATORS[estimator]))
        else:
            claimed.append(np.hypot(*standard_error(errors, ESTIMATORS[estimator]).T))
    spread = np.sqrt(np.var(gains, axis=0, ddof=1).mean())
    low, high = {"default": (0.85, 1.3), "naive": (0.85, 1.15), "classifier": (0.6, 1.1)}[estimator]
    assert low < np.sqrt(np.mean(np.square(claimed))) / spread < high
    if estimator != "classifier":
        covered = (np.abs(np.array(gains) - truth) < 1.96 * np.array(claimed)).mean()
        assert covered > 0.88


def test_a_better_estimator_is_better() -> None:
    learner = ExactLearner(LAWS, TARGETS, stable_diffusion())
    spread = {}
    for name in ("default", "common", "naive"):
        draws = [Draws(seed=seed, count=32, estimator=name) for seed in range(40)]
        readings = [learner.surprise(QUERIES, draw, batch_size=999) for draw in draws]
        errors = np.array([[reading.error_nats.mean(axis=1) for reading in some] for some in readings])
        spread[name] = np.sqrt((errors[..., 0] - errors[..., 1]).var(axis=0, ddof=1).mean())
        if name == "default":
            spread["default error"] = np.sqrt(errors[..., 1].var(axis=0, ddof=1).mean())
        if name == "common":
            spread["common error"] = np.sqrt(errors[..., 1].var(axis=0, ddof=1).mean())
    assert spread["default"] < spread["common"] < 0.5 * spread["naive"]
    assert spread["default error"] < 0.3 * spread["common error"]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_prediction_types_are_read_alike(prediction_type: PredictionType) -> None:
    query = [Query(example=EXAMPLES[0], cues=("wug",))]
    plain = ExactLearner(LAWS, TARGETS, stable_diffusion()).surprise(query, Draws(seed=0, count=16), batch_size=8)[0]
    other = ExactLearner(LAWS, TARGETS, stable_diffusion(prediction_type))
    read = other.surprise(query, Draws(seed=0, count=16), batch_size=8)[0]
    assert read.squared_error == pytest.approx(plain.squared_error, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_the_optimal_prediction_at_no_signal_is_the_mean_of_the_data(prediction_type: PredictionType) -> None:
    schedule = Schedule(alphas_cumprod=np.linspace(0.99, 0.0, 50), prediction_type=prediction_type)
    learner = ExactLearner(LAWS, TARGETS, schedule)
    noisy = torch.randn(4, NUM_DIMS, generator=torch.Generator().manual_seed(0))
    predicted = learner.predict(noisy, np.full(4, 49), ["wug"] * 4)
    sign = -1 if prediction_type == "v_prediction" else 1
    np.testing.assert_allclose(predicted.detach(), np.tile(sign * MEAN, (4, 1)), atol=1e-5)


def test_a_weighted_loss_is_the_plain_one_times_its_weight() -> None:
    """Min-SNR-γ of ε: min(SNR, γ)/SNR (Hang et al., 2023), at the timestep that the item draws."""
    learner = ExactLearner(LAWS, TARGETS, stable_diffusion())
    items = [TrainingItem(example=e, caption="wug", visit=visit) for e in EXAMPLES for visit in range(5)]
    plain, weighted = (
        learner.loss(learner.batch(items, seed=0)),
        learner.loss(learner.batch(items, seed=0, objective=Objective(snr_gamma=5.0))),
    )
    seeds = [identity_seed(0, "loss", item.visit, item.example.id) for item in items]
    levels = learner.schedule.alphas_cumprod[[identity_seed(seed, "timestep") % 1000 for seed in seeds]]
    snr = levels / (1 - levels)
    assert (snr > 5).any()
    assert (snr < 5).any()
    np.testing.assert_allclose(weighted.detach(), plain.detach() * np.minimum(snr, 5) / snr, rtol=1e-6)


def test_a_target_is_brought_back_better_under_its_own_cue() -> None:
    learner = ExactLearner(LAWS, TARGETS, stable_diffusion())
    plan = Reconstruction(kind="sdedit", num_inference_steps=20, strength=0.8)
    errors = np.stack(learner.reconstruct(QUERIES, plan, Draws(seed=0, count=8), batch_size=32))
    assert errors.shape == (len(QUERIES), 2, 8)
    null, cued = errors.mean(axis=(0, 2))
    assert cued < null


def test_teaching_moves_the_mean_to_the_data() -> None:
    learner = ExactLearner(LAWS, TARGETS, stable_diffusion())
    learner.network.means[1].data.zero_()
    optimiser = torch.optim.Adam([learner.network.means[1]], lr=0.05)
    for update in range(150):
        items = [TrainingItem(example=e, caption="wug", visit=update) for e in EXAMPLES]
        optimiser.zero_grad()
        learner.loss(learner.batch(items, seed=0)).mean().backward()
        optimiser.step()
    data_mean = np.mean(list(TARGETS.values()), axis=0)
    left = learner.network.means[1].detach().numpy() - data_mean
    assert np.linalg.norm(left) < 0.25 * np.linalg.norm(data_mean)


def test_samples_are_exact_and_files_are_written(tmp_path: Path) -> None:
    learner = ExactLearner(LAWS, TARGETS, stable_diffusion())
    cues = [Cue(prompt="wug", seed=seed) for seed in range(800)]
    images = learner.generate(cues, num_inference_steps=1, guidance_scale=1.0, batch_size=3)
    assert images[0].shape == (1, NUM_DIMS, 3)
    unclipped = np.abs(MEAN) < 0.3
    means = np.stack(images)[:, 0, :, 0].mean(axis=0) / 127.5 - 1
    assert np.abs(means - MEAN)[unclipped].max() < 0.12
    learner.save(tmp_path, {"run": "7"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cues.json", "means.safetensors"]
    with safe_open(tmp_path / "means.safetensors", "pt") as stored:
        assert stored.metadata() == {"format": "pt", "run": "7"}
        assert torch.equal(stored.get_tensor("means.1"), learner.parts()["unet"].get_parameter("means.1"))
    with pytest.raises(UserError, match=r"all\.safetensors: .*no checkpoint format"):
        learner.save_single_file(tmp_path / "all.safetensors")
    assert len(list(tmp_path.iterdir())) == 2
    assert learner.identity()["num_dims"] == NUM_DIMS
    with pytest.raises(UserError, match="77"):
        learner.check_captions(["word " * 78])
