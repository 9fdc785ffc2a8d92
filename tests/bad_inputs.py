"""What a malformed input is to the tests and to the table in docs/bad-input.md: how it is made, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """One malformed input, as a user would hand it to a command."""

    group: str
    """Images, captions, metadata, folders, pipelines, adapters, settings, ...; a heading of the table."""
    name: str
    """What is wrong, in a few words; the row of the table."""
    make: Callable[[Path], Sequence[str]]
    """Write the input into an empty folder, given as argument, and return the command's words after `diffusion-sft`."""
    told: str
    """A regular expression that the one line on stderr must match."""
