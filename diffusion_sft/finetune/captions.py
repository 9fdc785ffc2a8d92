"""The caption that an example is trained under at one visit."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Example, identity_seed
from .config import FinetuneConfig
from .mix import Mix


def render(template: str, example: Example, words: str) -> str:
    """Put the example's caption and its concept's words into a template of `caption_templates`."""
    return template.format(caption=example.caption, concept=words)


def drawn_caption(example: Example, words: str, templates: Sequence[str], seed: int, visit: int) -> str:
    """One of the templates for this visit, decided by seed, example and visit; the own caption where there is none."""
    if not templates:
        return example.caption
    number = identity_seed(seed, "caption template", example.id, visit) % len(templates)
    return render(templates[number], example, words)


def possible_captions(mix: Mix, config: FinetuneConfig) -> list[str]:
    """Every caption that training on the mix can come to, each once, the empty one left out."""
    found: dict[str, None] = {}
    for example in mix.lessons:
        words = mix.words.get(example.concept, example.concept)
        rendered = [render(template, example, words) for template in config.caption_templates]
        found |= dict.fromkeys(rendered or [example.caption])
    found |= dict.fromkeys(example.caption for example in mix.regularisation)
    return list(found | dict.fromkeys([config.class_prompt] if config.class_prompt else []))
