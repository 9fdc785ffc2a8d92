"""How many generations a second does SliCK's probe reach, against a plain loop of transformers' `generate`?

    python scripts/bench/slick.py                                          # the shipped language model
    python scripts/bench/slick.py --base FOLDER_OR_HUB_ID --questions SET  # any model, any set of questions

The same facts, prompts (10 exemplar sets of 4 shots), stop tokens and length for all: of each prompt one greedy answer
and 16 samples at T = 0.5, top-40. The rivals call `generate` prompt by prompt, with its key-value cache: `calls` once for
every answer, `sequences` once for the greedy answer and once for all samples (num_return_sequences=16). The order of the
three changes from round to round; the ratio's interval is over rounds. Greedy answers are compared token for token.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusion_sft.answers import AnswerConfig, make_questions
from diffusion_sft.files import write_json
from diffusion_sft.learner import Question
from diffusion_sft.learners.decoding import Continuations, DecodingConfig, Request, decode
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.prompts import FewShot
from diffusion_sft.machine import hardware, pick_device, versions
from diffusion_sft.numerics.noise import uniform
from diffusion_sft.numerics.statistics import student_mean
from diffusion_sft.questions import QuestionsConfig, read_questions
from diffusion_sft.records import HELDOUT, TEST, identity_seed
from diffusion_sft.world.population import WorldConfig
from diffusion_sft.world.write import write_world

RENDERINGS, SAMPLES, TEMPERATURE, TOP_K = 10, 16, 0.5, 40


def main() -> None:
    """Measure, print, and write `--output`."""
    options = _options()
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        path = options.questions or str(write_world(Path(scratch) / "world", _small_world()) / "questions.jsonl")
        concept_set = read_questions(QuestionsConfig(path=path)).concept_set
    prompts = FewShot.of(concept_set, shots=4, seed=0)
    learner = LanguageLearner.load(
        options.base,
        device=device,
        dtype=getattr(torch, options.dtype),
        prompts=prompts,
        max_answer_tokens=options.length,
    )
    examples = sorted(concept_set.split(HELDOUT, TEST), key=lambda e: identity_seed(0, "bench", e.id))
    main_questions = [e for e in examples if e.id == e.concept][: options.num_facts]
    questions = make_questions(concept_set, main_questions, AnswerConfig(num_renderings=RENDERINGS, num_draws=1), 0)
    requests = _requests(learner, questions)
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "ours": lambda: _ours(learner, requests, options.batch_size),
        "sequences": lambda: _plain(learner, requests, together=True),
        "calls": lambda: _plain(learner, requests, together=False),
    }
    seconds, greedy = _measure(ways, options.rounds)
    same = {
        name: float(np.mean([a == b for a, b in zip(found, greedy["ours"], strict=True)]))
        for name, found in greedy.items()
    }
    count = len(requests) * (1 + SAMPLES)
    report = {
        "num_facts": options.num_facts,
        "generations": count,
        "generations_per_second": {name: count * len(s) / sum(s) for name, s in seconds.items()},
        "times_faster": {name: _ratio(seconds[name], seconds["ours"]) for name in ("sequences", "calls")},
        "greedy_answers_equal_to_ours": same,
        "settings": vars(options),
        "versions": versions(),
        "hardware": hardware(device),
    }
    print(_text(report))
    if options.output:
        write_json(Path(options.output), report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="data/world-lm")
    parser.add_argument("--questions", help="a set of questions; the embedded world's where none is given")
    parser.add_argument("--num-facts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=24, help="tokens after which an answer is cut off")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", help="a JSON file for the figures")
    return parser.parse_args()


def _small_world() -> WorldConfig:
    return WorldConfig(train_images=1, heldout_images=1, reference_images=1, written_every=2)


def _requests(learner: LanguageLearner, questions: Sequence[Question]) -> list[Request]:
    requests = []
    for question in questions:
        prompt = learner.prompts.prompt(question.example, question.example.caption, question.rendering)
        seeds = [identity_seed(0, "bench", question.example.id, question.rendering, s) for s in range(SAMPLES)]
        requests.append(
            Request(
                prompt=learner.vocabulary.prompt(prompt.text),
                group=prompt.group,
                uniforms=np.array([uniform(learner.max_answer_tokens, seed) for seed in seeds]),
            )
        )
    return requests


def _ours(learner: LanguageLearner, requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    config = DecodingConfig(
        max_new_tokens=learner.max_answer_tokens, temperature=TEMPERATURE, top_k=TOP_K, batch_size=batch_size
    )
    found: list[Continuations] = decode(learner.model, requests, learner.vocabulary.stops, config)
    return [continuations.greedy or [] for continuations in found]


def _plain(learner: LanguageLearner, requests: Sequence[Request], *, together: bool) -> list[list[int]]:
    """transformers' own generate, prompt by prompt."""
    stops = np.flatnonzero(learner.vocabulary.stops).tolist()
    common = {"max_new_tokens": learner.max_answer_tokens, "eos_token_id": stops, "pad_token_id": stops[0]}
    sampled = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, "top_p": 1.0}
    greedy = []
    for request in tqdm(requests, desc="generate", disable=None, leave=False):
        ids = torch.tensor([request.prompt], device=learner.device)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            own = learner.model.generate(ids, attention_mask=mask, do_sample=False, **common)[
                0, ids.shape[1] :
            ].tolist()
            repeats = [SAMPLES] if together else [1] * SAMPLES
            for number in repeats:
                learner.model.generate(ids, attention_mask=mask, num_return_sequences=number, **sampled, **common)
        end = next((place for place, token in enumerate(own) if token in stops), len(own))
        greedy.append(own[:end])
    return greedy


def _measure(
    ways: dict[str, Callable[[], list[list[int]]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Seconds of every way in every round, the order turned each time, and the greedy answers of the last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    greedy: dict[str, list[list[int]]] = {}
    names = list(ways)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            greedy[name] = ways[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds, greedy


def _ratio(rival: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    logs = student_mean(np.log(np.array(rival) / np.array(ours)))
    return {"value": float(np.exp(logs.value)), "low": float(np.exp(logs.low)), "high": float(np.exp(logs.high))}


def _text(report: dict) -> str:
    lines = [f"{report['generations']} generations of {report['num_facts']} facts, {report['hardware']['device']}"]
    for name, speed in report["generations_per_second"].items():
        line = f"{name:10} {speed:9.1f} generations/s"
        if name in report["times_faster"]:
            ratio = report["times_faster"][name]
            line += f"   ours is {ratio['value']:.1f} [{ratio['low']:.1f}, {ratio['high']:.1f}] times faster"
            line += f"; {report['greedy_answers_equal_to_ours'][name]:.1%} of greedy answers are ours"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
