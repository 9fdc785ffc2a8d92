"""Which examples an update sees: a pure function of the seed and the update, so that resuming is exact.

Examples of one size are a stream of passes without replacement, each example as often in a pass as its `repeats`.
A stream is cut into micro-batches that go on over the ends of passes, so that nothing is padded and every example of
a size is seen equally often, to within one micro-batch. The first k passes over the set hold the ⌈k·n/m⌉ first
micro-batches of m items of each size with n items, mixed among the sizes; hence each pass sees every example.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

from ..learner import NULL_CUE, TrainingItem
from ..records import Example, identity_seed
from .aspect import Size
from .captions import drawn_caption
from .config import FinetuneConfig
from .mix import Mix


class Stream:
    """Pass after pass over the same examples; of `num_streams` over the same ones no two share a (id, visit)."""

    def __init__(self, examples: Iterable[Example], seed: int, number: int = 0, num_streams: int = 1):
        self.repeats = {example.id: example.repeats for example in examples}
        self.seed, self.number, self.num_streams = seed, number, num_streams
        self.length = sum(self.repeats.values())
        self._orders: dict[int, list[tuple[int, str, int]]] = {}

    def at(self, position: int) -> tuple[str, int]:
        """The id at a place of the stream, and its visit: how many visits it had before, in all such streams."""
        turn, index = divmod(position, self.length)
        turn = turn * self.num_streams + self.number
        _, name, copy = self._order(turn)[index]
        return name, turn * self.repeats[name] + copy

    def _order(self, turn: int) -> list[tuple[int, str, int]]:
        """Pass number `turn`, in an order decided by (seed, pass, id); repetitions are spread like other ids."""
        found = self._orders.get(turn)
        if found is None:
            found = sorted(
                (identity_seed(self.seed, "order", turn, name, *([copy] if copy else [])), name, copy)
                for name, repeats in self.repeats.items()
                for copy in range(repeats)
            )
            # A batch may lie in two passes. Put in place at once: two threads may ask.
            self._orders = dict(list(self._orders.items())[-1:]) | {turn: found}
        return found


@dataclass
class Sampler:
    """Examples (and one regularisation image after each, where there are any) in the order they are trained on."""

    examples: Sequence[Example]
    _: KW_ONLY
    seed: int
    batch_size: int
    """Items of an update, over all processes and micro-batches."""
    proportion_empty_prompts: float
    micro_batch_size: int | None = None
    """So many consecutive items share one size; None: all of an update."""
    regularisation: Sequence[Example] = ()
    """Every other item is one of these; in a batch of one size they are fitted to it."""
    prior_loss_weight: float = 1.0
    random_flip: bool = False
    caption_templates: Sequence[str] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    """Of each concept, for the templates."""
    sizes: Mapping[str, Size] = field(default_factory=dict)
    """Of each example, by id; empty: the learner's square."""
    replay: Sampler | None = None
    """Gives the items of the updates after `replay_after`, instead of this one."""
    replay_after: int = 0

    @classmethod
    def of(cls, mix: Mix, config: FinetuneConfig, num_processes: int, sizes: Mapping[str, Size]) -> Sampler:
        """The sampler of a run; `sizes` as `aspect.example_sizes` returns them."""
        sampler = partial(
            cls,
            seed=config.seed,
            batch_size=config.train_batch_size * config.gradient_accumulation_steps * num_processes,
            proportion_empty_prompts=config.proportion_empty_prompts,
            micro_batch_size=config.train_batch_size,
            random_flip=config.random_flip,
            caption_templates=tuple(config.caption_templates),
            words=mix.words,
            sizes=sizes,
        )
        return sampler(
            mix.examples,
            regularisation=mix.regularisation,
            prior_loss_weight=config.prior_loss_weight,
            replay=sampler(mix.replay) if mix.replay else None,
            replay_after=updates_before_replay(mix, config),
        )

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("a sampler needs at least one example")
        self._micro = self.micro_batch_size or self.batch_size
        if self.batch_size % self._micro:
            raise ValueError(f"{self.batch_size} items are no whole number of micro-batches of {self._micro}")
        self._by_id = {example.id: example for example in self.examples}
        self._prior = {example.id: example for example in self.regularisation}
        by_size: dict[Size | None, list[Example]] = {}
        for example in self._by_id.values():
            by_size.setdefault(self.sizes.get(example.id), []).append(example)
        # Sorted, so that nothing hangs on the order in which the examples were given.
        self._sizes = sorted(by_size, key=lambda size: size or (0, 0))
        self._streams = [Stream(by_size[size], self.seed) for size in self._sizes]
        # Every size goes through the same regularisation images, in passes of its own.
        streams = range(len(self._sizes) if self._prior else 0)
        self._prior_streams = [Stream(self._prior.values(), self.seed, n, len(self._sizes)) for n in streams]
        # A regularisation image after each example makes a pass twice as long.
        self._lengths = [stream.length * (2 if self._prior else 1) for stream in self._streams]
        self._mixed_last: tuple[int, list[tuple[int, int]]] = (-1, [])

    @property
    def updates_per_pass(self) -> float:
        """After so many updates every example has been seen at least `repeats` times."""
        return self._batches_before(1) * self._micro / self.batch_size

    @property
    def own_per_update(self) -> float:
        """How many items of an update are the mix's own."""
        return self.batch_size / 2 if self._prior else self.batch_size

    def items(self, update: int) -> list[TrainingItem]:
        """The `batch_size` items of update number `update` (counted from 1), over all processes."""
        if self.replay is not None and update > self.replay_after:
            return self.replay.items(update - self.replay_after)
        count = self.batch_size // self._micro
        found: list[TrainingItem] = []
        for number in range((update - 1) * count, update * count):
            group, batch = self._batch(number)
            found += [self._item(group, batch * self._micro + place) for place in range(self._micro)]
        return found

    def _batches_before(self, passes: int) -> int:
        """How many micro-batches the first passes hold."""
        return sum(-(-passes * length // self._micro) for length in self._lengths)

    def _batch(self, number: int) -> tuple[int, int]:
        """The group of micro-batch `number` of the run, and its number within the group."""
        if len(self._streams) == 1:
            return 0, number
        # A pass holds at least one item, so that the last of these holds a later micro-batch.
        passes = range(number * self._micro + 2)
        index = bisect.bisect_right(passes, number, key=self._batches_before) - 1
        last, mixed = self._mixed_last
        if last != index:
            mixed = self._mixed(index)
            self._mixed_last = index, mixed
        return mixed[number - self._batches_before(index)]

    def _mixed(self, index: int) -> list[tuple[int, int]]:
        """The micro-batches of pass `index`: sizes in an order of chance, each size's own batches in theirs."""
        places: list[tuple[int, int]] = []
        following = [-(-index * length // self._micro) for length in self._lengths]
        for group, length in enumerate(self._lengths):
            until = -(-(index + 1) * length // self._micro)
            numbers = range(following[group], until)
            places += [(identity_seed(self.seed, "sizes", index, group, number), group) for number in numbers]
        order: list[tuple[int, int]] = []
        for _, group in sorted(places):
            order.append((group, following[group]))
            following[group] += 1
        return order

    def _item(self, group: int, position: int) -> TrainingItem:
        """The item at a place of a size's stream; every other one is a regularisation image, where there are any."""
        size = self._sizes[group]
        if not self._prior:
            return self._own_item(self._streams[group].at(position), size)
        if position % 2 == 0:
            return self._own_item(self._streams[group].at(position // 2), size)
        slot = self._prior_streams[group].at(position // 2)
        return self._training_item(self._prior[slot[0]], slot, size, (), self.prior_loss_weight)

    def _own_item(self, slot: tuple[str, int], size: Size | None) -> TrainingItem:
        return self._training_item(self._by_id[slot[0]], slot, size, self.caption_templates, 1.0)

    def _training_item(
        self, example: Example, slot: tuple[str, int], size: Size | None, templates: Sequence[str], weight: float
    ) -> TrainingItem:
        visit = slot[1]
        words = self.words.get(example.concept, example.concept)
        caption = drawn_caption(example, words, templates, self.seed, visit)
        if self._chance("caption dropout", slot) < self.proportion_empty_prompts:
            caption = NULL_CUE
        flipped = self.random_flip and self._chance("flip", slot) < 0.5
        return TrainingItem(example=example, caption=caption, visit=visit, flipped=flipped, size=size, weight=weight)

    def _chance(self, what: str, slot: tuple[str, int]) -> float:
        return identity_seed(self.seed, what, *slot) / 2**63


def updates_before_replay(mix: Mix, config: FinetuneConfig) -> int:
    """How many updates are made before the replay begins; all of them where there is none."""
    return config.max_train_steps - (round(mix.replay_share * config.max_train_steps) if mix.replay else 0)
