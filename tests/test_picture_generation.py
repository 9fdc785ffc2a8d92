"""Pictures as solutions: networks whose pictures, exponents and recoveries are known on paper, and the shipped base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_sft.answers import AnswerConfig, make_questions
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.evaluate.readers import readout_reader
from diffusion_sft.learner import Cue, Question
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.picture_generation import picture_generations, picture_recoveries
from diffusion_sft.learners.sampling import ddim_steps, decode, generate_in_parallel
from diffusion_sft.numerics.fixed_point import Picard
from diffusion_sft.numerics.schedule import Schedule
from diffusion_sft.records import HELDOUT, identity_seed
from diffusion_sft.world.population import WorldConfig, populate
from diffusion_sft.world.readout import Readout
from diffusion_sft.world.write import write_world

DATA = Path(__file__).parents[1] / "data"
STEPS = 10


@pytest.fixture(scope="module")
def learner(tiny_pipeline: Path) -> DiffusionLearner:
    return DiffusionLearner.load(tiny_pipeline)


def questions(tiny_set: Path, names: Sequence[str] = ("blorp", "wug")) -> list[Question]:
    result = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set
    config = AnswerConfig(num_renderings=2)
    asked = make_questions(result, [e for e in result.split(HELDOUT) if e.concept in names], config, seed=0)
    return [question for question in asked if question.words in names]


class PointMass(nn.Module):
    """Always sure of one picture, of which the prompt's first features decide the brightness: ε̂ = (x_t − α x) / σ."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.rows = schedule, 0

    def picture(self, embeds: torch.Tensor) -> torch.Tensor:
        return embeds[:, :, 0].mean(dim=1).reshape(-1, 1, 1, 1)

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, text: dict[str, torch.Tensor], ids: torch.Tensor | None
    ) -> torch.Tensor:
        self.rows = max(self.rows, len(noisy))
        alpha, sigma = (
            torch.from_numpy(table)[timesteps].reshape(-1, 1, 1, 1)
            for table in (self.schedule.alpha, self.schedule.sigma)
        )
        return ((noisy - alpha * self.picture(text["prompt_embeds"])) / sigma).to(noisy.dtype)


class TwoPictures(nn.Module):
    """Sure of one of two pictures: noisier than a timestep of the second one, else of the one that is nearer."""

    def __init__(self, schedule: Schedule, pictures: Sequence[torch.Tensor], timestep: int) -> None:
        super().__init__()
        self.schedule, self.pictures, self.timestep = schedule, pictures, timestep

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, text: dict[str, torch.Tensor], ids: torch.Tensor | None
    ) -> torch.Tensor:
        rows = []
        for state, t in zip(noisy, timesteps.tolist(), strict=True):
            alpha, sigma = float(self.schedule.alpha[t]), float(self.schedule.sigma[t])
            first, second = (float((state - alpha * picture).norm()) for picture in self.pictures)
            sure = self.pictures[0] if t <= self.timestep and first < second else self.pictures[1]
            rows.append((state - alpha * sure) / sigma)
        return torch.stack(rows)


@pytest.fixture
def point_mass(learner: DiffusionLearner) -> Iterator[PointMass]:
    network, stub = learner.network, PointMass(learner.schedule)
    learner.network = stub
    yield stub
    learner.network = network


