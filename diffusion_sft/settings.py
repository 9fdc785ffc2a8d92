"""One reader for every configuration: a dataclass, a YAML file, then `key=value` overrides.

A wrong key, type or value ends in a one-line UserError that names the key and the nearest right one. Names of other
tools are read as ours where they mean the same (`aliases.py`), with a line on stderr.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .aliases import ALIASES, converted, familiar_value
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
        except (YAMLError, OmegaConfBaseException, ValueError, LookupError) as error:
            raise UserError(f"override {override!r}: {_first_line(error)}") from None
        secret = override.split("=")[0].endswith("token")
        node = _merged(schema, node, dotted, "override of a token" if secret else f"override {override!r}")
    try:
        settings = OmegaConf.to_object(node)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path or 'settings'}: {_first_line(error)}") from None
    assert isinstance(settings, schema)
    _check_finite(settings_dict(settings), str(path or "settings"))
    return settings


def settings_yaml(settings: Any) -> str:
    """The settings as YAML text, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def settings_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain nested dictionaries."""
    plain = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _check_finite(value: Any, where: str, key: str = "") -> None:
    """Raise UserError naming a number that is none, or infinite: there is no setting that it means anything for."""
    if isinstance(value, dict):
        for name, own in value.items():
            _check_finite(own, where, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, own in enumerate(value):
            _check_finite(own, where, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key} must be a finite number, not {value}")


def _check_interpolations(value: Any, where: str) -> None:
    """Raise UserError for `${name:...}`, by which a file that was passed on could have the environment written down."""
    if isinstance(value, dict):
        for own in value.values():
            _check_interpolations(own, where)
    elif isinstance(value, list):
        for own in value:
            _check_interpolations(own, where)
    elif isinstance(value, str) and re.search(r"\$\{\s*[\w.]+\s*:", value):
        raise UserError(f"{where}: {value[:60]!r} asks for something outside the settings, which is not looked up")


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
    given = OmegaConf.to_container(other)
    _check_interpolations(given, where)
    ours = _translated(schema, given, where, "")
    _check_keys(schema, ours, where, "")
    try:
        return OmegaConf.merge(node, other if ours == given else OmegaConf.create(ours))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{where}: {key + ': ' if key else ''}{_first_line(error)}") from None


def _translated(schema: type, given: Any, where: str, prefix: str) -> Any:
    """`given` with the names and values of other tools replaced by ours, as far as ours are in the schema."""
    if not isinstance(given, dict):
        return given
    hints = get_type_hints(schema)
    found: dict[Any, Any] = {}
    for key, value in given.items():
        try:
            if key not in hints and key in ALIASES:
                _put_alias(schema, found, key, value, where, prefix)
            elif _is_schema(hints.get(key)):
                found[key] = _joined(found.get(key), _translated(hints[key], value, where, f"{prefix}{key}."))
            else:
                found[key] = familiar_value(str(key), hints.get(key), value)
        except ValueError as error:
            raise UserError(f"{where}: {prefix}{error}") from None
    for key in given:
        ours = ALIASES[key].ours if key in ALIASES and key not in hints else ""
        if ours and _holds(given, ours):
            raise UserError(f"{where}: {prefix}{key} and {prefix}{ours} are the same setting; give one of them")
    return found


def _put_alias(schema: type, found: dict[Any, Any], key: str, value: Any, where: str, prefix: str) -> None:
    """Put the value at our name for `key`, and say so; UserError saying what to write where there is no such name."""
    alias = ALIASES[key]
    if not alias.ours:
        raise UserError(f"{where}: no setting {prefix}{key}: {alias.note}")
    if not _resolves(schema, alias.ours):
        hints = get_type_hints(schema)
        deeper = [f"{prefix}{name}.{alias.ours}" for name, hint in hints.items() if _resolves(hint, alias.ours)]
        raise UserError(f"{where}: no setting {prefix}{key}; write {deeper[0] if deeper else alias.ours}")
    ours = converted(key, alias, value)
    target, (*rooms, last) = found, alias.ours.split(".")
    for room in rooms:
        target = target.setdefault(room, {})
        if not isinstance(target, dict):
            raise ValueError(f"{key} is {prefix}{alias.ours} here, and {room} is given as {target!r}")
    if last in target:
        raise UserError(f"{where}: {prefix}{key} is {prefix}{alias.ours} here, which is given twice")
    target[last] = ours
    meaning = alias.ours if not alias.values else f"{alias.ours}={ours}"
    print(f"note: {where}: {prefix}{key} is read as {prefix}{meaning}", file=sys.stderr)


def _joined(before: Any, value: Any) -> Any:
    return {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value


def _is_schema(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _resolves(schema: Any, dotted: str) -> bool:
    for name in dotted.split("."):
        if not _is_schema(schema) or name not in get_type_hints(schema):
            return False
        schema = get_type_hints(schema)[name]
    return True


def _holds(given: Any, dotted: str) -> bool:
    for name in dotted.split("."):
        if not isinstance(given, dict) or name not in given:
            return False
        given = given[name]
    return True


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
        if _is_schema(hints[key]):
            _check_keys(hints[key], value, where, f"{prefix}{key}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
