"""Loading: folders, variants and shards, the Hub's cache, and a line for everything that is no Stable Diffusion."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import NAMES, needs_published, published_pipeline, read_json, tiny_pipeline, write_json
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from diffusion_sft.errors import UserError
from diffusion_sft.learners.exporting import save_single_file
from diffusion_sft.learners.loading import LoadedPipeline, load_pipeline, schedule_of, weight_hashes
from diffusion_sft.learners.single_file import PUBLISHED

ARCHITECTURES = ("sd1", "sd2", "sdxl")
UNET = "unet/diffusion_pytorch_model.safetensors"
CLASSES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_pipeline(root / name, name) for name in ARCHITECTURES}


@pytest.fixture
def copy(bases: dict[str, Path], tmp_path: Path) -> Path:
    """A base of SD 1 that may be broken."""
    return Path(shutil.copytree(bases["sd1"], tmp_path / "base"))


def load(folder: Path, **options: Any) -> LoadedPipeline:
    return load_pipeline(str(folder), **options)


def refusal(folder: Path, **options: Any) -> str:
    """What the user is told, which must be one line that says where."""
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change(file: Path, **entries: Any) -> None:
    write_json(file, read_json(file) | entries)


def state(loaded: LoadedPipeline) -> dict[str, torch.Tensor]:
    networks = {name: part for name, part in loaded.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in networks.items() for key, value in part.state_dict().items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_becomes_the_pipeline_it_holds(architecture: str, bases: dict[str, Path]) -> None:
    loaded = load(bases[architecture])
    assert type(loaded.pipeline).__name__ == CLASSES[architecture]
    assert (loaded.folder, loaded.file, loaded.config_folder) == (bases[architecture], None, bases[architecture])
    assert loaded.architecture == architecture
    assert loaded.source["noise_schedule"] == {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if architecture == "sd2" else "epsilon",
        "zero_terminal_snr": False,
    }
    assert json.loads(json.dumps(loaded.source)) == loaded.source
    networks = [part for part in loaded.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) == (4 if architecture == "sdxl" else 3)
    assert not any(part.training for part in networks)
    assert getattr(loaded.pipeline, "watermark", None) is None
    stored = load_file(bases[architecture] / UNET)
    assert all(torch.equal(value, stored[name]) for name, value in loaded.pipeline.unet.state_dict().items())
    texts = load_file(bases[architecture] / "text_encoder" / "model.safetensors")
    for name, value in loaded.pipeline.text_encoder.state_dict().items():
        assert torch.equal(value, texts[name if name.startswith("text_model.") else f"text_model.{name}"])


def test_all_networks_get_the_dtype_that_was_asked_for(bases: dict[str, Path], tmp_path: Path) -> None:
    # SDXL's published text encoders say float16, which must not come through.
    base = Path(shutil.copytree(bases["sdxl"], tmp_path / "base"))
    for name in ("text_encoder", "text_encoder_2"):
        change(base / name / "config.json", torch_dtype="float16")
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(base, dtype=dtype)
        assert {tensor.dtype for name, tensor in state(loaded).items() if "position_ids" not in name} == {dtype}
        assert loaded.source["dtype"] == str(dtype).removeprefix("torch.")


# --- the noise schedule -----------------------------------------------------------------------------------------------


def scaled_linear() -> np.ndarray:
    """ᾱ_t of Stable Diffusion: β_t is linear in its root."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def zero_terminal(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Lin et al. (2024), algorithm 1: √ᾱ shifted to end at 0 and scaled to begin where it did."""
    roots = np.sqrt(alphas_cumprod)
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_schedule_is_the_one_of_the_settings(scheduler: str, zero: bool, copy: Path) -> None:
    settings = read_json(copy / "scheduler" / "scheduler_config.json") | {"_class_name": scheduler}
    settings |= {"rescale_betas_zero_snr": zero, "prediction_type": "v_prediction"}
    write_json(copy / "scheduler" / "scheduler_config.json", settings)
    change(copy / "model_index.json", scheduler=["diffusers", scheduler])
    loaded = load(copy)
    schedule = schedule_of(loaded.pipeline)
    assert type(loaded.pipeline.scheduler).__name__ == scheduler
    assert schedule.prediction_type == "v_prediction"
    assert loaded.source["noise_schedule"]["zero_terminal_snr"] is zero
    expected = zero_terminal(scaled_linear()) if zero else scaled_linear()
    # diffusers multiplies a thousand single-precision numbers.
    np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=2e-3 if zero else 1e-4, atol=0)
    assert bool(schedule.alphas_cumprod[-1] == 0) is zero
    assert (np.diff(schedule.alphas_cumprod) < 0).all()


