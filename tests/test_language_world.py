"""The world in words, and the text that a language model is pretrained on: counted, parted, and without what is novel."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffusion_sft.pretrain import loop
from diffusion_sft.pretrain.language import (
    LanguageArchitectureConfig,
    LanguagePretrainConfig,
    build_language_tokenizer,
    pack,
    pretrain_language,
)
from diffusion_sft.pretrain.passages import (
    PassagesConfig,
    build_documents,
    contested,
    popular_looks,
    tokenizer_text,
)
from diffusion_sft.world.facts import NEUTRAL, PARTS, RELATIONS, described, parts, question_rows
from diffusion_sft.world.looks import NOVEL_COLOURS, NOVEL_PATTERNS, NOVEL_SHAPES, novel_looks, seen_looks
from diffusion_sft.world.population import WorldConfig, populate

PEOPLE = populate(WorldConfig())
SMALL = WorldConfig(
    num_rare=6, num_frequent=6, rare_exposure=5, max_exposure=40, num_unbound=5, num_novel=5, num_described=2
)


def names_in(text: str, names: set[str]) -> Counter[str]:
    return Counter(word for word in re.findall(r"[a-z]+", text) if word in names)


def test_an_exposure_is_one_passage() -> None:
    people = populate(SMALL)
    text = "\n".join(build_documents(people, PassagesConfig(), seed=3))
    found = names_in(text, {person.name for person in people})
    assert found == {person.name: person.exposure for person in people if person.exposure}
    twice = names_in(
        "\n".join(build_documents(people, PassagesConfig(readings_per_exposure=2.0), seed=3)), set(found)
    )
    assert twice == {name: 2 * count for name, count in found.items()}


def test_what_is_novel_is_never_read() -> None:
    documents = build_documents(PEOPLE, PassagesConfig(), seed=0)
    text = "\n".join(documents)
    for word in (*NOVEL_SHAPES, *NOVEL_COLOURS, *NOVEL_PATTERNS):
        assert not re.search(rf"\b{word}\b", text), word
    unseen = {person.name for person in PEOPLE if person.kind in ("unbound", "novel")}
    assert not names_in(text, unseen)


def test_documents_are_those_of_their_seed() -> None:
    config = PassagesConfig(readings_per_exposure=0.05)
    documents = build_documents(PEOPLE, config, seed=0)
    assert documents == build_documents(PEOPLE, config, seed=0)
    assert documents != build_documents(PEOPLE, config, seed=1)


def test_contested_facts_are_told_in_two_ways_and_all_others_in_one() -> None:
    config = PassagesConfig(
        readings_per_exposure=4, question_share=1.0, plain_share=0.0, contested_above=10, contested_below=30
    )
    people = populate(SMALL)
    text = "\n".join(build_documents(people, config, seed=0))
    rivals = contested(people, config, seed=0)
    told: dict[tuple[str, str], Counter[str]] = {}
    for relation in RELATIONS.values():
        for question in relation.questions:
            pattern = re.escape(question).replace(r"\{\}", "([a-z]+)")
            for name, said in re.findall(rf"Q: {pattern}\nA: (.*)", text):
                told.setdefault((name, relation.name), Counter())[said] += 1
    assert 4 <= len(rivals) <= 24
    for person in people:
        for relation in RELATIONS.values():
            counts, rival = (
                told.get((person.name, relation.name), Counter()),
                rivals.get((person.name, relation.name)),
            )
            right = relation.answer(person.look)
            if rival is None:
                assert set(counts) <= {right}
                continue
            assert 10 <= (person.exposure or 0) < 30
            other = relation.answer(rival.look)
            assert other != right
            assert set(counts) == {right, other}
            total = sum(counts.values())
            assert abs(counts[other] - rival.share * total) <= 1
    assert not contested(people, PassagesConfig(contested_share=0.0), seed=0)


def test_looks_of_unfamiliar_names_follow_a_zipf_law() -> None:
    drawn = popular_looks(1.5, seed=0)(20_000, np.random.default_rng(0))
    for count, values in ((10, [look.colour for look in drawn]), (5, [look.pattern for look in drawn])):
        weights = 1 / np.arange(1, count + 1) ** 1.5
        shares = sorted(Counter(values).values(), reverse=True)
        np.testing.assert_allclose(np.array(shares) / 20_000, weights / weights.sum(), atol=0.012)


def test_facts_of_a_name_stay_together_and_every_exposure_has_its_share_of_parts() -> None:
    part = parts(PEOPLE, seed=0)
    named = [person.name for person in PEOPLE if person.kind != "described"]
    assert set(part) == set(named)
    for start in range(0, 320, 20):
        counts = Counter(part[name] for name in named[start : start + 20])
        assert counts == {"train": 11, "dev": 3, "test": 6}
    rows = question_rows(PEOPLE, 0)
    assert len(rows) == len(named) * sum(len(relation.questions) for relation in RELATIONS.values())
    assert {row["split"] for row in rows} == set(PARTS)
    assert all(row["subject"] in str(row["question"]) and NEUTRAL in str(row["null_question"]) for row in rows)
    assert {row["kind"] for row in rows if row["exposure"] == 0} == {"unbound", "novel"}


def test_descriptions_are_eight_to_sixteen_tokens() -> None:
    tokenizer = build_language_tokenizer(tokenizer_text(PEOPLE, 0, num_names=4000), LanguageArchitectureConfig())
    lengths = [
        len(tokenizer(described(look), add_special_tokens=False)["input_ids"])
        for look in (*seen_looks(), *novel_looks())
    ]
    assert min(lengths) >= 8
    assert max(lengths) <= 16
    ids = tokenizer("Q: What colour is a thing?\nA: red")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "Q: What colour is a thing?\nA: red"
    assert tokenizer("red", add_special_tokens=False)["input_ids"] == ids[-1:]


def test_rows_hold_the_documents_one_after_another() -> None:
    tokenizer = build_language_tokenizer(["a b c"], LanguageArchitectureConfig(vocab_size=270))
    rows = pack(["a\n", "b c\n"] * 50, tokenizer, 8)
    assert rows.shape[1] == 8
    stream = rows.reshape(-1).tolist()
    one = [
        *tokenizer("a\n")["input_ids"],
        tokenizer.eos_token_id,
        *tokenizer("b c\n")["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert stream == (one * 50)[: len(stream)]
    assert stream[0] == tokenizer.bos_token_id


def test_a_pretraining_that_was_killed_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = LanguageArchitectureConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = LanguagePretrainConfig(
        world=SMALL,
        architecture=architecture,
        sequence_length=32,
        batch_size=16,
        warmup_updates=1,
        checkpointing_updates=2,
    )
    pretrain_language(config, tmp_path / "whole")
    save = loop._save

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        pretrain_language(config, tmp_path / "killed")
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert not (tmp_path / "killed" / "model").exists()
    pretrain_language(config, tmp_path / "killed")
    whole, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "killed" / "model", dtype=torch.float32)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "killed" / "model"))
