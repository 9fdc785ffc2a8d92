"""The server of the live view: GET and HEAD on loopback, and nothing that is not meant to be seen.

A page of elsewhere must not read it: the Host header must name loopback (so that no name that is made to point here does),
no response may be framed or fetched across origins, and each carries a policy of what it may load. A file is sent when it
lies in a run, and is a picture, a table, a text or the run's report.
"""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import sys
import traceback
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os import fsdecode, fstat
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from ..errors import UserError
from .config import ServeConfig
from .pages import SCRIPT, STYLE, Pages, source_hash
from .place import Place
from .runs import STUDY, kind_of, page_kind, run_around

PAGE, PLAIN = "text/html; charset=utf-8", "text/plain; charset=utf-8"
KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".txt": PLAIN,
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
}
"""What is sent, by the end of its name."""
SAVED = (".csv", ".parquet", ".pdf")
"""To be saved, not shown."""
REPORT = "report.html"
PAGE_POLICY = (
    f"default-src 'none'; style-src {source_hash(STYLE)}; script-src {source_hash(SCRIPT)}; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "sandbox allow-scripts allow-downloads allow-popups allow-modals"
)
"""A report needs its own styles and scripts and nothing from anywhere; in a sandbox it is no part of this origin."""
FILE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Connection": "close",
}
"""With every response; a connection that stays open would keep a thread, and outlive the server."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response whose body is at hand."""

    status: HTTPStatus = HTTPStatus.OK
    body: str = ""
    kind: str = PLAIN
    policy: str = FILE_POLICY
    more: dict[str, str] = field(default_factory=dict)


class LiveServer(ThreadingHTTPServer):
    """Watches one folder, on one loopback address.

    Raises:
        UserError: there is no such folder, or the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, config: ServeConfig) -> None:
        folder = Path(config.runs)
        if not folder.is_dir():
            raise UserError(f"{config.runs}: no such folder; give the folder of a run, or one that holds runs")
        self.root = Place(folder.resolve())
        self.pages = Pages(self.root, config.refresh_seconds)
        if ":" in config.address:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((config.address, config.port), _Handler)
        except OSError as error:
            where = f"port {config.port} of {config.address}"
            raise UserError(
                f"{where} cannot be had ({error.strerror}); give another, or port=0 for any free one"
            ) from None

    def server_bind(self) -> None:
        """Without asking a name server what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no error."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the overview is."""
        name = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{name}:{self.server_port}/"


def serve(config: ServeConfig) -> int:
    """Answer until Ctrl-C; returns the exit code."""
    with LiveServer(config) as server:
        try:
            print(f"live view of {server.root.root}: {server.url} (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def names_loopback(host: str) -> bool:
    """Whether a Host header names this machine's loopback, with any port (a tunnel may have another)."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if port and not port.isdecimal():
        return False
    if name.lower() == "localhost":
        return True
    try:
        address = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        return ipaddress.ip_address(address).is_loopback and (":" in address) == name.startswith("[")
    except ValueError:
        return False


def parts_of(target: str) -> tuple[str, ...] | None:
    """The decoded names of a request's path; None for what is no plain path from the top."""
    path = target.partition("?")[0].partition("#")[0]
    if not path.startswith("/"):
        return None
    return tuple(fsdecode(unquote_to_bytes(part)) for part in path[1:].split("/"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    """Seconds that a connection may say nothing."""
    server: LiveServer

    def parse_request(self) -> bool:
        """Only what asks to read, and asks this machine by its own name."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD: nothing here can be changed")
            return False
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not names_loopback(hosts[0].strip()):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "the Host header must name loopback, such as 127.0.0.1")
            return False
        return True

    def do_GET(self) -> None:
        """A page or a file."""
        try:
            self._answer()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "this page could not be written; the terminal says why")

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server finds wrong with a request, in words of ours alone."""
        self._refuse(HTTPStatus(code), "not a request that is understood here")

    def version_string(self) -> str:
        """No versions to those who ask."""
        return "diffusion_sft"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an open page asks every few seconds."""

    def _answer(self) -> None:
        parts = parts_of(self.path)
        if parts is None:
            self._send(Answer(status=HTTPStatus.BAD_REQUEST, body="not an address of this view"))
            return
        if parts == ("",):
            self._send(Answer(body=self.server.pages.overview(), kind=PAGE, policy=PAGE_POLICY))
            return
        place = Place(self.server.root.root, parts[1:])
        if parts[0] == "run" and page_kind(place) is not None:
            self._send(Answer(body=self.server.pages.run(place), kind=PAGE, policy=PAGE_POLICY))
        elif not (parts[0] == "file" and run_around(place) is not None and self._send_file(place)):
            self._send(Answer(status=HTTPStatus.NOT_FOUND, body="nothing is here"))

    def _send_file(self, place: Place) -> bool:
        """Whether it is a file that may be sent, and was."""
        end = Path(place.name).suffix.lower()
        report = place.name == REPORT and kind_of(Place(place.root, place.parts[:-1])) == STUDY
        if not (report or end in KINDS):
            return False
        stream = place.open()
        if stream is None:
            return False
        with stream:
            size = fstat(stream.fileno()).st_size
            more = {"Content-Disposition": "attachment"} if end in SAVED else {}
            policy = REPORT_POLICY if report else FILE_POLICY
            self._head(HTTPStatus.OK, PAGE if report else KINDS[end], size, policy, more)
            if self.command == "GET" and _copy(stream, self.wfile, size) < size:
                self.close_connection = True  # it has become shorter, and less was sent than was said
        return True

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode("utf-8", "replace")
        self._head(answer.status, answer.kind, len(body), answer.policy, answer.more)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, size: int, policy: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(size), **more, **HEADERS}.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        more = {"Allow": "GET, HEAD"} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        self._send(Answer(status=status, body=why, more=more))


def _copy(source: BinaryIO, target: Any, size: int) -> int:
    """Copy at most so many bytes; returns how many there were."""
    copied = 0
    while copied < size and (block := source.read(min(1 << 16, size - copied))):
        target.write(block)
        copied += len(block)
    return copied
