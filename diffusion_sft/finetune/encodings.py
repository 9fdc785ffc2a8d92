"""What a run on a mix will encode, so that it can be encoded before: images by size and orientation, and captions."""

from __future__ import annotations

from ..learner import NULL_CUE, TrainingItem
from ..records import Example
from .aspect import Size, example_sizes
from .captions import possible_captions
from .config import FinetuneConfig
from .mix import Mix


def to_encode(mix: Mix, config: FinetuneConfig, resolution: int | None) -> tuple[list[TrainingItem], list[str]]:
    """Every image and caption that training on the mix can come to, each once.

    Images that `class_prompt` is still to draw are not among them. Captions are none where text encoders are trained,
    whose embeddings do not last.

    Args:
        resolution: of the learner.

    Raises:
        UserError: an image whose size cannot be read.
    """
    sizes = example_sizes(mix.lessons, config, resolution)
    # A regularisation image is fitted to the size of the batch that it comes in.
    all_sizes: list[Size | None] = [*sorted(set(sizes.values()))] or [None]
    placed: list[tuple[Example, Size | None]] = [(example, sizes.get(example.id)) for example in mix.lessons]
    placed += [(example, size) for example in mix.regularisation for size in all_sizes]
    items = [
        TrainingItem(example=example, caption=example.caption, visit=0, flipped=flipped, size=size)
        for example, size in placed
        for flipped in ((False, True) if config.random_flip else (False,))
    ]
    return items, [] if config.train_text_encoder else [NULL_CUE, *possible_captions(mix, config)]
