"""Textual inversion against the pipeline's own captions, torch's own Adam on a new token, and planted ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import tiny_pipeline as make_pipeline
from PIL import Image

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Question, fill
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.free_words import FreeWords, math_attention, with_vectors
from diffusion_sft.learners.picture_inputs import _draw, _Jacobian, _Search, _System, picture_inputs
from diffusion_sft.numerics.noise import normal
from diffusion_sft.numerics.randomised import randomised_singular_values
from diffusion_sft.records import Example, identity_seed
from diffusion_sft.systems import InputSolutions

ARCHITECTURES = ("sd1", "sd2", "sdxl")
TEMPLATES = ("a photo of a {}", "{}", "the {} and a red {}")
WORDS = "blorp wug"
SEARCH = _Search(
    seed=5,
    num_vectors=1,
    num_starts=2,
    num_steps=6,
    learning_rate=0.3,
    num_draws=5,
    batch_size=64,
    rank_tolerance=0.01,
)
QUICK = {name: getattr(SEARCH, name) for name in SEARCH.__dataclass_fields__}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: make_pipeline(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pictures")
    files = [root / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return files


def questions(pictures: Sequence[Path], words: str = WORDS, templates: Sequence[str] = TEMPLATES) -> list[Question]:
    return [
        Question(
            concept=words,
            words=words,
            rendering=number,
            template=template,
            example=Example(id=file.name, concept=words, caption=fill(template, words), path=file, split="heldout"),
            candidates=("", words),
            num_candidates=2,
        )
        for number, (file, template) in enumerate(zip(pictures, templates, strict=True))
    ]


def free_words(learner: DiffusionLearner, num_vectors: int | None = None, num_starts: int = 2) -> FreeWords:
    return FreeWords(learner, templates=TEMPLATES, words=WORDS, num_vectors=num_vectors, num_starts=num_starts)


def system(learner: DiffusionLearner, asked: Sequence[Question], num_vectors: int | None) -> _System:
    return _System(learner, free_words(learner, num_vectors), _draw(learner, asked, SEARCH, "inputs"), 64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_words_own_embeddings_are_the_words(architecture: str, bases: dict[str, Path]) -> None:
    """Named vectors in the placeholders' rows give what the learner's own captions give, pooled states included."""
    learner = DiffusionLearner.load(bases[architecture])
    words = free_words(learner)
    captions = np.array([0, 1, 2, 0])
    noisy = normal((4, learner.pipeline.unet.config.in_channels, 8, 8), 0)
    timesteps = np.array([10, 300, 600, 900])
    expected = learner.predict(noisy, timesteps, [fill(TEMPLATES[place], WORDS) for place in captions])
    scale = words.in_table_units(torch.ones(words.num_free))
    other = normal((words.num_free,), 3)
    with torch.no_grad():
        own = words.forward(None, noisy, timesteps, captions)
        points = torch.stack([words.named / scale, other])
        both = words.forward(points, noisy.repeat(2, 1, 1, 1), np.tile(timesteps, 2), captions)
        turned = words.forward(points.flip(0), noisy.repeat(2, 1, 1, 1), np.tile(timesteps, 2), captions)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(both[:4], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(turned[4:], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(turned[:4], both[4:], rtol=0, atol=1e-6)
    assert (both[4:] - expected).abs().max() > 1e-4
    assert words.num_free == words.num_vectors * sum(
        encoder.config.hidden_size for name, encoder in learner.parts().items() if name != "unet"
    )


def test_captions_are_put_together_as_the_tokenizer_would(bases: dict[str, Path]) -> None:
    tokenizer = DiffusionLearner.load(bases["sd1"]).pipeline.tokenizer

    def padded(text: str) -> list[int]:
        return list(tokenizer(text, padding="max_length", max_length=24).input_ids)

    def inner(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    for template in TEMPLATES:
        pieces = [inner(piece) for piece in template.split("{}")]
        assert with_vectors(padded(""), pieces, inner(WORDS)) == padded(fill(template, WORDS))


def test_named_embeddings_are_averaged_where_the_counts_differ(bases: dict[str, Path]) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    table = learner.pipeline.text_encoder.get_input_embeddings().weight.detach()
    ids = learner.pipeline.tokenizer(WORDS, add_special_tokens=False).input_ids
    assert len(ids) > 1
    torch.testing.assert_close(free_words(learner).named, table[ids].reshape(-1))
    mean = table[ids].mean(dim=0)
    torch.testing.assert_close(free_words(learner, 1).named, mean)
    torch.testing.assert_close(free_words(learner, 5).named, mean.repeat(5))
    scale = free_words(learner, 5).in_table_units(torch.ones(5 * 16))
    torch.testing.assert_close(scale, table.square().mean().sqrt().expand(80))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_named_residuals_are_the_denoising_error_of_the_captions(
    architecture: str, bases: dict[str, Path], pictures: list[Path]
) -> None:
    learner = DiffusionLearner.load(bases[architecture])
    asked = questions(pictures)
    found = system(learner, asked, 1)
    own = [asked[number % 3] for number in range(5)]
    seeds = [identity_seed(5, q.example.id, f"rendering {q.rendering}", "inputs", draw) for draw, q in enumerate(own)]
    noise = torch.stack([normal((4, 8, 8), seed) for seed in seeds])
    clean = torch.stack(learner.targets([q.example for q in own]))
    timesteps = found.draws.timesteps
    noisy = learner.schedule.add_noise(clean, noise, timesteps)
    with torch.no_grad():
        prediction = learner.predict(noisy, timesteps, [q.example.caption for q in own])
    errors = learner.schedule.noise_from_prediction(prediction, noisy, timesteps) - noise
    assert float(found.residuals(None)) == pytest.approx(float(errors.square().mean()), rel=1e-5)
    # One timestep in each fifth of the trained ones.
    assert sorted(timesteps * 5 // 1000) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("architecture", ["sd1", "sd2"])
def test_the_path_is_torchs_adam_on_the_row_of_a_new_token(
    architecture: str, bases: dict[str, Path], pictures: list[Path]
) -> None:
    """As diffusers' script does it: the table is made longer by a row, and that row is trained."""
    asked = questions(pictures)
    (found,) = picture_inputs(DiffusionLearner.load(bases[architecture]), **QUICK)([asked])
    learner = DiffusionLearner.load(bases[architecture])
    own = system(learner, asked, 1)
    draws = own.draws
    assert found.named_residual == pytest.approx(float(own.residuals(None)), rel=1e-5)
    assert found.named_fresh_residual != pytest.approx(found.named_residual, rel=1e-3)
    encoder, unet = learner.pipeline.text_encoder, learner.pipeline.unet
    old = encoder.get_input_embeddings().weight.detach()
    new, scale = len(old), float(old.square().mean().sqrt())
    tokenizer = learner.pipeline.tokenizer
    ids = []
    for number in draws.captions:
        pieces = [tokenizer(p, add_special_tokens=False).input_ids for p in TEMPLATES[number].split("{}")]
        row = [tokenizer.bos_token_id, *pieces[0]]
        for piece in pieces[1:]:
            row += [new, *piece]
        ids.append(row + [tokenizer.eos_token_id] * (24 - len(row)))
    first = scale * normal((16,), identity_seed(5, WORDS, "start", 1))
    table = torch.nn.Parameter(torch.cat([old, first.unsqueeze(0)]))
    encoder.get_input_embeddings().weight = table
    adam = torch.optim.Adam([table], lr=0.3 * scale)
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / 6)
    values, rows = [], []
    for _ in range(7):
        states = encoder(torch.tensor(ids))[0]
        output = unet(draws.noisy, torch.from_numpy(draws.timesteps), states).sample
        errors = learner.schedule.noise_from_prediction(output, draws.noisy, draws.timesteps) - draws.noise
        value = errors.square().mean()
        values.append(float(value.detach()))
        rows.append(table.detach()[new].clone())
        adam.zero_grad()
        value.backward()
        assert table.grad is not None
        table.grad[:new] = 0
        adam.step()
        decay.step()
    best = int(np.argmin(values))
    assert values[best] < values[0]
    start = found.starts[1]
    assert start.residual == pytest.approx(values[best], rel=1e-4)
    np.testing.assert_allclose(start.solution, rows[best].numpy(), atol=2e-2 * scale)
    named = old[tokenizer(WORDS, add_special_tokens=False).input_ids].mean(dim=0).numpy()
    distance = np.linalg.norm(start.solution - named) / np.linalg.norm(named)
    assert start.distance == pytest.approx(distance, rel=1e-4)
    floor = min(values)
    assert start.num_steps == next(i for i, v in enumerate(values) if v <= floor + 0.1 * (values[0] - floor))


