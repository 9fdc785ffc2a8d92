"""The command line, and the only reader of argv: `diffusion-sft VERB [config.yaml] [key=value ...]`."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from .errors import UserError
from .parsing import first_line, printable
from .settings import load_settings, settings_yaml

VERBS = {
    "study": "the whole story, of a Stable Diffusion, a language model or both: probe, buckets, mixes, report",
    "plan": "say what a study will take of time, memory and disk before it starts, and which setting to change",
    "probe": "measure what the base knows of every concept (prior error, gain, answers)",
    "bucket": "sort the probed concepts into known and unknown, and into SliCK's four categories",
    "solve": "read generation, inputs and weights as systems of equations: rounds, solution classes, J δ = r, forecasts",
    "finetune": "fine-tune the UNet on a folder of captioned images, or on a mix of buckets",
    "sft": "fine-tune a language model on questions and answers, closed-book, or on a mix of their categories",
    "generate": "draw pictures from prompts with a base, a fine-tuned pipeline or a LoRA",
    "evaluate": "FID, KID, coverage and accuracy per bucket, before and after",
    "report": "write the page from the tables that are there",
    "compare": "both learners side by side: one table of shared metrics beside the published figures, and the verdict",
    "serve": "show running and finished runs in the browser, on this machine alone: diffusion-sft serve RUNS",
    "data check": "show what a concept set was read as: counts, sizes, captions, near-duplicates, a contact sheet",
    "cache fill": "encode images and captions once, so that runs start at once and train faster",
    "cache verify": "check every file of a cache against its manifest",
    "cache clear": "remove a cache",
    "world": "write the embedded world as an ordinary ImageFolder, and its facts as questions and answers",
    "pretrain": "train a base, or a language model, on the embedded world from nothing",
    "doctor": "check this installation: versions, devices, disk, and that a base draws",
}
GROUPS = {"data": "look at concept sets", "cache": "keep encoded images and captions on disk"}
"""First words of the verbs of two words."""
READERS = ("plan", "doctor", "cache fill", "cache verify", "cache clear")
"""Verbs that write nothing to output_dir."""
STUDY_VERBS = ("study", "probe", "bucket", "solve", "evaluate", "report")
EXAMPLES = """examples:
  diffusion-sft study configs/quickstart.yaml
  diffusion-sft study configs/sd15.yaml base=/models/stable-diffusion-v1-5 concepts.path=/data/my-photos
  diffusion-sft plan configs/sd15.yaml base=/models/stable-diffusion-v1-5 concepts.path=/data/my-photos
  diffusion-sft probe base=/models/sd15 concepts.path=/data/my-photos output_dir=runs/mine
  diffusion-sft finetune configs/finetune.yaml concepts.path=/data/my-photos method=lora rank=8
  diffusion-sft study learners=[llm] llm.base=Qwen/Qwen3-0.6B-Base llm.questions.path=/data/EntityQuestions
  diffusion-sft sft pretrained_model_name_or_path=/models/llm questions.path=/data/facts.jsonl method=lora
  diffusion-sft data check concepts.path=/data/my-photos
  diffusion-sft serve runs
  diffusion-sft compare runs=[runs/quickstart,runs/another-seed] --out runs/compare
  diffusion-sft finetune --settings          every setting with its default and meaning

