"""What each method trains, in which type, and what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from diffusion_sft.errors import UserError
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.parts import assert_float32, trainable_parameters
from diffusion_sft.learners.exact import Mixture, MixtureDenoiser

Parts = dict[str, nn.Module]


@pytest.fixture
def parts(tiny_pipeline: Path) -> Parts:
    return {
        "unet": UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet"),
        "text_encoder": CLIPTextModel.from_pretrained(tiny_pipeline, subfolder="text_encoder"),
    }


def forward(parts: Parts) -> torch.Tensor:
    """The UNet's output on fixed input, with the text encoder in front."""
    ids = torch.arange(8).reshape(2, 4)
    dtype = next(parts["text_encoder"].parameters()).dtype
    noisy = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8).to(parts["unet"].conv_in.weight.dtype)
    states = parts["text_encoder"](ids)[0].to(noisy.dtype)
    assert states.dtype in (dtype, noisy.dtype)
    return parts["unet"](noisy, torch.tensor([3, 700]), states).sample


def gradients(parts: Parts, parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    for part in parts.values():
        part.zero_grad(set_to_none=True)
    forward(parts).float().square().mean().backward()
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def in_float32_all_of_them(parameters: dict[str, nn.Parameter]) -> bool:
    return {p.dtype for p in parameters.values()} == {torch.float32}


def test_full_trains_every_weight_of_the_unet_alone(parts: Parts) -> None:
    parameters = trainable_parameters({k: p.to(torch.bfloat16) for k, p in parts.items()}, FinetuneConfig())
    assert list(parameters) == [f"unet.{name}" for name, _ in parts["unet"].named_parameters()]
    assert in_float32_all_of_them(parameters)
    assert not any(p.requires_grad for p in parts["text_encoder"].parameters())
    assert {p.dtype for p in parts["text_encoder"].parameters()} == {torch.bfloat16}
    assert gradients(parts, parameters).keys() == parameters.keys()


def test_cross_attention_trains_attn2_alone(parts: Parts) -> None:
    parts["unet"].to(torch.bfloat16)
    parameters = trainable_parameters(parts, FinetuneConfig(method="cross_attention"))
    expected = [f"unet.{name}" for name, _ in parts["unet"].named_parameters() if ".attn2." in name]
    assert list(parameters) == expected
    assert expected
    assert in_float32_all_of_them(parameters)
    assert {name for name, p in parts["unet"].named_parameters() if p.requires_grad} == {
        name.removeprefix("unet.") for name in expected
    }
    assert gradients(parts, parameters).keys() == parameters.keys()


def adapter_names(part: str, module: nn.Module, ends: tuple[str, ...]) -> set[str]:
    modules = [name for name, _ in module.named_modules() if name.endswith(ends)]
    return {f"{part}.{name}.lora_{side}.default.weight" for name in modules for side in "AB"}


def test_lora_trains_adapters_of_half_precision_parts_in_float32(parts: Parts) -> None:
    before = torch.random.get_rng_state()
    parts = {name: part.to(torch.bfloat16) for name, part in parts.items()}
    expected = adapter_names("unet", parts["unet"], (".to_q", ".to_k", ".to_v", ".to_out.0"))
    parameters = trainable_parameters(parts, FinetuneConfig(method="lora", rank=2, lora_alpha=4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert set(parameters) == expected
    assert {".attn1." in name for name in expected} == {True, False}
    assert in_float32_all_of_them(parameters)
    assert parts["unet"].conv_in.weight.dtype == torch.bfloat16
    assert not getattr(parts["text_encoder"], "peft_config", None)
    assert parts["unet"].peft_config["default"].lora_alpha == 4
    assert gradients(parts, parameters).keys() == parameters.keys()
    with pytest.raises(UserError, match="unet carries adapters already"):
        trainable_parameters(parts, FinetuneConfig(method="lora"))


def test_what_lies_frozen_under_adapters_is_halved_where_bf16_is_asked_for(parts: Parts) -> None:
    config = FinetuneConfig(method="lora", mixed_precision="bf16", train_text_encoder=True)
    parameters = trainable_parameters(parts, config)
    assert in_float32_all_of_them(parameters)
    own = {id(parameter) for parameter in parameters.values()}
    frozen = {name: {p.dtype for p in part.parameters() if id(p) not in own} for name, part in parts.items()}
    # Text encoders stay as they are: their embeddings are made once, outside autocast.
    assert frozen == {"unet": {torch.bfloat16}, "text_encoder": {torch.float32}}
    assert gradients(parts, parameters).keys() == parameters.keys()
    whole = trainable_parameters({"unet": parts["unet"].float()}, FinetuneConfig(mixed_precision="bf16"))
    assert in_float32_all_of_them(whole)


def test_text_encoders_get_adapters_too_and_the_unet_starts_as_without(parts: Parts, tiny_pipeline: Path) -> None:
    alone = {"unet": UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")}
    config = {"method": "lora", "rank": 2, "seed": 3}
    expected = trainable_parameters(alone, FinetuneConfig(**config))
    text = adapter_names("text_encoder", parts["text_encoder"], (".q_proj", ".k_proj", ".v_proj", ".out_proj"))
    parameters = trainable_parameters(parts, FinetuneConfig(**config, train_text_encoder=True))
    assert list(parameters)[: len(expected)] == list(expected)
    assert set(parameters) - set(expected) == text
    assert text
    assert all(torch.equal(parameters[name], p) for name, p in expected.items())
    assert parts["text_encoder"].peft_config["default"].r == 2
    # B starts at zero, so that the first step moves every B, of both parts, and no A.
    moved = {name for name, gradient in gradients(parts, parameters).items() if gradient.abs().max() > 0}
    assert {name for name in parameters if ".lora_B." in name} == moved


def test_dora_and_other_modules_on_request(parts: Parts) -> None:
    targets = ["proj_in", "ff.net.2", "conv1"]
    config = FinetuneConfig(method="lora", rank=2, use_dora=True, lora_target_modules=targets)
    before = forward(parts)
    parameters = trainable_parameters(parts, config)
    modules = {name.split(".lora_")[0] for name in parameters}
    expected = {
        f"unet.{name.removesuffix('.base_layer')}"
        for name, _ in parts["unet"].named_modules()
        if name.removesuffix(".base_layer").endswith(tuple(f".{target}" for target in targets))
    }
    assert modules == expected
    assert {name.rsplit(".lora_", 1)[1].split(".")[0] for name in parameters} == {"A", "B", "magnitude_vector"}
    torch.testing.assert_close(forward(parts), before, atol=1e-5, rtol=1e-4)
    assert gradients(parts, parameters).keys() == parameters.keys()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["to_q", "to_qq"], "'to_qq' names no linear layer or convolution of UNet2DConditionModel; the nearest"),
        (["to_out"], "nearest names are to_out.0"),
        (["attn1"], "'attn1' names no linear layer"),
        (["0"], "'0' names no linear layer"),
        (["zzzz"], "there are"),
    ],
)
def test_targets_that_match_nothing_are_named_and_nothing_is_changed(
    parts: Parts, targets: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        trainable_parameters(parts, FinetuneConfig(method="lora", lora_target_modules=targets))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "'to_q'" not in str(caught.value)
    assert not getattr(parts["unet"], "peft_config", None)
    assert all(p.requires_grad for p in parts["unet"].parameters())


@pytest.mark.parametrize("method", ["full", "cross_attention", "lora"])
def test_checkpointed_gradients_are_the_gradients(tiny_pipeline: Path, method: Any) -> None:
    found = []
    for checkpointing in (False, True):
        parts: Parts = {
            "unet": UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet").train(),
            "text_encoder": CLIPTextModel.from_pretrained(tiny_pipeline, subfolder="text_encoder").train(),
        }
        config = FinetuneConfig(
            method=method, gradient_checkpointing=checkpointing, train_text_encoder=method == "lora", rank=2
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parameters = trainable_parameters(parts, config)
        assert parts["unet"].is_gradient_checkpointing == checkpointing
        assert parts["text_encoder"].is_gradient_checkpointing == (checkpointing and method == "lora")
        found.append(gradients(parts, parameters))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def exact() -> Parts:
    return {"network": MixtureDenoiser({"": Mixture.gaussian(np.zeros(3), np.ones(3))})}


def test_a_learner_without_text_encoders_is_trained_in_full() -> None:
    parts = exact()
    parameters = trainable_parameters(parts, FinetuneConfig())
    assert list(parameters) == ["network.means.0"]
    assert in_float32_all_of_them(parameters)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lora"}, "takes no adapters; use method=full"),
        ({"method": "cross_attention"}, "no module attn2; use method=full"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing: MixtureDenoiser"),
    ],
)
def test_a_network_says_what_it_cannot_do(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainable_parameters(exact(), FinetuneConfig(**settings))


def test_text_encoders_must_be_there_to_be_trained(parts: Parts) -> None:
    with pytest.raises(UserError, match="has no text encoder"):
        trainable_parameters({"unet": parts["unet"]}, FinetuneConfig(method="lora", train_text_encoder=True))


def test_masters_in_half_precision_are_an_error() -> None:
    weight = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="trained weight unet.w is torch.bfloat16"):
        assert_float32({"unet.w": weight})
    with pytest.raises(RuntimeError, match="no trainable parameter"):
        assert_float32({})


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_text_encoder": True}, "train_text_encoder needs method=lora"),
        ({"use_dora": True, "method": "cross_attention"}, "use_dora needs method=lora"),
        ({"text_encoder_lr": 1e-5}, "text_encoder_lr needs train_text_encoder"),
        ({"text_encoder_lr": 0.0}, "text_encoder_lr must be above 0"),
        ({"snr_gamma": 0.0}, "snr_gamma must be above 0"),
        ({"snr_gamma": float("nan")}, "snr_gamma must be above 0"),
        ({"noise_offset": -0.1}, "noise_offset must be at least 0"),
        ({"prior_loss_weight": -1.0}, "prior_loss_weight must be at least 0"),
        ({"adam_beta2": 1.0}, "adam_beta2 must be at least 0 and below 1"),
        ({"ema_update_every": 0}, "ema_update_every must be at least 1"),
        ({"max_nonfinite_steps": 0}, "max_nonfinite_steps must be at least 1"),
        ({"num_class_images": 0}, "num_class_images must be at least 1"),
        ({"bucket_reso_steps": 0}, "bucket_reso_steps must be at least 1"),
        ({"min_bucket_reso": 600, "max_bucket_reso": 500}, "must not exceed max_bucket_reso"),
        ({"class_prompt": " "}, "class_prompt is empty"),
        ({"method": "lora", "lora_target_modules": ["to_q", ""]}, "lora_target_modules must name modules"),
        ({"method": "lora", "save_single_file": True}, "save_single_file needs method=full"),
        ({"push_to_hub": True}, "push_to_hub needs hub_model_id"),
        ({"caption_templates": ["a photo"]}, "must contain"),
        ({"caption_templates": ["{caption} {class}"]}, "no other braces"),
        ({"caption_templates": ["{caption.__class__}"]}, "no other braces"),
        ({"caption_templates": ["{caption:>999999999}"]}, "no other braces"),
        ({"caption_templates": ["{caption!r}"]}, "no other braces"),
        ({"caption_templates": ["{caption"]}, "caption_templates"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"use_ema": True, "ema_horizon": 1}, "ema_horizon must be at least 2"),
        ({"stopping": "convergence"}, "needs evaluations"),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 1000}, "must be below max_train_steps"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        FinetuneConfig(**settings)
    assert "\n" not in str(caught.value)


def test_prodigy_has_one_rate() -> None:
    lora: dict[str, Any] = {
        "method": "lora",
        "train_text_encoder": True,
        "optimizer": "prodigy",
        "learning_rate": 1.0,
    }
    FinetuneConfig(**lora, text_encoder_lr=1.0)
    with pytest.raises(ValueError, match="one rate for all weights"):
        FinetuneConfig(**lora, text_encoder_lr=0.5)
