"""Settings: one reader, and one line that says which key is wrong and which is right."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from diffusion_sft.errors import UserError
from diffusion_sft.settings import load_settings, settings_dict, settings_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    learning_rate: float = 1e-4
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outer:
    seed: int = 0
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, it is {self.seed}")


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 3\ninner: {learning_rate: 0.5}\n")
    assert load_settings(Outer, file) == Outer(seed=3, inner=Inner(learning_rate=0.5))
    settings = load_settings(Outer, file, ["inner.learning_rate=2e-3", "inner.names=[a,b]"])
    assert settings.inner == Inner(learning_rate=2e-3, names=["a", "b"])


def test_written_settings_read_back(tmp_path: Path) -> None:
    settings = Outer(seed=7, inner=Inner(names=["x: y", "# z"]))
    file = tmp_path / "a.yaml"
    file.write_text(settings_yaml(settings))
    assert load_settings(Outer, file) == settings
    assert settings_dict(settings)["inner"]["names"] == ["x: y", "# z"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sed=1"], "no setting sed; did you mean seed?"),
        (["inner.learning_rat=1"], "no setting inner.learning_rat; did you mean inner.learning_rate?"),
        (["inner.zzzzzz=1"], "the keys here are learning_rate, names"),
        (["seed=many"], "seed"),
        (["seed=-1"], "seed must not be negative"),
        (["seed"], "expected key=value"),
        (["inner=[1"], "inner"),
    ],
)
def test_a_mistake_is_named_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(Outer, None, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["seed: [1", "- 1\n- 2\n", "seed: 1\nseed: 2\n", "wrong: 1\n"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="broken.yaml"):
        load_settings(Outer, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.yaml: no such"):
        load_settings(Outer, tmp_path / "absent.yaml")
