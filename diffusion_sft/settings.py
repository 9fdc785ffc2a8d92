"""One reader for every configuration: a dataclass, a YAML file, then `key=value` overrides.

A wrong key, type or value ends in a one-line UserError that names the key and the nearest right one. Names of other
tools are read as ours where they mean the same (`aliases.py`), with a line on stderr.
"""

from __future__ import annotations

import difflib
import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, SafeLoader, YAMLError, parse

from .aliases import ALIASES, converted, familiar_value
from .errors import UserError
from .parsing import first_line, text_bytes

MOST_BYTES, MOST_VALUES, MOST_LEVELS = 1 << 20, 20_000, 40
"""Of a file of settings: far more than there are settings, and little enough for any parser."""
_BROKEN = (YAMLError, OmegaConfBaseException, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What PyYAML and OmegaConf say of text that is no settings."""

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
        if not override.partition("=")[0].strip(" .") or "=" not in override:
            raise UserError(f"override {override!r}: expected key=value, for example seed=1")
        secret = override.split("=")[0].endswith("token")
        where = "override of a token" if secret else f"override {_shortened(override)!r}"
        if _not_utf8(override):
            raise UserError(f"{where}: not UTF-8 text")
        try:
            _check_structure(override.partition("=")[2])
            dotted = OmegaConf.from_dotlist([override])
        except _BROKEN as error:
            raise UserError(f"{where}: not valid YAML ({first_line(error)})") from None
        node = _merged(schema, node, dotted, where)
    where = str(path or "settings")
    try:
        settings = OmegaConf.to_object(node)
    except _BROKEN as error:
        raise UserError(f"{where}: {_group_at_fault(node)}{first_line(error)}") from None
    assert isinstance(settings, schema)
    _check_values(asdict(settings), where)  # type: ignore[call-overload]
    return settings


def settings_yaml(settings: Any) -> str:
    """The settings as YAML text, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def settings_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain nested dictionaries."""
    plain = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested mappings and lists, with their dotted keys."""
    if isinstance(value, dict):
        for name, own in value.items():
            yield from _leaves(own, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, own in enumerate(value):
            yield from _leaves(own, f"{key}[{number}]")
    else:
        yield key, value


def _check_values(settings: Any, where: str) -> None:
    """Raise UserError naming a value that means nothing in any setting: NaN, infinity, an integer of more than 64 bits,
    text that no file and no name of a file can hold."""
    for key, value in _leaves(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key} must be a finite number, not {value}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{where}: {key} must be an integer of at most 64 bits, not {_shortened(str(value))}")
        if isinstance(value, str) and ("\0" in value or _not_utf8(value)):
            raise UserError(f"{where}: {key} must be UTF-8 text without null characters, not {_shortened(value)!r}")


def _not_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _group_at_fault(node: Any) -> str:
    """`probe.samples: ` where those settings cannot be made into what they are for; "" where it is all of them."""
    key = ""
    while True:
        inside = range(len(node)) if OmegaConf.is_list(node) else list(node)
        for name in inside:
            if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
                continue
            if OmegaConf.is_config(node[name]) and not _builds(node[name]):
                key += f"[{name}]" if OmegaConf.is_list(node) else f".{name}" if key else str(name)
                node = node[name]
                break
        else:
            return f"{key}: " if key else ""


def _builds(node: Any) -> bool:
    try:
        OmegaConf.to_object(node)
    except _BROKEN:
        return False
    return True


def _check_structure(text: str) -> None:
    """Raise ValueError for YAML that is nested too deep, or that grows without end where its aliases are written out."""
    sizes: dict[str | None, int] = {}
    anchors: list[str | None] = [None]
    counts = [0]  # Of values in each collection that is open, the outermost first.
    for event in parse(text, Loader=SafeLoader):
        if isinstance(event, CollectionStartEvent):
            anchors.append(event.anchor)
            counts.append(1)
        elif isinstance(event, CollectionEndEvent):
            sizes[anchors.pop()] = count = counts.pop()
            counts[-1] += count
        elif isinstance(event, AliasEvent):
            if event.anchor in anchors:
                raise ValueError(f"*{event.anchor} stands inside itself")
            counts[-1] += sizes.get(event.anchor, 1)
        else:
            counts[-1] += 1
        if counts[-1] > MOST_VALUES or len(counts) > MOST_LEVELS:
            raise ValueError(f"more than {MOST_VALUES:,} values, or nested more than {MOST_LEVELS} levels deep")


def _check_placeholders(settings: Any, where: str) -> None:
    """Raise UserError for `???`, which OmegaConf passes over, and for `${name:...}`, by which a file that was passed on
    could have the environment written down."""
    for key, value in _leaves(settings):
        if value == "???":
            raise UserError(f"{where}: {key}: ??? stands for a value that is still to be given")
        if isinstance(value, str) and re.search(r"\$\{\s*[\w.]+\s*:", value):
            raise UserError(
                f"{where}: {value[:60]!r} asks for something outside the settings, which is not looked up"
            )


def _yaml(path: Path) -> Any:
    try:
        kind = "a folder" if path.is_dir() else "no plain file" if path.exists() and not path.is_file() else None
        if not path.exists():
            raise UserError(f"{path}: no such configuration file")
    except OSError as error:
        raise UserError(f"{_shortened(str(path))}: no such configuration file ({error.strerror})") from None
    if kind:
        raise UserError(f"{path}: is {kind}, not a configuration file")
    content = text_bytes(path)
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: {len(content):,} bytes, which is no configuration file")
    try:
        text = content.decode("utf-8")
        _check_structure(text)
        return OmegaConf.load(io.StringIO(text))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so no configuration file") from None
    except (*_BROKEN, OSError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())[:300]})") from None


def _merged(schema: type, node: Any, other: Any, where: str) -> Any:
    if not OmegaConf.is_dict(other):
        raise UserError(f"{where}: expected a mapping of keys to values at the top")
    given = OmegaConf.to_container(other)
    _check_placeholders(given, where)
    ours = _translated(schema, given, where, "")
    _check_keys(schema, ours, where, "")
    try:
        merged = OmegaConf.merge(node, other if ours == given else OmegaConf.create(ours))
    except _BROKEN as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{where}: {key + ': ' if key else ''}{first_line(error)}") from None
    _check_values(OmegaConf.to_container(merged), where)
    return merged


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
