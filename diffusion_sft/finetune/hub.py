"""Uploading a finished run to the Hugging Face Hub: its weights, its card and its numbers, and nothing else.

Checkpoints, logs, pictures, class images and data stay where they are.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from ..files import read_json
from ..parsing import printable
from .card_words import ADAPTER_SETTINGS, KOHYA_FILE
from .config import FinetuneConfig
from .summary import SUMMARY

DOCUMENTS = ("README.md", SUMMARY, "evaluations.parquet")


class Api(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any:
        """Create a repository, or leave the one that is there as it is."""

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any:
        """Say, among other things, whether it is `private`."""

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: str, allow_patterns: list[str], commit_message: str
    ) -> Any:
        """Upload the files of a folder that match a pattern, in one commit."""


def check_hub(config: FinetuneConfig) -> None:
    """Raise UserError, before hours are spent, where a push that is asked for cannot work."""
    if not config.push_to_hub:
        return
    if not config.hub_model_id:
        raise UserError("push_to_hub: set hub_model_id=user/name, the repository to push to")
    try:
        validate_repo_id(config.hub_model_id)
    except HFValidationError:
        raise UserError(
            f"hub_model_id: {printable(config.hub_model_id)!r} is no repository's name; give user/name"
        ) from None
    if huggingface_hub.get_token() is None:
        raise UserError("push_to_hub: no token for the Hub here; run `hf auth login` or set HF_TOKEN")


def push(folder: Path, config: FinetuneConfig, api: Api | None = None) -> None:
    """Upload a finished run where `push_to_hub` asks for it; private by default, safe to repeat.

    A pipeline's files go to the top of the repository, so that `from_pretrained` takes its name.

    Raises:
        UserError: no token, no network, refused, or the repository is public and `hub_private` is set. The run stays
            complete on disk, and running it again pushes again.
    """
    if not config.push_to_hub:
        return
    check_hub(config)
    name = str(config.hub_model_id)
    summary = read_json(folder / SUMMARY)
    mix, weights = summary["mix"], summary["exports"]["last"]
    api = api or huggingface_hub.HfApi()
    try:
        api.create_repo(name, repo_type="model", private=config.hub_private, exist_ok=True)
        if config.hub_private and api.repo_info(name, repo_type="model").private is False:
            raise UserError(f"{name} is public on the Hub; set hub_private=false, or choose another hub_model_id")
        if config.method != "lora":
            _upload(api, name, folder / weights, ["*"])
        own = [weights, KOHYA_FILE, ADAPTER_SETTINGS] if config.method == "lora" else [f"{mix}.safetensors"]
        _upload(api, name, folder, [*own, *DOCUMENTS])
    except (OSError, ValueError, HTTPError) as error:
        cause = textwrap.shorten(printable(" ".join(str(error).split())), 200)
        raise UserError(
            f"{name}: could not be pushed ({cause or type(error).__name__}); {folder} is complete, run again to push again"
        ) from error


def _upload(api: Api, name: str, folder: Path, patterns: list[str]) -> None:
    api.upload_folder(
        repo_id=name,
        repo_type="model",
        folder_path=str(folder),
        allow_patterns=patterns,
        commit_message="Upload a fine-tuned model",
    )
