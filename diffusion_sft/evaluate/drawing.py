"""The device draws, and is not held up by what becomes of its pictures.

Pictures are looked at on the device as soon as they are drawn, and compressed and written by threads while the next
ones are drawn. What is told of a picture is true: its file is on the disk, and its features are in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..learner import Cue, Learner
from ..records import SHOWN_IMAGES
from .config import EvaluateConfig
from .looking import Looking, Looks
from .pictures import pixel_hash, write_picture

Entry = dict[str, Any]
"""An image as a record lists it: its file, what it is made from, and once it is made what it is known by."""


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Pictures of one size that are drawn and may not be written yet."""

    plans: Sequence[Entry]
    size: tuple[int, int]
    hashes: Sequence[Future[str]]
    looks: Looks | None


class Drawing:
    """A learner at work for a folder."""

    def __init__(self, learner: Learner, config: EvaluateConfig, folder: Path, looking: Looking | None) -> None:
        self._learner = learner
        self._config = config
        self._folder = folder
        self._looking = looking

    def draw(self, chunks: Iterable[Sequence[Entry]], tell: Callable[[dict[str, Entry]], None]) -> None:
        """Draw the planned images chunk by chunk, and tell of each chunk what is to be recorded, by file.

        A chunk is told of when the next one is drawn, and the last one when all else is over or broke off.

        Raises:
            UserError: a picture that cannot be written; nothing is told of its chunk.
        """
        ahead: list[_Drawn] = []

        def finish() -> None:
            while ahead:
                tell(self._finished(ahead.pop()))

        with ThreadPoolExecutor() as threads:
            try:
                for chunk in chunks:
                    drawn = self._draw(chunk, threads)
                    finish()
                    ahead.append(drawn)
            finally:
                finish()

    def _draw(self, plans: Sequence[Entry], threads: ThreadPoolExecutor) -> _Drawn:
        images = self._learner.generate(
            [Cue(prompt=plan["prompt"], seed=plan["seed"]) for plan in plans],
            num_inference_steps=self._config.num_inference_steps,
            guidance_scale=self._config.guidance_scale,
            batch_size=self._config.batch_size,
        )
        hashes = [
            threads.submit(write_picture, self._folder / plan["file"], image)
            if self._is_kept(plan)
            else threads.submit(pixel_hash, image)
            for plan, image in zip(plans, images, strict=True)
        ]
        height, width, _ = images[0].shape
        looks = None if self._looking is None else self._looking.look(images, [plan["concept"] for plan in plans])
        return _Drawn(plans=plans, size=(height, width), hashes=hashes, looks=looks)

    def _finished(self, drawn: _Drawn) -> dict[str, Entry]:
        hashes = [future.result() for future in drawn.hashes]
        seen, reader = None, None
        if self._looking is not None and drawn.looks is not None:
            self._looking.keep(hashes, drawn.looks, drawn.size)
            seen, reader = drawn.looks.seen, self._looking.reader
        return {
            plan["file"]: plan
            | {
                "sha256": digest,
                "kept": self._is_kept(plan),
                "size": list(drawn.size),
                "seen": None if seen is None else seen[place],
                "reader": reader,
            }
            for place, (plan, digest) in enumerate(zip(drawn.plans, hashes, strict=True))
        }

    def _is_kept(self, plan: Entry) -> bool:
        return self._config.keep_images or plan["index"] < SHOWN_IMAGES
