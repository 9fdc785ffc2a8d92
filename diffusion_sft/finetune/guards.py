"""What is trained on besides a mix so that the base keeps what it knew: prior preservation, and a replay at the end.

Prior preservation (Ruiz et al., 2023, section 3.2) here with real images of known concepts: one after each example of
the mix. A replay (KnownPatch; Dang et al., 2025): the last updates repeat known examples instead of the mix's. Both
take HighlyKnown concepts from outside the mix, in the order in which mixes take theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import UserError
from ..records import HIGHLY_KNOWN, Example
from .mix import Mix, MixConfig


def guarded(
    mix: Mix, config: MixConfig, categories: Mapping[str, str], examples: Mapping[str, Sequence[Example]]
) -> Mix:
    """The mix with the concepts that are preserved beside it and those that are replayed after it.

    Args:
        categories: of each concept that has training examples, in the order in which mixes take them.
        examples: the training examples of each of them.

    Raises:
        UserError: more concepts are asked for than are HighlyKnown and outside the mix.
    """
    replayed = max(1, round(config.replay_share * len(mix.categories))) if config.replay_share else 0
    wanted = config.preserved_concepts + replayed
    if not wanted:
        return mix
    known = [name for name, category in categories.items() if category == HIGHLY_KNOWN and name not in mix.categories]
    if wanted > len(known):
        raise UserError(
            f"mix {config.name}: preserved_concepts and replay_share ask for {wanted} HighlyKnown concepts outside the mix, "
            f"and there are {len(known)}; ask for fewer, or make the mix smaller"
        )
    beside = [example for name in known[: config.preserved_concepts] for example in examples[name]]
    return replace(
        mix,
        regularisation=(*mix.regularisation, *beside),
        replay=tuple(example for name in known[config.preserved_concepts : wanted] for example in examples[name]),
        replay_share=config.replay_share,
    )
