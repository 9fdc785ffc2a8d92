"""How many passes, and how much time, does greedy decoding take when the answer's tokens are solved for in parallel?

    python scripts/bench/decoding.py                                       # the shipped language model
    python scripts/bench/decoding.py --buckets RUN/llm/buckets/concepts.parquet   # by knowledge category
    python scripts/bench/decoding.py --model FOLDER_OR_HUB_ID --questions SET
    python scripts/bench/decoding.py --random llama gpt2 qwen2 --dtype float64    # random weights, random prompts

Every prompt is decoded by every way in turn, the order turned from prompt to prompt: `greedy` is transformers'
generate(do_sample=False) with its key-value cache, which all answers are compared with token for token; `one by one` is
this package's own loop without guesses, so that what the loop saves and what the guesses save can be told apart. Few-shot
prompts of 4 exemplars, one in each of ten renderings' turn. The ratio of times is the geometric mean over prompts with
Student's interval; tokens per round are summed over prompts, the token that ends an answer counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from diffusion_sft.files import read_table, write_json
from diffusion_sft.learners.drafting import DecodingRecord
from diffusion_sft.learners.language import LanguageLearner
from diffusion_sft.learners.parallel_decoding import Jacobi, Lookahead
from diffusion_sft.learners.prompts import FewShot
from diffusion_sft.machine import hardware, pick_device, versions
from diffusion_sft.numerics.statistics import student_mean
from diffusion_sft.questions import QuestionsConfig, read_questions
from diffusion_sft.records import PROBED, identity_seed
from diffusion_sft.world.population import WorldConfig
from diffusion_sft.world.write import write_world

WAYS: Mapping[str, Jacobi | Lookahead | None] = {
    "greedy": None,
    "one by one": Jacobi(block_size=1),
    "jacobi": Jacobi(),
    "jacobi, blocks of 4": Jacobi(block_size=4),
    "lookahead": Lookahead(),
    "lookahead, prompt's n-grams": Lookahead(pool_from_prompt=True),
    "the same, W, N, G = 3, 4, 3": Lookahead(window=3, ngram=4, guesses=3, pool_from_prompt=True),
}
RENDERINGS = 10
ATTENTION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
RANDOM = {"llama": ATTENTION, "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4}, "qwen2": ATTENTION}
"""Sizes of the models with random weights."""


def main() -> None:
    """Measure, print, and write `--json`."""
    options = _options()
    device, dtype = pick_device(options.device), getattr(torch, options.dtype)
    reports = {}
    if options.random:
        for name in options.random:
            model = _random_model(name).to(device, dtype).eval()
            prompts = _random_prompts(model, options.num_prompts)
            ends = list(range(0, model.config.vocab_size, 2 * options.length))
            reports[f"random {name}"] = _compare(model, prompts, ends, options, {})
            print(_text(f"random {name}", reports[f"random {name}"], options.dtype, hardware(device)["device"]))
    else:
        learner, prompts, categories = _asked(options, device, dtype)
        ends = np.flatnonzero(learner.vocabulary.stops).tolist()
        reports[options.model] = _compare(learner.model, prompts, ends, options, categories)
        print(_text(options.model, reports[options.model], options.dtype, hardware(device)["device"]))
    if options.json:
        whole = {"models": reports, "settings": vars(options), "versions": versions(), "hardware": hardware(device)}
        write_json(Path(options.json), whole)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/world-lm")
    parser.add_argument("--questions", help="a set of questions; the embedded world's where none is given")
    parser.add_argument("--buckets", help="concepts.parquet with the knowledge categories, as `bucket` writes it")
    parser.add_argument("--random", nargs="*", choices=list(RANDOM), help="random weights instead")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS), help="beside greedy")
    parser.add_argument("--num-prompts", type=int, default=500)
    parser.add_argument("--length", type=int, default=24, help="tokens after which an answer is cut off")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float64", "float32", "bfloat16", "float16"])
    parser.add_argument("--json", help="a file for the figures")
    return parser.parse_args()


def _asked(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[LanguageLearner, list[list[int]], dict[int, str]]:
    """The learner, its few-shot prompts in a random order, and the category of each prompt's fact where it is known."""
    with tempfile.TemporaryDirectory() as scratch:
        world = WorldConfig(train_images=1, heldout_images=1, reference_images=1)
        path = options.questions or str(write_world(Path(scratch) / "world", world) / "questions.jsonl")
        concept_set = read_questions(QuestionsConfig(path=path)).concept_set
    shots = FewShot.of(concept_set, shots=4, seed=0)
    learner = LanguageLearner.load(options.model, device=device, dtype=dtype, prompts=shots)
    known = read_table(Path(options.buckets)).set_index("concept").category.to_dict() if options.buckets else {}
    examples = [e for e in concept_set.split(*PROBED) if e.id == e.concept and (not known or e.concept in known)]
    examples.sort(key=lambda e: identity_seed(0, "bench", e.id))
    prompts, categories = [], {}
    for number in range(options.num_prompts):
        example = examples[number % len(examples)]
        rendering = (number + number // len(examples)) % RENDERINGS
        prompts.append(learner.vocabulary.prompt(shots.prompt(example, example.caption, rendering).text))
        if known:
            categories[number] = str(known[example.concept])
    return learner, prompts, categories


def _random_model(name: str) -> PreTrainedModel:
    """A small model of this kind with random weights, large enough that it does not repeat itself at once."""
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(name, vocab_size=512, initializer_range=0.3, **ends, **RANDOM[name])
    return AutoModelForCausalLM.from_config(config)


def _random_prompts(model: PreTrainedModel, count: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    size = int(model.config.vocab_size)
    return [generator.integers(0, size, generator.integers(8, 64)).tolist() for _ in range(count)]


def _compare(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ends: list[int],
    options: argparse.Namespace,
    categories: dict[int, str],
) -> dict[str, Any]:
    """Every way on every prompt: equal answers, rounds, seconds."""
    names = list(dict.fromkeys(("greedy", *options.ways)))
    seconds = np.zeros((len(names), len(prompts)))
    answers: list[list[list[int]]] = [[[] for _ in prompts] for _ in names]
    records: list[dict[int, DecodingRecord]] = [{} for _ in names]
    for number in tqdm(range(-2, len(prompts)), desc="prompts", disable=None, leave=False):
        for turn in range(len(names)):
            way = (turn + number) % len(names)
            found, cost, took = _decoded(model, prompts[max(number, 0)], WAYS[names[way]], ends, options.length)
            if number >= 0:  # what comes before warms up
                answers[way][number], seconds[way, number] = found, took
                if cost is not None:
                    records[way][number] = cost
    groups = {"all": list(range(len(prompts)))}
    for number, category in categories.items():
        groups.setdefault(category, []).append(number)
    return {
        group: {
            name: _summary(members, answers[0], answers[way], records[way], seconds[0], seconds[way])
            for way, name in enumerate(names)
        }
        for group, members in groups.items()
    }


def _decoded(
    model: PreTrainedModel, prompt: Sequence[int], way: Jacobi | Lookahead | None, ends: list[int], length: int
) -> tuple[list[int], DecodingRecord | None, float]:
    """One answer, what it cost, and its seconds."""
    records: list[DecodingRecord] = []
    ids = torch.tensor([list(prompt)], device=model.device)
    own = {} if way is None else {"custom_generate": replace(way, record=records.append)}
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=ends,
        pad_token_id=ends[0],
        **own,
    )
    answer = found[0, ids.shape[1] :].tolist()  # waits for the device
    return answer, records[0] if records else None, time.perf_counter() - started


def _summary(
    members: Sequence[int],
    greedy: Sequence[list[int]],
    answers: Sequence[list[int]],
    records: Mapping[int, DecodingRecord],
    plain: np.ndarray,
    seconds: np.ndarray,
) -> dict[str, Any]:
    tokens = sum(len(answers[number]) for number in members)
    costs = [records[number] for number in members if number in records]
    ratio = student_mean(np.log(plain[list(members)] / seconds[list(members)]))
    return {
        "num_prompts": len(members),
        "num_equal": sum(answers[number] == greedy[number] for number in members),
        "num_tokens": tokens,
        "tokens_per_round": tokens / sum(cost.rounds for cost in costs) if costs else 1.0,
        "evaluations_per_token": sum(cost.num_evaluations for cost in costs) / tokens if costs else 1.0,
        "seconds": float(seconds[list(members)].sum()),
        "times_faster": {key: float(np.exp(getattr(ratio, key))) for key in ("value", "low", "high")},
    }


def _text(name: str, report: Mapping[str, Any], dtype: str, device: str) -> str:
    lines = [f"{name}, {dtype}, {device}"]
    for group, ways in report.items():
        prompts, tokens = ways["greedy"]["num_prompts"], ways["greedy"]["num_tokens"]
        lines.append(f"{group}: {prompts} prompts, {tokens / prompts:.1f} tokens each")
        for way, found in ways.items():
            ratio = found["times_faster"]
            lines.append(
                f"  {way:28} {found['num_equal']:4}/{prompts} equal  {found['tokens_per_round']:5.2f} tokens/round  "
                f"{found['evaluations_per_token']:6.1f} evaluations/token  {found['seconds']:7.2f} s  "
                f"{ratio['value']:5.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as fast"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
