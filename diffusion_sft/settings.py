"""One reader for every configuration: a dataclass, a YAML file, then `key=value` overrides.

A wrong key, type or value ends in a one-line UserError that names the key and the nearest right one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .errors import UserError

T = TypeVar("T")


def load_settings(schema: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Read settings of the dataclass `schema` from a YAML file and `key=value` overrides (later ones win).

    Raises:
        UserError: unreadable file, unknown key (with a suggestion), wrong type or value.
    """
    node = OmegaConf.structured(schema)
    if path is not None:
        node = _merged(schema, node, _yaml(path), str(path))
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r}: expected key=value, for example seed=1")
        try:
            dotted = OmegaConf.from_dotlist([override])
        except (YAMLError, OmegaConfBaseException, ValueError) as error:
            raise UserError(f"override {override!r}: {_first_line(error)}") from None
        node = _merged(schema, node, dotted, f"override {override!r}")
    try:
        settings = OmegaConf.to_object(node)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path or 'settings'}: {_first_line(error)}") from None
    assert isinstance(settings, schema)
    return settings


def settings_yaml(settings: Any) -> str:
    """The settings as YAML text, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def settings_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain nested dictionaries."""
    plain = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a configuration file") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def _merged(schema: type, node: Any, other: Any, where: str) -> Any:
    if not OmegaConf.is_dict(other):
        raise UserError(f"{where}: expected a mapping of keys to values at the top")
    _check_keys(schema, OmegaConf.to_container(other), where, "")
    try:
        return OmegaConf.merge(node, other)
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{where}: {key + ': ' if key else ''}{_first_line(error)}") from None


def _check_keys(schema: type, given: Any, where: str, prefix: str) -> None:
    if not isinstance(given, dict):
        return
    hints = get_type_hints(schema)
    names = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"the keys here are {', '.join(names)}"
            raise UserError(f"{where}: no setting {prefix}{key}; {hint}")
        if is_dataclass(hints[key]) and isinstance(hints[key], type):
            _check_keys(hints[key], value, where, f"{prefix}{key}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
