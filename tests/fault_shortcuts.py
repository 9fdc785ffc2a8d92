"""What is the same in all processes and is none of their work: done once, before they are forked.

A start of the program takes longer than any of the tiny stages; hundreds of starts are all that this spares.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fault_runs import Place, run
from omegaconf import OmegaConf

from diffusion_sft import cli
from diffusion_sft.report import scripts


class Shortcuts:
    """Settings that were read, and the script of the charts."""

    def __init__(self) -> None:
        self._settings: dict[tuple[type, Path | None], Any] = {}
        self._nodes: dict[str, Any] = {}
        self._charts: str | None = None

    def read(self, verb: str, file: Path) -> None:
        """Read a settings file of a verb as the command line does."""
        schema = cli._schema(verb)
        config = cli.load_settings(schema, file, [])
        self._settings[schema, file] = config
        self._nodes[repr(config)] = OmegaConf.structured(config)

    def make_charts(self, place: Place) -> None:
        """Have the script made, in a process of its own: what makes it starts threads."""
        file = place.root / "charts.js"
        run(place, ["--help"], before=lambda: _write(file, scripts.chart_library()))
        self._charts = file.read_text(encoding="utf-8")

    def take(self) -> None:
        """Take what was made before, in the process that is to run a command."""
        load, structured, text = cli.load_settings, OmegaConf.structured, self._charts

        def load_settings(schema: type, path: Path | None, overrides: Any = ()) -> Any:
            found = self._settings.get((schema, path))
            return load(schema, path, overrides) if found is None or overrides else found

        def node(config: Any, *rest: Any, **named: Any) -> Any:
            key = repr(config)
            if key not in self._nodes:
                self._nodes[key] = structured(config, *rest, **named)
            return self._nodes[key]

        cli.load_settings = load_settings  # type: ignore[assignment]
        OmegaConf.structured = node  # type: ignore[method-assign]
        if text is not None:
            scripts.chart_library = lambda: text  # type: ignore[assignment]


def import_all(names: Iterable[str]) -> None:
    """Import modules that another process turned out to need."""
    for name in names:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except ImportError:  # Some exist only as attributes of others.
                continue


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
