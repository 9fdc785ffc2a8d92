"""Images that come out of a container as files: each under the hash of its bytes, so that ids never change."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

_SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


class Store:
    """A folder of images named by their SHA-256; what was written once is not written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, content: bytes) -> str:
        """Write the image's bytes as they are and return the file's POSIX path inside the store."""
        digest = hashlib.sha256(content).hexdigest()
        suffix = next((s for start, s in _SIGNATURES.items() if content.startswith(start)), "")
        name = f"{digest[:2]}/{digest}{suffix}"
        path = self.folder / name
        # A crash may have cut a file off, or filled it with zeros: unlike in run folders nothing is fsynced.
        if path.is_file() and path.read_bytes() == content:
            return name
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            Path(temporary).chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return name


def image_store(cache_dir: str | None) -> Store:
    """The store in the folder that the user named, else in the user's cache folder."""
    if cache_dir:
        return Store(Path(cache_dir).expanduser() / "images")
    return Store(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "diffusion_sft" / "images")
