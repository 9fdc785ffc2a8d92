"""LoRA files of diffusers' and of kohya's naming: every module finds its place, at the strength the file says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion_sft.errors import UserError
from diffusion_sft.learners.adapters import KOHYA_FILE, LORA_FILE, save_lora
from diffusion_sft.learners.loading import LoadedPipeline, load_lora, load_pipeline
from diffusion_sft.numerics.noise import normal

ARCHITECTURES = ("sd1", "sd2", "sdxl")
PARTS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_pipeline(root / name, name) for name in ARCHITECTURES}


def load(base: Path) -> LoadedPipeline:
    return load_pipeline(str(base))


def merged(layer: Any) -> torch.Tensor:
    """The weight that an adapted layer acts with."""
    return layer.base_layer.weight + layer.get_delta_weight("default_0")


# Part, module, its name for kohya's trainer, rank, alpha (None: not in the file).
UNET, TEXT, TEXT_2 = PARTS
KOHYA: dict[str, list[tuple[str, str, str, int, float | None]]] = {
    "sd1": [
        (UNET, "mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in", 2, 1.0),
        (UNET, "down_blocks.0.attentions.0.proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in", 4, 8.0),
        (UNET, "down_blocks.0.resnets.0.conv1", "lora_unet_down_blocks_0_resnets_0_conv1", 2, None),
        (TEXT, "encoder.layers.1.self_attn.q_proj", "lora_te_text_model_encoder_layers_1_self_attn_q_proj", 3, 6.0),
        (TEXT, "encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1", 2, 1.0),
    ],
    "sd2": [
        (UNET, "up_blocks.1.attentions.1.proj_out", "lora_unet_up_blocks_1_attentions_1_proj_out", 2, 4.0),
        (TEXT, "encoder.layers.0.self_attn.v_proj", "lora_te_text_model_encoder_layers_0_self_attn_v_proj", 2, 1.0),
    ],
    "sdxl": [
        # The first two by diffusers' path, the next two by the original one, which kohya's trainer writes.
        (UNET, "conv_out", "lora_unet_conv_out", 2, 5.0),
        (UNET, "down_blocks.1.attentions.0.proj_out", "lora_unet_down_blocks_1_attentions_0_proj_out", 2, 1.0),
        (UNET, "mid_block.attentions.0.proj_in", "lora_unet_middle_block_1_proj_in", 4, 2.0),
        (UNET, "up_blocks.0.attentions.1.proj_in", "lora_unet_output_blocks_1_1_proj_in", 2, 6.0),
        (TEXT, "encoder.layers.0.self_attn.k_proj", "lora_te1_text_model_encoder_layers_0_self_attn_k_proj", 2, 1.0),
        (TEXT_2, "text_model.encoder.layers.1.mlp.fc2", "lora_te2_text_model_encoder_layers_1_mlp_fc2", 3, 9.0),
    ],
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kohyas_names_are_found_and_scaled_by_alpha(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    plain, pipeline = load(bases[architecture]).pipeline, load(bases[architecture]).pipeline
    tensors, expected = {}, {}
    for number, (part, path, name, rank, alpha) in enumerate(KOHYA[architecture]):
        weight = getattr(plain, part).get_submodule(path).weight
        down = normal((rank, *weight.shape[1:]), 2 * number)
        up = normal((weight.shape[0], rank, *[1] * (weight.ndim - 2)), 2 * number + 1)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        change = torch.einsum("or,ri...->oi...", up.flatten(1), down)
        expected[part, path] = weight + (1.0 if alpha is None else alpha / rank) * change
    save_file(tensors, tmp_path / "lora.safetensors")
    load_lora(pipeline, tmp_path / "lora.safetensors")
    for (part, path), weight in expected.items():
        torch.testing.assert_close(merged(getattr(pipeline, part).get_submodule(path)), weight)
    for part in PARTS:
        if hasattr(plain, part):
            adapted = [name for name, module in getattr(pipeline, part).named_modules() if hasattr(module, "lora_A")]
            assert sorted(adapted) == sorted(path for other, path in expected if other == part)


def adapted(loaded: LoadedPipeline, use_dora: bool = False, **targets: list[str]) -> LoadedPipeline:
    """Adapters of rank 4 and lora_alpha 6 with weights of their own."""
    for part, names in targets.items():
        network = getattr(loaded.pipeline, part, None)
        if network is not None:
            config = LoraConfig(r=4, lora_alpha=6, target_modules=names, use_dora=use_dora)
            network.add_adapter(config, "default_0")
            with torch.no_grad():
                for index, (name, parameter) in enumerate(network.named_parameters()):
                    if "lora_magnitude" in name:
                        parameter.mul_(1 + 0.1 * normal(parameter.shape, index))
                    elif "lora_" in name:
                        parameter.copy_(0.1 * normal(parameter.shape, index))
    return loaded


SAVED = [
    # Every file of the small ones, SDXL's once with DoRA and once without; all of it: pytest -m slow.
    pytest.param(*found, marks=[pytest.mark.slow] if (found[1] or place > 12) and (place // 6 + place) % 3 else [])
    for place, found in enumerate(itertools.product(ARCHITECTURES, (False, True), (LORA_FILE, KOHYA_FILE, "")))
]


@pytest.mark.parametrize(("architecture", "use_dora", "file"), SAVED)
def test_what_was_saved_comes_back(
    architecture: str, use_dora: bool, file: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    # A text encoder's q_proj alone: diffusers' own conversion of kohya's names would drop it.
    texts = {} if use_dora else {"text_encoder": ["q_proj", "fc1"], "text_encoder_2": ["q_proj"]}
    source = adapted(load(bases[architecture]), use_dora, unet=["to_q", "to_out.0", "conv1"], **texts)
    save_lora(source, tmp_path, {})
    pipeline = load(bases[architecture]).pipeline
    load_lora(pipeline, tmp_path / file)
    for part in PARTS:
        if hasattr(pipeline, part):
            ours, theirs = getattr(pipeline, part), getattr(source.pipeline, part)
            assert ours.state_dict().keys() == theirs.state_dict().keys()
            for name, value in ours.state_dict().items():
                torch.testing.assert_close(value, theirs.state_dict()[name], msg=f"{part}.{name}")
            scales = {path: layer.scaling for path, layer in theirs.named_modules() if hasattr(layer, "scaling")}
            for path, scaling in scales.items():
                if isinstance(scaling, dict) and scaling:
                    assert ours.get_submodule(path).scaling == scaling


OLD = [
    # What diffusers wrote before 0.17, and from then on.
    ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight", "to_q"),
    ("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.{}.weight", "to_out.0"),
    ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v.lora.{}.weight", "to_v"),
    ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{}.weight", "q_proj"),
    ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{}.weight", "q_proj"),
]


@pytest.mark.parametrize(("name", "module"), OLD)
def test_diffusers_older_names_are_read(name: str, module: str, bases: dict[str, Path], tmp_path: Path) -> None:
    pipeline = load(bases["sd1"]).pipeline
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    place = pipeline.text_encoder.encoder.layers[0].self_attn if module == "q_proj" else attention
    up, down = normal((16, 2), 0), normal((2, 16), 1)
    expected = place.get_submodule(module).weight + up @ down
    save_file({name.format("up"): up, name.format("down"): down}, tmp_path / "lora.safetensors")
    load_lora(pipeline, tmp_path / "lora.safetensors")
    torch.testing.assert_close(merged(place.get_submodule(module)), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_diffusers_own_loader_agrees_where_it_reads_all(
    architecture: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    source, pipeline = load(bases[architecture]).pipeline, load(bases[architecture]).pipeline
    generator = torch.Generator().manual_seed(0)
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    source.unet.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=names, init_lora_weights="gaussian"))
    layers = {name: torch.randn(value.shape, generator=generator) for name, value in _layers(source.unet).items()}
    type(source).save_lora_weights(
        tmp_path,
        unet_lora_layers=layers,
        unet_lora_adapter_metadata={"r": 2, "lora_alpha": 5, "target_modules": names},
    )
    theirs = load(bases[architecture]).pipeline
    theirs.load_lora_weights(tmp_path)
    load_lora(pipeline, tmp_path)
    assert pipeline.unet.state_dict().keys() == theirs.unet.state_dict().keys()
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, theirs.unet.state_dict()[name]), name
    layer = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    assert layer.scaling == {"default_0": 2.5}


def _layers(unet: Any) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(unet, adapter_name="default")


def refusal(pipeline: Any, file: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_lora(pipeline, file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{file}")
    return message


@pytest.mark.parametrize("file", [LORA_FILE, KOHYA_FILE])
def test_adapters_of_another_architecture_are_refused(file: str, bases: dict[str, Path], tmp_path: Path) -> None:
    save_lora(adapted(load(bases["sdxl"]), unet=["to_q", "to_k"]), tmp_path, {})
    refusal(load(bases["sd1"]).pipeline, tmp_path / file)
    other = tmp_path / "other"
    other.mkdir()
    save_lora(adapted(load(bases["sd1"]), unet=["to_q", "to_k"]), other, {})
    refusal(load(bases["sdxl"]).pipeline, other / file)


def test_files_that_are_no_adapters_are_named(bases: dict[str, Path], tmp_path: Path) -> None:
    pipeline = load(bases["sd1"]).pipeline
    assert "no such LoRA file" in refusal(pipeline, tmp_path / "nowhere")
    pickled = tmp_path / "pytorch_lora_weights.bin"
    pickled.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert "pickled" in refusal(pipeline, pickled)
    assert "no LoRA weights" in refusal(pipeline, bases["sd1"] / "unet" / "diffusion_pytorch_model.safetensors")
    name = "lora_unet_mid_block_attentions_0_proj_in"
    good = {f"{name}.lora_down.weight": torch.ones(2, 16, 1, 1), f"{name}.lora_up.weight": torch.ones(16, 2, 1, 1)}
    cases = {
        "LoHa": (good | {f"{name}.hada_w1_a": torch.ones(2, 2)}, "no plain LoRA"),
        "unknown": (
            good | {"lora_unet_nowhere.lora_down.weight": torch.ones(2, 2)},
            "lora_unet_nowhere is no module",
        ),
        "shape": (good | {f"{name}.lora_up.weight": torch.ones(8, 2, 1, 1)}, "has shape (8, 2, 1, 1)"),
        "half": ({f"{name}.lora_down.weight": torch.ones(2, 16, 1, 1)}, "no up matrix"),
        "second": ({"text_encoder_2.x.lora_A.weight": torch.ones(2, 2)}, "this pipeline has no text_encoder_2"),
        "path": ({"unet.nowhere.lora_A.weight": torch.ones(2, 2)}, "nowhere is no module"),
        "bias": ({"unet.conv_in.lora_B.bias": torch.ones(2)}, "no LoRA or DoRA weight"),
    }
    for case, (tensors, expected) in cases.items():
        file = tmp_path / f"{case}.safetensors"
        save_file(tensors, file)
        assert expected in refusal(pipeline, file), case
    assert not any(hasattr(module, "lora_A") for module in pipeline.unet.modules())
    file = tmp_path / "cut.safetensors"
    save_file(good, file)
    file.write_bytes(file.read_bytes()[:-10])
    assert "fetch it again" in refusal(pipeline, file)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 40\n")
    assert "git lfs pull" in refusal(pipeline, file)


def test_linear_layers_stored_as_convolutions_fit(bases: dict[str, Path], tmp_path: Path) -> None:
    # SD 2's proj_in is linear; some trainers store it as SD 1's 1x1 convolution.
    pipeline = load(bases["sd2"]).pipeline
    layer = pipeline.unet.mid_block.attentions[0].proj_in
    assert isinstance(layer, nn.Linear)
    expected = layer.weight + normal((16, 2), 1) @ normal((2, 16), 0)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": normal((2, 16), 0)[:, :, None, None],
        f"{name}.lora_up.weight": normal((16, 2), 1)[:, :, None, None].contiguous(),
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "lora.safetensors")
    load_lora(pipeline, tmp_path / "lora.safetensors")
    torch.testing.assert_close(merged(pipeline.unet.mid_block.attentions[0].proj_in), expected)
    assert set(load_file(tmp_path / "lora.safetensors")) == set(tensors)
