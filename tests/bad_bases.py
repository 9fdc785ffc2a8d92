"""Bases that nobody should hand in: pipelines, their weights, single files, adapters, and language models."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from architectures import read_json, tiny_pipeline, write_json
from bad_inputs import BadInput
from language_models import tiny_folder
from safetensors.torch import load_file, save_file

from diffusion_sft.learners.exporting import save_single_file
from diffusion_sft.learners.loading import load_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
START = "model.diffusion_model.input_blocks.0.0.weight"
PICKLE = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."
"""Runs a program when it is unpickled."""

Spoil = Callable[[Path], Any]
_KEPT: list[Any] = []


@cache
def whole(kind: str) -> Path:
    """A base with nothing wrong with it, made once: sd1, sdxl, language, or sd1.safetensors."""
    place = tempfile.TemporaryDirectory(prefix="diffusion-sft-bases-")
    _KEPT.append(place)
    folder = Path(place.name) / kind
    if kind == "language":
        return tiny_folder(folder)
    if kind.endswith(".safetensors"):
        save_single_file(load_pipeline(str(whole(kind.removesuffix(".safetensors")))), folder, {})
        return folder
    return tiny_pipeline(folder, kind)


def drawing(base: Path, *more: str) -> list[str]:
    """The words that draw one picture with a base."""
    words = ["generate", f"pretrained_model_name_or_path={base}", f"output_dir={base.parent / 'out'}", "device=cpu"]
    return [*words, "num_images=1", "num_inference_steps=1", *more]


def spoilt(kind: str, spoil: Spoil) -> Callable[[Path], Sequence[str]]:
    """A copy of a whole pipeline with one thing wrong with it, to be drawn with."""

    def make(folder: Path) -> Sequence[str]:
        base = Path(shutil.copytree(whole(kind), folder / "base"))
        spoil(base)
        return drawing(base)

    return make


def change(file: str, **entries: Any) -> Spoil:
    """Set entries of a JSON file."""
    return lambda base: write_json(base / file, read_json(base / file) | entries)


def drop(file: str, *names: str) -> Spoil:
    """Remove entries of a JSON file."""
    return lambda base: write_json(base / file, {k: v for k, v in read_json(base / file).items() if k not in names})


def remove(name: str) -> Spoil:
    """Remove a file or a folder."""
    return lambda base: shutil.rmtree(base / name) if (base / name).is_dir() else (base / name).unlink()


def write(file: str, content: bytes) -> Spoil:
    """Write a file anew."""
    return lambda base: (base / file).write_bytes(content)


def cut(file: str, size: Callable[[int], int]) -> Spoil:
    """Keep the beginning of a file."""

    def spoil(base: Path) -> None:
        content = (base / file).read_bytes()
        (base / file).write_bytes(content[: size(len(content))])

    return spoil


def retensor(file: str, alter: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    """Alter the tensors of a file."""

    def spoil(base: Path) -> None:
        tensors = load_file(base / file)
        alter(tensors)
        save_file(tensors, base / file, metadata={"format": "pt"})

    return spoil


def header(entries: dict[str, Any], length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file of this header, which says that it is so long."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def pickled(file: str) -> Spoil:
    """Put a pickle in the place of the weights."""

    def spoil(base: Path) -> None:
        (base / file).unlink()
        (base / file).with_suffix(".bin").write_bytes(PICKLE)

    return spoil


def put(tensors: dict[str, torch.Tensor], name: str, value: float) -> None:
    """Set a tensor's first number."""
    tensors[name].view(-1)[0] = value


def shards(weight_map: dict[str, Any]) -> Spoil:
    """An index in the place of the UNet's weights."""

    def spoil(base: Path) -> None:
        (base / UNET).unlink()
        write_json(base / f"{UNET}.index.json", {"metadata": {}, "weight_map": weight_map})

    return spoil


def only_variant(base: Path) -> None:
    """All weights under the names of variant fp16."""
    for file in base.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))


def looped(base: Path) -> None:
    """A UNet that is a link to itself."""
    (base / UNET).unlink()
    (base / UNET).symlink_to(base / UNET)


