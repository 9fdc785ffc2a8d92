"""What is exported is what plain diffusers and kohya's tools load: same tensors, same pictures, nothing else changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import PUBLISHED, needs_published, published_pipeline, tiny_pipeline
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusion_sft.errors import UserError
from diffusion_sft.layouts import write_tensors
from diffusion_sft.learners.adapters import KOHYA_FILE, LORA_FILE, has_lora, kohya_tensors, save_lora
from diffusion_sft.learners.exporting import save_full, save_single_file
from diffusion_sft.learners.loading import LoadedPipeline, load_pipeline
from diffusion_sft.learners.original import (
    SD1_TEXT,
    SD2_LAYERS,
    SD2_TEXT,
    SDXL_TEXT,
    SDXL_TEXT_2,
    original_clip,
    original_openclip,
    original_unet,
    original_vae,
)
from diffusion_sft.numerics.noise import normal

ARCHITECTURES = ("sd1", "sd2", "sdxl")
PUBLISHED_NAMES = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl"}
METADATA = {"mix": "half", "seed": "3", "update": "20", "base_sha256": "0" * 64}
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_pipeline(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: published_pipeline(root / name, other, shrink=True) for name, other in PUBLISHED_NAMES.items()}


def load(base: Path, variant: str | None = None) -> LoadedPipeline:
    return load_pipeline(str(base), revision=None, variant=variant, dtype=torch.float32)


def plain(folder: Path) -> Any:
    """The pipeline as somebody loads it who has never heard of us; with a dtype, since bases may be in half precision."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    options = {} if "XL" in index["_class_name"] else {"safety_checker": None, "requires_safety_checker": False}
    return DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **options)


def picture(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    output = pipeline(
        prompt="a photo of a red circle",
        negative_prompt="",
        generator=torch.Generator("cpu").manual_seed(1),
        num_inference_steps=3,
        guidance_scale=3.0,
        height=side,
        width=side,
    )
    return np.asarray(output.images[0]).astype(int)


def gap(some: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(some - other).max())


def trained(loaded: LoadedPipeline) -> LoadedPipeline:
    """The UNet moved a little, as full fine-tuning would."""
    with torch.no_grad():
        for index, parameter in enumerate(loaded.pipeline.unet.parameters()):
            parameter.add_(0.02 * normal(parameter.shape, index))
    return loaded


def adapted(loaded: LoadedPipeline, *, text_encoders: bool = True, dora: bool = False) -> LoadedPipeline:
    """Adapters with rank 4, lora_alpha 8 and weights of their own on the UNet and on every text encoder."""
    pipeline, parts = loaded.pipeline, {"unet": UNET_TARGETS}
    if text_encoders:
        parts |= {name: TEXT_TARGETS for name in ("text_encoder", "text_encoder_2") if hasattr(pipeline, name)}
    for part, targets in parts.items():
        module = getattr(pipeline, part)
        module.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_dora=dora))
        with torch.no_grad():
            for index, (name, parameter) in enumerate(module.named_parameters()):
                if "lora_magnitude" in name:
                    parameter.mul_(1 + 0.2 * normal(parameter.shape, index))
                elif "lora_" in name:
                    parameter.copy_(0.2 * normal(parameter.shape, index))
        module.eval()
    return loaded


