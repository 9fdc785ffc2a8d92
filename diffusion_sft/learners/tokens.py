"""How many tokens a caption has, by the tokenizer of a base, without loading the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import CLIPTokenizer

from ..errors import UserError
from ..files import user_path
from ..parsing import first_line
from .inspection import check_tokenizer


def token_counter(base: str, revision: str | None) -> Callable[[str], int]:
    """A function from a caption to its number of tokens, start and end included, before anything is cut.

    Args:
        base: a pipeline folder or a Hub id.
        revision: of a Hub repository.

    Raises:
        UserError: no tokenizer there.
    """
    where = str(user_path(base)) if user_path(base).is_dir() else base
    if where != base or Path(where).is_dir():
        check_tokenizer(Path(where) / "tokenizer")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", revision=revision or "main")
    except Exception as error:  # tokenizers raises no other kind.
        raise UserError(f"{base}: no tokenizer to be had from it ({first_line(error)})") from error
    return lambda caption: len(tokenizer(caption, truncation=False, verbose=False).input_ids)