def test_the_published_schedule_of_pndm(bases: dict[str, Path]) -> None:
    loaded = load(bases["sd1"])
    assert type(loaded.pipeline.scheduler).__name__ == "PNDMScheduler"
    np.testing.assert_allclose(schedule_of(loaded.pipeline).alphas_cumprod, scaled_linear(), rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zero_terminal_snr_of_every_architecture(architecture: str, tmp_path: Path) -> None:
    loaded = load(tiny_pipeline(tmp_path / "base", architecture, "v_prediction", zero_terminal_snr=True))
    assert schedule_of(loaded.pipeline).alphas_cumprod[-1] == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "no discrete noise schedule"),
        ({"_class_name": "EDMEulerScheduler"}, "no discrete noise schedule"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "no discrete noise schedule"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous noise levels"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "continuous noise levels"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True}, "does not heed rescale_betas_zero_snr"),
    ],
)
def test_other_schedules_are_refused(settings: dict[str, Any], expected: str, copy: Path) -> None:
    kind = settings["_class_name"]
    keep = {} if "EDM" in kind or "Flow" in kind else read_json(copy / "scheduler" / "scheduler_config.json")
    write_json(copy / "scheduler" / "scheduler_config.json", keep | settings)
    change(copy / "model_index.json", scheduler=["diffusers", kind])
    assert expected in refusal(copy)


# --- weight files -----------------------------------------------------------------------------------------------------