def flattened(learner: DiffusionLearner, rank: int) -> DiffusionLearner:
    """Let the network hear `rank` directions of the states at the words' own places, and nothing from other tokens."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(16, rank)))[0]
    projection = torch.from_numpy(basis @ basis.T).float()
    with torch.no_grad():
        for name, parameter in learner.pipeline.text_encoder.named_parameters():
            if "self_attn.out_proj" in name:
                parameter.zero_()
        for name, parameter in learner.pipeline.unet.named_parameters():
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                parameter.copy_(parameter @ projection)
    return learner


@pytest.mark.parametrize(("rank", "num_vectors"), [(1, 1), (3, 1), (2, 2)])
def test_a_planted_rank_is_the_jacobians(
    rank: int, num_vectors: int, bases: dict[str, Path], pictures: list[Path]
) -> None:
    learner = flattened(DiffusionLearner.load(bases["sd1"]), rank)
    settings = QUICK | {"num_vectors": num_vectors, "num_steps": 1, "rank_tolerance": 1e-4}
    # Every place has its own position's embedding, and would be heard in directions of its own.
    (found,) = picture_inputs(learner, **settings)([questions(pictures, templates=["a {}"] * 3)])
    assert found.num_free == 16 * num_vectors
    assert found.rank == rank * num_vectors
    assert found.condition >= 1


def test_a_network_that_hears_no_words_has_nothing_to_solve(bases: dict[str, Path], pictures: list[Path]) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    with torch.no_grad():
        for name, parameter in learner.pipeline.unet.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                parameter.zero_()
    (found,) = picture_inputs(learner, **QUICK)([questions(pictures)])
    assert found.rank == 0
    assert np.isnan(found.condition)
    for start in found.starts:
        assert start.residual == pytest.approx(found.named_residual, rel=1e-6)
        assert start.fresh_residual == pytest.approx(found.named_fresh_residual, rel=1e-6)
    # Nobody moved: two random starts are where they were.
    assert found.num_minima == 2


def test_products_are_each_others_transpose_and_blind_to_a_constant(
    bases: dict[str, Path], pictures: list[Path]
) -> None:
    """CLIP's layers normalise: a constant added to all of a vector's numbers is heard by none of them."""
    learner = DiffusionLearner.load(bases["sd1"])
    with math_attention():
        jacobian = _Jacobian(system(learner, questions(pictures), 1), normal((16,), 4))
        v, u = normal((16,), 5), normal((jacobian.num_rows,), 6)
        assert float(u @ jacobian.jvp(v)) == pytest.approx(float(jacobian.vjp(u) @ v), rel=1e-4)
        values = randomised_singular_values(jacobian, num_values=16, seed=0, like=v, chunk_size=4)
        blind = jacobian.jvp(torch.ones(16)).norm() / 4
    assert float(blind) < 1e-4 * values[0]
    assert values[15] < 1e-4 * values[0] < values[14]
    assert jacobian.num_rows == 5 * 4 * 8 * 8


def same(a: InputSolutions, b: InputSolutions, rel: float) -> None:
    assert a.named_residual == pytest.approx(b.named_residual, rel=rel)
    for one, other in zip(a.starts, b.starts, strict=True):
        assert one.residual == pytest.approx(other.residual, rel=rel)
        np.testing.assert_allclose(one.solution, other.solution, atol=max(rel, 1e-12) * 100)


def test_concepts_and_batches_do_not_know_of_each_other(bases: dict[str, Path], pictures: list[Path]) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    groups, short = [questions(pictures), questions(pictures, "dax")], QUICK | {"num_steps": 1}
    together = picture_inputs(learner, **short)(groups)
    (alone,) = picture_inputs(learner, **short)(groups[1:])
    same(together[1], alone, 0)
    (small,) = picture_inputs(learner, **(short | {"batch_size": 7}))(groups[1:])
    same(small, alone, 1e-4)
    (other,) = picture_inputs(learner, **(short | {"seed": 6, "num_steps": 0}))(groups[1:])
    assert other.named_residual != alone.named_residual


def test_nothing_is_left_on_the_weights(bases: dict[str, Path], pictures: list[Path]) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    before = {name: p.clone() for name, p in learner.network.named_parameters()}
    trainable = {name for name, p in learner.network.named_parameters() if p.requires_grad}
    picture_inputs(learner, **(QUICK | {"num_steps": 1}))([questions(pictures)])
    assert trainable
    for name, parameter in learner.network.named_parameters():
        assert (parameter == before[name]).all()
        assert parameter.grad is None
        assert parameter.requires_grad == (name in trainable)
    assert not any(module.training for module in learner.network.modules())


@pytest.mark.parametrize(
    ("template", "num_vectors", "message"),
    [
        ("a photo", 1, "'a photo': no {}"),
        ("a {}", 23, "tokens with 23 vectors, of 24"),
        (" ".join(["a"] * 30) + " {}", 1, "captions longer"),
    ],
)
def test_impossible_captions_are_refused(
    template: str, num_vectors: int, message: str, bases: dict[str, Path], pictures: list[Path]
) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    asked = questions(pictures[:1], "dax", [template])
    with pytest.raises(UserError, match=message):
        picture_inputs(learner, **(QUICK | {"num_vectors": num_vectors}))([asked])


def test_what_is_not_finite_is_named(bases: dict[str, Path], pictures: list[Path]) -> None:
    learner = DiffusionLearner.load(bases["sd1"])
    with torch.no_grad():
        learner.pipeline.unet.conv_out.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="blorp wug: a residual is not finite"):
        picture_inputs(learner, **QUICK)([questions(pictures)])
