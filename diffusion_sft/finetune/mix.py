"""What a fine-tuning set is to consist of (`MixConfig`), and one that is composed (`Mix`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..ranges import check_range
from ..records import CATEGORIES, Example

BUCKETS = ("known", "unknown")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """What a fine-tuning set consists of. Without shares it is the natural mix: all categories as they occur."""

    name: str = "all"
    """Also the name of the output folder."""
    num_concepts: int | None = None
    """|D| in concepts; their training images all count, or `examples_per_concept` of each."""
    num_examples: int | None = None
    """|D| in examples; whole concepts are taken until it is reached, the last one in part."""
    examples_per_concept: int | None = None
    train_on_all_images: bool = False
    """Held-out and reference images train too: for plain fine-tuning, where nothing is measured on them.
    Regularisation images never do so as examples of their concept."""
    unknown_share: float | None = None
    """The share of Unknown; the rest is drawn from the three other categories as they occur."""
    shares: dict[str, float] = field(default_factory=dict)
    """Shares of HighlyKnown, MaybeKnown, WeaklyKnown, Unknown, or of known and unknown (the chosen rule's bucket)."""
    unknown: Literal["keep", "remove", "relabel"] = "keep"
    """What becomes of the Unknown examples once the mix is composed. remove: they are left out, so that |D| is smaller.
    relabel: their answer becomes 'I don't know' (questions in words alone)."""
    preserved_concepts: int = 0
    """Prior preservation: so many HighlyKnown concepts outside the mix are trained on beside it, one of their examples
    after each of the mix's, with prior_loss_weight; an update then holds half as many of the mix's."""
    replay_share: float = 0.0
    """The last updates, this share of them, repeat HighlyKnown concepts outside the mix, as many as this share of its
    own, instead of the mix (KnownPatch; Dang et al., 2025, take 0.05 to 0.2)."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"mix name {self.name!r}: letters, digits and . _ + - only (it names a folder)")
        sizes = [size for size in (self.num_concepts, self.num_examples) if size is not None]
        if len(sizes) > 1:
            raise ValueError(f"mix {self.name}: give num_concepts or num_examples, not both")
        check_range(self, "num_concepts", "num_examples", "examples_per_concept", least=1)
        check_range(self, "unknown_share", least=0, most=1)
        check_range(self, "preserved_concepts", least=0)
        check_range(self, "replay_share", least=0, below=1)
        if self.unknown_share is not None and self.shares:
            raise ValueError(f"mix {self.name}: give unknown_share or shares, not both")
        if (self.unknown_share is not None or self.shares) and not sizes:
            raise ValueError(
                f"mix {self.name}: unknown_share and shares need a fixed size; set num_concepts or num_examples"
            )
        if self.shares:
            _check_shares(self.name, self.shares)

    @property
    def is_guarded(self) -> bool:
        """Whether anything besides the mix is trained on, to keep what the base knew."""
        return bool(self.preserved_concepts or self.replay_share)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A composed fine-tuning set."""

    name: str
    concepts: Mapping[str, tuple[str, ...]]
    """The concepts' names by category."""
    examples: tuple[Example, ...]
    regularisation: tuple[Example, ...] = ()
    """Class images that are trained on beside the examples, to hold the prior; all of the set's, whatever the mix."""
    replay: tuple[Example, ...] = ()
    """Examples that the last `replay_share` of the updates are made on, instead of the mix's own."""
    replay_share: float = 0.0
    words: Mapping[str, str] = field(default_factory=dict)
    """The words of each concept that is trained on, which captions have for it."""

    @property
    def categories(self) -> dict[str, str]:
        """The category of each concept of the mix."""
        return {concept: category for category, names in self.concepts.items() for concept in names}

    @property
    def lessons(self) -> tuple[Example, ...]:
        """What is trained on under captions of templates and in sizes of its own: the examples, and what is replayed."""
        return (*self.examples, *self.replay)

    @property
    def guard(self) -> str:
        """What protects what the base knew, as the tables call it: "" for nothing."""
        return " and ".join(["preserved"] * bool(self.regularisation) + ["replayed"] * bool(self.replay))

    @property
    def taught(self) -> set[str]:
        """Every concept that is trained on: of the mix, beside it or after it."""
        return {*self.categories, *(example.concept for example in (*self.regularisation, *self.replay))}


def _check_shares(name: str, shares: Mapping[str, float]) -> None:
    allowed = CATEGORIES if any(label in CATEGORIES for label in shares) else BUCKETS
    for label, share in shares.items():
        if label not in allowed:
            raise ValueError(
                f"mix {name}: shares.{label}: expected some of {', '.join(CATEGORIES)}, or of known, unknown"
            )
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"mix {name}: shares.{label} is from 0 to 1, not {share}")
    if abs(sum(shares.values()) - 1.0) > 1e-6:
        raise ValueError(f"mix {name}: the shares add up to {sum(shares.values()):g}, not 1")
