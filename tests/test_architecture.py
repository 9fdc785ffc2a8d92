"""The house's rules, held over the syntax trees of the package: floors, no circles, one reader of argv."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusion_sft"
FLOORS = {
    0: ("errors", "ranges"),
    1: (
        "records",
        "files",
        "locks",
        "manifests",
        "parsing",
        "settings",
        "aliases",
        "processes",
        "tensor_files",
        "numerics",
    ),
    2: (
        "learner",
        "layouts",
        "answers",
        "concepts",
        "questions",
        "world",
        "buckets",
        "machine",
        "parts",
        "reference",
        "systems",
    ),
    3: ("learners", "probe", "finetune", "evaluate", "pretrain", "report", "dynamics", "solve", "compare"),
    4: ("plan", "solving", "generating", "executing", "story", "language_study", "planning", "study", "serve"),
    5: ("commands", "cli"),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
TOGETHER = {
    "files": {"parsing"},
    "locks": {"files", "parsing"},
    "manifests": {"files"},
    "settings": {"aliases", "parsing"},
    "answers": {"learner"},
    "machine": {"learner"},
    "systems": {"learner"},
    "executing": {"plan"},
    "story": {"plan", "executing"},
    "planning": {"plan", "story"},
    "language_study": {"plan", "solving", "generating", "story"},
    "study": {"plan", "solving", "generating", "executing", "story", "language_study", "planning"},
    "cli": {"commands"},
}
"""Rooms that may use a room of their own floor."""
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(file: Path) -> set[tuple[str, ...]]:
    """The package's own modules that a file imports, as parts below the package, type-only imports included."""
    found: set[tuple[str, ...]] = set()
    here = file.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = here[: len(here) - node.level]
        elif node.module and node.module.split(".")[0] == "diffusion_sft":
            base, node.module = (), ".".join(node.module.split(".")[1:])
        else:
            continue
        if node.module:
            found.add((*base, *node.module.split(".")))
        else:
            found |= {(*base, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_go_down_only(file: Path) -> None:
    parts = file.relative_to(PACKAGE).parts
    room = room_of(parts)
    if room == "__init__":
        return
    for target in imports(file):
        other = room_of(target)
        if other == room:
            continue
        below = FLOOR[other] < FLOOR[room]
        assert below or other in TOGETHER.get(room, ()), f"{file}: {room} must not import {other}"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(file.relative_to(PACKAGE).parts) for file in MODULES} - {"__init__"}
    assert rooms == set(FLOOR)


def test_no_circles() -> None:
    graph = {file.relative_to(PACKAGE).with_suffix("").parts: imports(file) for file in MODULES}
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], path: tuple[tuple[str, ...], ...]) -> None:
        assert module not in path, " -> ".join("/".join(step) for step in (*path, module))
        if module in done or module not in graph:
            return
        for other in graph[module]:
            visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def top_level_imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_numerics_know_only_mathematics() -> None:
    standard = {"__future__", "collections", "dataclasses", "math", "typing", "functools", "itertools", "types"}
    for file in (PACKAGE / "numerics").glob("*.py"):
        assert top_level_imports(file) <= standard | {"torch", "numpy", "scipy", "sklearn"}, file


def test_records_and_buckets_need_no_torch() -> None:
    for file in (PACKAGE / "records.py", *(PACKAGE / "buckets").glob("*.py")):
        assert "torch" not in top_level_imports(file), file


def test_only_the_command_line_reads_arguments() -> None:
    for file in MODULES:
        text = file.read_text(encoding="utf-8")
        if file.name != "cli.py":
            assert "argparse" not in text, file
            assert "sys.argv" not in text, file


def test_files_and_functions_stay_short() -> None:
    for file in MODULES:
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 320, f"{file}: {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 70, f"{file}: {node.name} has {length} lines"


def test_every_configuration_loads() -> None:
    from diffusion_sft.commands import SCHEMAS
    from diffusion_sft.plan import StudyConfig
    from diffusion_sft.settings import load_settings

    own = {verb: SCHEMAS[verb] for verb in ("finetune", "pretrain")} | {"pretrain_llm": SCHEMAS["pretrain"]}
    own |= dict.fromkeys(("lora", "dreambooth"), SCHEMAS["finetune"])
    for file in sorted((PACKAGE.parent / "configs").glob("*.yaml")):
        load_settings(own.get(file.stem, StudyConfig), file)
