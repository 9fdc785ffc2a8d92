"""Checkpoints in the original layout: what they hold, what they say of themselves, and what they are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import NAMES, needs_published, published_pipeline, read_json, tiny_pipeline, write_json
from safetensors.torch import load_file, save_file

from diffusion_sft.errors import UserError
from diffusion_sft.files import file_hash
from diffusion_sft.learners.exporting import save_single_file
from diffusion_sft.learners.loading import LoadedPipeline, load_pipeline, schedule_of, weight_hashes

ARCHITECTURES = ("sd1", "sd2", "sdxl")
START = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_pipeline(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def files(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints without remarks, as published ones are."""
    root = tmp_path_factory.mktemp("files")
    for name, base in bases.items():
        save_single_file(load_pipeline(str(base)), root / "said.safetensors", {})
        said = load_file(root / "said.safetensors")
        tensors = {key: tensor for key, tensor in said.items() if key not in ("v_pred", "ztsnr")}
        save_file(tensors, root / f"{name}.safetensors", metadata={"format": "pt"})
    return {name: root / f"{name}.safetensors" for name in bases}


@pytest.fixture
def configs(bases: dict[str, Path], tmp_path: Path) -> Path:
    """Configurations and tokenizers of SD 1 without any weights."""
    folder = Path(shutil.copytree(bases["sd1"], tmp_path / "configs"))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def load(file: Path, config: Path, **options: Any) -> LoadedPipeline:
    return load_pipeline(str(file), single_file_config=str(config), **options)


