"""What SECURITY.md promises and the source can be held to: no pickle, no shell, no program out of a file, nothing published
of the user's machine. The table at the end of SECURITY.md says which test stands for which promise."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from architectures import tiny_pipeline as make_pipeline
from language_models import tiny_folder
from peft import LoraConfig
from test_finetune import EXACT, UNKNOWN_MIX, run_exact

from diffusion_sft.compare.rendering import escaped_latex, escaped_markdown
from diffusion_sft.errors import UserError
from diffusion_sft.evaluate.features import torchvision_extractor
from diffusion_sft.files import replaced, write_json, write_text
from diffusion_sft.finetune.mix import MixConfig
from diffusion_sft.finetune.nonfinite import Nonfinite
from diffusion_sft.learners.diffusion import DiffusionLearner
from diffusion_sft.learners.language import LanguageLearner

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion_sft"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])

FORBIDDEN = {
    "pickle": "runs what it reads",
    "cPickle": "runs what it reads",
    "dill": "runs what it reads",
    "marshal": "runs what it reads",
    "shelve": "is pickle",
    "joblib": "is pickle",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "subprocess.getoutput": "goes through a shell",
    "subprocess.getstatusoutput": "goes through a shell",
    "tempfile.mktemp": "is a race",
    "pandas.read_pickle": "is pickle",
    "torch.save": "is pickle",
    "torch.hub.load": "runs a repository's code",
    "torch.jit.load": "runs the file's program",
    "torch.package": "runs the file's program",
    "yaml.load": "makes objects of any kind",
    "yaml.unsafe_load": "makes objects of any kind",
    "yaml.full_load": "makes objects of any kind",
    "tarfile": "unpacks under the archive's own names",
    "zipfile.ZipFile": "unpacks under the archive's own names",
    "shutil.unpack_archive": "unpacks under the archive's own names",
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes a program of text",
    "__import__": "hides what is imported",
    "webbrowser": "starts programs",
    "requests": "has no limit of time of its own",
}
SCRIPT = "may run a data set's script"
MARKED = {
    "concepts/contact_sheet.py": "our own style sheet",
    "report/embedded.py": "JSON with <, >, & and line ends of JavaScript as escapes",
    "report/page.py": "our own style sheet; and text that is escaped before `code` is set",
    "report/scripts.py": "our own and vega's scripts, with what would end the element escaped",
    "report/svg.py": "drawings that were parsed and serialised again as XML",
    "serve/curves.py": "drawings of numbers; categories by a fixed list of names",
    "serve/pages.py": "our own style sheet and script",
}
"""Where text is declared to be HTML, and why it is."""
EXCEPTIONS = {
    "study/pages.py": {"Environment without autoescape=True": "Markdown of this repository, of its own tables"},
    "compare/rendering.py": {"Environment without autoescape=True": "Markdown; every foreign text goes through `md`"},
    "concepts/hugging_face.py": {f"load_dataset: {SCRIPT}": "`datasets` from 4 on (pyproject) runs no script"},
    "concepts/shards.py": {f"tarfile: {FORBIDDEN['tarfile']}": "members are read one by one and never unpacked"},
    "bench/sizes.py": {f"tarfile: {FORBIDDEN['tarfile']}": "writes shards of its own"},
    "bench/evaluate.py": {
        f"torch.save: {FORBIDDEN['torch.save']}": "random weights of its own, read with weights_only"
    },
} | {name: {"Markup": reason} for name, reason in MARKED.items()}


def findings(source: str) -> Iterator[str]:
    """What in a module's source is forbidden, or lacks what makes it safe."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                (a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0]) for a in node.names
            }
            yield from (f"{a.name}: {FORBIDDEN[a.name]}" for a in node.names if a.name in FORBIDDEN)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            full = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            yield from (f"{name}: {FORBIDDEN[name]}" for name in full if name in FORBIDDEN)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _of_call(node, names)
        if isinstance(node, ast.ClassDef) and any(
            names.get(_dotted(one)) == "markupsafe.Markup" for one in node.bases
        ):
            yield "Markup"


