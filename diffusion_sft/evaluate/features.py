"""Who looks at the images? Extractors: plain callables from images to features, with a label that names them fully.

A Fréchet or kernel distance means nothing without its extractor, the resize in front of it and the weights inside it,
so every figure carries `Extractor.label`. Of clean-fid the network and the download are used, and its resize is
reproduced in torch (within 0.003 of 255) so that it runs in batches on the device; its data loaders, folder scans,
cached statistics and linear algebra are not.
"""

from __future__ import annotations

import shutil
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from safetensors.torch import load_file
from torch import nn

from ..errors import UserError
from ..files import file_hash, replaced, user_path
from ..parsing import few
from ..world.readout import Readout
from .config import EvaluateConfig

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of the published file (95,607,719 bytes), as k-diffusion has it too (`evaluation.py`, commit 0f9902f). TorchScript is a
program, and no other one is run."""
INCEPTION_SIZE = 299
DOWNLOAD_SECONDS = 60.0
"""Without a byte, before a download is given up."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A callable from uint8 (height, width, 3) images to (n, d) float32 features, and what it is.

    `resize` says how an image is brought to the network's size; together with the weights' hash it is part of the
    label of every figure and of the key of the feature cache.
    """

    name: str
    resize: str
    weights_sha256: str
    function: Callable[[Sequence[np.ndarray]], np.ndarray]

    @property
    def label(self) -> str:
        """For example `inception-2015-12-05, clean bicubic 299, weights 0123456789ab`."""
        return f"{self.name}, {self.resize}, weights {self.weights_sha256[:12]}"

    def __call__(self, images: Sequence[np.ndarray], names: Sequence[str] = ()) -> np.ndarray:
        """The features of images of any sizes, (n, d) float32.

        Args:
            names: of the images, for errors.

        Raises:
            UserError: the function returned another shape, or values that are not finite.
        """
        features = np.asarray(self.function(images), dtype=np.float32)
        if features.ndim != 2 or len(features) != len(images):
            raise UserError(
                f"extractor {self.name}: expected ({len(images)}, d) features, got shape {features.shape}"
            )
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist()
        if bad:
            told = few([names[place] for place in bad], 4) if names else f"{len(bad)} of {len(images)} images"
            raise UserError(f"extractor {self.name}: features of {told} are not finite; are its weights damaged?")
        return features


def build_extractor(config: EvaluateConfig, device: torch.device) -> Extractor:
    """The extractor that the settings name, its network on the device.

    Raises:
        UserError: weights that are missing, damaged or of another network, with the ways to supply them.
    """
    if config.extractor == "inception":
        return inception_extractor(config.weights, device)
    if config.weights is None:
        wanted = "a readout's folder" if config.extractor == "readout" else "a .safetensors or .pth state dict"
        raise UserError(f"evaluate.weights: the extractor {config.extractor} needs {wanted}")
    if config.extractor == "readout":
        return readout_extractor(Readout.load(user_path(config.weights), device))
    assert config.torchvision_model is not None
    return torchvision_extractor(config.torchvision_model, user_path(config.weights), device)


def clean_resize(images: np.ndarray, size: int, device: torch.device) -> torch.Tensor:
    """clean-fid's resize, in batches on the device: each channel alone, antialiased bicubic, clipped, not rounded.

    Args:
        images: uint8 (n, height, width, 3).

    Returns:
        float32 (n, 3, size, size) in 0..255. Parmar et al. (2022), "On Aliased Resizing", section 3.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 255)


