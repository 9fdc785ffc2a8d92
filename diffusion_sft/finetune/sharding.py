"""One network over many devices: torch's fully sharded data parallelism (FSDP2), where a whole copy is too large.

Each process keeps a part (some rows) of every weight of the network that is trained, of its gradient, its optimiser's
state and its average; the weights of a block are put together while the block runs. It is asked for in accelerate's
way (`accelerate launch` with distributed_type FSDP), and done by torch's `fully_shard`, alike on every device.
accelerate's own preparation is left aside: it refuses CPUs, adds gradients up in half precision, and would shard the
frozen text encoders, which are also called outside the network's `forward`.

A *part* below is a plain tensor: this process's rows of a weight, or all of a weight that is not sharded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UserError
from ..processes import is_main, process_count
from .config import FinetuneConfig

ASKED = "ACCELERATE_USE_FSDP"
"""What `accelerate launch` sets under distributed_type FSDP; its settings come as FSDP_<NAME>."""


def sharding_asked(num_processes: int | None = None) -> bool:
    """Whether the launcher asks for sharding, and there is more than one process to shard over.

    Args:
        num_processes: of a run that is only planned; None: of this one.
    """
    return bool(parse_flag_from_env(ASKED)) and (num_processes or process_count()) > 1


def check_sharding(config: FinetuneConfig, precision: str) -> None:
    """Raise UserError where sharding is asked for together with what it does not do here.

    Args:
        precision: accelerate's mixed_precision.
    """
    if not sharding_asked():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "fsdp_version: this program shards with version 2; set fsdp_version: 2 in accelerate's config"
        )
    for name, instead in {
        "offload_params": "the weights stay on their devices",
        "activation_checkpointing": "set gradient_checkpointing=true here",
    }.items():
        if parse_flag_from_env(f"FSDP_{name.upper()}"):
            raise UserError(f"fsdp_{name}: {instead}; set fsdp_{name}: false in accelerate's config")
    if config.method == "lora":
        raise UserError("method=lora: adapters are small and are not sharded; launch with distributed_type MULTI_GPU")
    if config.compile_mode is not None:
        raise UserError("compile_mode: a sharded network is not compiled; set compile_mode=null")
    if config.optimizer != "adamw":
        raise UserError(f"optimizer={config.optimizer}: only adamw's state can be sharded; set optimizer=adamw")
    if precision == "fp16":
        raise UserError("mixed_precision=fp16: gradients are not scaled where weights are sharded; use bf16 or no")


def shard(
    parts: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter], precision: str
) -> dict[str, nn.Parameter]:
    """Shard the part that is trained, in place, over all processes, which hold the same weights before.

    Blocks that the libraries call indivisible (`_no_split_modules` of diffusers and transformers) are put together one
    at a time, the rest of the part once for each pass. Under bf16 they are put together in bf16, which is what autocast
    would make of them and then keep until the backward pass; the weights themselves and the sums of gradients stay
    float32.

    Args:
        parts: of a learner, the trained one first.
        parameters: trained weights as `trainable_parameters` names them, on the device they are to stay on.
        precision: accelerate's mixed_precision, no or bf16.

    Returns:
        The same names with the sharded weights, which are other objects.
    """
    name, part = next(iter(parts.items()))
    device = next(iter(parameters.values())).device
    mesh = init_device_mesh(device.type, (process_count(),))
    part.to(memory_format=torch.contiguous_format)  # sharded weights have no other
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    blocks = set(getattr(part, "_no_split_modules", None) or ())
    inner = [module for module in part.modules() if module is not part and type(module).__name__ in blocks]
    for module in (*reversed(inner), part):  # `modules` has outer ones first; those go last
        fully_shard(module, mesh=mesh, reshard_after_forward=module is not part, mp_policy=policy)
    found = dict(part.named_parameters())
    return {key: found[key.removeprefix(f"{name}.")] for key in parameters}


def is_sharded(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether any of them is sharded, so that all processes must take part in what needs whole ones."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part, detached, in the memory of the tensor itself."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """All parts of a sharded tensor together; every process must ask for it.

    Args:
        tensor: sharded, or a part, or a plain tensor.
        like: what `tensor` is a part of.
    """
    tensor = tensor.detach()
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        local, mesh, shape = tensor.to(like.device), like.device_mesh, like.shape
        tensor = DTensor.from_local(local, mesh, like.placements, run_check=False, shape=shape, stride=like.stride())
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on every process, sharded as another one of its shape; as it is where that is not."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    # Without a source each process takes its rows of its own copy, and nothing is sent.
    here = tensor.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None).detach().clone()


def total(partial: torch.Tensor, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """A sum over the parts of these tensors, from each process's own; the same number on every process."""
    if is_sharded(tensors):
        all_reduce(partial)
    return partial


@contextmanager
def whole_weights(network: nn.Module) -> Iterator[None]:
    """Every process holds all weights inside the block, so that each may run the network as often as it likes.

    Processes ask different numbers of questions, and one alone draws validation pictures; sharded, every forward pass
    would have to be made by all.
    """
    units = [module for module in network.modules() if isinstance(module, FSDPModule)]
    resharding = units[1:]  # all but the outermost, which is resharded after the backward pass only
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            unit.reshard()
        for unit in resharding:
            unit.set_reshard_after_forward(True, recurse=False)


@contextmanager
def whole_on_main(network: nn.Module) -> Iterator[None]:
    """The main process's network holds whole plain weights in the CPU's memory inside the block, as exports read it.

    Every process must come here; only the main one may look at its network inside.
    """
    slots = [
        (module, name, parameter)
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    kinds = {module: type(module) for module in network.modules() if isinstance(module, FSDPModule)}
    plain: dict[nn.Parameter, nn.Parameter | None] = {}
    try:
        for module, name, parameter in slots:
            if parameter not in plain:
                gathered = whole(parameter)
                plain[parameter] = nn.Parameter(gathered.cpu(), requires_grad=False) if is_main() else None
            if (replacement := plain[parameter]) is not None:
                setattr(module, name, replacement)
        for module, kind in kinds.items():
            # `fully_shard` puts a class of its own before the module's, whose name would stand in what is saved.
            module.__class__ = kind.__mro__[2]
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
        for module, name, parameter in slots:
            setattr(module, name, parameter)
