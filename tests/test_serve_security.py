"""The live view lets nobody see or change what is not meant for him: one test for each rule, over a real connection."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from live_runs import Reader, finetune_run, log, picture, study_run, watching, write

from diffusion_sft import cli
from diffusion_sft.serve.config import ServeConfig
from diffusion_sft.serve.place import Place
from diffusion_sft.serve.server import FILE_POLICY, HEADERS, PAGE_POLICY, REPORT_POLICY, names_loopback

SECRET = "the secret of the house"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, and secrets beside and among them."""
    outside = tmp_path_factory.mktemp("outside")
    folder = outside / "runs"
    study_run(folder / "a", mixes=("half",))
    finetune_run(folder / "b")
    for path in (outside / "secret.txt", folder / "a" / ".hidden.txt", folder / "a" / ".git" / "config.txt"):
        write(path, SECRET)
    for name in ("notes.txt", "no-run/notes.txt", "a/weights.safetensors", "a/page.html", "a/x.svg", "a/study.json"):
        if not (folder / name).exists():
            write(folder / name, SECRET)
    write(folder / "b" / "report.html", SECRET)
    (folder / "a" / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "a" / "away").symlink_to(outside, target_is_directory=True)
    (folder / "a" / "veiled.txt").symlink_to(folder / "a" / ".hidden.txt")
    (folder / "a" / "loop.txt").symlink_to(folder / "a" / "loop.txt")
    (folder / "a" / "inside.txt").symlink_to(folder / "a" / "dynamics" / "summary.txt")
    os.mkfifo(folder / "a" / "pipe.txt")
    return folder


@pytest.fixture(scope="module")
def reader(runs: Path) -> Iterator[Reader]:
    with watching(runs) as found:
        yield found


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.2", "8.8.8.8", "example.org", "", "fe80::1"])
def test_it_answers_on_loopback_alone(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", str(tmp_path), f"address='{address}'", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "answers on loopback alone" in told
    assert told.count("\n") == 1


def test_it_is_bound_to_loopback(reader: Reader) -> None:
    assert ServeConfig().address == "127.0.0.1"
    own = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1", "::1"}
    for address in own:
        if not address.startswith("127."):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, reader.port), timeout=2).close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