def header(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as stored:
        return dict(stored.metadata())


def test_tensors_are_written_as_safetensors_reads_them(tmp_path: Path) -> None:
    tensors = {
        "long": torch.arange(6).reshape(2, 3),
        "half": normal((3, 5), 1).half().T,
        "brain": normal((7,), 2).bfloat16(),
        "empty": torch.empty(0),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "flags": torch.tensor([True, False, True]),
        "eight": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    }
    metadata = {"b": 'é"\n', "a": "1", "c": ""}
    write_tensors(tmp_path / "ours.safetensors", tensors, metadata)
    stored = load_file(tmp_path / "ours.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in stored.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }
    assert all(torch.equal(stored[name].double(), tensor.double()) for name, tensor in tensors.items())
    assert header(tmp_path / "ours.safetensors") == {"format": "pt", **metadata}
    shuffled = dict(reversed(tensors.items()))
    write_tensors(tmp_path / "again.safetensors", shuffled, dict(reversed(metadata.items())))
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "ours.safetensors").read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_full_export_copies_everything_but_the_unet(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    loaded = trained(load(bases[architecture]))
    save_full(loaded, tmp_path, METADATA)
    for file in bases[architecture].rglob("*"):
        copied = tmp_path / file.relative_to(bases[architecture])
        if file.is_file() and file.parent.name not in ("unet", bases[architecture].name):
            assert copied.read_bytes() == file.read_bytes(), file
    again = plain(tmp_path)
    torch.testing.assert_close(again.unet.state_dict(), loaded.pipeline.unet.state_dict(), rtol=0, atol=0)
    assert gap(picture(again), picture(loaded.pipeline)) <= 1
    assert gap(picture(again), picture(plain(bases[architecture]))) > 1


def test_the_unet_is_what_diffusers_would_write_with_our_header(bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = trained(load(bases["sd1"]))
    save_full(loaded, tmp_path / "ours", METADATA)
    loaded.pipeline.unet.save_pretrained(tmp_path / "theirs", safe_serialization=True)
    ours, theirs = tmp_path / "ours" / "unet", tmp_path / "theirs"
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, theirs)]
    del configs[1]["_name_or_path"]  # where the base lies on this machine
    assert configs[0] == configs[1]
    weights = "diffusion_pytorch_model.safetensors"
    torch.testing.assert_close(load_file(ours / weights), load_file(theirs / weights), rtol=0, atol=0)
    assert header(ours / weights) == {"format": "pt", **METADATA}


def test_a_compiled_unet_leaves_no_trace_and_half_precision_is_widened(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    loaded = load(bases["sd1"])
    expected = {name: tensor.clone() for name, tensor in loaded.pipeline.unet.state_dict().items()}
    mid = loaded.pipeline.unet.mid_block
    loaded.pipeline.unet.mid_block = torch.compile(mid, backend="eager")
    loaded.pipeline.unet = torch.compile(loaded.pipeline.unet, backend="eager")
    assert any("_orig_mod" in name for name in loaded.pipeline.unet.state_dict())
    save_full(loaded, tmp_path / "full", METADATA)
    save_single_file(loaded, tmp_path / "one.safetensors", METADATA)
    stored = load_file(tmp_path / "full" / "unet" / "diffusion_pytorch_model.safetensors")
    torch.testing.assert_close(stored, expected, rtol=0, atol=0)
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "one.safetensors"))
    half = load_pipeline(str(bases["sd1"]), revision=None, variant=None, dtype=torch.bfloat16)
    save_full(half, tmp_path / "half", METADATA)
    stored = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_the_variant_is_read_and_its_name_dropped(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["sd1"], base)
    for file in list(base.rglob("*.safetensors")):
        tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(tensors, file.with_name(f"{file.stem}.fp16.safetensors"), metadata={"format": "pt"})
        save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, file)
    loaded = trained(load(base, variant="fp16"))
    (tmp_path / "out").mkdir()
    save_full(loaded, tmp_path / "out", METADATA)
    assert not [file for file in (tmp_path / "out").rglob("*") if "fp16" in file.name]
    for part, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        copied = tmp_path / "out" / part / f"{name}.safetensors"
        assert copied.read_bytes() == (base / part / f"{name}.fp16.safetensors").read_bytes()
    assert gap(picture(plain(tmp_path / "out")), picture(loaded.pipeline)) <= 1
    save_single_file(loaded, tmp_path / "one.safetensors", METADATA)
    stored = load_file(tmp_path / "one.safetensors")
    assert stored["first_stage_model.encoder.conv_in.weight"].dtype == torch.float16
    assert stored["first_stage_model.encoder.conv_in.weight"].abs().sum() > 0


def test_shards_of_a_variant_are_copied_with_their_index(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["sd1"], base)
    vae = StableDiffusionPipeline.from_pretrained(base, safety_checker=None).vae
    shutil.rmtree(base / "vae")
    vae.save_pretrained(base / "vae", variant="fp16", max_shard_size="10KB")
    assert len(list((base / "vae").glob("*fp16-0000*"))) > 1
    loaded = load(base, variant="fp16")
    (tmp_path / "out").mkdir()
    save_full(loaded, tmp_path / "out", METADATA)
    assert not [file for file in (tmp_path / "out").rglob("*") if "fp16" in file.name]
    torch.testing.assert_close(plain(tmp_path / "out").vae.state_dict(), vae.state_dict(), rtol=0, atol=0)


