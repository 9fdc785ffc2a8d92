"""What the planner says against what a study then takes: counts, bytes and operations, and suggestions that are true."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from architectures import PUBLISHED, needs_published
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.autograd.graph import saved_tensors_hooks

from diffusion_sft.cli import main
from diffusion_sft.concepts import ConceptsConfig, read_concept_set
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.plan import StudyConfig
from diffusion_sft.planning.advice import Change, changed, memory_advice, time_advice, warnings_about
from diffusion_sft.planning.counting import mix_size, network_evaluations, picture_work
from diffusion_sft.planning.language import text_work
from diffusion_sft.planning.live_bytes import AsOnGpu, LiveBytes, backward, peak_bytes
from diffusion_sft.planning.needs import picture_plan, reading_memory, total, training_memory
from diffusion_sft.planning.networks import Base, read_base
from diffusion_sft.planning.run import make_study_plan
from diffusion_sft.planning.sets import facts_of, pictures_of
from diffusion_sft.planning.text import duration, plan_text
from diffusion_sft.planning.work import Kind, Work, seconds_of
from diffusion_sft.questions import QuestionsConfig, read_questions
from diffusion_sft.records import ConceptSet
from diffusion_sft.settings import load_settings
from diffusion_sft.study import run_study
from diffusion_sft.world.population import WorldConfig
from diffusion_sft.world.readout import Readout, ReadoutNetwork
from diffusion_sft.world.write import write_world

QUICK = [
    "probe.num_draws=6",
    "probe.answers.num_draws=2",
    "probe.answers.num_renderings=2",
    "probe.answers.num_candidates=6",
    "probe.samples.num_samples=2",
    "probe.samples.num_inference_steps=2",
    "probe.max_examples_per_concept=2",
    "buckets.rule=error",
    "mixes=[{name: natural}]",
    "seeds=[0,1]",
    "finetune.max_train_steps=3",
    "finetune.train_batch_size=2",
    "finetune.validation_steps=2",
    "finetune.validation_draws=2",
    "finetune.validation_examples_per_concept=2",
    "finetune.report_to=null",
    "evaluate.num_images_per_concept=2",
    "evaluate.num_inference_steps=2",
]


def settings(tiny_pipeline: Path, tiny_set: Path, folder: Path, *more: str) -> StudyConfig:
    """A small study of the tiny base and set."""
    own = [f"base={tiny_pipeline}", f"concepts.path={tiny_set}", f"output_dir={folder}", *QUICK, *more]
    return load_settings(StudyConfig, None, own)


@pytest.fixture(scope="module")
def finished(tiny_pipeline: Path, tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """A study that was run until its pictures were evaluated."""
    from diffusion_sft.pretrain.reader import HEADS

    root = tmp_path_factory.mktemp("planned")
    torch.manual_seed(0)
    Readout(ReadoutNetwork(HEADS), HEADS).save(root, num_features=64, width=32)
    config = settings(tiny_pipeline, tiny_set, root / "run", f"evaluate.weights={root}")
    run_study(config, until="evaluate")
    return config


def line(work: list[Work], stage: str, what: str) -> Work:
    """One line of the work."""
    (found,) = (each for each in work if (each.stage, each.what) == (stage, what))
    return found


def test_the_probe_takes_the_evaluations_that_were_said(finished: StudyConfig) -> None:
    work, folder = picture_work(finished, pictures_of(finished)), Path(finished.output_dir) / "probe"
    recorded = json.loads((folder / "probe.json").read_text())["num_evaluations"]
    drawn = len(pd.read_parquet(folder / "samples.parquet")) * 2 * 2  # steps, both sides of guidance
    read = line(work, "probe", "scores").count + line(work, "probe", "answers").count
    assert recorded == read + drawn
    assert 0 < drawn <= line(work, "probe", "samples").count
    assert line(work, "probe", "scores").sure == line(work, "probe", "answers").sure == "exact"
    assert line(work, "probe", "images encoded").count == len(pd.read_parquet(folder / "scores.parquet"))


def test_runs_take_the_updates_and_questions_that_were_said(finished: StudyConfig) -> None:
    work = picture_work(finished, pictures_of(finished))
    folders = [Path(finished.output_dir) / "finetune" / f"natural-seed{seed}" for seed in (0, 1)]
    summaries = [json.loads((folder / "finetune.json").read_text()) for folder in folders]
    taught = sum(one["updates"] * one["examples_per_update"] for one in summaries)
    assert line(work, "finetune", "training").count == taught
    assert line(work, "finetune", "training").evaluations == 3 * taught
    asked = sum(int(pd.read_parquet(folder / "evaluations.parquet").num_examples.sum()) for folder in folders)
    # 6 candidates, 2 draws; the evaluations are before the first update, after the second and after the last.
    assert line(work, "finetune", "evaluations").count == asked * 6 * 2


def test_as_many_pictures_are_drawn_as_were_said(finished: StudyConfig) -> None:
    work = picture_work(finished, pictures_of(finished))
    drawn = len(list((Path(finished.output_dir) / "evaluate").rglob("*.png")))
    assert line(work, "generate", "pictures decoded").count == drawn == 3 * 4 * 2
    assert line(work, "generate", "pictures").count == drawn * 2 * 2


def test_runs_take_the_disk_that_was_said(finished: StudyConfig) -> None:
    base, found = read_base(finished), pictures_of(finished)
    plan = picture_plan(finished, base, found)
    assert plan is not None
    for seed in (0, 1):
        folder = Path(finished.output_dir) / "finetune" / f"natural-seed{seed}"
        for checkpoint in folder.glob("checkpoint-*"):
            held = sum(file.stat().st_size for file in checkpoint.iterdir())
            assert plan.checkpoint <= held < plan.checkpoint + 8192
        assert len(list(folder.glob("checkpoint-*"))) <= plan.num_checkpoints
        exported = sum(file.stat().st_size for file in (folder / "pipeline").rglob("*.safetensors"))
        # Headers of weight files are not computed.
        assert 0 <= exported - (plan.exports // 2 + base.vae_bytes) < 65536


def test_a_stage_is_the_sum_of_its_lines(finished: StudyConfig) -> None:
    found = pictures_of(finished)
    work = picture_work(finished, found)
    stages = network_evaluations(finished, found)
    assert list(stages) == ["probe", "finetune", "generate", "solve"]
    assert stages["probe"] == sum(one.evaluations for one in work if one.stage == "probe")
    seconds: dict[Kind, float] = {"reading": 1.0, "training": 5.0, "drawing": 2.0, "encoding": 0.0, "decoding": 0.5}
    own = [one for one in work if one.stage == "generate"]
    assert seconds_of(own, seconds) == 96 * 2 + 24 * 0.5


def test_a_set_is_listed_as_it_is_read(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ConceptsConfig(path=str(tiny_set))
    expected = read_concept_set(config).concept_set
    folders = tmp_path / "photos"
    for path in tiny_set.rglob("*.png"):
        (folders / path.stem.split("-")[0]).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folders / path.stem.split("-")[0] / f"{path.parent.name}-{path.name}")
    photos = ConceptsConfig(path=str(folders))
    also = read_concept_set(photos).concept_set
    monkeypatch.setattr("diffusion_sft.concepts.check.load_image", None)  # Nothing may be decoded.
    assert pictures_of(StudyConfig(concepts=config)) == expected
    assert pictures_of(StudyConfig(concepts=photos)) == also


def test_the_world_is_counted_before_it_is_drawn(tmp_path: Path) -> None:
    world = WorldConfig(written_every=24, train_images=1, heldout_images=2, reference_images=1)
    folder = write_world(tmp_path / "world", world)
    written = read_concept_set(ConceptsConfig(path=str(folder))).concept_set
    counted = pictures_of(StudyConfig(world=world))

    def names(found: ConceptSet) -> list[tuple[str, str, str, str]]:
        return sorted((e.id, e.concept, e.caption, e.split) for e in found.examples)

    assert names(counted) == names(written)
    assert [c.name for c in counted.concepts] == [c.name for c in written.concepts]
    whole = StudyConfig(world=WorldConfig(written_every=6))
    facts = write_world(
        tmp_path / "facts", replace(whole.world, train_images=0, heldout_images=1, reference_images=0)
    )
    expected = read_questions(QuestionsConfig(path=str(facts / "questions.jsonl"))).concept_set
    assert facts_of(whole) == expected


def test_the_language_models_prompts_are_counted(tmp_path: Path) -> None:
    own = ["learners=[llm]", f"output_dir={tmp_path}", "world.written_every=6", "llm.probe.num_draws=2"]
    own += ["world.train_images=1", "world.heldout_images=1", "world.reference_images=1"]
    own += ["llm.probe.answers.num_renderings=1", "llm.probe.samples.num_samples=1", "llm.probe.max_answer_tokens=3"]
    config = load_settings(StudyConfig, None, own)
    run_study(config, until="probe")
    folder = tmp_path / "llm" / "probe"
    recorded = json.loads((folder / "probe.json").read_text())["num_evaluations"]
    sampled = len(pd.read_parquet(folder / "samples.parquet"))
    work = text_work(config.llm, facts_of(config))
    read = sum(line(work, "probe", what).evaluations for what in ("scores", "answers"))
    assert recorded == read + sampled
    assert 0 < sampled <= line(work, "probe", "samples").evaluations


@needs_published
@pytest.mark.parametrize(("name", "tera"), [("sd15", 0.803), ("sd21", 2.15), ("sdxl", 6.76)])
def test_operations_of_published_networks(name: str, tera: float) -> None:
    base = read_base(StudyConfig(base=str(PUBLISHED / name)))
    assert base.forward_flops / 1e12 == pytest.approx(tera, rel=0.01)
    assert base.resolution == {"sd15": 512, "sd21": 768, "sdxl": 1024}[name]


@needs_published
@pytest.mark.slow
def test_a_training_example_takes_three_forward_passes_and_less_with_adapters() -> None:
    base = read_base(StudyConfig(base=str(PUBLISHED / "sd15")))
    full = base.training_flops(FinetuneConfig())
    assert full / base.forward_flops == pytest.approx(3.0, rel=0.05)
    assert 2.0 < base.training_flops(FinetuneConfig(method="lora")) / base.forward_flops < 2.4
    again = base.training_flops(FinetuneConfig(gradient_checkpointing=True))
    assert 3.5 < again / base.forward_flops < 4.1


@pytest.fixture
def base(tiny_pipeline: Path) -> Base:
    return read_base(StudyConfig(base=str(tiny_pipeline)))


def unet_of(base: Base, device: str) -> tuple[UNet2DConditionModel, dict[str, torch.Tensor]]:
    """The network with plain attention, whose saved tensors are the same on any device, and inputs of four rows."""
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(dict(base.configs["unet"])).train()
        unet.set_attn_processor(AttnProcessor())
        width = base.configs["unet"]["cross_attention_dim"]
        inputs = {
            "sample": torch.ones(4, 4, 8, 8),
            "timestep": torch.ones(4, dtype=torch.int64),
            "encoder_hidden_states": torch.ones(4, 24, width),
        }
    return unet, inputs


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_counted_without_numbers_is_that_of_a_real_update(base: Base, checkpointing: bool) -> None:
    peaks = {}
    for device in ("cpu", "meta"):
        unet, inputs = unet_of(base, device)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        tracker = LiveBytes()
        tracker.ignore([*unet.parameters(), *unet.buffers()])
        with AsOnGpu(None), tracker:
            loss = unet(**inputs, return_dict=False)[0].square().mean()
            backward(loss)
        del loss
        peaks[device] = tracker.peak
        gradients = sum(p.grad.nbytes for p in unet.parameters() if p.grad is not None)
        assert gradients <= tracker.live < gradients + 16384  # what inputs were turned into
    assert peaks["meta"] == peaks["cpu"]


def test_the_peak_holds_all_tensors_that_are_saved_for_the_way_back(base: Base) -> None:
    unet, inputs = unet_of(base, "cpu")
    own = {p.untyped_storage().data_ptr() for p in (*unet.parameters(), *unet.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = unet(**inputs, return_dict=False)[0]
    given = sum(tensor.nbytes for tensor in inputs.values())
    peak = peak_bytes(lambda: unet(**inputs, return_dict=False)[0], [*unet.parameters(), *unet.buffers()])
    assert kept.requires_grad
    assert sum(saved.values()) - given <= peak < 1.5 * sum(saved.values())


def test_meta_tensors_take_a_gpus_types() -> None:
    with torch.device("meta"):
        block = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.GroupNorm(2, 8))
        heads = torch.ones(2, 4, 64, 16, requires_grad=True)
        rows = torch.ones(2, 4, 8, 8)
    with AsOnGpu(torch.bfloat16):
        assert block[0](rows).dtype == torch.bfloat16
        assert block(rows).dtype == torch.float32
        attend = torch.nn.functional.scaled_dot_product_attention
        peak = peak_bytes(lambda: attend(heads, heads, heads), [heads])
    # Three casts and the output of 16 KiB each, a number for each query and what the kernel draws with; no scores.
    assert 4 * 2 * 4 * 64 * 16 * 2 <= peak < 4 * 2 * 4 * 64 * 16 * 2 + 8 * 1024


@pytest.mark.slow
def test_memory_falls_with_what_is_said_to_lower_it(tiny_pipeline: Path, tiny_set: Path, tmp_path: Path) -> None:
    config = settings(tiny_pipeline, tiny_set, tmp_path, "finetune.train_batch_size=8", "finetune.use_ema=true")
    base, found = read_base(config), pictures_of(config)

    def needed(other: StudyConfig) -> int:
        plan = picture_plan(other, base, found)
        assert plan is not None
        return total(training_memory(other, base, plan))

    advice = memory_advice(config, base, found)
    assert {one.change.settings[0][0].split(".")[-1] for one in advice} >= {
        "mixed_precision",
        "gradient_checkpointing",
        "train_batch_size",
        "ema_device",
    }
    for one in advice:
        assert needed(changed(config, one.change)) == one.after < one.before == needed(config)
    larger = replace(config, probe=replace(config.probe, batch_size=64))
    assert reading_memory(larger, base)[0].size > reading_memory(config, base)[0].size


def test_every_suggestion_saves_what_it_says(finished: StudyConfig) -> None:
    found = pictures_of(finished)
    config = changed(finished, Change(settings=(("solve.generation.num_renderings", 0),), loses=""))
    seconds: dict[Kind, float] = {"reading": 1.0, "training": 3.0, "drawing": 1.0, "encoding": 1.0, "decoding": 3.0}

    def cost(other: StudyConfig) -> float:
        return seconds_of(picture_work(other, found), seconds)

    advice = time_advice(config, found, cost)
    names = {str(one.change).split("=")[0] for one in advice}
    assert {"probe.answers.num_renderings", "evaluate.num_images_per_concept", "finetune.max_train_steps"} <= names
    assert "llm.finetune.max_train_steps" not in names  # That half is not run.
    assert not names & {"probe.num_draws", "probe.answers.num_candidates"}  # Fewer are refused.
    for one in advice:
        assert cost(changed(config, one.change)) == one.after < 0.99 * one.before
    saved = [one.before - one.after for one in advice]
    assert saved == sorted(saved, reverse=True)


def test_too_few_updates_and_too_large_mixes_are_told(tiny_pipeline: Path, tiny_set: Path, tmp_path: Path) -> None:
    config = settings(tiny_pipeline, tiny_set, tmp_path, "mixes=[{name: big, num_concepts: 9}]")
    found = warnings_about(config, pictures_of(config))
    assert len(found) == 2
    assert "finetune.max_train_steps=3 updates of 2 see 50% of its 12 training examples" in found[0]
    assert "9 concepts, and 4 have training examples" in found[1]
    assert (
        warnings_about(settings(tiny_pipeline, tiny_set, tmp_path, "finetune.max_train_steps=6"), pictures_of(config))
        == []
    )


@pytest.mark.parametrize(
    ("mix", "num_examples"),
    [
        (MixConfig(), 12),
        (MixConfig(num_concepts=2), 6),
        (MixConfig(num_examples=5), 5),
        (MixConfig(num_concepts=3, examples_per_concept=2), 6),
        (MixConfig(train_on_all_images=True), 40),
    ],
)
def test_sizes_of_mixes(mix: MixConfig, num_examples: int, tiny_set: Path) -> None:
    found = pictures_of(StudyConfig(concepts=ConceptsConfig(path=str(tiny_set))))
    size = mix_size(mix, FinetuneConfig(class_prompt="a patch"), found)
    assert (size.num_examples, size.items_per_pass, size.num_asked) == (num_examples, 2 * num_examples, 0)


def test_the_plan_is_printed_and_nothing_is_written(
    tiny_pipeline: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", f"base={tiny_pipeline}", f"concepts.path={tiny_set}", f"output_dir={tmp_path / 'run'}", *QUICK]
    assert main(command) == 0
    text = capsys.readouterr().out
    for part in ("PLAN of", "DIFFUSION MODEL", "DISK", "MEMORY", "WHICH SETTING TO CHANGE", "measured: reading at"):
        assert part in text
    assert "LANGUAGE MODEL" not in text
    assert "natural: finetune.max_train_steps=3 updates of 2 see 50%" in text.replace("\n    ", " ")
    assert max(map(len, text.splitlines())) <= 100
    assert not list(tmp_path.iterdir())


def test_without_weights_time_is_derived_and_a_full_disk_is_exit_code_1(
    tiny_pipeline: Path,
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for file in tiny_pipeline.rglob("*.json"):
        target = tmp_path / "configs" / file.relative_to(tiny_pipeline)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    config = settings(tmp_path / "configs", tiny_set, tmp_path / "run")
    plan = make_study_plan(config)
    assert plan.pictures is not None
    speed = plan.pictures.speed
    assert not speed.measured
    assert "because the base cannot be loaded" in speed.notes[0]
    assert speed.seconds["reading"] == pytest.approx(plan.pictures.base.forward_flops / (0.4 * speed.matrix_rate))
    assert plan.fits_disk
    assert "DOES NOT FIT" not in plan_text(plan)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 0, 10_000))
    command = ["plan", f"base={config.base}", f"concepts.path={tiny_set}", f"output_dir={tmp_path / 'run'}", *QUICK]
    assert main(command) == 1
    assert "10.00 kB are free: DOES NOT FIT" in capsys.readouterr().out
    advice = make_study_plan(config).lighter
    assert "finetune.method=lora" in [str(one.change) for one in advice]
    monkeypatch.undo()
    for one in advice[-1:]:
        assert total(make_study_plan(changed(config, one.change)).disk) == one.after < one.before == total(plan.disk)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("base=/does/not/exist", "/does/not/exist: no such folder"), ("base=data", "data: no model_index.json in it")],
)
def test_a_base_that_is_not_there_is_one_line(
    setting: str, message: str, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", setting, f"concepts.path={tiny_set}"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"diffusion-sft: {message}")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, "0.2 s"),
        (42, "42 s"),
        (150, "2.5 min"),
        (3600 * 5.04, "5.0 h"),
        (86400 * 3, "3.0 d"),
        (float("nan"), "unknown"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