def test_a_base_that_is_sure_of_one_picture_is_solved_as_on_paper(
    learner: DiffusionLearner, point_mass: PointMass, tiny_set: Path
) -> None:
    asked = questions(tiny_set)
    seen: list[tuple[int, list[str]]] = []

    def read_labels(images: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
        seen.append((len(images), list(names)))
        return ["blorp"] * len(images)

    read = picture_generations(learner, read_labels, seed=3, num_starts=3, num_inference_steps=STEPS, batch_size=7)
    found = read(asked)
    assert [(g.concept, g.rendering, g.draw) for g in found] == [
        (q.concept, q.rendering, draw) for q in asked for draw in range(3)
    ]
    steps = ddim_steps(learner, STEPS)
    sigma = learner.schedule.sigma
    start, end = sigma[steps.timesteps[0]], sigma[0]
    # Errors shrink as σ does, step by step and in every direction.
    for generation in found:
        assert generation.sensitivity == pytest.approx(math.log(end / start) / STEPS, abs=1e-3)
        assert generation.num_steps == STEPS
        assert generation.residuals.shape == (generation.rounds, STEPS)
        assert generation.answer == "blorp"
        assert generation.correct == (generation.concept == "blorp")
        assert generation.first_passage == 1
    # x_N = α_end m + (σ_end / σ_start)(x_0 − α_start m): the noise drops out of the distance to ∅.
    alpha = learner.schedule.alpha
    mean = point_mass.picture(learner._text.embeddings(["a photo of a blorp", ""])["prompt_embeds"]).flatten()
    factor = alpha[0] - end / start * alpha[steps.timesteps[0]]
    own = [g for q, g in zip(np.repeat(np.array(asked), 3), found, strict=True) if q.template == "a photo of a {}"]
    blorps = [generation for generation in own if generation.concept == "blorp"]
    assert blorps
    for generation in blorps:
        assert generation.null_distance == pytest.approx(factor * abs(float(mean[0] - mean[1])), rel=1e-3)
    assert point_mass.rows == 7
    assert sum(count for count, _ in seen) == sum(generation.rounds for generation in found)


def test_a_draw_is_a_function_of_its_identity_alone(
    learner: DiffusionLearner, point_mass: PointMass, tiny_set: Path
) -> None:
    asked = questions(tiny_set)
    settings = {"num_starts": 2, "num_inference_steps": STEPS}

    def label(images: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
        return [str(image.astype(int).sum() // 100) for image in images]

    def read(some: list[Question], seed: int, batch_size: int) -> list[tuple[object, ...]]:
        generations = picture_generations(learner, label, seed=seed, batch_size=batch_size, **settings)(some)  # type: ignore[arg-type]
        return [(g.answer, g.rounds, g.null_rounds, g.num_evaluations, g.first_passage) for g in generations]

    together = read(asked, 3, 16)
    assert read(asked[::-1], 3, 3) == [row for q in (6, 4, 2, 0) for row in together[q : q + 2]]
    assert [row[0] for row in read(asked, 4, 16)] != [row[0] for row in together]


def test_guidance_asks_for_both_sides_and_the_noise_is_the_seeds(learner: DiffusionLearner, tiny_set: Path) -> None:
    asked = questions(tiny_set, ("dax",))[:1]
    settings = {"num_inference_steps": 6, "guidance_scale": 2.0}
    labels: list[np.ndarray] = []

    def read_labels(images: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
        labels.extend(images)
        return ["dax" if number >= len(images) - 2 else "" for number in range(len(images))]

    (found,) = picture_generations(learner, read_labels, seed=5, num_starts=1, batch_size=8, **settings)(asked)  # type: ignore[arg-type]
    prompt = asked[0].template.replace("{}", "dax")
    seed = identity_seed(5, "systems", "dax", asked[0].rendering, 0)
    images, (solution,) = generate_in_parallel(
        learner, [Cue(prompt=prompt, seed=seed)], Picard(), batch_size=8, **settings
    )  # type: ignore[arg-type]
    assert np.abs(labels[-1].astype(int) - images[0]).max() <= 1
    assert found.rounds == solution.rounds
    assert found.num_evaluations == 2 * solution.num_evaluations
    assert found.first_passage == found.rounds - 1
    np.testing.assert_allclose(found.residuals, solution.residuals, rtol=1e-2, atol=1e-5)
    assert found.correct


@pytest.mark.parametrize("level", [0, 2, 5, 8])
def test_recovery_is_the_share_from_which_the_picture_comes_back(
    learner: DiffusionLearner, tiny_set: Path, level: int
) -> None:
    asked = questions(tiny_set, ("wug",))[:1]
    own = learner.targets([asked[0].example])[0]
    other = own + 16 * torch.sign(own.mean())
    low, high = learner.schedule.log_snr_range
    levels = learner.schedule.nearest_timestep(np.linspace(low, high, 9))
    right, wrong = (image.astype(int) for image in decode(learner, torch.stack([own, other])))

    def read_labels(images: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
        nearer = [np.abs(image - right).mean() < np.abs(image - wrong).mean() for image in images]
        return ["wug" if near else "" for near in nearer]

    network = learner.network
    # At the share 1 alone, the picture itself, there is nothing left to be read.
    learner.network = TwoPictures(learner.schedule, (own, other), int(levels[level]) if level < 8 else -1)
    try:
        read = picture_recoveries(learner, read_labels, seed=0, num_inference_steps=40, batch_size=3)
        assert read(asked) == [level / 8]
    finally:
        learner.network = network


def test_a_picture_that_is_not_read_right_is_never_recovered(learner: DiffusionLearner, tiny_set: Path) -> None:
    asked = questions(tiny_set)
    wrong = picture_recoveries(
        learner, lambda images, names: [""] * len(images), seed=0, num_inference_steps=3, batch_size=4
    )
    right = picture_recoveries(
        learner, lambda images, names: list(names), seed=0, num_inference_steps=3, batch_size=4
    )
    assert wrong(asked) == [1.0] * len(asked)
    assert right(asked) == [0.0] * len(asked)
    with pytest.raises(UserError, match="num_inference_steps=1000"):
        picture_recoveries(learner, lambda images, names: [], seed=0, num_inference_steps=1000, batch_size=4)


def test_the_shipped_base_solves_for_what_it_knows(tmp_path: Path) -> None:
    """The names read most often are drawn right and come back from far; names never read neither, and their pictures
    lie nearer to those of no name."""
    learner = DiffusionLearner.load(DATA / "world-base")
    config = WorldConfig(written_every=6, train_images=1, heldout_images=1, reference_images=1)
    people = populate(config)[:: config.written_every]
    chosen = [*people[:2], *[person for person in people if person.kind == "novel"][:2]]
    world = write_world(tmp_path / "world", config)
    concept_set = read_concept_set(ConceptsConfig(path=str(world))).concept_set
    reader = readout_reader(Readout.load(DATA / "world-readout"), concept_set.concepts)
    examples = [example for example in concept_set.split(HELDOUT) if example.concept in {p.name for p in chosen}]
    asked = make_questions(concept_set, examples, AnswerConfig(num_renderings=1), seed=0)
    assert {q.concept for q in asked} == {p.name for p in chosen}
    generations = picture_generations(learner, reader, seed=0, num_starts=2, num_inference_steps=10, batch_size=32)(
        asked
    )
    recoveries = picture_recoveries(learner, reader, seed=0, levels=4, num_inference_steps=10, batch_size=32)(asked)
    known = {person.name for person in chosen[:2]}
    assert np.mean([g.correct for g in generations if g.concept in known]) >= 0.75
    assert not any(g.correct for g in generations if g.concept not in known)
    names = [person.name for person in chosen]
    distances = {name: np.mean([g.null_distance for g in generations if g.concept == name]) for name in names}
    unknown = names[2:]
    assert min(distances[name] for name in known) > max(distances[name] for name in unknown)
    needed = {question.concept: share for question, share in zip(asked, recoveries, strict=True)}
    assert max(needed[name] for name in known) < min(needed[name] for name in unknown)
    assert all(1 < g.rounds <= 10 and 1 <= g.first_passage <= g.rounds for g in generations)
