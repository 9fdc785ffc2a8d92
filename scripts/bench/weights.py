"""How much memory and time does solving J δ = ε − ε̂ in a UNet's weights take?

    python scripts/bench/weights.py --unet FOLDER --device cuda --dtype bfloat16 --examples 64 --steps 10 --limit 24
    python scripts/bench/weights.py --unet FOLDER --memory-model       # what that would need, without a GPU

FOLDER holds a UNet's config.json in diffusers' layout; its weights are random, and so are latents, noise and prompt
embeddings (one draw for each example). Vectors are float32 whatever the network computes in. Of num_columns numbers there
are five at a time in LSMR (v, δ, h, h̄, and the new product while Jᵀ u is taken), of num_rows one for each step and six
more.

The memory model runs one product of each kind on tensors without data and adds up what every operation allocates; the
device's own workspaces and fragmentation come on top.
"""

from __future__ import annotations

import argparse
import resource
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from diffusion_sft.files import write_json
from diffusion_sft.learners.linearised import Call, Linearised, Weights
from diffusion_sft.numerics.krylov import effective_rank, least_squares
from diffusion_sft.numerics.noise import normal

NUM_TOKENS = 77
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass
class Product:
    """Calls of one kind."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass
class Timed:
    """A map whose products are timed, and on a GPU their peak memory is read."""

    map: Linearised
    bar: Any
    products: dict[str, Product] = field(default_factory=lambda: {"jvp": Product(), "vjp": Product()})
    peak_bytes: int = 0
    """Of all the time until the last product began."""

    @property
    def num_rows(self) -> int:
        """As the map's."""
        return self.map.num_rows

    @property
    def num_columns(self) -> int:
        """As the map's."""
        return self.map.num_columns

    def jvp(self, columns: torch.Tensor) -> torch.Tensor:
        """J v."""
        return self._timed("jvp", self.map.jvp, columns)

    def vjp(self, rows: torch.Tensor) -> torch.Tensor:
        """Jᵀ u."""
        return self._timed("vjp", self.map.vjp, rows)

    def _timed(self, kind: str, product: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
        on_gpu = given.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        found = product(given)
        if on_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
            self.products[kind].peak_bytes = max(self.products[kind].peak_bytes, peak)
        self.products[kind].seconds.append(time.perf_counter() - start)
        self.bar.update()
        return found


class Allocations(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, those of tensors without data among them."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Items:
    """Inputs of the network, (num_examples, ...), on its device and of its type."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    states: torch.Tensor
    added: dict[str, torch.Tensor]
    noise: torch.Tensor

    def predict(self, call: Call, rows: slice) -> torch.Tensor:
        """ε̂ of these rows, flat float32."""
        more = {"added_cond_kwargs": {name: own[rows] for name, own in self.added.items()}} if self.added else {}
        prediction = call(
            self.noisy[rows],
            self.timesteps[rows],
            encoder_hidden_states=self.states[rows],
            return_dict=False,
            **more,
        )[0]
        return prediction.float().flatten()


def build_unet(chosen: argparse.Namespace) -> nn.Module:
    """The configuration's UNet with random weights, made on the device and in the type from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, chosen.dtype))
    try:
        with torch.device(chosen.device):
            torch.manual_seed(0)
            unet: nn.Module = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(chosen.unet))
            if chosen.subset == "lora":
                # Down and up both random: at an up of zero J knows of nothing but the ups.
                settings = LoraConfig(r=chosen.rank, target_modules=LORA_TARGETS, init_lora_weights=False)
                unet.add_adapter(settings)
    finally:
        torch.set_default_dtype(before)
    unet.requires_grad_(False).eval()
    if chosen.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def chosen_parameters(unet: nn.Module, subset: str) -> dict[str, nn.Parameter]:
    """The weights that may change."""
    words = {"all": "", "cross_attention": ".attn2.", "lora": ".lora_"}[subset]
    return {name: own for name, own in unet.named_parameters() if words in name}


def make_items(unet: Any, chosen: argparse.Namespace) -> Items:
    """One draw of each example; an SDXL is told of images of its own size."""
    config, count, device, dtype = unet.config, chosen.examples, chosen.device, getattr(torch, chosen.dtype)
    shape = (count, config.in_channels, config.sample_size, config.sample_size)

    def random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
        return normal(shape, seed).to(device, dtype)

    added = {}
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        size = float(8 * config.sample_size)
        ids = torch.tensor([size, size, 0, 0, size, size], device=device).repeat(count, 1)
        added = {"text_embeds": random((count, width), 4), "time_ids": ids}
    return Items(
        noisy=random(shape, 1),
        timesteps=torch.linspace(1, 999, count, device=device).long(),
        states=random((count, NUM_TOKENS, config.cross_attention_dim), 2),
        added=added,
        noise=normal(shape, 3).to(device).flatten(),
    )


def linearise(unet: nn.Module, items: Items, chosen: argparse.Namespace) -> Linearised:
    """The equations' Jacobian, a slice of the examples at a time."""
    starts = range(0, chosen.examples, chosen.batch_size)
    batches = [slice(start, min(start + chosen.batch_size, chosen.examples)) for start in starts]
    return Linearised(unet, chosen_parameters(unet, chosen.subset), batches, items.predict)


def adjoint_error(map: Linearised) -> float:
    """|<J v, u> − <v, Jᵀ u>| / (‖J v‖ ‖u‖) of random v and of u along J v."""
    columns = torch.randn(map.num_columns, device=map.weights.device, generator=_generator(map.weights.device))
    image = map.jvp(columns)
    squared = float(image.double().square().sum())
    back = map.vjp(image)
    along = float(torch.dot(columns, back))
    return abs(squared - along) / squared


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(5)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Solve, and tell what it took."""
    if chosen.limit:
        total = torch.cuda.get_device_properties(chosen.device).total_memory
        torch.cuda.set_per_process_memory_fraction(chosen.limit * 1e9 / total)
    unet = build_unet(chosen)
    items = make_items(unet, chosen)
    map = linearise(unet, items, chosen)
    rhs = items.noise - map.values()
    with tqdm(total=2 * chosen.steps + 1, desc="products", disable=None) as bar:
        timed = Timed(map, bar)
        found = least_squares(timed, rhs, num_steps=chosen.steps)
    peak = max(timed.peak_bytes, *(product.peak_bytes for product in timed.products.values()))
    left = float((rhs - map.jvp(found.solution)).norm())
    # A first product of a kind also compiles and chooses kernels.
    seconds = {kind: min(product.seconds) for kind, product in timed.products.items()}
    return {
        "num_columns": map.num_columns,
        "num_rows": map.num_rows,
        "peak_gigabytes": (peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e9,
        "reserved_gigabytes": torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_initialized() else None,
        "peak_of_product_gigabytes": {kind: product.peak_bytes / 1e9 for kind, product in timed.products.items()},
        "seconds_of_product": seconds,
        "relative_residuals": (found.residual_norms / found.residual_norms[0]).tolist(),
        "relative_residual_computed_anew": left / float(rhs.norm()),
        "solution_norms": found.solution_norms.tolist(),
        "ritz": found.ritz.tolist(),
        "effective_rank": effective_rank(found.ritz),
        "stopped": found.stopped,
        "adjoint_error": adjoint_error(map),
    }


def model_memory(chosen: argparse.Namespace) -> dict[str, Any]:
    """What `measure` would need at its peak, by counting allocations of one microbatch on tensors without data."""
    chosen = argparse.Namespace(**vars(chosen) | {"device": "cpu"})
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = build_unet(chosen)
        one = argparse.Namespace(**vars(chosen) | {"examples": min(chosen.examples, chosen.batch_size)})
        map = linearise(unet, make_items(unet, one), one)
        vector = torch.zeros(map.num_columns)
        known = [vector, *unet.parameters()]
        function = map._functions[0]
        with Allocations(known) as values:
            rows = map.weights.values(function)
        everything = Weights(unet, dict(unet.named_parameters()))
        # Where only some weights have tangents, linear layers fail on tensors without data: all of them, less the rest.
        direction = torch.zeros(everything.size)
        with Allocations([*known, direction]) as forward:
            everything.push(function, direction)
        with Allocations([*known, rows]) as backward:
            map.weights.pull(function, rows, vector)
    weights = sum(own.numel() * own.element_size() for own in unet.parameters())
    columns, num_rows = 4 * map.num_columns, len(rows) * chosen.examples // one.examples
    standing = weights + 4 * num_rows * (chosen.steps + 6)
    sizes = [sum(own.numel() * own.element_size() for own in of.parameters) for of in (everything, map.weights)]
    pushed = forward.peak - sizes[0] + sizes[1]
    parts = {"jvp": standing + 4 * columns + pushed, "vjp": standing + 5 * columns + backward.peak}
    return {
        "num_columns": map.num_columns,
        "num_rows": num_rows,
        "weights_gigabytes": weights / 1e9,
        "vector_gigabytes": columns / 1e9,
        "rows_gigabytes": 4 * num_rows * (chosen.steps + 6) / 1e9,
        "values_gigabytes": values.peak / 1e9,
        "forward_gigabytes": pushed / 1e9,
        "backward_gigabytes": backward.peak / 1e9,
        "peak_of_product_gigabytes": {kind: size / 1e9 for kind, size in parts.items()},
        "peak_gigabytes": max(parts.values()) / 1e9,
    }


def show(found: dict[str, Any]) -> None:
    """One figure a line."""
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number:.3f}" for key, number in value.items())
        elif isinstance(value, list):
            value = " ".join(f"{number:.4g}" for number in value)
        elif isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{name:>32}  {value}")


def arguments() -> argparse.Namespace:
    """What to solve, and where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--unet", required=True, help="a folder with a UNet's config.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--subset", default="all", choices=("all", "cross_attention", "lora"))
    parser.add_argument("--rank", type=int, default=4, help="of the adapters, with --subset lora")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", type=float, help="gigabytes of the GPU that may be taken, as on a smaller one")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--memory-model", action="store_true", help="count what would be allocated, and stop")
    parser.add_argument("--output", default="runs/bench/weights.json")
    chosen = parser.parse_args()
    if chosen.memory_model and chosen.subset == "lora":
        parser.error("--memory-model: peft makes no adapters on tensors without data; count another subset")
    return chosen


def main() -> None:
    """Measure or count, print, write."""
    chosen = arguments()
    found = model_memory(chosen) if chosen.memory_model else measure(chosen)
    show(found)
    settings = {name: value for name, value in vars(chosen).items() if name != "output"}
    write_json(Path(chosen.output), {"settings": settings, "torch": torch.__version__, "figures": found})
    print(f"\nwritten to {chosen.output}")


if __name__ == "__main__":
    main()
