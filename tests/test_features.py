"""Extractors: the resize, the three kinds, their labels, their refusals, and the cache."""

from __future__ import annotations

import io
import tempfile
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from diffusion_sft.errors import UserError
from diffusion_sft.evaluate import features as features_module
from diffusion_sft.evaluate.config import EvaluateConfig
from diffusion_sft.evaluate.features import (
    INCEPTION_FILE,
    Extractor,
    build_extractor,
    clean_resize,
    inception_extractor,
    readout_extractor,
    torchvision_extractor,
)
from diffusion_sft.files import file_hash
from diffusion_sft.world.readout import Readout, ReadoutNetwork

CPU = torch.device("cpu")


def pictures(count: int, height: int = 20, width: int = 24, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return list(generator.integers(0, 256, size=(count, height, width, 3), dtype=np.uint8))


class StandInLayers(nn.Module):
    """2048 numbers from a 299x299 picture, in a moment."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.project = nn.Parameter(torch.randn(3 * 8 * 8, 2048, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, (8, 8)).flatten(1) @ self.project


class StandInInception(nn.Module):
    """The interface of clean-fid's TorchScript Inception: `.layers(x)`, `forward(x, return_features)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = StandInLayers()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose name holds '.zip', with a stand-in for the weight file, which is taken for the published one."""
    folder = tmp_path_factory.mktemp("weights") / "inception.zip.d"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.jit.script(StandInInception()).save(str(folder / INCEPTION_FILE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "INCEPTION_SHA256", file_hash(folder / INCEPTION_FILE))
        yield folder


@pytest.mark.parametrize(
    ("height", "width", "size"), [(512, 512, 299), (64, 64, 299), (301, 77, 299), (400, 250, 64)]
)
def test_the_resize_is_clean_fids(height: int, width: int, size: int) -> None:
    from cleanfid.resize import make_resizer

    y, x = np.mgrid[:height, :width]
    fine = 127.5 * (1 + np.sin(0.9 * x + 0.4 * y) * np.cos(1.3 * y)) + 40 * ((x + y) % 2)
    image = np.stack([fine, 255 - fine, np.roll(fine, 3, axis=0)], axis=-1).clip(0, 255).astype(np.uint8)
    theirs = make_resizer("PIL", False, "bicubic", (size, size))(image)
    ours = clean_resize(image[None], size, CPU)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 0.01


def test_inception_is_clean_fids_network_behind_clean_fids_resize(inception_weights: Path) -> None:
    from cleanfid.fid import get_files_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = pictures(3)
    ours = inception_extractor(str(inception_weights), CPU)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        files = [f"{folder}/{number}.png" for number in range(3)]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)
        network = InceptionV3W(str(inception_weights), download=False)
        theirs = get_files_features(files, network, num_workers=0, device=CPU, verbose=False)
    assert ours(images).shape == (3, 2048)
    np.testing.assert_allclose(ours(images), theirs, atol=2e-3 * np.abs(theirs).max())
    digest = file_hash(inception_weights / INCEPTION_FILE)
    assert ours.label == f"inception-2015-12-05, clean bicubic 299, weights {digest[:12]}"


def test_features_do_not_depend_on_batches_or_neighbours_sizes(inception_weights: Path) -> None:
    extractor = inception_extractor(str(inception_weights / INCEPTION_FILE), CPU)
    images = [*pictures(2), *pictures(2, 30, 16, seed=1), *pictures(1, seed=2)]
    single = np.concatenate([extractor([image]) for image in images])
    np.testing.assert_allclose(extractor(images), single, rtol=1e-4, atol=1e-4)


def test_loading_leaves_the_warning_filters_and_prints_nothing(
    inception_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(warnings.filters)
    inception_extractor(str(inception_weights), CPU)(pictures(1))
    assert list(warnings.filters) == before
    assert capsys.readouterr() == ("", "")


def test_missing_weights_name_the_file_and_the_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such weights; put inception-2015-12-05.pt into .*torchvision"):
        inception_extractor(str(tmp_path / "nowhere"), CPU)
    other = tmp_path / "weights.pt"
    other.write_bytes(b"x")
    with pytest.raises(UserError, match=r"must be called inception-2015-12-05\.pt"):
        inception_extractor(str(other), CPU)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(url: str, timeout: float) -> None:
        assert 0 < timeout < 600
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(
        UserError, match=r"cannot be fetched .*Name or service not known.*give its place as"
    ) as caught:
        build_extractor(EvaluateConfig(extractor="inception"), CPU)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "hub").rglob("*.pt"))


def test_download_is_whole_or_not_at_all(
    inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    content = (inception_weights / INCEPTION_FILE).read_bytes()

    def answer(found: bytes) -> None:
        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(found))

    for found in (content[:-100], b"", content[:-1] + b"x"):
        answer(found)
        with pytest.raises(UserError, match="cut short or is another file"):
            inception_extractor(None, CPU)
        assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    answer(content)
    assert inception_extractor(None, CPU)(pictures(1)).shape == (1, 2048)


