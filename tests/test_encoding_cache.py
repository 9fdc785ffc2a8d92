"""Encodings are found again by what they were made from, and never where they are damaged or out of date."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.errors import UserError
from diffusion_sft.finetune.aspect import example_sizes
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.encodings import to_encode
from diffusion_sft.finetune.evaluations import Exam
from diffusion_sft.finetune.loop import finetune
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.mixes import compose
from diffusion_sft.finetune.sampler import Sampler
from diffusion_sft.learner import Query, TrainingItem
from diffusion_sft.learners import cache as cache_module
from diffusion_sft.learners.cache import (
    DamagedEntry,
    TensorCache,
    cache_encodings,
    clear_cache,
    content_key,
    read_entry,
    verify_cache,
)
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.records import REGULARISATION, Draws, Example
from diffusion_sft.tensor_files import tensor_digest


def test_a_key_is_the_sha256_of_canonical_json() -> None:
    text = '["latent",{"flipped":false,"image":"ab","size":[512,640]}]'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert content_key("latent", size=(512, 640), image="ab", flipped=False) == expected
    assert content_key("latent", size=(512, 640), image="ab", flipped=True) != expected
    assert content_key("text", size=(512, 640), image="ab", flipped=False) != expected
    with pytest.raises(TypeError):
        content_key("latent", dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_what_is_put_is_got_back_bit_for_bit_by_another_process(tmp_path: Path, dtype: torch.dtype) -> None:
    key = content_key("x", n=1)
    tensors = {"a": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype), "b": torch.ones(1)}
    TensorCache(tmp_path).put(key, tensors)
    found = TensorCache(tmp_path).get(key)
    assert found is not None
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{key}.safetensors"]


def test_without_a_folder_entries_are_in_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache, key = TensorCache(None), content_key("x", n=1)
    whole = torch.arange(6.0).reshape(2, 3)
    cache.put(key, {"a": whole[0]})
    whole.zero_()
    found = cache.get(key)
    assert found is not None
    assert found["a"].tolist() == [0.0, 1.0, 2.0]
    assert cache.get(content_key("x", n=2)) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "renamed", "not safetensors"])
def test_a_damaged_file_is_named_and_made_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = content_key("x", n=1)
    TensorCache(tmp_path).put(key, {"a": torch.arange(4.0)})
    file = TensorCache(tmp_path).file(key)
    assert file is not None
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-3])
    elif damage == "flipped bit":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "renamed":
        TensorCache(tmp_path).put(content_key("x", n=2), {"a": torch.zeros(4)})
        other = TensorCache(tmp_path).file(content_key("x", n=2))
        assert other is not None
        file.write_bytes(other.read_bytes())
    else:
        file.write_bytes(b"hello")
    with pytest.raises(DamagedEntry, match=key):
        read_entry(file)
    cache = TensorCache(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert cache.get(key) is None
    assert str(file) in caplog.text
    cache.put(key, {"a": torch.arange(4.0)})
    found = TensorCache(tmp_path).get(key)
    assert found is not None
    assert torch.equal(found["a"], torch.arange(4.0))


def test_a_key_is_no_path_and_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no content key"):
        TensorCache(tmp_path).get("../../etc/passwd")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        TensorCache(tmp_path / "file").put(content_key("x"), {"a": torch.zeros(1)})


# --- a folder as a whole ---


def filled(folder: Path, count: int = 3) -> list[Path]:
    cache = TensorCache(folder)
    files = []
    for number in range(count):
        key = content_key("x", n=number)
        cache.put(key, {"a": torch.full((4,), float(number))})
        file = cache.file(key)
        assert file is not None
        files.append(file)
    return files


class Recorder:
    """Encodes numbers, and runs out of memory when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.cache = TensorCache(folder)
        self.encoded: list[str] = []
        self.full_at: str | None = None

    def encode_items(self, items: list[TrainingItem]) -> None:
        for item in items:
            if item.example.id == self.full_at:
                raise torch.cuda.OutOfMemoryError
            self._encode("image", item.example.id)

    def encode_captions(self, captions: list[str]) -> None:
        for caption in captions:
            self._encode("caption", caption)

    def _encode(self, kind: str, name: str) -> None:
        key = content_key(kind, name=name)
        if self.cache.get(key) is None:
            self.encoded.append(name)
            self.cache.put(key, {"a": torch.ones(2)})


