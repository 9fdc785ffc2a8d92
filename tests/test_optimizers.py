"""The optimisers: groups and rates, storable state, resuming exactly, and one line where a package is missing."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion_sft.errors import UserError
from diffusion_sft.finetune.config import FinetuneConfig
from diffusion_sft.finetune.optimizers import make_optimizer

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
RATES = {"prodigy": 1.0}
SHAPES = {"unet.a.weight": (80, 70), "unet.a.bias": (70,), "unet.b.weight": (3, 5, 2, 2), "unet.c": (1,)}
"""One large enough for bitsandbytes to keep 8 bits of, and others of one to four dimensions."""


def config_of(name: str, **settings: Any) -> FinetuneConfig:
    return FinetuneConfig(**({"optimizer": name, "learning_rate": RATES.get(name, 1e-2)} | settings))


def available(name: str) -> None:
    if name in PACKAGES:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            pytest.skip(f"{PACKAGES[name]} is not installed")
        with warnings.catch_warnings():  # what a package does on its first import is its own affair
            warnings.simplefilter("ignore")
            importlib.import_module(PACKAGES[name])


def weights(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def one_step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, update: int) -> None:
    """A gradient that depends on the weights and the update."""
    generator = torch.Generator().manual_seed(update)
    for parameter in parameters.values():
        parameter.grad = parameter.detach() - torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def stored(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, Any]:
    """The state through a safetensors file and a JSON text, as a checkpoint holds it."""
    tensors, rest = {}, {}
    for index, parameter in enumerate(parameters.values()):
        for kind, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{kind}"] = value.contiguous().clone()  # bitsandbytes shares its code tables
            else:
                rest[f"{index}/{kind}"] = value
    save_file(tensors, folder / "optimizer.safetensors")
    text = json.dumps({"rest": rest, "param_groups": optimizer.state_dict()["param_groups"]})
    read = json.loads(text)
    states: dict[int, dict[str, Any]] = {}
    for key, value in (load_file(folder / "optimizer.safetensors") | read["rest"]).items():
        index, kind = key.split("/", 1)
        states.setdefault(int(index), {})[kind] = value
    return {"state": states, "param_groups": read["param_groups"]}


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "prodigy"])
def test_a_stopped_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    available(name)
    parameters = weights()
    optimizer = make_optimizer(parameters, config_of(name))
    for update in range(1, 8):
        one_step(parameters, optimizer, update)
    state, held = (
        stored(parameters, optimizer, tmp_path),
        {n: nn.Parameter(p.detach().clone()) for n, p in parameters.items()},
    )
    resumed = make_optimizer(held, config_of(name))
    resumed.load_state_dict(state)
    for update in range(8, 15):
        one_step(parameters, optimizer, update)
        one_step(held, resumed, update)
        for key, parameter in parameters.items():
            assert torch.equal(parameter, held[key]), (update, key)
    # A fresh state would have gone elsewhere: what is stored matters.
    fresh = {n: nn.Parameter(p.detach().clone()) for n, p in weights().items()}
    for key, parameter in fresh.items():
        assert not torch.equal(parameter, parameters[key])


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "prodigy"])
def test_state_is_float32_and_every_rest_is_json(name: str) -> None:
    available(name)
    parameters = weights()
    optimizer = make_optimizer(parameters, config_of(name))
    one_step(parameters, optimizer, 1)
    for values in optimizer.state.values():
        for kind, value in values.items():
            if isinstance(value, torch.Tensor):
                eight_bits = name == "adamw8bit" and value.dtype == torch.uint8
                assert value.dtype == torch.float32 or eight_bits, kind
            else:
                assert isinstance(value, (int, float)), kind
    if name == "adamw8bit":
        assert any(
            v.dtype == torch.uint8
            for v in optimizer.state[parameters["unet.a.weight"]].values()
            if torch.is_tensor(v)
        )
    assert {p.dtype for p in parameters.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "prodigy"])
def test_they_find_a_minimum(name: str) -> None:
    available(name)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 64))
    target = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    optimizer = make_optimizer({"unet.w": weight}, config_of(name, adam_weight_decay=0.0))
    for _ in range(600):
        weight.grad = (weight - target).detach()
        optimizer.step()
    assert (weight - target).square().mean() < 0.02 * target.square().mean()


def test_adamw_is_torchs_with_the_settings() -> None:
    config = config_of("adamw", adam_beta1=0.8, adam_beta2=0.95, adam_weight_decay=0.1, adam_epsilon=1e-6)
    ours, theirs = weights(), weights()
    mine = make_optimizer(ours, config)
    reference = torch.optim.AdamW(list(theirs.values()), lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6)
    for update in range(1, 6):
        one_step(ours, mine, update)
        one_step(theirs, reference, update)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_adafactor_moves_at_the_rate_of_the_run() -> None:
    """Without relative steps and parameter scaling, and with the first update's mean square clipped to one."""
    weight = nn.Parameter(torch.full((4, 6), 100.0))
    optimizer = make_optimizer({"unet.w": weight}, config_of("adafactor", adam_weight_decay=0.0))
    weight.grad = torch.full((4, 6), -3.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 6), 100.01))