def test_no_other_program_is_run_than_the_published_one(
    inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole TorchScript file of the right interface, but not of the right bytes, is not even opened."""
    for content in (b"not an archive", (inception_weights / INCEPTION_FILE).read_bytes() + b"x"):
        (tmp_path / INCEPTION_FILE).write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(torch.jit, "load", lambda *_: pytest.fail("it was opened"))
            with pytest.raises(
                UserError, match=r"inception-2015-12-05.pt: not the Inception of clean-fid, or damaged"
            ):
                inception_extractor(str(tmp_path), CPU)


@pytest.fixture(scope="module")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A small torchvision classifier of 7 classes, saved both ways."""
    folder = tmp_path_factory.mktemp("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=7).eval()
    save_file(network.state_dict(), folder / "weights.safetensors")
    torch.save(network.state_dict(), folder / "weights.pth")
    return network, folder


def test_torchvision_features_are_what_goes_into_the_last_layer(small_network: tuple[nn.Module, Path]) -> None:
    network, folder = small_network
    images = pictures(2, 40, 40)
    extractor = torchvision_extractor("shufflenet_v2_x0_5", folder / "weights.safetensors", CPU)
    found = extractor(images)
    mean, deviation = (
        torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.inference_mode():
        logits = network((clean_resize(np.stack(images), 224, CPU) / 255 - mean) / deviation)
        np.testing.assert_allclose(network.fc(torch.from_numpy(found)).numpy(), logits.numpy(), rtol=1e-4, atol=1e-5)
    config = EvaluateConfig(
        extractor="torchvision", torchvision_model="shufflenet_v2_x0_5", weights=str(folder / "weights.pth")
    )
    np.testing.assert_array_equal(build_extractor(config, CPU)(images), found)
    assert extractor.label.startswith("shufflenet_v2_x0_5, clean bicubic 224, weights ")


def test_torchvision_refusals(small_network: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, folder = small_network
    weights = folder / "weights.safetensors"
    with pytest.raises(UserError, match="no classifier 'resnet51'"):
        torchvision_extractor("resnet51", weights, CPU)
    with pytest.raises(UserError, match="squeezenet1_0 has no linear layer"):
        torchvision_extractor("squeezenet1_0", weights, CPU)
    with pytest.raises(UserError, match="does not fit shufflenet_v2_x1_0"):
        torchvision_extractor("shufflenet_v2_x1_0", weights, CPU)
    with pytest.raises(UserError, match="no such weights"):
        torchvision_extractor("shufflenet_v2_x0_5", tmp_path / "none.pth", CPU)
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(UserError, match=f"{name}: not readable weights"):
            torchvision_extractor("shufflenet_v2_x0_5", tmp_path / name, CPU)
    with pytest.raises(UserError, match=r"needs a \.safetensors or \.pth state dict"):
        build_extractor(EvaluateConfig(extractor="torchvision", torchvision_model="resnet18"), CPU)
    with pytest.raises(UserError, match="needs a readout's folder"):
        build_extractor(EvaluateConfig(), CPU)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="torchvision_model names the model"):
        EvaluateConfig(extractor="torchvision")
    with pytest.raises(ValueError, match="num_groups must be at least 2"):
        EvaluateConfig(num_groups=1)
    with pytest.raises(ValueError, match="num_images_per_concept must be at least 1"):
        EvaluateConfig(num_images_per_concept=0)
    with pytest.raises(ValueError, match="pca_directions must be at least 1"):
        EvaluateConfig(pca_directions=0)


def test_readout_features(tmp_path: Path) -> None:
    heads = {"shape": ["circle", "square"], "colour": ["red", "blue"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        readout = Readout(ReadoutNetwork(heads, num_features=16, width=8), heads)
    readout.save(tmp_path, num_features=16, width=8)
    extractor = build_extractor(EvaluateConfig(weights=str(tmp_path)), CPU)
    images = [*pictures(2, 64, 64), *pictures(1, 50, 40)]
    loaded = Readout.load(tmp_path)
    expected = np.concatenate([loaded(np.stack(images[:2])).features, loaded(images[2][None]).features])
    np.testing.assert_allclose(extractor(images), expected, rtol=1e-5, atol=1e-6)
    assert extractor.label == f"readout, bicubic 64, weights {loaded.sha256[:12]}"
    scaled = readout_extractor(Readout(loaded.network, heads, feature_scale=2.5, sha256=loaded.sha256))
    np.testing.assert_allclose(scaled(images), expected / 2.5, rtol=1e-5, atol=1e-6)
    assert scaled.label == f"readout / 2.5, bicubic 64, weights {loaded.sha256[:12]}"


def test_an_extractor_must_return_finite_rows() -> None:
    named = {"name": "odd", "resize": "none", "weights_sha256": ""}
    with pytest.raises(UserError, match=r"extractor odd: expected \(2, d\) features, got shape \(2, 3, 1\)"):
        Extractor(function=lambda images: np.zeros((len(images), 3, 1)), **named)(pictures(2))
    with pytest.raises(UserError, match="not finite"):
        Extractor(function=lambda images: np.full((len(images), 3), np.nan), **named)(pictures(2))