def halve(folder: Path, *parts: str) -> None:
    """Replace the weights of some components by half-precision files of variant fp16."""
    for part in parts:
        for file in (folder / part).glob("*.safetensors"):
            tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
            save_file(tensors, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
            file.unlink()


def shard(folder: Path, variant: str | None) -> None:
    """Write UNet and text encoder anew in shards, as the libraries themselves do."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    for part, network in (("unet", unet), ("text_encoder", text)):
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        network.save_pretrained(folder / part, max_shard_size="20KB", variant=variant)
        assert len(list((folder / part).glob("*.safetensors"))) > 1


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_and_hashed(variant: str | None, copy: Path, bases: dict[str, Path]) -> None:
    shard(copy, variant)
    loaded = load(copy, variant=variant)
    expected = state(load(bases["sd1"]))
    assert all(torch.equal(value, expected[name]) for name, value in state(loaded).items())
    shards = {file.relative_to(copy).as_posix() for file in copy.rglob("*-of-*.safetensors")}
    assert set(weight_hashes(loaded)) == shards | {"vae/diffusion_pytorch_model.safetensors"}
    lost = sorted((copy / "unet").glob("*-of-*"))[1]
    lost.unlink()
    assert str(lost) in refusal(copy, variant=variant)


def test_a_variant_may_be_there_for_some_components_only(copy: Path, bases: dict[str, Path]) -> None:
    halve(copy, "unet", "text_encoder")
    loaded = load(copy, variant="fp16")
    expected = state(load(bases["sd1"]))
    for name, value in state(loaded).items():
        same = expected[name] if name.startswith("vae.") else expected[name].half().float()
        assert torch.equal(value, same), name
    assert set(weight_hashes(loaded)) == {
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    message = refusal(copy)
    assert "diffusion_pytorch_model.fp16.safetensors" in message or "model.fp16.safetensors" in message
    assert "variant" in message
    assert "no weights of variant ema" in refusal(bases["sd1"], variant="ema")


def test_hashes_are_those_of_the_files(copy: Path) -> None:
    loaded = load(copy)
    hashes = weight_hashes(loaded)
    assert set(hashes) == {file.relative_to(copy).as_posix() for file in copy.rglob("*.safetensors")}
    assert all(value == hashlib.sha256((copy / name).read_bytes()).hexdigest() for name, value in hashes.items())


@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"]
)
def test_git_lfs_pointers_are_called_by_their_name(part: str, copy: Path) -> None:
    file = copy / f"{part}.safetensors"
    size = file.stat().st_size
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n")
    message = refusal(copy)
    assert str(file) in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("cut", [0, 5, 700, -1])
def test_downloads_that_broke_off_are_named(cut: int, copy: Path) -> None:
    file = copy / UNET
    file.write_bytes(file.read_bytes()[:cut])
    message = refusal(copy)
    assert str(file) in message
    assert "fetch it again" in message


def test_missing_parts_are_named(copy: Path) -> None:
    dangling = copy / UNET
    dangling.unlink()
    dangling.symlink_to(copy / "gone")
    assert f"{dangling}: cannot be read" in refusal(copy)
    dangling.unlink()
    assert f"{copy / 'unet'}: no weights in it" in refusal(copy)
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    message = refusal(copy)
    assert "diffusion_pytorch_model.bin: pickled weights" in message
    (copy / "unet" / "config.json").unlink()
    assert f"{copy / 'unet' / 'config.json'}: no such file" in refusal(copy)
    assert "no such folder" in refusal(copy / "nowhere")
    assert "no such file" in refusal(copy / "nowhere.safetensors")
    assert "not a pipeline folder" in refusal(copy / "unet")
    assert "a folder has no revision" in refusal(copy, revision="main")
    assert "single_file_config belongs" in refusal(copy, single_file_config=str(copy))


@pytest.mark.parametrize("file", ["tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"])
def test_missing_words_and_settings_are_named(file: str, copy: Path) -> None:
    # transformers 5 would go on with a tokenizer that knows no word.
    (copy / file).unlink()
    assert str(copy / file) in refusal(copy)
    (copy / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert str(copy / file) in refusal(copy)
    shutil.rmtree((copy / file).parent)
    assert str((copy / file).parent) in refusal(copy)


def test_a_tokenizer_in_one_file_is_enough(copy: Path, bases: dict[str, Path]) -> None:
    tokenizer = load(bases["sd1"]).pipeline.tokenizer
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    tokenizer.save_pretrained(copy / "tokenizer")
    assert not (copy / "tokenizer" / "vocab.json").exists()
    caption = "a photo of a wug, upside-down"
    assert load(copy).pipeline.tokenizer(caption).input_ids == tokenizer(caption).input_ids


def test_an_index_cannot_lead_out_of_its_folder(copy: Path) -> None:
    (copy / UNET).unlink()
    index = copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for name in ("../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "weights.bin"):
        write_json(index, {"metadata": {}, "weight_map": {"conv_in.weight": name}})
        assert f"{index}: not an index of safetensors shards" in refusal(copy)


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    change(copy / "unet" / "config.json", block_out_channels=[8, 32])
    assert str(copy) in refusal(copy)


def rename(file: Path, new: Callable[[str], str]) -> None:
    save_file({new(name): value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


NETWORKS = [
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
    "text_encoder_2/model",
]


@pytest.mark.parametrize("part", NETWORKS)
def test_no_tensor_is_left_random(part: str, bases: dict[str, Path], tmp_path: Path) -> None:
    # The libraries themselves load all of these, with a warning.
    base = Path(shutil.copytree(bases["sdxl"], tmp_path / "base"))
    file = base / f"{part}.safetensors"
    rename(file, lambda name: f"_orig_mod.{name}")
    message = refusal(base)
    assert f"{file}: " in message
    assert "_orig_mod" in message
    rename(file, lambda name: name.removeprefix("_orig_mod."))
    lost = sorted(load_file(file))[7]
    rename(file, lambda name: "elsewhere" if name == lost else name)
    message = refusal(base)
    assert f"{file}: 1 of the network's tensors are not in it, for example {lost.removeprefix('text_model.')}" in (
        message.replace("example text_model.", "example ")
    )


def test_older_names_of_the_vae_are_read(copy: Path, bases: dict[str, Path]) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def older(name: str) -> str:
        for new, word in old.items():
            name = name.replace(new, word)
        return name

    rename(copy / "vae" / "diffusion_pytorch_model.safetensors", older)
    expected = state(load(bases["sd1"]))
    assert all(torch.equal(value, expected[name]) for name, value in state(load(copy)).items())


# --- other kinds ------------------------------------------------------------------------------------------------------


def inpainting(folder: Path) -> None:
    change(folder / "unet" / "config.json", in_channels=9)


def refiner(folder: Path) -> None:
    index = read_json(folder / "model_index.json") | {"_class_name": "StableDiffusionXLImg2ImgPipeline"}
    index |= {"text_encoder": [None, None], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    write_json(folder / "model_index.json", index)


def other_pipeline(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="FluxPipeline")


def custom_code(folder: Path) -> None:
    change(folder / "model_index.json", _class_name=["my_pipeline", "MyPipeline"])


def foreign_class(folder: Path) -> None:
    change(folder / "model_index.json", unet=["os", "system"])


def foreign_library(folder: Path) -> None:
    change(folder / "model_index.json", tokenizer=["my_module", "CLIPTokenizer"])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (inpainting, "its UNet takes 9 channels for 4 of latents"),
        (refiner, "the SDXL refiner"),
        (other_pipeline, "a FluxPipeline"),
        (custom_code, "my_pipeline"),
        (foreign_class, "unet is os.system, not a UNet2DConditionModel"),
        (foreign_library, "tokenizer is my_module.CLIPTokenizer"),
    ],
)
def test_other_kinds_of_models_are_refused(spoil: Callable[[Path], None], expected: str, copy: Path) -> None:
    spoil(copy)
    assert expected in refusal(copy)


# --- the Hub, without network -----------------------------------------------------------------------------------------

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
OFFLINE = """
import json, sys
from diffusion_sft.errors import UserError
from diffusion_sft.learners.loading import load_pipeline, weight_hashes
answers = {}
for name, asked in json.load(open(sys.argv[1])).items():
    try:
        loaded = load_pipeline(**asked)
        folder = str(loaded.folder or loaded.config_folder)
        answers[name] = {"folder": folder, "source": loaded.source, "hashes": weight_hashes(loaded)}
    except UserError as error:
        answers[name] = {"error": str(error)}
json.dump(answers, open(sys.argv[1], "w"))
"""


def cached(hub: Path, name: str, folder: Path, branch: str) -> Path:
    """What the Hub's client leaves of a repository: refs, blobs by their hash, snapshots of links to them."""
    root = hub / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMITS[branch]
    for file in (file for file in folder.rglob("*") if file.is_file()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / branch).write_text(COMMITS[branch])
    return snapshot


@pytest.fixture(scope="module")
def offline(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of a process that has a Hub cache and no network."""
    root = tmp_path_factory.mktemp("offline")
    hub = root / "hub"
    snapshots = {"main": cached(hub, "someone/tiny", bases["sd1"], "main")}
    snapshots["v2"] = cached(hub, "someone/tiny", bases["sd2"], "v2")
    snapshots["xl"] = cached(hub, "someone/tiny-xl", bases["sdxl"], "main")
    half = Path(shutil.copytree(bases["sd1"], root / "half"))
    halve(half, "unet", "vae", "text_encoder")
    snapshots["half"] = cached(hub, "someone/half", half, "main")
    cut = cached(hub, "someone/cut", bases["sd1"], "main")
    (cut / UNET).unlink()
    # One architecture's configurations are in the cache, without weights, and another's are not.
    snapshots["config"] = cached(hub, PUBLISHED["sd1"], bases["sd1"], "main")
    for file in snapshots["config"].rglob("*.safetensors"):
        file.unlink()
    for name in ("sd1", "sdxl"):
        save_single_file(load(bases[name]), root / f"{name}.safetensors", {})
    asked = {
        "main": {"name": "someone/tiny"},
        "v2": {"name": "someone/tiny", "revision": "v2"},
        "commit": {"name": "someone/tiny", "revision": COMMITS["v2"]},
        "xl": {"name": "someone/tiny-xl"},
        "half": {"name": "someone/half", "variant": "fp16"},
        "unknown revision": {"name": "someone/tiny", "revision": "v3"},
        "unknown": {"name": "someone/else"},
        "cut": {"name": "someone/cut"},
        "file": {"name": str(root / "sd1.safetensors")},
        "file by id": {"name": str(root / "sdxl.safetensors"), "single_file_config": "someone/tiny-xl"},
        "file alone": {"name": str(root / "sdxl.safetensors")},
    }
    (root / "asked.json").write_text(json.dumps(asked))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "HF_HOME": str(root)}
    command = [sys.executable, "-c", OFFLINE, str(root / "asked.json")]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return {"snapshots": snapshots, "answers": read_json(root / "asked.json"), "bases": bases}


@pytest.mark.parametrize(
    ("case", "snapshot", "architecture"),
    [
        ("main", "main", "sd1"),
        ("v2", "v2", "sd2"),
        ("commit", "v2", "sd2"),
        ("xl", "xl", "sdxl"),
        ("half", "half", "sd1"),
    ],
)
def test_a_hub_id_is_read_from_the_cache(
    case: str, snapshot: str, architecture: str, offline: dict[str, Any]
) -> None:
    answer = offline["answers"][case]
    assert answer["folder"] == str(offline["snapshots"][snapshot])
    assert answer["source"]["commit"] == offline["snapshots"][snapshot].name
    assert answer["source"]["architecture"] == architecture
    files = list(offline["snapshots"][snapshot].rglob("*.safetensors"))
    assert answer["hashes"] == {
        file.relative_to(offline["snapshots"][snapshot]).as_posix(): file.resolve().name for file in files
    }


def test_what_the_cache_lacks_is_named(offline: dict[str, Any]) -> None:
    for case, name in (("unknown revision", "someone/tiny"), ("unknown", "someone/else")):
        message = offline["answers"][case]["error"]
        assert message.startswith(f"{name}: no such folder, nor could the Hub give it")
        assert "\n" not in message
    assert "unet: no weights in it" in offline["answers"]["cut"]["error"]


def test_a_single_files_configurations_come_from_the_cache(offline: dict[str, Any]) -> None:
    answers, snapshots = offline["answers"], offline["snapshots"]
    assert answers["file"]["folder"] == str(snapshots["config"])
    assert answers["file"]["source"]["single_file_config"] == PUBLISHED["sd1"]
    assert answers["file by id"]["folder"] == str(snapshots["xl"])
    message = answers["file alone"]["error"]
    assert "sdxl.safetensors: its configurations and tokenizers" in message
    assert "single_file_config" in message
    assert "\n" not in message


# --- the published architectures --------------------------------------------------------------------------------------


@needs_published
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_published_architectures_load(architecture: str, tmp_path: Path) -> None:
    folder = published_pipeline(tmp_path / "base", NAMES[architecture], shrink=True)
    loaded = load(folder)
    assert loaded.architecture == architecture
    pipeline = loaded.pipeline
    assert schedule_of(pipeline).prediction_type == ("v_prediction" if architecture == "sd2" else "epsilon")
    assert pipeline.text_encoder.dtype == torch.float32
    # Start, "a photo of a cat" in the published vocabulary, end; and the two ways of padding.
    ids = pipeline.tokenizer("a photo of a cat", padding="max_length").input_ids
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(ids) == 77
    if architecture == "sdxl":
        assert pipeline.tokenizer_2("a cat", padding="max_length").input_ids[-1] == 0
    with torch.no_grad():
        output = pipeline("a photo of a cat", num_inference_steps=2, output_type="np", height=64, width=64)
    assert output.images.shape == (1, 64, 64, 3)


PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
"""The published numbers of parameters."""


@needs_published
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_full_size_loads(architecture: str, tmp_path: Path) -> None:
    """Takes up to 7 GB of disk and of memory."""
    folder = published_pipeline(tmp_path / "base", NAMES[architecture], shrink=False, dtype=torch.float16)
    loaded = load(folder, dtype=torch.float16)
    for part, number in PARAMETERS[architecture].items():
        network = getattr(loaded.pipeline, part)
        assert sum(parameter.numel() for parameter in network.parameters()) == number, part
        assert network.dtype == torch.float16
    assert loaded.architecture == architecture
    assert set(weight_hashes(loaded)) == {
        file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")
    }
    shutil.rmtree(folder)