def _of_call(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    called = _dotted(node.func)
    first, _, rest = called.partition(".")
    called = ".".join(filter(None, (names.get(first, first), rest)))
    called = {"np": "numpy", "pd": "pandas"}.get(called.split(".")[0], called.split(".")[0]) + called[
        len(called.split(".")[0]) :
    ]
    given = {word.arg: word.value for word in node.keywords}
    if called in FORBIDDEN:
        yield f"{called}: {FORBIDDEN[called]}"
    if called == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if called == "numpy.load" and not _is(given.get("allow_pickle"), False):
        yield "numpy.load without allow_pickle=False"
    if called.startswith("subprocess.") and (
        "shell" in given
        or (node.args and not isinstance(node.args[0], ast.List | ast.Name | ast.BinOp | ast.Attribute))
    ):
        yield f"{called}: give a list of arguments and no shell"
    if "trust_remote_code" in given and not _is(given["trust_remote_code"], False):
        yield "trust_remote_code"
    if (
        re.search(r"\bAuto(Model|Config|Tokenizer|Processor)\w*\.from_pretrained$", called)
        and "trust_remote_code" not in given
    ):
        yield f"{called} without trust_remote_code=False"
    if called.endswith("urlopen") and "timeout" not in given:
        yield "urlopen without a timeout"
    if called.endswith("load_dataset"):
        yield f"load_dataset: {SCRIPT}"
    if called == "jinja2.Environment" and not _is(given.get("autoescape"), True):
        yield "Environment without autoescape=True"
    if called == "markupsafe.Markup":
        yield "Markup"


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "_"  # what a call gave, say


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import system", "os.system"),
        ("import os as o\no.popen(x)", "os.popen"),
        ("import torch\ntorch.load(f)", "weights_only"),
        ("import torch as t\nt.load(f, weights_only=False)", "weights_only"),
        ("from torch import load\nload(f)", "weights_only"),
        ("import torch\ntorch.jit.load(f)", "torch.jit.load"),
        ("import numpy as np\nnp.load(f)", "allow_pickle"),
        ("import subprocess\nsubprocess.run(f'git {x}')", "list of arguments"),
        ("import subprocess\nsubprocess.run(a, shell=False)", "list of arguments"),
        ("from yaml import load", "yaml.load"),
        ("m = AutoModel.from_pretrained(f)", "trust_remote_code"),
        (
            "from transformers import AutoModel\nAutoModel.from_pretrained(f, trust_remote_code=x)",
            "trust_remote_code",
        ),
        ("import urllib.request\nurllib.request.urlopen(u)", "timeout"),
        ("from jinja2 import Environment\nEnvironment()", "autoescape"),
        ("from jinja2 import Environment\nEnvironment(autoescape=False)", "autoescape"),
        ("from markupsafe import Markup\nMarkup(x)", "Markup"),
        ("eval(x)", "eval"),
        ("__import__(x)", "__import__"),
        ("import datasets\ndatasets.load_dataset(x)", "load_dataset"),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, found: str) -> None:
    assert any(found in one for one in findings(source))


def test_the_search_leaves_alone_what_is_safe() -> None:
    source = (
        "import subprocess, torch, urllib.request, re\n"
        "subprocess.run(['git', x], timeout=3)\ntorch.load(f, weights_only=True)\nnetwork.eval()\nre.compile(x)\n"
        "urllib.request.urlopen(u, timeout=3)\ntorch.compile(m)\n"
    )
    assert not list(findings(source))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_module_does_what_a_strangers_file_could_use(file: Path) -> None:
    assert set(findings(file.read_text(encoding="utf-8"))) == EXCEPTIONS.get(_name(file), {}).keys()


def _name(file: Path) -> str:
    return file.relative_to(PACKAGE if file.is_relative_to(PACKAGE) else ROOT / "scripts").as_posix()


def test_exceptions_are_of_modules_that_are_there() -> None:
    assert EXCEPTIONS.keys() <= {_name(file) for file in SOURCES}


def test_templates_and_scripts_put_text_where_text_belongs() -> None:
    templates, scripts = sorted(PACKAGE.rglob("*.j2")), sorted(PACKAGE.rglob("*.js"))
    assert len(templates) > 10
    assert len(scripts) >= 3
    for file in templates:
        assert not re.search(r"\|\s*safe\b|autoescape\s+false|javascript:|\bon\w+\s*=", file.read_text("utf-8")), file
    unsafe = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|setTimeout\(\s*[\"'`]"
    )
    for file in scripts:
        assert not re.search(unsafe, file.read_text("utf-8")), file


def test_shell_scripts_quote_what_they_are_given() -> None:
    """A path with a blank or a star in it is one argument."""
    for file in sorted([*(ROOT / "scripts").rglob("*.sh"), *(ROOT / "scripts").rglob("*.sbatch")]):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\beval\b|curl[^\n]*\|\s*(ba)?sh", text), file
        for line in text.splitlines():
            quoted = r'"(?:\$\([^()]*\)|[^"])*"|\'[^\']*\''
            bare = re.sub(rf"{quoted}|#.*|\[\[.*?\]\]|\$\(\(.*?\)\)", "", line)
            assert not re.search(r"\$(@|\*|[0-9]|\{[0-9@*])", bare), f"{file}: {line}"


def test_a_state_dict_that_runs_a_program_is_refused(tmp_path: Path) -> None:
    """The one pickled file that may be given, `evaluate.weights` as .pth, goes through torch's restricted reader."""

    class Program:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    for content in (Program(), {"fc.weight": torch.zeros(2), "x": Program()}):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(UserError, match=r"weights\.pth: not readable weights") as caught:
            torchvision_extractor("shufflenet_v2_x0_5", tmp_path / "weights.pth", torch.device("cpu"))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


ATTACKS = (
    r"\input{/etc/passwd}",
    r"\immediate\write18{id}",
    r"^^5cinput{x}",
    "a & b \\\\ \\hline",
    "%\n\\end{longtable}",
    "](javascript:alert(1))",
    "---\nlicense: mit\n---",
    "![x](http://a/b.png)",
    "<img src=x onerror=alert(1)>",
    "\x1b[2J\u202egnp.exe",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_names_are_text_in_latex_and_markdown(text: str) -> None:
    latex, markdown = escaped_latex(text), escaped_markdown(text)
    commands = set(re.findall(r"\\[A-Za-z]+", latex))
    assert commands <= {
        "\\textbackslash",
        "\\textasciitilde",
        "\\textasciicircum",
        "\\textless",
        "\\textgreater",
        "\\textbar",
    }
    assert not re.search(r"(?<!\\)[%&$#_]", latex)
    assert "^^" not in latex
    assert not re.search(r"(?<!\\)[\[\]<>()!]", markdown)
    for written in (latex, markdown):
        assert "\n" not in written
        assert written.isprintable()
    assert not markdown.startswith("---")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "*", "?", "[a]", "", ".hidden", "-rf", "a\nb", "a\x1b[0m", "..", "C:x"]
)
def test_a_mix_names_a_file_and_a_pattern_of_the_hub_and_nothing_else(name: str) -> None:
    """It stands in paths, in `<mix>.safetensors` among what is uploaded, and in front of progress bars."""
    with pytest.raises(ValueError, match="mix name"):
        MixConfig(name=name, num_concepts=1)