def test_prodigy_stands_a_warm_up_from_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    available("prodigy")
    parameters = weights()
    before = copy.deepcopy(parameters)
    optimizer = make_optimizer(parameters, config_of("prodigy"))
    assert capsys.readouterr().out == ""
    for update, rate in enumerate((0.0, 0.5, 1.0), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        one_step(parameters, optimizer, update)
        moved = any(not torch.equal(p, before[name]) for name, p in parameters.items())
        assert moved == (rate > 0)


def both(config: FinetuneConfig) -> torch.optim.Optimizer:
    parameters = {
        name: nn.Parameter(torch.zeros(2)) for name in ("unet.a", "unet.b", "text_encoder.a", "text_encoder_2.a")
    }
    return make_optimizer(parameters, config)


def test_text_encoders_are_a_group_of_their_own_rate() -> None:
    lora: dict[str, Any] = {"method": "lora", "train_text_encoder": True, "learning_rate": 1e-4}
    groups = both(FinetuneConfig(**lora, text_encoder_lr=2e-5)).param_groups
    assert [len(group["params"]) for group in groups] == [2, 2]
    assert [group["lr_scale"] for group in groups] == pytest.approx([1.0, 0.2])
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 2e-5])
    assert [group["lr_scale"] for group in both(FinetuneConfig(**lora)).param_groups] == [1.0, 1.0]
    alone = make_optimizer({"network.w": nn.Parameter(torch.zeros(2))}, FinetuneConfig())
    assert [len(group["params"]) for group in alone.param_groups] == [1]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[name]
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)

    class Nowhere:
        @staticmethod
        def find_spec(wanted: str, *_: Any) -> None:
            if wanted.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {wanted!r}", name=package)

    monkeypatch.setattr(sys, "meta_path", [Nowhere(), *sys.meta_path])
    with pytest.raises(UserError) as caught:
        make_optimizer(weights(), config_of(name))
    assert str(caught.value) == f"optimizer={name} needs the package {package}: pip install {package}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adamw_is_fused_on_a_gpu() -> None:
    parameters = {name: nn.Parameter(p.detach().cuda()) for name, p in weights().items()}
    optimizer = make_optimizer(parameters, config_of("adamw"))
    assert optimizer.param_groups[0]["fused"] is True
    one = {name: nn.Parameter(p.detach().cpu().clone()) for name, p in parameters.items()}
    reference = make_optimizer(one, config_of("adamw"))
    for name, parameter in parameters.items():
        parameter.grad, one[name].grad = torch.ones_like(parameter), torch.ones_like(one[name])
    optimizer.step()
    reference.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.cpu(), one[name])