probe, bucket, solve, evaluate and report take a study's settings and do the stages before them where those are missing;
plan takes them too, does none of them, and exits with 1 where the study fits neither disk nor GPU memory.
A mistake in settings or data ends with one line on stderr and exit code 2."""


_FULL = "make room and run the same command again"
_SMALLER = "lower the stage's batch_size (train_batch_size of a fine-tuning) and run the same command again to go on"
_PLACE = "choose another folder, or change what may be done in it"
_ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL) | dict.fromkeys(
    (*(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG),),
    _PLACE,
)
"""What to do about a disk or a folder that does not take what is written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
        options.verb = " ".join(word for word in (options.verb, getattr(options, "action", None)) if word)
        return _run(options)
    except UserError as error:
        told = "\n".join(map(printable, str(error).split("\n")))  # It may hold names that drive a terminal.
        print(f"diffusion-sft: {told}", file=sys.stderr)
        return 2
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None or (error.errno != errno.ENOSPC and not error.filename):
            raise
        where = printable(str(error.filename or "the disk"))
        print(f"diffusion-sft: {where}: {error.strerror}; {advice}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        reason = printable(first_line(error))[:200]
        print(f"diffusion-sft: no memory left ({reason}); {_SMALLER}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffusion-sft: stopped; run the same command again to go on", file=sys.stderr)
        return 130


def entry() -> None:
    """The installed command."""
    sys.exit(main())


class _Parser(argparse.ArgumentParser):
    """One whose errors are the user's like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="diffusion-sft",
        description="Which concepts does a diffusion model already know, and what does teaching it the others cost?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    groups: dict[str, Any] = {}
    for name, text in GROUPS.items():
        group = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        groups[name] = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    for verb, text in VERBS.items():
        first, _, action = verb.partition(" ")
        sub = (groups[first] if action else verbs).add_parser(
            action or first,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="Settings are read from the YAML file, then from key=value, nested keys with dots.",
        )
        sub.add_argument("settings", nargs="*", metavar="config.yaml | key=value", help="a file and overrides")
        sub.add_argument("--out", metavar="DIR", help="short for output_dir=DIR")
        sub.add_argument(
            "--dry-run",
            action="store_true",
            help="print the resolved settings, what a finetune will need, and stop",
        )
        sub.add_argument("--settings", dest="explain", action="store_true", help="list every setting and stop")
    return parser


def _run(options: argparse.Namespace) -> int:
    schema = _schema(options.verb)
    if options.explain:
        print("\n".join(explain(schema)))
        return 0
    if options.verb == "serve":
        return _serve(schema, options)
    files = [text for text in options.settings if "=" not in text]
    if len(files) > 1:
        raise UserError(f"one configuration file at most, not {', '.join(files)}")
    overrides = [text for text in options.settings if "=" in text]
    if options.out is not None:
        overrides.append(f"output_dir={options.out}")
    config: Any = load_settings(schema, Path(files[0]) if files else None, overrides)
    if options.dry_run:
        print(settings_yaml(config), end="")
        if options.verb == "finetune" and config.pretrained_model_name_or_path and config.concepts.given:
            from .commands import plan_finetune

            print(plan_finetune(config))
        return 0
    if options.verb not in READERS:
        _check_output(config.output_dir)
    return _perform(options.verb, config)


def _check_output(output_dir: str) -> None:
    """Raise UserError where no folder can be made, before hours are spent on what belongs into it.

    Only trying tells: rights, read-only mounts, full disks and folders like /proc all refuse in their own way.
    """
    if not output_dir.strip():
        raise UserError("output_dir is empty: give the folder to write to")
    from .files import partial_path  # Not above: `--help` is to answer at once.

    place = Path(output_dir)
    try:
        while not place.exists() and place != place.parent and not place.is_symlink():
            place = place.parent
        tried = partial_path(place / Path(output_dir).name)
        tried.mkdir()
        tried.rmdir()
    except OSError as error:
        raise UserError(
            f"output_dir={printable(output_dir[:200])}: nothing can be written to {printable(str(place)[:200])} "
            f"({error.strerror}); {_PLACE}"
        ) from None


def _schema(verb: str) -> type:
    # Imported here, so that `--help` answers at once.
    if verb == "serve":
        from .serve.config import ServeConfig

        return ServeConfig
    if verb in (*STUDY_VERBS, "plan"):
        from .plan import StudyConfig

        return StudyConfig
    if verb == "compare":
        from .compare import CompareConfig

        return CompareConfig
    from . import commands

    return commands.SCHEMAS[verb]


def _serve(schema: type, options: argparse.Namespace) -> int:
    """Beside a training nothing heavy is imported. A word without `=` is the folder, whatever it ends with."""
    if options.out is not None:
        raise UserError("--out: serve writes nothing; give the folder to look at as diffusion-sft serve RUNS")
    folders = [text for text in options.settings if "=" not in text]
    if len(folders) > 1:
        raise UserError(f"one folder at most, not {', '.join(folders)}; give the folder that holds them")
    config: Any = load_settings(schema, None, [text for text in options.settings if "=" in text])
    config = replace(config, runs=folders[0]) if folders else config
    if options.dry_run:
        print(settings_yaml(config), end="")
        return 0
    from .serve.server import serve

    return serve(config)


def _perform(verb: str, config: Any) -> int:
    if verb in STUDY_VERBS:
        from .study import run_study

        page = run_study(config, until="report" if verb == "study" else verb)
        if page is not None:
            print(f"report: {page}")
        return 0
    if verb == "plan":
        from .planning.run import run_plan

        return run_plan(config)
    if verb == "compare":
        from .compare import run_compare

        return run_compare(config)
    from . import commands

    return commands.VERBS[verb](config)


def explain(schema: type, prefix: str = "") -> list[str]:
    """Every setting of a dataclass: key, default, and the docstring under the field."""
    hints, notes, lines = get_type_hints(schema), _field_notes(schema), []
    for field in fields(schema):
        kind = hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            lines += explain(kind, f"{prefix}{field.name}.")
            continue
        default = field.default if field.default is not MISSING else None
        if field.default_factory is not MISSING:
            default = field.default_factory()
        note = f"   # {notes[field.name]}" if field.name in notes else ""
        lines.append(f"{prefix}{field.name}={'null' if default is None else default}{note}")
    return lines


def _field_notes(schema: type) -> dict[str, str]:
    """The docstrings that stand under the fields of a dataclass and of those it extends."""
    import ast
    import inspect
    import textwrap

    notes: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for before, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    notes[before.target.id] = " ".join(text.value.split())
    return notes


if __name__ == "__main__":
    entry()