def items(count: int) -> list[TrainingItem]:
    examples = [
        Example(id=f"{n}.png", concept="a", caption="a", path=Path(f"{n}.png"), split="train") for n in range(count)
    ]
    return [TrainingItem(example=example, caption="a", visit=0) for example in examples]


def test_filling_goes_on_where_it_was_stopped_and_lists_every_file(tmp_path: Path) -> None:
    first = Recorder(tmp_path)
    first.full_at = "30.png"
    with pytest.raises(UserError, match="no device memory to encode a single image"):
        cache_encodings(first, items(40), ["a", ""], tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    second = Recorder(tmp_path)
    report = cache_encodings(second, items(40), ["a", ""], tmp_path)
    assert second.encoded == [f"{n}.png" for n in range(30, 40)] + ["a", ""]
    assert report.num_entries == 42
    files = list(tmp_path.glob("*/*.safetensors"))
    assert report.num_bytes == sum(file.stat().st_size for file in files)
    listed = json.loads((tmp_path / "manifest.json").read_text())["entries"]
    assert {key: entry["sha256"] for key, entry in listed.items()} == {
        file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    again = Recorder(tmp_path)
    assert cache_encodings(again, items(40), ["a", ""], tmp_path) == report
    assert again.encoded == []


def test_verifying_finds_damaged_missing_and_unlisted_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        verify_cache(tmp_path)
    cache_encodings(Recorder(tmp_path), items(4), [], tmp_path)
    clean = verify_cache(tmp_path)
    assert (clean.num_entries, clean.damaged, clean.missing, clean.unlisted) == (4, (), (), ())
    one, two, three, _ = sorted(tmp_path.glob("*/*.safetensors"))
    one.write_bytes(one.read_bytes()[:-1])
    two.unlink()
    # Whole in itself, but not the file that was listed.
    save_file(
        {"a": torch.zeros(2)},
        three,
        metadata={"key": three.stem, "sha256": tensor_digest({"a": torch.zeros(2)})},
    )
    (added,) = filled(tmp_path, 1)
    report = verify_cache(tmp_path)
    assert report.damaged == (str(one), str(three))
    assert report.missing == (two.stem,)
    assert report.unlisted == (added.stem,)


def test_clearing_removes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    files = filled(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    half = files[0].parent / f".partial-{files[0].name}.ab_12cd.safetensors"
    half.write_bytes(b"half")
    kept = [tmp_path / "notes.txt", tmp_path / "aa" / "mine.safetensors", tmp_path / "photos" / files[0].name]
    for file in kept:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    assert clear_cache(tmp_path) == 3
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    with pytest.raises(UserError, match="no such folder"):
        clear_cache(tmp_path / "elsewhere")


def entry(number: int) -> tuple[str, dict[str, torch.Tensor]]:
    return content_key("x", n=number), {"a": torch.full((10,), float(number))}


def test_memory_is_bounded_and_what_was_asked_for_longest_ago_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "MEMORY_LIMIT", 3 * (40 + cache_module.TENSOR_OVERHEAD))
    on_disk, in_memory = TensorCache(tmp_path), TensorCache(None)
    for cache in (on_disk, in_memory):
        for number in range(3):
            cache.put(*entry(number))
        assert cache.get(entry(0)[0]) is not None  # asked for, so that 1 is the oldest now
        assert not caplog.records
        cache.put(*entry(3))
        assert list(cache._memory) == [entry(number)[0] for number in (2, 0, 3)]
        cache.put(*entry(2))
        assert list(cache._memory) == [entry(number)[0] for number in (0, 3, 2)]
        assert len(caplog.records) == (cache is in_memory)
    assert float(on_disk.get(entry(1)[0])["a"][0]) == 1
    assert in_memory.get(entry(1)[0]) is None
    for number in range(4, 9):
        in_memory.put(*entry(number))
    assert len(in_memory._memory) == len(on_disk._memory) == 3
    (told,) = caplog.records
    assert "set cache_dir" in told.message


def test_an_entry_larger_than_the_limit_is_kept_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MEMORY_LIMIT", 10)
    cache = TensorCache(None)
    for number in range(3):
        cache.put(*entry(number))
        assert float(cache.get(entry(number)[0])["a"][0]) == number
    assert len(cache._memory) == 1


def test_many_threads_may_use_one_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MEMORY_LIMIT", 5 * (40 + cache_module.TENSOR_OVERHEAD))
    cache = TensorCache(None)

    def use(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 12, 400).tolist():
            key, tensors = entry(number)
            found = cache.get(key)
            assert float((found or cache.put(key, tensors))["a"][0]) == number

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert cache._held == sum(cache_module._bytes(kept) for kept in cache._memory.values())
    assert len(cache._memory) == 5


@pytest.mark.parametrize("limit", [0, 40_000])
def test_what_is_encoded_again_is_the_same(
    limit: int, tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept_set = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set
    mix = compose(MixConfig(name="all"), None, concept_set, 0)
    config = FinetuneConfig(train_batch_size=4, max_train_steps=6, report_to=None)
    encoded, scores = {}, {}
    for name in ("all", "few"):
        if name == "few":
            monkeypatch.setattr(cache_module, "MEMORY_LIMIT", limit)
        learner = DiffusionLearner.load(tiny_pipeline)
        encoded[name] = counted_encodings(learner)
        queries = [Query(example=e, cues=(e.caption, "a red wug")) for e in concept_set.split("heldout")]
        scores[name] = learner.surprise(queries * 2, Draws(seed=0, count=6), batch_size=7)
        finetune(learner, mix, Exam(questions={}, categories={}), config, tmp_path / name)
    assert len(encoded["few"]) > len(encoded["all"])
    for one, other in zip(scores["all"], scores["few"], strict=True):
        np.testing.assert_array_equal(one.squared_error, other.squared_error)
    assert (tmp_path / "few" / "metrics.jsonl").read_bytes() == (tmp_path / "all" / "metrics.jsonl").read_bytes()


def test_nothing_but_the_cache_holds_encodings(
    tiny_pipeline: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set.split("heldout")
    captions = [f"{first} {second}" for first in ("a", "the", "red") for second in ("wug", "dax", "fep")]
    before = living()
    learner = DiffusionLearner.load(tiny_pipeline)
    learner.encode_captions(captions)
    learner.targets(examples)
    assert living() - before == {(24, 16): len(captions), (4, 8, 8): len(examples)}
    monkeypatch.setattr(cache_module, "MEMORY_LIMIT", 3 * (4 * 256 + 32 + 3 * cache_module.TENSOR_OVERHEAD))
    learner.encode_captions(["a red fep"])
    learner.targets(examples)
    assert living() - before == {(4, 8, 8): 3}


def living() -> Counter[tuple[int, ...]]:
    """How many tensors there are that are no weights, by shape, of embeddings and latents."""
    gc.collect()
    shapes = [tuple(found.shape) for found in gc.get_objects() if type(found) is torch.Tensor]
    return Counter(shape for shape in shapes if shape in ((24, 16), (4, 8, 8)))


def test_a_reading_holds_the_targets_of_one_batch(tiny_pipeline: Path, tiny_set: Path) -> None:
    examples = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set.split("heldout")
    learner = DiffusionLearner.load(tiny_pipeline)
    queries = [Query(example=example, cues=(example.caption,)) for example in examples]
    plain, asked = learner.targets, []

    def targets(some: Sequence[Example]) -> list[torch.Tensor]:
        asked.append([example.id for example in some])
        return plain(some)

    learner.targets = targets
    few = learner.surprise(queries, Draws(seed=0, count=6), batch_size=20)  # twelve rows for each query
    assert asked[:3] == [[examples[0].id, examples[1].id], [examples[2].id, examples[3].id], [examples[4].id]]
    assert [name for names in asked for name in names] == [example.id for example in examples]
    asked.clear()
    learner.surprise(queries, Draws(seed=0, count=6), batch_size=1000)
    assert [len(ids) for ids in asked] == [len(examples)]
    alone = learner.surprise(queries[1:2], Draws(seed=0, count=6), batch_size=20)
    np.testing.assert_allclose(alone[0].squared_error, few[1].squared_error, rtol=1e-4)


def counted_encodings(learner: DiffusionLearner) -> list[str]:
    """A list that grows by one for each image and caption that the learner encodes from now on."""
    calls: list[str] = []
    for owner, name in ((learner._codec, "_encode"), (learner._text, "_encoded")):
        plain = getattr(owner, name)
        setattr(owner, name, lambda given, plain=plain, name=name: (calls.append(name), plain(given))[1])
    return calls


def test_a_filled_cache_spares_a_run_all_encoding(tiny_pipeline: Path, tiny_set: Path, tmp_path: Path) -> None:
    concept_set = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set
    mix = compose(MixConfig(name="all"), None, concept_set, 0)
    config = FinetuneConfig(train_batch_size=2, max_train_steps=4, random_flip=True, report_to=None)
    learner = DiffusionLearner.load(tiny_pipeline, cache_dir=tmp_path / "cache")
    report = cache_encodings(learner, *to_encode(mix, config, learner.resolution), tmp_path / "cache")
    captions = {example.caption for example in mix.examples}
    assert report.num_entries == 2 * len(mix.examples) + len(captions) + 1

    def no_encoding(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    spared = DiffusionLearner.load(tiny_pipeline, cache_dir=tmp_path / "cache")
    spared.pipeline.vae.encode = no_encoding
    spared.pipeline.text_encoder.forward = no_encoding
    plain = DiffusionLearner.load(tiny_pipeline)
    exam = Exam(questions={}, categories={})
    for name, one in (("spared", spared), ("plain", plain)):
        finetune(one, mix, exam, config, tmp_path / name)
    assert (tmp_path / "spared" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()


def test_what_is_encoded_is_what_the_sampler_comes_to(tiny_set: Path) -> None:
    concept_set = read_concept_set(ConceptsConfig(path=str(tiny_set))).concept_set
    mix = compose(MixConfig(name="all"), None, concept_set, 0)
    prior = tuple(replace(example, split=REGULARISATION) for example in concept_set.split("reference")[:2])
    mix = replace(mix, regularisation=prior)
    config = FinetuneConfig(
        train_batch_size=2,
        random_flip=True,
        aspect_ratio_buckets=True,
        bucket_reso_steps=8,
        min_bucket_reso=8,
        max_bucket_reso=32,
        caption_templates=["{caption} again"],
    )
    items, captions = to_encode(mix, config, 16)
    sampler = Sampler.of(mix, config, 1, example_sizes(mix.examples, config, 16))
    seen = [item for update in range(1, 200) for item in sampler.items(update)]
    assert {(i.example.id, i.size, i.flipped) for i in items} == {(i.example.id, i.size, i.flipped) for i in seen}
    assert len(items) == len({(i.example.id, i.size, i.flipped) for i in items})
    assert {item.caption for item in seen} == set(captions)
    assert to_encode(mix, replace(config, method="lora", train_text_encoder=True), 16)[1] == []