def inception_extractor(weights: str | None, device: torch.device) -> Extractor:
    """Clean-fid's Inception of 2015 behind clean-fid's resize: 2048 features, the FID of papers.

    Args:
        weights: the file `inception-2015-12-05.pt` or its folder; None for torch's hub cache or the download.

    Raises:
        UserError: no such file, another than the published one, or no network to download it.
    """
    file = _inception_file(weights)
    digest = file_hash(file)
    if digest != INCEPTION_SHA256:
        raise UserError(
            f"{file}: not the Inception of clean-fid, or damaged: its SHA-256 begins with {digest[:12]} and not with "
            f"{INCEPTION_SHA256[:12]}; delete it and fetch it again"
        )
    with warnings.catch_warnings():
        # torch announces the end of TorchScript at every load; the weights exist in no other official form.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        try:
            network = InceptionV3W(str(file.parent), download=False).to(device).eval()
        except (RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{file}: this torch does not read it ({reason}); {_ways(file.parent)}") from None

    def features(images: np.ndarray) -> torch.Tensor:
        return network(clean_resize(images, INCEPTION_SIZE, device))

    return Extractor(
        name=file.stem,
        resize=f"clean bicubic {INCEPTION_SIZE}",
        weights_sha256=digest,
        function=_by_shape(features),
    )


def readout_extractor(readout: Readout) -> Extractor:
    """The penultimate features of the embedded world's readout."""
    # The scale is not among the weights, and features of two scales must never meet in one cache.
    scale = "" if readout.feature_scale == 1 else f" / {readout.feature_scale:.6g}"
    return Extractor(
        name=f"readout{scale}",
        resize=f"bicubic {readout.resolution}",
        weights_sha256=readout.sha256,
        function=_by_shape(lambda images: torch.from_numpy(readout(images).features)),
    )


def torchvision_extractor(name: str, weights: Path, device: torch.device) -> Extractor:
    """What goes into the last linear layer of a torchvision classifier, the whole image resized to the net's size.

    Raises:
        UserError: no such model or file, a file that does not fit the model, or a model without a linear layer.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"evaluate.torchvision_model: torchvision has no classifier {name!r}")
    tensors = _state_dict(weights)
    network, last = _classifier(name, tensors, weights)
    network.set_submodule(last, nn.Identity())
    network = network.to(device).eval()
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    size = int(preset.crop_size[0])
    mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (preset.mean, preset.std))

    def features(images: np.ndarray) -> torch.Tensor:
        return network((clean_resize(images, size, device) / 255 - mean) / deviation)

    return Extractor(
        name=name,
        resize=f"clean bicubic {size}",
        weights_sha256=file_hash(weights),
        function=_by_shape(features),
    )


def _by_shape(function: Callable[[np.ndarray], torch.Tensor]) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Let a function of equally large images take images of any sizes, the order kept."""

    def features(images: Sequence[np.ndarray]) -> np.ndarray:
        rows: dict[int, np.ndarray] = {}
        for shape in dict.fromkeys(image.shape for image in images):
            places = [place for place, image in enumerate(images) if image.shape == shape]
            with torch.inference_mode():
                found = function(np.stack([images[place] for place in places]))
            rows |= dict(zip(places, found.float().cpu().numpy(), strict=True))
        return np.stack([rows[place] for place in range(len(images))])

    return features


def _inception_file(weights: str | None) -> Path:
    if weights is not None:
        given = user_path(weights)
        file = given / INCEPTION_FILE if given.is_dir() else given
        if not file.is_file():
            raise UserError(f"{file}: no such weights; {_ways(file.parent)}")
        if file.name != INCEPTION_FILE:
            raise UserError(f"{file}: clean-fid's weights must be called {INCEPTION_FILE}; rename the file")
        return file
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        _download(file)
    return file


def _download(file: Path) -> None:
    """From clean-fid's address, whole or not at all."""
    try:
        with replaced(file) as temporary:
            with (
                urllib.request.urlopen(inception_url, timeout=DOWNLOAD_SECONDS) as answer,
                temporary.open("wb") as stream,
            ):
                shutil.copyfileobj(answer, stream)
            if file_hash(temporary) != INCEPTION_SHA256:
                raise UserError(
                    f"{inception_url}: the download was cut short or is another file; try again, or {_ways(file.parent)}"
                )
    except (OSError, HTTPException) as error:
        raise UserError(f"{inception_url}: cannot be fetched ({error}); {_ways(file.parent)}") from None


def _ways(folder: Path) -> str:
    return (
        f"put {INCEPTION_FILE} into {folder}, give its place as evaluate.weights, "
        "or use evaluate.extractor=torchvision or readout with weights of your own"
    )


def _state_dict(weights: Path) -> dict[str, torch.Tensor]:
    try:
        if weights.suffix == ".safetensors":
            return load_file(weights)
        loaded = torch.load(weights, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{weights}: no such weights; give a .safetensors or .pth state dict") from None
    except Exception as error:  # torch's unpickler answers broken bytes with every kind of exception
        raise UserError(f"{weights}: not readable weights ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"{weights}: not a state dict of tensors; save model.state_dict()")
    return loaded


def _classifier(name: str, tensors: dict[str, torch.Tensor], weights: Path) -> tuple[nn.Module, str]:
    """The model with its weights, built for as many classes as they have, and the name of its last linear layer."""
    last = [part for part, module in _build(name, 2).named_modules() if isinstance(module, nn.Linear)][-1:]
    if not last:
        raise UserError(f"evaluate.torchvision_model: {name} has no linear layer to take features in front of")
    head = tensors.get(f"{last[0]}.weight")
    if head is None:
        raise UserError(f"{weights}: holds no {last[0]}.weight, so it is not a {name}")
    network = _build(name, len(head))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{weights}: does not fit {name} ({' '.join(str(error).split())[:160]})") from None
    return network, last[0]


def _build(name: str, num_classes: int) -> nn.Module:
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce a change in their random initialisation, which is overwritten here.
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return model
