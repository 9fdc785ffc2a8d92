"""Stable Diffusion folders: what is written is what plain diffusers loads, and what cannot be loaded is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_diffusion import SAMPLING, plain, plain_images

from diffusion_sft.errors import UserError
from diffusion_sft.learner import Cue
from diffusion_sft.learners.adapters import KOHYA_FILE
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.lora import LORA_FILE
from diffusion_sft.numerics.noise import normal


def test_a_saved_pipeline_is_whole_and_draws_the_same(tiny_pipeline: Path, tmp_path: Path) -> None:
    learner = DiffusionLearner.load(tiny_pipeline)
    with torch.no_grad():
        learner.pipeline.unet.conv_out.weight.add_(0.05)
    learner.save(tmp_path)
    for file in tiny_pipeline.rglob("*"):
        copied = tmp_path / file.relative_to(tiny_pipeline)
        if file.is_file() and file.parent.name not in ("unet", tiny_pipeline.name):
            assert copied.read_bytes() == file.read_bytes()
    cues = [Cue(prompt="a photo of a wug", seed=1)]
    ours = np.stack(learner.generate(cues, **SAMPLING, batch_size=1)).astype(int)  # type: ignore[arg-type]
    assert np.abs(ours - plain_images(plain(tmp_path), cues)).max() <= 1
    assert np.abs(ours - plain_images(plain(tiny_pipeline), cues)).max() > 1
    again = DiffusionLearner.load(tmp_path)
    assert (
        again.identity()["sha256"]["unet/diffusion_pytorch_model.safetensors"]
        != (learner.identity()["sha256"]["unet/diffusion_pytorch_model.safetensors"])
    )
    torch.testing.assert_close(again.network.state_dict(), learner.network.state_dict())


def test_a_saved_adapter_loads_in_plain_diffusers_at_its_strength(tiny_pipeline: Path, tmp_path: Path) -> None:
    learner = DiffusionLearner.load(tiny_pipeline)
    learner.pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"]))
    with torch.no_grad():
        for index, (name, parameter) in enumerate(learner.network.named_parameters()):
            if "lora" in name:
                parameter.copy_(normal(parameter.shape, index))
    learner.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [LORA_FILE, KOHYA_FILE]
    cues = [Cue(prompt="a photo of a wug", seed=1)]
    ours = np.stack(learner.generate(cues, **SAMPLING, batch_size=1)).astype(int)  # type: ignore[arg-type]
    pipeline = plain(tiny_pipeline)
    assert np.abs(ours - plain_images(pipeline, cues)).max() > 1
    pipeline.load_lora_weights(str(tmp_path), weight_name=LORA_FILE)
    assert np.abs(ours - plain_images(pipeline, cues)).max() <= 1
    reloaded = DiffusionLearner.load(tiny_pipeline, lora=tmp_path)
    theirs = np.stack(reloaded.generate(cues, **SAMPLING, batch_size=1)).astype(int)  # type: ignore[arg-type]
    assert np.abs(ours - theirs).max() <= 1
    assert reloaded.identity()["lora"] != learner.identity().get("lora")


def test_variants_are_saved_under_plain_names(tiny_pipeline: Path, tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    shutil.copytree(tiny_pipeline, base)
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        full = base / part / f"{name}.safetensors"
        halves = {key: tensor.half() for key, tensor in load_file(full).items()}
        save_file(halves, full.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        full.unlink()
    learner = DiffusionLearner.load(base, variant="fp16")
    assert learner.dtype == torch.float32
    saved.mkdir()
    learner.save(saved)
    assert (saved / "vae" / "diffusion_pytorch_model.safetensors").exists()
    assert not list(saved.rglob("*fp16*"))
    cues = [Cue(prompt="a wug", seed=1)]
    ours = np.stack(learner.generate(cues, **SAMPLING, batch_size=1)).astype(int)  # type: ignore[arg-type]
    assert np.abs(ours - plain_images(plain(saved), cues)).max() <= 1


def test_what_cannot_be_loaded_is_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        DiffusionLearner.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"model_index\.json"):
        DiffusionLearner.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="broken"):
        DiffusionLearner.load(broken)
    with pytest.raises(UserError, match="no such LoRA"):
        DiffusionLearner.load(tiny_pipeline, lora=tmp_path / "lora")
    with pytest.raises(UserError, match="multiple"):
        DiffusionLearner.load(tiny_pipeline, resolution=17)
    euler = tmp_path / "flow"
    shutil.copytree(tiny_pipeline, euler)
    index = json.loads((euler / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (euler / "model_index.json").write_text(json.dumps(index))
    (euler / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(UserError, match="discrete noise schedule"):
        DiffusionLearner.load(euler)


def test_the_identity_tells_weights_and_schedule(tiny_pipeline: Path) -> None:
    learner = DiffusionLearner.load(tiny_pipeline)
    identity = learner.identity()
    assert set(identity["sha256"]) == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert json.loads(json.dumps(identity)) == identity
    assert isinstance(learner.pipeline.scheduler, DDIMScheduler)