def hostile_module(part: str, entry: str) -> Spoil:
    """A part that is to be loaded by code beside it, which leaves a trace where it is run."""

    def spoil(base: Path) -> None:
        (base / part).mkdir(exist_ok=True)
        trace = f"open({str(base / 'trace')!r}, 'w')\n"
        (base / part / "evil.py").write_text(f"{trace}class Evil:\n    pass\n")
        (base / "evil.py").write_text(trace)
        change("model_index.json", **{entry: ["evil", "Evil"]})(base)

    return spoil


def longer_vocabulary(base: Path) -> None:
    """The tokenizer of another model, which knows a thousand words more."""
    vocabulary = read_json(base / "tokenizer" / "vocab.json")
    write_json(
        base / "tokenizer" / "vocab.json", vocabulary | {f"w{n}</w>": len(vocabulary) + n for n in range(1000)}
    )


PIPELINES: list[tuple[str, str, Spoil, str]] = [
    ("no unet", "sd1", remove("unet"), r"unet.config\.json: no such file"),
    ("no vae", "sd1", remove("vae"), r"vae.config\.json: no such file"),
    ("no tokenizer", "sd1", remove("tokenizer"), r"vocab\.json: missing or unreadable; a tokenizer needs"),
    ("no text encoder", "sd1", remove("text_encoder"), r"text_encoder.config\.json: no such file"),
    ("no scheduler", "sd1", remove("scheduler"), r"scheduler_config\.json: no such file"),
    ("no model_index.json", "sd1", remove("model_index.json"), "not a pipeline folder"),
    ("no weights of the UNet", "sd1", remove(UNET), "unet: no weights in it"),
    ("an SDXL without its second text encoder", "sdxl", remove("text_encoder_2"), r"text_encoder_2.config\.json"),
    (
        "an SDXL whose index names no second encoder",
        "sdxl",
        drop("model_index.json", "text_encoder_2"),
        "text_encoder_2 is nothing, not a CLIPTextModelWithProjection",
    ),
    (
        "the SDXL refiner",
        "sdxl",
        change("model_index.json", text_encoder=[None, None]),
        "the SDXL refiner, which has no first text encoder",
    ),
    (
        "another pipeline",
        "sd1",
        change("model_index.json", _class_name="FluxPipeline"),
        "a FluxPipeline; the text-to-image pipelines of Stable Diffusion",
    ),
    (
        "a program for a pipeline's class",
        "sd1",
        change("model_index.json", _class_name="os.system"),
        r"a os\.system; the text-to-image pipelines",
    ),
    (
        "a UNet that its folder brings code for",
        "sd1",
        hostile_module("unet", "unet"),
        r"unet is evil\.Evil, not a UNet2D",
    ),
    (
        "a scheduler that its folder brings code for",
        "sd1",
        hostile_module("scheduler", "scheduler"),
        "none of diffusers'; use for example",
    ),
    ("a number for the index", "sd1", write("model_index.json", b"5"), "JSON, but no object"),
    ("an index that is no JSON", "sd1", write("model_index.json", b"{"), r"model_index\.json: not valid JSON"),
    ("an index in UTF-16", "sd1", write("model_index.json", '{"a": 1}'.encode("utf-16")), "not valid JSON"),
    ("JSON nested without end", "sd1", write("unet/config.json", b"[" * 100_000), r"config\.json: not valid JSON"),
    (
        "a configuration that is a pipe",
        "sd1",
        lambda b: (remove("unet/config.json")(b), os.mkfifo(b / "unet/config.json"))[1],
        "no plain file",
    ),
    ("weights of variant fp16 alone", "sd1", only_variant, "give variant as in the file's name, for example fp16"),
    ("a UNet that is a link to itself", "sd1", looped, r"unet.*cannot be read"),
]
WEIGHTS: list[tuple[str, str, Spoil, str]] = [
    (
        "a pickled UNet",
        "sd1",
        pickled(UNET),
        r"\.bin: pickled weights, which are never read.*safetensors\.torch\.save_file",
    ),
    ("a pickled text encoder", "sd1", pickled(TEXT), r"model\.bin: pickled weights"),
    ("a pickle that is called safetensors", "sd1", write(UNET, PICKLE), r"safetensors: pickled weights"),
    (
        "a Git-LFS pointer",
        "sd1",
        write(UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    ("an empty weight file", "sd1", cut(UNET, lambda n: 0), "not a whole safetensors file"),
    ("eight bytes of a weight file", "sd1", cut(UNET, lambda n: 8), "not a whole safetensors file"),
    ("half a weight file", "sd1", cut(VAE, lambda n: n // 2), "not a whole safetensors file"),
    ("a header longer than the file", "sd1", write(UNET, header({}, length=1 << 40)), "not a whole safetensors file"),
    (
        "tensors that overlap",
        "sd1",
        write(
            UNET,
            header(
                {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}, data=bytes(8)
            ),
        ),
        "not a whole safetensors file",
    ),
    (
        "a tensor beyond the file's end",
        "sd1",
        write(UNET, header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})),
        "not a whole safetensors file",
    ),
    (
        "integers for weights",
        "sd1",
        retensor(UNET, lambda t: t.update({"conv_in.bias": t["conv_in.bias"].to(torch.int8)})),
        r"conv_in\.bias is of type I8; weights in floating point are needed",
    ),
    (
        "a weight too few",
        "sd1",
        retensor(UNET, lambda t: t.pop("conv_in.bias")),
        r"1 of the network's tensors are not in it, for example conv_in\.bias",
    ),
    (
        "a weight too many",
        "sd1",
        retensor(UNET, lambda t: t.update({"conv_in.extra": torch.zeros(1)})),
        r"1 tensors in it have no place in the network of config\.json, for example conv_in\.extra",
    ),
    (
        "a weight of another shape",
        "sd1",
        retensor(UNET, lambda t: t.update({"conv_in.bias": torch.zeros(9)})),
        "cannot be loaded as a StableDiffusionPipeline",
    ),
    (
        "the VAE's weights in the UNet's place",
        "sd1",
        lambda base: shutil.copyfile(base / VAE, base / UNET),
        r"unet.*(not in it|no place|cannot be loaded)",
    ),
    (
        "NaN among the weights",
        "sd1",
        retensor(UNET, lambda t: put(t, "conv_in.bias", float("nan"))),
        "unet: conv_in.bias holds NaN",
    ),
    (
        "an infinite weight of the VAE",
        "sd1",
        retensor(VAE, lambda t: put(t, "decoder.conv_in.bias", float("inf"))),
        "vae: decoder.conv_in.bias holds NaN or infinite",
    ),
    (
        "shards outside the folder",
        "sd1",
        shards({"a": "../vae/diffusion_pytorch_model.safetensors"}),
        "not an index of safetensors shards beside it",
    ),
    (
        "shards by an absolute path",
        "sd1",
        shards({"a": "/etc/passwd"}),
        "not an index of safetensors shards beside it",
    ),
    (
        "a shard that is not there",
        "sd1",
        shards({"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}),
        "missing, .* lists it",
    ),
    ("an index that names numbers", "sd1", shards({"a": 1}), "not an index of safetensors shards"),
]
SCHEDULER, UNET_CONFIG, VAE_CONFIG = "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"
NUMBERS: list[tuple[str, str, Spoil, str]] = [
    (
        "another prediction type",
        "sd1",
        change(SCHEDULER, prediction_type="flow"),
        "prediction_type 'flow' is none of epsilon",
    ),
    ("no prediction type", "sd1", change(SCHEDULER, prediction_type=None), "prediction_type None is none of epsilon"),
    (
        "an unknown scheduler",
        "sd1",
        change("model_index.json", scheduler=["diffusers", "WonderScheduler"]),
        "WonderScheduler.* is none of diffusers'",
    ),
    (
        "a scheduler that is none",
        "sd1",
        change("model_index.json", scheduler=["diffusers", "UNet2DConditionModel"]),
        "is none of diffusers'",
    ),
    (
        "a scheduler without a discrete schedule",
        "sd1",
        lambda b: (
            change("model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])(b),
            write_json(b / SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}),
        )[1],
        "no discrete noise schedule",
    ),
    (
        "beta_start NaN",
        "sd1",
        change(SCHEDULER, beta_start=float("nan")),
        "beta_start must be a finite number such as",
    ),
    (
        "beta_end in quotes",
        "sd1",
        change(SCHEDULER, beta_end="0.012"),
        r"beta_end must be a finite number .* not '0\.012'",
    ),
    (
        "betas that fall",
        "sd1",
        change(SCHEDULER, beta_start=0.02),
        "beta_start and beta_end must rise between 0 and 1",
    ),
    ("betas above one", "sd1", change(SCHEDULER, beta_end=12), "beta_start and beta_end must rise between 0 and 1"),
    ("an unknown beta schedule", "sd1", change(SCHEDULER, beta_schedule="wavy"), "cannot be loaded .*wavy"),
    (
        "no timesteps",
        "sd1",
        change(SCHEDULER, num_train_timesteps=0),
        r"num_train_timesteps must be an integer from 2 to",
    ),
    (
        "fewer timesteps than none",
        "sd1",
        change(SCHEDULER, num_train_timesteps=-5),
        "num_train_timesteps must be .*not -5",
    ),
    (
        "a billion timesteps",
        "sd1",
        change(SCHEDULER, num_train_timesteps=10**9),
        "num_train_timesteps must be an integer",
    ),
    (
        "steps beyond the last timestep",
        "sd1",
        change(SCHEDULER, steps_offset=5000),
        "steps_offset must be at least 0 and below",
    ),
    (
        "noise predicted from nothing but noise",
        "sd1",
        lambda b: (
            change("model_index.json", scheduler=["diffusers", "DDIMScheduler"])(b),
            change(SCHEDULER, _class_name="DDIMScheduler", rescale_betas_zero_snr=True)(b),
        )[1],
        "its schedule ends in pure noise",
    ),
    (
        "scaling_factor NaN",
        "sd1",
        change(VAE_CONFIG, scaling_factor=float("nan")),
        "scaling_factor must be a finite number",
    ),
    ("scaling_factor 0", "sd1", change(VAE_CONFIG, scaling_factor=0), "scaling_factor must be above 0, not 0"),
    (
        "scaling_factor in quotes",
        "sd1",
        change(VAE_CONFIG, scaling_factor="0.18"),
        "scaling_factor must be a finite number",
    ),
    (
        "an SDXL without scaling_factor",
        "sdxl",
        drop(VAE_CONFIG, "scaling_factor"),
        "no scaling_factor; that of the published",
    ),
    (
        "an inpainting model",
        "sd1",
        change(UNET_CONFIG, in_channels=9),
        "takes 9 channels for 4 of latents .an inpainting",
    ),
    (
        "a UNet that gives more than noise",
        "sd1",
        change(UNET_CONFIG, out_channels=8),
        "gives 8 channels for 4 of latents",
    ),
    (
        "the UNet of an SD 2 with the words of an SD 1",
        "sd1",
        change(UNET_CONFIG, cross_attention_dim=1024),
        "cross_attention_dim is 1024, but the text encoders give words 16 wide",
    ),
    (
        "an SDXL without size conditioning",
        "sdxl",
        change(UNET_CONFIG, addition_embed_type=None),
        "addition_embed_type must be 'text_time'",
    ),
    (
        "an SDXL with another embedding of sizes",
        "sdxl",
        change(UNET_CONFIG, addition_time_embed_dim=256),
        "projection_class_embeddings_input_dim must be",
    ),
    ("a UNet that wants a class", "sd1", change(UNET_CONFIG, class_embed_type="timestep"), "wants more than words"),
    (
        "a billion channels",
        "sd1",
        change(UNET_CONFIG, block_out_channels=[10**9, 10**9]),
        "block_out_channels 1000000000 is larger than anything in its weights",
    ),
    (
        "a million layers",
        "sd1",
        change(UNET_CONFIG, layers_per_block=1000),
        "more layers than its .* weights can fill",
    ),
    (
        "layers in words",
        "sd1",
        change(UNET_CONFIG, layers_per_block="two"),
        "layers_per_block must be a finite number such as",
    ),
    (
        "no size of latents",
        "sd1",
        change(UNET_CONFIG, sample_size=None),
        "sample_size must be the latents' side, not None",
    ),
    (
        "latents of a billion pixels",
        "sd1",
        change(UNET_CONFIG, sample_size=10**9),
        "sample_size 1000000000 is larger",
    ),
    ("blocks of no known kind", "sd1", change(UNET_CONFIG, down_block_types=["Evil", "Evil"]), "cannot be loaded as"),
    (
        "a text encoder that asks for compiled code",
        "sd1",
        change("text_encoder/config.json", attn_implementation="somebody/kernel"),
        "attn_implementation asks for code from elsewhere, which is never run",
    ),
    (
        "a vocabulary of a billion",
        "sd1",
        change("text_encoder/config.json", vocab_size=10**9),
        "vocab_size 1000000000 is larger than anything in its weights",
    ),
]
TOKENIZERS: list[tuple[str, str, Spoil, str]] = [
    ("no merges", "sd1", remove("tokenizer/merges.txt"), r"merges\.txt: missing or unreadable"),
    ("a vocabulary that is no JSON", "sd1", write("tokenizer/vocab.json", b"{"), r"vocab\.json: not valid JSON"),
    ("a vocabulary that is a list", "sd1", write("tokenizer/vocab.json", b"[]"), "tokenizer|cannot be loaded"),
    ("a tokenizer that knows more words than the encoder", "sd1", longer_vocabulary, "they are of different models"),
    (
        "a tokenizer that knows nothing",
        "sd1",
        write("tokenizer/vocab.json", b'{"<|startoftext|>": 0, "<|endoftext|>": 1}'),
        "they are of different models|cannot be loaded",
    ),
    (
        "a tokenizer.json of another shape",
        "sd1",
        write("tokenizer/tokenizer.json", b'{"model": 5}'),
        "cannot be loaded",
    ),
    (
        "captions of no length",
        "sd1",
        change("tokenizer/tokenizer_config.json", model_max_length=0),
        "tokenizer (cannot be used|gives no)",
    ),
    (
        "a length in quotes",
        "sd1",
        change("tokenizer/tokenizer_config.json", model_max_length="77"),
        "tokenizer cannot be used|cannot be loaded",
    ),
]


def plain(*words: str) -> Callable[[Path], Sequence[str]]:
    """A command that needs no input but its words; {} stands for the folder."""
    return lambda folder: [word.replace("{}", str(folder)) for word in words]


def named(base: str) -> Callable[[Path], Sequence[str]]:
    """To draw with a base of this name."""
    return plain("generate", f"pretrained_model_name_or_path={base}", "output_dir={}/out", "device=cpu")


NAMES: list[tuple[str, Callable[[Path], Sequence[str]], str]] = [
    ("a folder that is not there", named("{}/nowhere"), "no such folder; give a pipeline folder"),
    ("a file that is not there", named("{}/nowhere.safetensors"), "no such file"),
    ("a Hub id of three parts", named("a/b/c"), "a/b/c: no such folder; give a pipeline folder"),
    ("a Hub id that cannot be", named("a b/-c"), "a b/-c: no such folder, nor could the Hub give it: Repo id must"),
    ("the home of nobody", named("~nobody-of-this-name/x"), "no path that can be there"),
    ("a name longer than names are", named("x" * 5000), "no path that can be there"),
    ("no name at all", named(chr(34) * 2), "not a pipeline folder"),
    (
        "a revision of a folder",
        lambda folder: [*spoilt("sd1", lambda base: None)(folder), "revision=main"],
        "a folder has no revision",
    ),
    (
        "a variant that is not there",
        lambda folder: [*spoilt("sd1", lambda base: None)(folder), "variant=ema"],
        "no weights of variant ema in it; leave variant out",
    ),
]


def single(
    alter: Callable[[dict[str, torch.Tensor]], Any], name: str = "x.safetensors"
) -> Callable[[Path], Sequence[str]]:
    """To fine-tune a checkpoint in one file, with one thing wrong with it."""

    def make(folder: Path) -> Sequence[str]:
        tensors = load_file(whole("sd1.safetensors"))
        alter(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        return single_words(folder, name)

    return make


def single_words(folder: Path, name: str) -> Sequence[str]:
    """To fine-tune a checkpoint in one file."""
    settings = shutil.copytree(whole("sd1"), folder / "settings", ignore=shutil.ignore_patterns("*.safetensors"))
    words = ["finetune", f"pretrained_model_name_or_path={folder / name}", f"single_file_config={settings}"]
    return [*words, f"concepts.path={folder}", f"output_dir={folder / 'out'}"]


def single_bytes(name: str, content: bytes) -> Callable[[Path], Sequence[str]]:
    """To fine-tune a file of these bytes."""

    def make(folder: Path) -> Sequence[str]:
        (folder / name).write_bytes(content)
        return single_words(folder, name)

    return make


SINGLE: list[tuple[str, Callable[[Path], Sequence[str]], str]] = [
    (
        "a first weight of one dimension",
        single(lambda t: t.update({START: torch.zeros(8)})),
        "is no UNet's first convolution",
    ),
    (
        "an inpainting checkpoint",
        single(lambda t: t.update({START: torch.zeros(8, 9, 3, 3)})),
        "takes 9 channels for 4",
    ),
    (
        "a checkpoint of unknown layout",
        single(lambda t: [t.pop(name) for name in list(t) if name.startswith("model.")]),
        "no model.diffusion_model.* in it; a whole checkpoint of Stable Diffusion",
    ),
    (
        "a checkpoint without a VAE",
        single(lambda t: [t.pop(name) for name in list(t) if name.startswith("first_stage_model.")]),
        "no VAE in it",
    ),
    (
        "a checkpoint without a text encoder",
        single(lambda t: [t.pop(name) for name in list(t) if name.startswith("cond_stage_model.")]),
        "no text encoder in it",
    ),
    (
        "a checkpoint that lacks a weight",
        single(lambda t: t.pop("model.diffusion_model.out.2.bias")),
        "does not fit|no weights for unet",
    ),
    (
        "a checkpoint of other sizes",
        single(lambda t: t.update({"model.diffusion_model.out.2.bias": torch.zeros(5)})),
        "does not fit the configurations",
    ),
    (
        "a checkpoint of another ending",
        single(lambda t: None, name="x.weights"),
        r"must end with \.safetensors; rename it",
    ),
    ("a pickled checkpoint", single_bytes("x.ckpt", PICKLE), r"x\.ckpt: pickled weights, which are never read"),
    ("a pickled checkpoint of torch's", single_bytes("x.pt", b"PK\x03\x04" + bytes(64)), r"x\.pt: pickled weights"),
    ("a text file for a checkpoint", single_bytes("x.safetensors", b"hello"), "not a whole safetensors file"),
    (
        "a LoRA for a checkpoint",
        single(lambda t: (t.clear(), t.update({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}))),
        "LoRA weights, not a whole model",
    ),
    (
        "a checkpoint with the settings of an SDXL",
        lambda folder: [
            *single(lambda t: None)(folder),
            f"single_file_config={shutil.copytree(whole('sdxl'), folder / 'xl')}",
        ],
        "a checkpoint of sd1, but single_file_config .* is of sdxl",
    ),
    (
        "a checkpoint whose settings are not there",
        lambda folder: [*single(lambda t: None)(folder), f"single_file_config={folder / 'nowhere'}"],
        "its configurations and tokenizers .* cannot be had",
    ),
]
DOWN, UP = "unet.mid_block.attentions.0.proj_in.lora_A.weight", "unet.mid_block.attentions.0.proj_in.lora_B.weight"
ALPHA = "lora_unet_mid_block_attentions_0_proj_in.alpha"


def lora(metadata: str | None = None, **changes: torch.Tensor | None) -> Callable[[Path], Sequence[str]]:
    """To draw with a LoRA, with one thing wrong with it; names of tensors with / for dots, None for none."""

    def make(folder: Path) -> Sequence[str]:
        base = Path(shutil.copytree(whole("sd1"), folder / "base"))
        tensors: dict[str, Any] = {DOWN: torch.zeros(2, 16, 1, 1), UP: torch.zeros(16, 2, 1, 1)}
        tensors |= {name.replace("/", "."): tensor for name, tensor in changes.items()}
        entries = {"format": "pt"} | ({} if metadata is None else {"lora_adapter_metadata": metadata})
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, folder / "lora.safetensors", metadata=entries)
        return drawing(base, f"lora={folder / 'lora.safetensors'}")

    return make


def lora_bytes(name: str, content: bytes) -> Callable[[Path], Sequence[str]]:
    """To draw with a file of these bytes for a LoRA."""

    def make(folder: Path) -> Sequence[str]:
        base = Path(shutil.copytree(whole("sd1"), folder / "base"))
        (folder / name).write_bytes(content)
        return drawing(base, f"lora={folder / name}")

    return make


def kohya(**tensors: torch.Tensor) -> Callable[[Path], Sequence[str]]:
    """The same in kohya's names: `down`, `up`, `alpha`."""
    start = "lora_unet_mid_block_attentions_0_proj_in"
    names = {"down": f"{start}.lora_down.weight", "up": f"{start}.lora_up.weight", "alpha": f"{start}.alpha"}
    own = {"down": torch.zeros(2, 16, 1, 1), "up": torch.zeros(16, 2, 1, 1)} | tensors
    return lora(None, **{DOWN: None, UP: None}, **{names.get(name, name): tensor for name, tensor in own.items()})


ADAPTERS: list[tuple[str, Callable[[Path], Sequence[str]], str]] = [
    (
        "no adapter",
        lambda folder: [*spoilt("sd1", lambda b: None)(folder), f"lora={folder / 'x.safetensors'}"],
        "no such LoRA file",
    ),
    ("a list for the adapter's settings", lora("[]"), "lora_adapter_metadata in its header is no object, but list"),
    ("settings of an adapter that are no JSON", lora("{"), "lora_adapter_metadata in its header is not valid JSON"),
    (
        "an alpha in words",
        lora('{"unet.lora_alpha": "much"}'),
        "an alpha of unet in its header is 'much', not a number",
    ),
    (
        "an alpha that is NaN",
        lora('{"unet.lora_alpha": NaN}'),
        "an alpha of unet in its header is 'nan', not a number",
    ),
    (
        "a pattern that is no pattern",
        lora('{"unet.alpha_pattern": {"([": 1}}'),
        "alpha_pattern in its header must give alphas to names",
    ),
    (
        "a pattern that never ends",
        lora('{"unet.alpha_pattern": {"(([a-z.]+)+)+!": 1}}'),
        "alpha_pattern in its header must give alphas to names",
    ),
    (
        "patterns in a list",
        lora('{"unet.alpha_pattern": [1]}'),
        "alpha_pattern in its header must give alphas to names",
    ),
    ("a matrix without dimensions", lora(**{DOWN: torch.tensor(1.0)}), r"down has shape \(\), which has no rank"),
    (
        "an adapter of rank none",
        lora(**{DOWN: torch.zeros(0, 16, 1, 1), UP: torch.zeros(16, 0, 1, 1)}),
        "which has no rank",
    ),
    (
        "matrices of two ranks",
        lora(**{UP: torch.zeros(16, 3, 1, 1)}),
        r"up has shape \(16, 3, 1, 1\), this pipeline's module wants",
    ),
    ("one matrix of two", lora(**{UP: None}), "has no up matrix; the file is not whole"),
    (
        "an adapter of a larger network",
        lora(**{DOWN: torch.zeros(2, 1280, 1, 1), UP: torch.zeros(1280, 2, 1, 1)}),
        "LoRA weights of another architecture",
    ),
    (
        "an adapter of another network",
        lora(**{"transformer/x/lora_A/weight": torch.zeros(2, 16)}),
        "is no module of this pipeline; LoRA weights of another architecture",
    ),
    (
        "an adapter of SDXL's second text encoder",
        lora(**{"text_encoder_2/x/lora_A/weight": torch.zeros(2, 16)}),
        "this pipeline has no text_encoder_2",
    ),
    ("an adapter of another kind", kohya(**{"lora_unet_x/hada_w1_a": torch.zeros(2, 2)}), "is no plain LoRA or DoRA"),
    ("an alpha of two numbers", kohya(alpha=torch.ones(2)), r"alpha has shape \(2,\)"),
    ("NaN in an adapter", kohya(down=torch.full((2, 16, 1, 1), float("nan"))), "holds NaN or infinite weights"),
    (
        "integers in an adapter",
        kohya(down=torch.ones(2, 16, 1, 1, dtype=torch.int32)),
        "is of type I32; weights in floating point",
    ),
    ("no LoRA in the file", lora(**{DOWN: None, UP: None, "weight": torch.zeros(2)}), "no LoRA weights in it"),
    ("a pickled adapter", lora_bytes("lora.pt", PICKLE), r"lora\.pt: pickled weights, which are never read"),
    ("a pickled adapter of another name", lora_bytes("lora.safetensors", PICKLE), r"safetensors: pickled weights"),
    (
        "half an adapter",
        lora_bytes("lora.safetensors", header({"lora": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})),
        "not a whole safetensors file",
    ),
]


def language(spoil: Spoil, *more: str) -> Callable[[Path], Sequence[str]]:
    """To fine-tune a language model with one thing wrong with it."""

    def make(folder: Path) -> Sequence[str]:
        base = Path(shutil.copytree(whole("language"), folder / "llm"))
        spoil(base)
        words = ["sft", f"pretrained_model_name_or_path={base}", f"questions.path={folder / 'questions.jsonl'}"]
        return [*words, f"output_dir={folder / 'out'}", *more]

    return make


def own_code(base: Path) -> None:
    """A model of a kind that its folder brings code for."""
    trace = f"open({str(base / 'trace')!r}, 'w')\n"
    (base / "modeling_evil.py").write_text(f"{trace}class Evil:\n    pass\n")
    names = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    change("config.json", model_type="evil", auto_map=names)(base)


MODEL = "model.safetensors"
LANGUAGE: list[tuple[str, Callable[[Path], Sequence[str]], str]] = [
    ("no config.json", language(remove("config.json")), "no config.json in it, so it is no language model"),
    ("no weights", language(remove(MODEL)), r"no weights \(\*\.safetensors\) in it"),
    ("pickled weights", language(pickled(MODEL)), r"model\.bin: pickled weights, which are never read"),
    ("half the weights", language(cut(MODEL, lambda n: n // 2)), "not a whole safetensors file"),
    ("no tokenizer", language(remove("tokenizer.json")), "cannot be loaded as a causal language model"),
    ("a broken tokenizer", language(write("tokenizer.json", b"{")), "cannot be loaded as a causal language model"),
    (
        "a tokenizer.json of another shape",
        language(write("tokenizer.json", b"[]")),
        "cannot be loaded as a causal language model",
    ),
    ("a kind that its folder brings code for", language(own_code), "code of its own, auto_map, which is never run"),
    (
        "a kind that nobody knows",
        language(change("config.json", model_type=["x"])),
        "is none that transformers knows",
    ),
    ("a configuration that is a list", language(write("config.json", b"[]")), r"config\.json: JSON, but no object"),
    (
        "more words than weights",
        language(change("config.json", vocab_size=10**9)),
        "vocab_size 1000000000 is more than its weights can fill",
    ),
    (
        "more layers than weights",
        language(change("config.json", num_hidden_layers=10**6)),
        "num_hidden_layers 1000000 is more than",
    ),
    (
        "a layer too many",
        language(change("config.json", num_hidden_layers=3)),
        "its weight files do not fill the model",
    ),
    (
        "a width in words",
        language(change("config.json", hidden_size="wide")),
        "cannot be loaded as a causal language model",
    ),
    (
        "NaN among the weights",
        language(retensor(MODEL, lambda t: put(t, "model.norm.weight", float("nan")))),
        "holds NaN or infinite weights",
    ),
    (
        "compiled code from elsewhere",
        language(change("config.json", attn_implementation="somebody/kernel")),
        "asks for code from elsewhere, which is never run",
    ),
    (
        "an adapter beside the weights",
        language(write("adapter_config.json", b"{}")),
        "an adapter lies beside the weights",
    ),
    (
        "an index that leads outside",
        language(write(f"{MODEL}.index.json", b'{"weight_map": {"a": "../x.safetensors"}}')),
        "does not name safetensors beside it",
    ),
    (
        "a diffusion pipeline",
        lambda folder: [
            "sft",
            f"pretrained_model_name_or_path={shutil.copytree(whole('sd1'), folder / 'base')}",
            "questions.path=x",
            f"output_dir={folder / 'out'}",
        ],
        "a diffusion pipeline; give it as `base`",
    ),
    ("a revision of a folder", language(lambda base: None, "revision=main"), "a folder has no revision"),
    (
        "a folder that is not there",
        plain("sft", "pretrained_model_name_or_path={}/nowhere", "questions.path=x", "output_dir={}/out"),
        "no such folder; give a folder in transformers' layout",
    ),
]

CASES: list[BadInput] = [
    BadInput(group=group, name=name, make=spoilt(kind, spoil), told=told)
    for group, rows in (
        ("Pipelines", PIPELINES),
        ("Weights", WEIGHTS),
        ("Settings of a pipeline", NUMBERS),
        ("Tokenizers", TOKENIZERS),
    )
    for name, kind, spoil, told in rows
] + [
    BadInput(group=group, name=name, make=make, told=told)
    for group, rows in (
        ("Names of bases", NAMES),
        ("Checkpoints in one file", SINGLE),
        ("Adapters", ADAPTERS),
        ("Language models", LANGUAGE),
    )
    for name, make, told in rows
]