def test_what_is_told_of_examples_does_not_drive_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    Nonfinite().skipped(3, "loss", ["a/\x1b[2J\u202e.png"])
    assert "a/\\x1b[2J\\u202e.png" in caplog.text
    assert "\x1b" not in caplog.text


def test_files_are_as_private_as_the_user_wants_them(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_text(tmp_path / "a.txt", "x")
        write_json(tmp_path / "b" / "c.json", {})
        with replaced(tmp_path / "d.bin") as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o600
            temporary.write_bytes(b"x")
    finally:
        os.umask(before)
    for file in ("a.txt", "b/c.json", "d.bin"):
        assert (tmp_path / file).stat().st_mode & 0o777 == 0o600


# --- what is published ---


def naming(folder: Path, place: str) -> list[str]:
    """The files below a folder in whose bytes a place stands, as text or as JSON writes it."""
    wanted = {place.encode(), json.dumps(place)[1:-1].encode()}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [file.relative_to(folder).as_posix() for file in files if any(w in file.read_bytes() for w in wanted)]


@pytest.mark.parametrize("kind", ["full", "lora", "language"])
def test_exported_weights_do_not_say_where_the_base_lay(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "home" / "jane"
    out = tmp_path / "out"
    out.mkdir()
    if kind == "language":
        LanguageLearner.load(tiny_folder(home)).save(out, {"mix": "m"})
    else:
        learner = DiffusionLearner.load(make_pipeline(home / "base", "sd1"))
        if kind == "lora":
            learner.pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        learner.save(out, {"mix": "m"})
        if kind == "full":
            learner.save_single_file(out / "m.safetensors", {"mix": "m"})
    assert len(list(out.rglob("*"))) >= 2
    assert naming(out, "jane") == []


def test_a_runs_documents_do_not_say_where_it_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded beside the weights: the card, the summary, the evaluations."""
    from diffusion_sft.learners.exact import ExactLearner

    plain = ExactLearner.identity
    monkeypatch.setattr(ExactLearner, "identity", lambda self: plain(self) | {"source": "/home/jane/bases/sd"})
    run_exact(EXACT.__class__(**{**vars(EXACT), "max_train_steps": 5}), tmp_path / "run", UNKNOWN_MIX)
    uploaded = [tmp_path / "run" / name for name in ("README.md", "finetune.json", "evaluations.parquet")]
    assert all(file.is_file() for file in uploaded)
    assert [file.name for file in uploaded if b"jane" in file.read_bytes()] == []
    assert json.loads(uploaded[1].read_text())["identity"]["source"] == "sd"


def test_a_page_shows_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_sft.report.methods import _plain

    monkeypatch.setenv("HOME", "/home/jane")
    assert _plain("/home/jane/data/x") == "~/data/x"
    assert _plain(["/home/jane", "/data/home/jane", "/home/janet"]) == "~, /data/home/jane, /home/janet"


def test_settings_of_a_run_have_no_place_for_a_token() -> None:
    from diffusion_sft.finetune.command import FinetuneCommandConfig
    from diffusion_sft.plan import StudyConfig

    for config in (FinetuneCommandConfig, StudyConfig):
        assert not re.search(r"token\b|password|secret|api_key", " ".join(inspect.get_annotations(config)))


def test_the_table_of_promises_names_tests_that_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)(?:\.py)?::(test_\w+)`", text)
    assert len(named) >= 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}::{test}"
