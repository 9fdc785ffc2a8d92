"""Which examples an update sees: a pure function of the seed and the update, so that resuming is exact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..learner import NULL_CUE, TrainingItem
from ..records import Example, identity_seed


class Sampler:
    """Passes over a set without replacement, in an order decided by (seed, pass, example id)."""

    def __init__(self, examples: Sequence[Example], *, seed: int, batch_size: int, proportion_empty_prompts: float):
        if not examples:
            raise ValueError("a sampler needs at least one example")
        self.examples = {example.id: example for example in examples}
        self.ids = tuple(self.examples)
        self.seed = seed
        self.batch_size = batch_size
        self.proportion_empty_prompts = proportion_empty_prompts

    def items(self, update: int) -> list[TrainingItem]:
        """The `batch_size` items of update number `update` (counted from 1), over all processes."""
        start = (update - 1) * self.batch_size
        return [self._item(position) for position in range(start, start + self.batch_size)]

    def _item(self, position: int) -> TrainingItem:
        visit, index = divmod(position, len(self.ids))
        example = self.examples[_order(self.ids, self.seed, visit)[index]]
        dropped = identity_seed(self.seed, "caption dropout", example.id, visit) / 2**63
        caption = NULL_CUE if dropped < self.proportion_empty_prompts else example.caption
        return TrainingItem(example=example, caption=caption, visit=visit)


@lru_cache(maxsize=4)
def _order(ids: tuple[str, ...], seed: int, visit: int) -> tuple[str, ...]:
    """The ids in the order of pass number `visit`; it does not depend on the order they are given in."""
    return tuple(sorted(ids, key=lambda name: (identity_seed(seed, "order", visit, name), name)))