def test_only_reading_is_allowed(reader: Reader, method: str) -> None:
    status, headers, _ = reader.ask("/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    for name, value in HEADERS.items():
        assert headers[name] == value


@pytest.mark.parametrize("path", ["/", "/run/a", "/file/a/buckets/concepts.csv", "/file/a/report.html", "/nothing"])
def test_head_is_get_without_the_body(reader: Reader, path: str) -> None:
    status, headers, body = reader.ask(path, "HEAD")
    again, full, content = reader.ask(path)
    assert (status, body) == (again, b"")
    assert headers["Content-Type"] == full["Content-Type"]
    whole = raw(reader, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert whole.endswith(b"\r\n\r\n")
    assert whole.count(b"\r\n\r\n") == 1
    if path.startswith("/file"):
        assert int(headers["Content-Length"]) == len(content)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:8337",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "0.0.0.0",
            "[::2]",
        ),
        *("127.0.0.1:x", "127.0.0.1@evil", "::1", "localhost:1:2", "user@127.0.0.1", "2130706433", "0x7f.1", "127.1"),
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(reader: Reader, host: str) -> None:
    status, _, body = reader.ask("/", host=host)
    assert status == 421
    assert b"What is known?" not in body
    assert not names_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9000", "[::1]:8337", "[::1]", "127.0.0.2:80"])
def test_loopback_may_be_called_by_its_names(reader: Reader, host: str) -> None:
    assert reader.ask("/", host=host)[0] == 200


def test_two_hosts_or_none_are_refused(reader: Reader) -> None:
    for lines in ("", "Host: 127.0.0.1\r\nHost: evil.example\r\n"):
        assert raw(reader, f"GET / HTTP/1.1\r\n{lines}\r\n").startswith(b"HTTP/1.1 421")
    assert b" 421 " in raw(reader, "GET / HTTP/1.0\r\n\r\n")


SECRET_PATHS = [
    "/file/../secret.txt",
    "/file/a/../../secret.txt",
    "/file/a/..%2f..%2fsecret.txt",
    "/file/%2e%2e/secret.txt",
    "/file/a/%2e%2e/%2e%2e/secret.txt",
    "/file/a/..%5c..%5csecret.txt",
    "/file/a/..\\..\\secret.txt",
    "/file/a/%252e%252e/%252e%252e/secret.txt",
    "/file//secret.txt",
    "/file/%2fetc%2fpasswd",
    "/file//etc/passwd",
    "/file/a//dynamics/summary.txt",
    "/file/a/./dynamics/summary.txt",
    "/file/a/link.txt",
    "/file/a/away/secret.txt",
    "/file/a/veiled.txt",
    "/file/a/loop.txt",
    "/file/a/.hidden.txt",
    "/file/a/.git/config.txt",
    "/file/a/%2ehidden.txt",
    "/file/notes.txt",
    "/file/no-run/notes.txt",
    "/file/a/weights.safetensors",
    "/file/a/page.html",
    "/file/a/x.svg",
    "/file/a/study.json",
    "/file/a/config.yaml",
    "/file/b/report.html",
    "/file/b/metrics.jsonl",
    "/file/a/pipe.txt",
    "/file/a/dynamics",
    "/file/a/",
    "/file/a",
    "/file/",
    "/file",
    "/run/a/..",
    "/run/../a",
    "/run/no-run",
    "/run/a/probe",
    "/run/a/away/runs/a",
    "/run/",
    "/run/a/",
    "/run",
    "/a",
    "/file/a/dynamics/summary.txt%00.png",
    "/file/a/dynamics/summary.txt/",
    "/file/" + "a/" * 2000 + "x.txt",
    "/file/" + "a" * 5000 + ".txt",
]


@pytest.mark.parametrize("path", SECRET_PATHS, ids=lambda path: path[:60])
def test_nothing_else_is_to_be_had(reader: Reader, path: str) -> None:
    status, _, body = reader.ask(path)
    assert status in (400, 404)
    assert SECRET.encode() not in body
    assert b"root:" not in body


def test_what_may_be_had_is(reader: Reader) -> None:
    kinds = {
        "/file/a/dynamics/summary.txt": "text/plain; charset=utf-8",
        "/file/a/inside.txt": "text/plain; charset=utf-8",
        "/file/a/buckets/concepts.csv": "text/csv; charset=utf-8",
        "/file/a/buckets/concepts.parquet": "application/vnd.apache.parquet",
        "/file/a/evaluate/base/images/wug/0000.png": "image/png",
        "/file/a/report.html": "text/html; charset=utf-8",
        "/file/a/%64ynamics/summary%2etxt?v=1&w=../../x#y": "text/plain; charset=utf-8",
    }
    for path, kind in kinds.items():
        status, headers, _ = reader.ask(path)
        assert (status, headers["Content-Type"]) == (200, kind), path


@pytest.mark.parametrize("target", ["http://127.0.0.1/", "*", "a", "//evil.example/", "?x", "/%ff%fe", "/\x01"])
def test_targets_that_are_no_path_are_refused(reader: Reader, target: str) -> None:
    answer = raw(reader, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 (400|404|421)", answer)
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "request_line", ["", "GET", "GET / HTTP/9.9", "GET / / /", "\x16\x03\x01", "GET /" + "a" * 70000]
)
def test_what_is_no_request_is_answered_shortly(reader: Reader, request_line: str) -> None:
    answer = raw(reader, f"{request_line}\r\nHost: localhost\r\n\r\n")
    assert b"Traceback" not in answer
    assert b"<" not in answer
    assert b"What is known?" not in answer


def test_every_answer_carries_its_policy(reader: Reader) -> None:
    policies = {
        "/": PAGE_POLICY,
        "/run/a": PAGE_POLICY,
        "/file/a/report.html": REPORT_POLICY,
        "/file/a/dynamics/summary.txt": FILE_POLICY,
        "/nothing": FILE_POLICY,
    }
    for path, policy in policies.items():
        _, headers, _ = reader.ask(path)
        assert headers["Content-Security-Policy"] == policy
        assert "frame-ancestors 'none'" in policy
        assert {name: headers[name] for name in HEADERS} == HEADERS
        assert "Access-Control-Allow-Origin" not in headers
        assert "Python" not in headers["Server"]
    assert "unsafe" not in PAGE_POLICY
    assert "sandbox" in REPORT_POLICY
    assert "allow-same-origin" not in REPORT_POLICY


def test_tables_are_saved_and_not_shown(reader: Reader) -> None:
    for name in ("concepts.csv", "concepts.parquet"):
        assert reader.ask(f"/file/a/buckets/{name}")[1]["Content-Disposition"] == "attachment"


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "{{ 7*7 }}",
    "javascript:alert(1)",
    "a b%2e%2e%2fc?d#e&f;g",
    "\u202egnp.exe",
    "عربي 🐙 中文",
    "x" * 200,
    "new\nline\ttab",
    "..",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_text_and_lead_where_they_say(tmp_path: Path, name: str) -> None:
    folder = name.replace("/", "∕") if name != ".." else "..."
    if folder.startswith("."):
        folder = "_" + folder
    title = {"title": name, "settings": {"learners": ["diffusion"], "base": name, "mixes": []}}
    write(tmp_path / folder / "study.json", title)
    write(tmp_path / folder / "buckets" / "buckets.json", {"rule": name, "warnings": [name], "categories": {name: 1}})
    finetune_run(tmp_path / folder / "finetune" / folder)
    write(tmp_path / folder / "finetune" / folder / "nonfinite.json", {"update": 1, "not_finite": name})
    write(tmp_path / folder / "dynamics" / "summary.txt", name)
    picture(tmp_path / folder / "finetune" / folder / "samples" / f"{folder}.png"[-60:].lstrip("."))
    with watching(tmp_path) as reader:
        page = reader.page()
        (address,) = set(re.findall(r'href="(/run/[^"]+)"', page))
        inside = reader.page(address)
        (below,) = set(re.findall(r'href="(/run/[^"]+/finetune/[^"]+)"', inside))
        pages = [page, inside, reader.page(below)]
        for picture_address in set(re.findall(r'src="(/file/[^"?]+)', pages[2])):
            assert reader.ask(picture_address)[0] == 200
    for text in pages:
        tags = Tags()
        tags.feed(text)
        assert [tag for tag, _ in tags.found].count("script") == 1
        for tag, attributes in tags.found:
            assert not [key for key in attributes if key.startswith("on") or key == "style"], (tag, attributes)
            assert attributes.get("src", "/file/").startswith("/file/")
            assert attributes.get("href", "/").startswith(("/", "#", "data:,"))
        assert "<h1><bdi>49" not in text
        assert "\u202e" not in text


@pytest.mark.parametrize("name", HOSTILE[:3])
def test_hostile_labels_in_tables_are_text(tmp_path: Path, name: str) -> None:
    run = finetune_run(tmp_path / "a" / "finetune" / "half")
    write(tmp_path / "a" / "study.json", {"settings": {"learners": ["diffusion"]}})
    for table in ("evaluations.parquet", "answers.parquet"):
        rows = pd.read_parquet(run / table)
        rows.assign(category=name, **({"answer": name, "concept": name} if "answer" in rows else {})).to_parquet(
            run / table
        )
    with watching(tmp_path) as reader:
        for path in ("/run/a", "/run/a/finetune/half"):
            tags = Tags()
            tags.feed(reader.page(path))
            assert [tag for tag, _ in tags.found].count("script") == 1
            assert [tag for tag, _ in tags.found].count("img") == 0
            assert not [key for _, attributes in tags.found for key in attributes if key.startswith("on")]
            assert {"of-other"} <= {attributes.get("class", "") for _, attributes in tags.found}


class Tags(HTMLParser):
    """Every element that a browser would see, with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
def test_a_name_that_is_no_text_is_shown_and_found(tmp_path: Path) -> None:
    raw_name = os.fsencode(tmp_path) + b"/run-\xff\xfe"
    os.mkdir(raw_name)
    write(Path(os.fsdecode(raw_name)) / "config.yaml", "max_train_steps: 100\n")
    log(Path(os.fsdecode(raw_name)), range(1, 41))
    with watching(tmp_path) as reader:
        page = reader.page()
        assert "/run/run-%FF%FE" in page
        assert "run-\ufffd\ufffd" in page
        assert "40 of 100" in reader.page("/run/run-%FF%FE")


def test_a_link_out_of_the_folder_is_as_good_as_absent(tmp_path: Path) -> None:
    finetune_run(tmp_path / "elsewhere" / "b")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "b").symlink_to(tmp_path / "elsewhere" / "b", target_is_directory=True)
    (tmp_path / "runs" / "a" / "metrics.jsonl").symlink_to(tmp_path / "elsewhere" / "b" / "metrics.jsonl")
    with watching(tmp_path / "runs") as reader:
        assert "No run here" in reader.page()
        assert reader.ask("/run/b")[0] == 404
    (tmp_path / "runs" / "own").mkdir()
    finetune_run(tmp_path / "runs" / "own")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs" / "own", target_is_directory=True)
    with watching(tmp_path / "runs") as reader:
        assert reader.ask("/run/again")[0] == 200


def test_nothing_is_written_anywhere(runs: Path, reader: Reader) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in [runs, *runs.rglob("*")]}

    before = state()
    for path in (
        "/",
        "/run/a",
        "/run/a/finetune/half",
        "/run/b",
        "/file/a/report.html",
        "/file/a/buckets/concepts.csv",
    ):
        reader.page(path)
    assert state() == before


def test_a_named_pipe_does_not_hold_it_up(runs: Path) -> None:
    assert (Place(runs) / "a/pipe.txt").open() is None
    assert (Place(runs) / "a/pipe.txt").end(10) == ""


def test_nothing_heavy_is_imported() -> None:
    heavy = "[name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]"
    code = f"import sys, diffusion_sft.cli, diffusion_sft.serve.server; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def raw(reader: Reader, text: str) -> bytes:
    """The answer to these very bytes."""
    with socket.create_connection(("127.0.0.1", reader.port), timeout=10) as connection:
        connection.sendall(text.encode("utf-8"))
        connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while block := connection.recv(65536):
                received += block
        except ConnectionResetError:
            pass
    return received