def test_the_schedule_trained_under_is_the_one_that_is_written(bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(bases["sd1"])
    (tmp_path / "same").mkdir()
    save_full(loaded, tmp_path / "same", METADATA)
    name = Path("scheduler", "scheduler_config.json")
    assert (tmp_path / "same" / name).read_bytes() == (bases["sd1"] / name).read_bytes()
    loaded.pipeline.scheduler = DDIMScheduler.from_config(
        loaded.pipeline.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    (tmp_path / "other").mkdir()
    save_full(loaded, tmp_path / "other", METADATA)
    again = plain(tmp_path / "other").scheduler
    assert isinstance(again, DDIMScheduler)
    assert again.config.prediction_type == "v_prediction"
    torch.testing.assert_close(again.alphas_cumprod, loaded.pipeline.scheduler.alphas_cumprod, rtol=0, atol=0)


LORA_CASES = [(architecture, dora) for architecture in ARCHITECTURES for dora in (False, True)]


@pytest.mark.parametrize(("architecture", "dora"), LORA_CASES)
def test_adapters_draw_the_same_in_plain_diffusers(
    architecture: str, dora: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    loaded = adapted(load(bases[architecture]), dora=dora)
    ours = picture(loaded.pipeline)
    assert gap(ours, picture(plain(bases[architecture]))) > 1
    save_lora(loaded, tmp_path, METADATA)
    assert {file.name for file in tmp_path.iterdir()} == {LORA_FILE, KOHYA_FILE}
    # diffusers throws `dora_scale` away, so that kohya's file of a DoRA is held against LyCORIS's formula below.
    for name in (LORA_FILE,) if dora else (LORA_FILE, KOHYA_FILE):
        pipeline = plain(bases[architecture])
        pipeline.load_lora_weights(str(tmp_path), weight_name=name)
        assert gap(picture(pipeline), ours) <= 1, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_of_the_unet_alone_draw_the_same(architecture: str, bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = adapted(load(bases[architecture]), text_encoders=False)
    save_lora(loaded, tmp_path, METADATA)
    for name in (LORA_FILE, KOHYA_FILE):
        pipeline = plain(bases[architecture])
        pipeline.load_lora_weights(str(tmp_path), weight_name=name)
        assert gap(picture(pipeline), picture(loaded.pipeline)) <= 1, name


def kohya_paths(pipeline: Any) -> dict[str, nn.Module]:
    """Every linear or convolutional module by kohya's name, from kohya's rule (class names aside): prefix and path."""
    xl = isinstance(pipeline, StableDiffusionXLPipeline)
    names = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"} if xl else {"text_encoder": "lora_te"}
    found: dict[str, nn.Module] = {}
    for part, prefix in names.items():
        module = getattr(pipeline, part)
        wrapper = "" if hasattr(module, "text_model") else "text_model_"
        found |= {f"{prefix}_{wrapper}{name.replace('.', '_')}": m for name, m in module.named_modules()}
    if not xl:
        return found | {f"lora_unet_{name.replace('.', '_')}": m for name, m in pipeline.unet.named_modules()}
    # SDXL is trained in the original layout: let diffusers translate every weight's original name.
    parameters = dict(pipeline.unet.named_parameters())
    numbered = {name: torch.full_like(p, float(i)) for i, (name, p) in enumerate(parameters.items())}
    translated = single_file_utils.convert_ldm_unet_checkpoint(original_unet(numbered), dict(pipeline.unet.config))
    assert all(torch.equal(translated[name], tensor) for name, tensor in numbered.items())
    for original, tensor in original_unet(numbered).items():
        module = pipeline.unet.get_submodule(list(parameters)[int(tensor.flatten()[0])].rpartition(".")[0])
        path = original.removeprefix("model.diffusion_model.").rpartition(".")[0]
        found["lora_unet_" + path.replace(".", "_")] = module
    return found


@pytest.mark.parametrize(("architecture", "dora"), LORA_CASES)
def test_kohyas_file_merges_by_the_formula_of_kohya_and_lycoris(
    architecture: str, dora: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    loaded = adapted(load(bases[architecture]), dora=dora)
    save_lora(loaded, tmp_path, METADATA)
    tensors = load_file(tmp_path / KOHYA_FILE)
    merged = plain(bases[architecture])
    modules = kohya_paths(merged)
    names = {name.split(".")[0] for name in tensors}
    assert all(("dora_scale" in name) <= dora for name in tensors)
    with torch.no_grad():
        for name in names:
            weight, down = modules[name].weight, tensors[f"{name}.lora_down.weight"]
            up, alpha = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.alpha"]
            assert alpha.shape == ()
            assert (alpha.item(), len(down)) == (8.0, 4)
            whole = weight + (alpha / len(down)) * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            if dora:
                scale = tensors[f"{name}.dora_scale"]
                assert scale.shape == (len(weight), *[1] * (weight.ndim - 1))
                whole = whole * scale / whole.flatten(1).norm(dim=1).reshape(scale.shape)
            weight.copy_(whole)
    assert gap(picture(merged), picture(loaded.pipeline)) <= 1
    assert gap(picture(merged), picture(plain(bases[architecture]))) > 1


def test_convolutions_are_adapted_under_kohyas_names_too(bases: dict[str, Path], tmp_path: Path) -> None:
    for architecture in ("sd1", "sdxl"):
        loaded = load(bases[architecture])
        targets = ["conv1", "conv2", "proj_in", "to_q"]
        loaded.pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets))
        modules = kohya_paths(plain(bases[architecture]))
        tensors = kohya_tensors(loaded.pipeline)
        downs = [name for name in tensors if name.endswith("lora_down.weight")]
        assert any(tensors[name].ndim == 4 for name in downs)
        assert all(tensors[n].shape[1:] == modules[n.split(".")[0]].weight.shape[1:] for n in downs)


def test_the_headers_of_adapters_say_what_they_are(bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = adapted(load(bases["sd2"]))
    save_lora(loaded, tmp_path, METADATA)
    kohya = header(tmp_path / KOHYA_FILE)
    expected = {
        **METADATA,
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "8.0",
        "ss_base_model_version": "sd_v2_v",
        "ss_v2": "True",
        "ss_output_name": "half",
        "ss_seed": "3",
        "ss_steps": "20",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v2-768-v/lora",
        "modelspec.prediction_type": "v",
        "modelspec.title": "half",
        "modelspec.resolution": "16x16",
    }
    assert {key: kohya.get(key) for key in expected} == expected
    ours = header(tmp_path / LORA_FILE)
    assert {key: ours[key] for key in METADATA} == METADATA
    settings = json.loads(ours["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"], settings["text_encoder.lora_alpha"]) == (4, 8, 8)
    before = (tmp_path / LORA_FILE).read_bytes()
    save_lora(loaded, tmp_path, METADATA)
    assert (tmp_path / LORA_FILE).read_bytes() == before
    assert all("text_encoder.text_model." in name for name in load_file(tmp_path / LORA_FILE) if "text_enc" in name)


def test_only_one_adapter_can_be_saved_and_none_in_a_single_file(bases: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(bases["sd1"])
    assert not has_lora(loaded.pipeline)
    adapted(loaded, text_encoders=False)
    assert has_lora(loaded.pipeline)
    with pytest.raises(UserError, match="method full"):
        save_single_file(loaded, tmp_path / "one.safetensors", METADATA)
    with pytest.warns(UserWarning, match="multiple adapters"):
        loaded.pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="second")
    with pytest.raises(UserError, match="2 adapters"):
        save_lora(loaded, tmp_path, METADATA)
    assert not list(tmp_path.iterdir())


def from_one_file(file: Path, config: Path, architecture: str) -> Any:
    kind = StableDiffusionXLPipeline if architecture == "sdxl" else StableDiffusionPipeline
    # SD 2.1's published settings name a feature extractor class that transformers 5 no longer has.
    options = {} if architecture == "sdxl" else {"feature_extractor": None, "safety_checker": None}
    return kind.from_single_file(str(file), config=str(config), local_files_only=True, dtype=torch.float32, **options)


def check_single_file(base: Path, architecture: str, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Write, read back by diffusers, compare bit by bit and in a picture; returns the file's tensors."""
    loaded = trained(load(base))
    file = tmp_path / "one.safetensors"
    save_single_file(loaded, file, METADATA)
    again = from_one_file(file, base, architecture)
    parts = ["unet", "vae", "text_encoder"] + (["text_encoder_2"] if architecture == "sdxl" else [])
    for part in parts:
        expected = getattr(loaded.pipeline, part).state_dict()
        torch.testing.assert_close(getattr(again, part).state_dict(), expected, rtol=0, atol=0, msg=part)
    assert gap(picture(again), picture(loaded.pipeline)) <= 1
    assert gap(picture(again), picture(plain(base))) > 1
    return load_file(file)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_single_file_is_read_back_bit_by_bit(architecture: str, bases: dict[str, Path], tmp_path: Path) -> None:
    check_single_file(bases[architecture], architecture, tmp_path)


@needs_published
@pytest.mark.parametrize(
    "architecture", [pytest.param(a, marks=[pytest.mark.slow] if a != "sdxl" else []) for a in ARCHITECTURES]
)
def test_a_single_file_of_a_published_structure_is_read_back(
    architecture: str, published: dict[str, Path], tmp_path: Path
) -> None:
    names = set(check_single_file(published[architecture], architecture, tmp_path))
    # The names by which readers tell the architectures (CHECKPOINT_KEY_NAMES of diffusers).
    known = single_file_utils.CHECKPOINT_KEY_NAMES
    expected = {
        "sd1": (known["v1"], known["clip"]),
        "sd2": (known["v2"], known["open_clip"]),
        "sdxl": (known["clip_sdxl"], known["open_clip_sdxl"]),
    }
    assert set(expected[architecture]) <= names


@needs_published
@pytest.mark.parametrize(("architecture", "kind"), [("sd1", "v1"), ("sd2", "v2"), ("sdxl", "xl_base")])
def test_at_full_size_readers_recognise_the_architecture(architecture: str, kind: str) -> None:
    """No weights are made: names and shapes decide, and those at full size are the published files'."""
    folder = PUBLISHED / PUBLISHED_NAMES[architecture]
    settings = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*/config.json")
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(settings["unet"]).state_dict()
        vae = AutoencoderKL.from_config(settings["vae"]).state_dict()
        first = CLIPTextModel(CLIPTextConfig.from_dict(settings["text_encoder"])).state_dict()
        tensors = original_unet(unet) | original_vae(vae)
        assert len(tensors) == len(unet) + len(vae) == {"sd1": 934, "sd2": 934, "sdxl": 1928}[architecture]
        if architecture == "sdxl":
            config = CLIPTextConfig.from_dict(settings["text_encoder_2"])
            second = CLIPTextModelWithProjection(config).state_dict()
            tensors |= original_clip(first, SDXL_TEXT) | original_openclip(second, SDXL_TEXT_2)
            assert tensors[f"{SDXL_TEXT_2}text_projection"].shape == (1280, 1280)
            assert tensors[f"{SDXL_TEXT_2}transformer.resblocks.31.attn.in_proj_weight"].shape == (3840, 1280)
        elif architecture == "sd2":
            tensors |= original_openclip(first, SD2_TEXT)
            assert f"{SD2_TEXT}transformer.resblocks.23.mlp.c_proj.bias" in tensors
        else:
            tensors |= original_clip(first, SD1_TEXT)
            assert tensors[f"{SD1_TEXT}text_model.embeddings.position_ids"].shape == (1, 77)
    assert single_file_utils.infer_diffusers_model_type(tensors) == kind


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_single_file_base_is_exported_whole_either_way(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "base.safetensors"
    save_single_file(load(bases[architecture]), file, METADATA)
    before = load_file(file) | {"model_ema.decay": torch.tensor(0.5), "foreign.tensor": torch.arange(3)}
    save_file(before, file, metadata=header(file))
    loaded = trained(load_pipeline(str(file), single_file_config=str(bases[architecture])))
    assert loaded.folder is None
    save_full(loaded, tmp_path / "full", METADATA)
    save_single_file(loaded, tmp_path / "one.safetensors", METADATA)
    ours = picture(loaded.pipeline)
    assert gap(picture(plain(tmp_path / "full")), ours) <= 1
    assert gap(picture(from_one_file(tmp_path / "one.safetensors", bases[architecture], architecture)), ours) <= 1
    after = load_file(tmp_path / "one.safetensors")
    assert set(before) - set(after) == {"model_ema.decay"}
    unchanged = [name for name in after if not name.startswith("model.diffusion_model.")]
    assert all(torch.equal(after[name], before[name]) for name in unchanged)
    assert not torch.equal(*(stored["model.diffusion_model.out.2.weight"] for stored in (after, before)))
    for encoder in (tmp_path / "full").glob("text_encoder*"):
        names = set(load_file(encoder / "model.safetensors"))
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
        assert names == set(load_file(bases[architecture] / encoder.name / "model.safetensors"))
    for tokenizer in (tmp_path / "full").glob("tokenizer*"):
        expected = {file.name: file.read_bytes() for file in (bases[architecture] / tokenizer.name).iterdir()}
        assert {file.name: file.read_bytes() for file in tokenizer.iterdir()} == expected
        assert {"vocab.json", "merges.txt"} <= set(expected)


def test_a_single_file_says_what_its_network_predicts(tmp_path: Path) -> None:
    base = tiny_pipeline(tmp_path / "base", "sdxl", prediction_type="v_prediction", zero_terminal_snr=True)
    save_single_file(load(base), tmp_path / "v.safetensors", METADATA)
    tensors = load_file(tmp_path / "v.safetensors")
    assert (tensors["v_pred"].numel(), tensors["ztsnr"].numel()) == (0, 0)
    assert header(tmp_path / "v.safetensors")["modelspec.prediction_type"] == "v"
    plain_base = tiny_pipeline(tmp_path / "plain", "sdxl")
    again = load_pipeline(str(tmp_path / "v.safetensors"), single_file_config=str(plain_base)).pipeline.scheduler
    assert (again.config.prediction_type, again.config.rescale_betas_zero_snr) == ("v_prediction", True)
    save_single_file(load(plain_base), tmp_path / "epsilon.safetensors", METADATA)
    assert not {"v_pred", "ztsnr"} & set(load_file(tmp_path / "epsilon.safetensors"))
    assert header(tmp_path / "epsilon.safetensors")["modelspec.prediction_type"] == "epsilon"


def test_the_published_sd2_encoder_gets_the_layer_that_is_never_run() -> None:
    config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_attention_heads=1, vocab_size=9)
    for layers, expected in ((SD2_LAYERS, SD2_LAYERS + 1), (3, 3)):
        config.num_hidden_layers = layers
        written = original_openclip(CLIPTextModel(config).state_dict(), SD2_TEXT)
        numbers = {int(name.split("resblocks.")[1].split(".")[0]) for name in written if "resblocks" in name}
        assert numbers == set(range(expected))
        filler = {name for name in written if f"resblocks.{SD2_LAYERS}." in name}
        assert all(torch.equal(written[n], written[n.replace("blocks.23.", "blocks.22.")]) for n in filler)
        ignored = set(single_file_utils.SD_2_TEXT_ENCODER_KEYS_TO_IGNORE)
        assert filler <= ignored
        assert len(filler) in (0, len(ignored) - 1)


def test_networks_without_a_place_in_the_original_layout_are_refused() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=4,
        encoder_hid_dim=4,
        encoder_hid_dim_type="text_proj",
    )
    with pytest.raises(UserError, match="encoder_hid_proj.*original layout"):
        original_unet(unet.state_dict())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_are_the_inverse_of_diffusers_own_conversion(architecture: str, bases: dict[str, Path]) -> None:
    pipeline = plain(bases[architecture])
    cases: list[tuple[nn.Module, Callable[..., Any], Callable[..., Any]]] = [
        (pipeline.unet, original_unet, single_file_utils.convert_ldm_unet_checkpoint),
        (pipeline.vae, original_vae, single_file_utils.convert_ldm_vae_checkpoint),
    ]
    for module, ours, theirs in cases:
        tensors = module.state_dict()
        torch.testing.assert_close(theirs(ours(tensors), dict(module.config)), tensors, rtol=0, atol=0)