def refusal(file: Path, config: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(file, config, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def networks(loaded: LoadedPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in loaded.pipeline.components.items() if isinstance(part, torch.nn.Module)}


def changed(file: Path, target: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> Path:
    save_file(load_file(file) | tensors, target, metadata={"format": "pt"} | (metadata or {}))
    return target


def assert_same_networks(one: LoadedPipeline, other: LoadedPipeline) -> None:
    assert networks(one).keys() == networks(other).keys()
    for name, network in networks(one).items():
        expected = networks(other)[name].state_dict()
        assert network.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items()), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_holds_the_networks_of_its_folder(
    architecture: str, bases: dict[str, Path], files: dict[str, Path]
) -> None:
    folder, file = load_pipeline(str(bases[architecture])), files[architecture]
    loaded = load(file, bases[architecture])
    assert (loaded.folder, loaded.file, loaded.config_folder) == (None, file, bases[architecture])
    assert type(loaded.pipeline) is type(folder.pipeline)
    assert_same_networks(loaded, folder)
    assert not any(network.training for network in networks(loaded).values())
    assert loaded.architecture == architecture
    assert loaded.source["single_file_config"] == str(bases[architecture])
    assert loaded.source["prediction_type_from"] == str(bases[architecture])
    assert loaded.source["noise_schedule"] == folder.source["noise_schedule"]
    assert weight_hashes(loaded) == {file.name: file_hash(file)}
    caption = "a photo of a wug"
    assert loaded.pipeline.tokenizer(caption).input_ids == folder.pipeline.tokenizer(caption).input_ids
    half = load(file, bases[architecture], dtype=torch.bfloat16)
    assert {parameter.dtype for part in networks(half).values() for parameter in part.parameters()} == {
        torch.bfloat16
    }


def test_configurations_need_no_weights(configs: Path, bases: dict[str, Path], files: dict[str, Path]) -> None:
    assert_same_networks(load(files["sd1"], configs), load_pipeline(str(bases["sd1"])))


def test_what_old_checkpoints_hold_besides_does_no_harm(
    configs: Path, bases: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    more = {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(24)[None],
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(8, 4, 3, 3),
        "betas": torch.linspace(0.001, 0.01, 1000),
        "alphas_cumprod": torch.linspace(1, 0, 1000),
    }
    loaded = load(changed(files["sd1"], tmp_path / "old.safetensors", **more), configs)
    assert_same_networks(loaded, load_pipeline(str(bases["sd1"])))


@pytest.mark.parametrize(("said", "expected"), [("v", "v_prediction"), ("epsilon", "epsilon"), ("", "epsilon")])
def test_a_file_may_say_what_it_predicts(
    said: str,
    expected: str,
    configs: Path,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metadata = {"modelspec.prediction_type": said} if said else None
    loaded = load(changed(files["sd1"], tmp_path / "said.safetensors", metadata), configs)
    assert schedule_of(loaded.pipeline).prediction_type == expected
    assert f"predicts {expected}, according to {loaded.source['prediction_type_from']}" in capsys.readouterr().err
    assert loaded.source["prediction_type_from"] == (
        "modelspec.prediction_type in the file" if said else str(configs)
    )


def test_without_a_word_the_configurations_decide(bases: dict[str, Path], files: dict[str, Path]) -> None:
    # The v-prediction of SD 2.1 is nowhere in its tensors.
    loaded = load(files["sd2"], bases["sd2"])
    assert schedule_of(loaded.pipeline).prediction_type == "v_prediction"


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_marks_of_velocity_and_of_zero_terminal_snr_are_heeded(
    architecture: str, bases: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    marks = {"v_pred": torch.empty(0)}
    velocity = load(changed(files[architecture], tmp_path / "v.safetensors", **marks), bases[architecture])
    assert schedule_of(velocity.pipeline).prediction_type == "v_prediction"
    assert schedule_of(velocity.pipeline).alphas_cumprod[-1] > 0.004
    assert type(velocity.pipeline.scheduler) is type(load_pipeline(str(bases[architecture])).pipeline.scheduler)
    marks["ztsnr"] = torch.empty(0)
    both = load(changed(files[architecture], tmp_path / "z.safetensors", **marks), bases[architecture])
    assert schedule_of(both.pipeline).prediction_type == "v_prediction"
    assert schedule_of(both.pipeline).alphas_cumprod[-1] == 0
    # SD 1's own PNDM cannot end at pure noise.
    assert type(both.pipeline.scheduler).__name__ == (
        "DDIMScheduler" if architecture == "sd1" else "EulerDiscreteScheduler"
    )
    assert both.source["noise_schedule"]["zero_terminal_snr"] is True
    assert both.source["prediction_type_from"] == "the tensor v_pred in the file"


Tensors = dict[str, torch.Tensor]


def inpainting(tensors: Tensors) -> Tensors:
    return tensors | {START: torch.zeros(8, 9, 3, 3)}


def without_text(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("cond_stage_model.")}


def without_vae(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}


def refiner(tensors: Tensors) -> Tensors:
    return without_text(tensors) | {"conditioner.embedders.0.model.text_projection": torch.zeros(4, 4)}


def lora(_: Tensors) -> Tensors:
    return {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 4)}


def unet_of_diffusers(_: Tensors) -> Tensors:
    return {"conv_in.weight": torch.zeros(8, 4, 3, 3)}


def one_layer_short(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "middle_block.1." not in name}


def wider(tensors: Tensors) -> Tensors:
    return tensors | {START: torch.zeros(16, 4, 3, 3)}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (inpainting, "its UNet takes 9 channels for 4 of latents"),
        (without_text, "no text encoder in it"),
        (without_vae, "no VAE in it"),
        (refiner, "the SDXL refiner"),
        (lora, "LoRA weights, not a whole model"),
        (unet_of_diffusers, f"no {START} in it"),
        (one_layer_short, "short.safetensors"),
        (wider, "does not fit the configurations"),
    ],
)
def test_other_kinds_of_files_are_refused(
    spoil: Callable[[Tensors], Tensors], expected: str, configs: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "short.safetensors"
    save_file(spoil(load_file(files["sd1"])), file, metadata={"format": "pt"})
    message = refusal(file, configs)
    assert message.startswith(f"{file}: ")
    assert expected in message


def test_configurations_of_another_architecture_are_refused(bases: dict[str, Path], files: dict[str, Path]) -> None:
    assert f"a checkpoint of sdxl, but single_file_config {bases['sd2']} is of sd2" in refusal(
        files["sdxl"], bases["sd2"]
    )
    assert "is of sd1" in refusal(files["sd2"], bases["sd1"])


def test_files_that_cannot_be_read_are_named(configs: Path, files: dict[str, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert f"{pickled}: pickled weights" in refusal(pickled, configs)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files["sd1"].read_bytes()[:-100])
    assert f"{cut}: not a whole safetensors file" in refusal(cut, configs)
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n")
    assert "git lfs pull" in refusal(pointer, configs)
    assert "a single file has no variant" in refusal(files["sd1"], configs, variant="fp16")
    assert "a single file has no revision" in refusal(files["sd1"], configs, revision="main")
    assert "not a pipeline folder" in refusal(files["sd1"], tmp_path)
    index = read_json(configs / "model_index.json")
    write_json(configs / "model_index.json", index | {"scheduler": ["diffusers", "EDMEulerScheduler"]})
    write_json(configs / "scheduler" / "scheduler_config.json", {"_class_name": "EDMEulerScheduler"})
    assert "no discrete noise schedule" in refusal(files["sd1"], configs)


@needs_published
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpoints_of_the_published_architectures(architecture: str, tmp_path: Path) -> None:
    base = published_pipeline(tmp_path / "base", NAMES[architecture], shrink=True)
    folder = load_pipeline(str(base))
    save_single_file(folder, tmp_path / "model.safetensors", {})
    assert_same_networks(load(tmp_path / "model.safetensors", base), folder)
