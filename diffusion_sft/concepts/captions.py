"""Where an image's caption comes from: what lies beside it, else a template, else nothing by the user's leave."""

from __future__ import annotations

from pathlib import Path

from .config import ConceptSourceConfig

DEFAULT_TEMPLATE = "a photo of {concept} {class}"
CAPTION_SUFFIXES = (".txt", ".caption")
"""Both are looked for, because kohya's tools default to one and everybody else's to the other."""
LARGEST_CAPTION = 1 << 16
"""Bytes of a caption file, and characters of a cell; what is longer is something else."""


def caption_or_template(caption: str, concept: str, config: ConceptSourceConfig, missing: str) -> str:
    """The caption; where it is empty the template's, or the empty one where that is allowed.

    Raises:
        ValueError: the caption is empty and nothing stands in for it; the message starts with `missing`.
    """
    if caption:
        return caption
    if config.template is not None:
        return caption_of(config.template, concept, "")
    if config.allow_empty:
        return ""
    raise ValueError(f"{missing}; write one, or set template='a photo of {{concept}}' or allow_empty=true")


def caption_of(template: str, concept: str, class_words: str) -> str:
    """Fill the template, leaving the class out where it is unknown or the concept's name already ends with it."""
    said = "{concept} {class}" in template and f" {concept.lower()}".endswith(f" {class_words.lower()}")
    # not str.format or two replacements in a row: a folder's name may itself contain braces
    parts = template.split("{class}")
    filled = [part.replace("{concept}", concept) for part in parts]
    return " ".join(("" if said or not class_words else class_words).join(filled).split())


def agreed(captions: dict[str, str]) -> str:
    """The one text among captions by the name of what holds them ("" where all are empty).

    Raises:
        ValueError: two of them are there and differ.
    """
    there = {name: text for name, text in captions.items() if text}
    if len(set(there.values())) > 1:
        raise ValueError(f"has two captions that differ, in {' and '.join(there)}; keep one")
    return next(iter(there.values()), "")


def read_caption(path: Path) -> str:
    """A caption file's text, lines and runs of blanks joined by single spaces.

    Raises:
        ValueError: it cannot be read, is not UTF-8 text, or is far too long for a caption.
    """
    try:
        if not path.is_file():  # A pipe would be waited for.
            raise ValueError(f"its caption file {path.name} is no plain file")
        with path.open("rb") as stream:
            return caption_text(stream.read(LARGEST_CAPTION + 1), path.name)
    except OSError as error:
        raise ValueError(f"its caption file {path.name} cannot be read ({error.strerror})") from None


def caption_text(content: bytes, name: str) -> str:
    """A caption's bytes as one line of text; ValueError where they are no UTF-8 text, or too many."""
    if len(content) > LARGEST_CAPTION:
        raise ValueError(f"its caption file {name} is longer than {LARGEST_CAPTION} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"its caption file {name} is not UTF-8 text") from None
    if "\x00" in text:
        raise ValueError(f"its caption file {name} is not text (it holds zero bytes)")
    return " ".join(text.split())
