"""Which concepts are trained on: a set of fixed size with given shares of knowledge categories.

As in Gekhman et al. (2024, section 4): the size |D| is the same for all mixes, only the shares change. Concepts are
taken in an order decided by the seed and their names alone, so that the Unknown concepts of the 25 % mix are among
those of the 50 % mix, and differences between mixes are not differences between draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from ..errors import UserError
from ..records import (
    CATEGORIES,
    REFUSAL,
    REGULARISATION,
    SPLITS,
    TRAIN,
    UNKNOWN,
    ConceptSet,
    Example,
    identity_seed,
)
from .guards import guarded
from .labels import ALL, concept_labels
from .mix import BUCKETS, Mix, MixConfig
from .quotas import check_quotas, shared_out, take


def compose(mix: MixConfig, concepts_table: pd.DataFrame | None, concept_set: ConceptSet, seed: int) -> Mix:
    """Choose the concepts and training examples of a mix.

    Args:
        concepts_table: one row per concept with `concept`, `category` and `bucket` (`buckets.py` writes it); None
            puts every concept into one category, "all".
        seed: decides, with the concepts' names, which of a category's concepts are taken first.

    Raises:
        UserError: the mix, or what is to guard it, asks for more than there is; says what there is and which size fits.
    """
    labels = concept_labels(concepts_table, concept_set)
    examples = _train_examples(mix, concept_set, seed)
    if not examples:
        raise UserError(f"mix {mix.name}: no concept has {mix.examples_per_concept or 1} training examples")
    count = _counter(mix, examples)
    ordered = labels.loc[concept_order([name for name in labels.index if name in examples], seed)]
    chosen: dict[str, list[Example]] = {}
    for relation, (names, size) in _strata(mix, ordered, examples, count).items():
        pools = _pools(mix, ordered.loc[names], count)
        size = sum(count(found) for _, found in pools.values()) if size is None else size
        quotas = shared_out({label: share for label, (share, _) in pools.items()}, size)
        where = f"mix {mix.name}" + (f", relation {relation}" if relation else "")
        check_quotas(
            where,
            {label: share for label, (share, _) in pools.items()},
            quotas,
            {label: count(found) for label, (_, found) in pools.items()},
            "concepts" if mix.num_examples is None else "examples",
        )
        for label, (_, found) in pools.items():
            chosen |= take(found, quotas[label], examples, whole=mix.num_examples is None)
    composed = _without_unknown(mix, _mix(mix.name, chosen, labels, concept_set))
    categories = {str(name): str(label) for name, label in ordered.category.items()}
    return _worded(guarded(composed, mix, categories, examples), concept_set)


def _strata(
    mix: MixConfig,
    labels: pd.DataFrame,
    examples: Mapping[str, tuple[Example, ...]],
    count: Callable[[Sequence[str]], int],
) -> dict[str, tuple[list[str], int | None]]:
    """The names that shares hold among, and how much is taken of them (None: all).

    Questions in words are composed relation by relation, so that mixes differ in what is known and not in what is asked;
    a relation's part of |D| is in proportion to its scarcest label (Gekhman et al., 2024, appendix A: there the sum of
    these is |D|). Pictures are one stratum.
    """
    size = mix.num_concepts or mix.num_examples
    relations: dict[str, list[str]] = {}
    for name in labels.index:
        fact = examples[name][0].fact
        relations.setdefault("" if fact is None else fact.relation, []).append(name)
    if size is None or len(relations) == 1:
        return {relation: (names, size) for relation, names in relations.items()}
    scarcest = {relation: _scarcest(mix, labels.loc[names], count) for relation, names in sorted(relations.items())}
    total = sum(scarcest.values())
    if size > total:
        told = ", ".join(f"{relation} {number}" for relation, number in scarcest.items())
        raise UserError(
            f"mix {mix.name}: |D| = {size} is more than the relations' scarcest labels allow together ({told}); ask for "
            f"{total} at most"
        )
    sizes = shared_out({relation: number / total for relation, number in scarcest.items()}, size)
    return {relation: (relations[relation], number) for relation, number in sizes.items() if number}


def _scarcest(mix: MixConfig, labels: pd.DataFrame, count: Callable[[Sequence[str]], int]) -> int:
    """The size of a relation's scarcest label, of those that mixes of this kind differ in."""
    if mix.shares and set(mix.shares) <= set(CATEGORIES):
        parts = [labels.index[labels.category == category] for category in CATEGORIES]
    elif mix.shares:
        parts = [labels.index[labels.bucket == bucket] for bucket in BUCKETS]
    else:
        unknown = labels.category == UNKNOWN
        parts = [labels.index[unknown], labels.index[~unknown]]
    if (labels.category == ALL).all():
        parts = [labels.index]
    return min(count(list(part)) for part in parts)


def _without_unknown(mix: MixConfig, composed: Mix) -> Mix:
    """The mix with its Unknown examples as they are, without them, or with a refusal for their answer."""
    unknown = set(composed.concepts.get(UNKNOWN, ()))
    if mix.unknown == "keep" or not unknown:
        return composed
    if mix.unknown == "remove":
        kept = tuple(example for example in composed.examples if example.concept not in unknown)
        if not kept:
            raise UserError(f"mix {mix.name}: unknown=remove leaves nothing to train on")
        concepts = {label: names for label, names in composed.concepts.items() if label != UNKNOWN}
        return replace(composed, examples=kept, concepts=concepts)
    pictures = [example.id for example in composed.examples if example.fact is None]
    if pictures:
        raise UserError(
            f"mix {mix.name}: unknown=relabel needs answers in words, and {pictures[0]} is a picture; use remove"
        )
    return replace(
        composed,
        examples=tuple(_refused(example) if example.concept in unknown else example for example in composed.examples),
    )


def _worded(mix: Mix, concept_set: ConceptSet) -> Mix:
    named = {*mix.categories, *(example.concept for example in mix.replay)}
    return replace(
        mix, words={concept.name: concept.words for concept in concept_set.concepts if concept.name in named}
    )


def _refused(example: Example) -> Example:
    assert example.fact is not None
    return replace(example, fact=replace(example.fact, answers=(REFUSAL,)))


def concept_order(names: Iterable[str], seed: int) -> list[str]:
    """The names in the order that mixes take them; it depends on nothing but the seed and each name."""
    return sorted(names, key=lambda name: (identity_seed(seed, "mix", name), name))


def _train_examples(mix: MixConfig, concept_set: ConceptSet, seed: int) -> dict[str, tuple[Example, ...]]:
    """The training examples of each concept that has enough of them."""
    wanted = mix.examples_per_concept
    splits = tuple(split for split in SPLITS if split != REGULARISATION) if mix.train_on_all_images else (TRAIN,)
    distinct = {example.id: replace(example, split=TRAIN) for example in concept_set.split(*splits)}
    grouped = by_concept(distinct.values())
    enough = {name: found for name, found in grouped.items() if len(found) >= (wanted or 1)}
    return {name: first_examples(enough, [name], wanted, seed) for name in enough}


def by_concept(examples: Iterable[Example]) -> dict[str, tuple[Example, ...]]:
    """The examples of each concept, in the order given."""
    grouped: dict[str, list[Example]] = {}
    for example in examples:
        grouped.setdefault(example.concept, []).append(example)
    return {name: tuple(found) for name, found in grouped.items()}


def first_examples(
    grouped: Mapping[str, Sequence[Example]], names: Iterable[str], count: int | None, seed: int
) -> tuple[Example, ...]:
    """`count` examples of each concept, the same ones for any order of the files."""
    chosen: list[Example] = []
    for name in names:
        ranked = sorted(grouped.get(name, ()), key=lambda e: (identity_seed(seed, "mix", e.id), e.id))
        chosen += ranked[:count]
    return tuple(chosen)


def _pools(
    mix: MixConfig, labels: pd.DataFrame, count: Callable[[Sequence[str]], int]
) -> dict[str, tuple[float, list[str]]]:
    """For each label of the mix its share and the concepts that it may be filled with, in order."""
    members = labels.category
    if mix.unknown_share is not None:
        shares = {UNKNOWN: mix.unknown_share, "known": 1.0 - mix.unknown_share}
        members = members.where((members == UNKNOWN) | (members == ALL), "known")
    elif mix.shares:
        shares = dict(mix.shares)
        members = members if set(shares) <= set(CATEGORIES) else labels.bucket
    else:
        shares = {
            str(label): count(list(names)) / count(list(labels.index))
            for label, names in members.groupby(members).groups.items()
        }
    if ALL not in shares and (members == ALL).any():
        raise UserError(f"mix {mix.name}: shares of categories need a concepts_table; run probe and bucket first")
    return {label: (share, list(members.index[members == label])) for label, share in shares.items() if share > 0}


def _counter(mix: MixConfig, examples: Mapping[str, Sequence[Example]]) -> Callable[[Sequence[str]], int]:
    """How much a list of concepts adds to |D|, in the unit that the mix fixes."""
    if mix.num_examples is None:
        return len
    return lambda names: sum(len(examples[name]) for name in names)


def _mix(name: str, chosen: Mapping[str, Sequence[Example]], labels: pd.DataFrame, concept_set: ConceptSet) -> Mix:
    concepts: dict[str, list[str]] = {}
    for concept in concept_set.concepts:
        if concept.name in chosen:
            concepts.setdefault(str(labels.category[concept.name]), []).append(concept.name)
    kept = {example.id: example for found in chosen.values() for example in found}
    in_order = dict.fromkeys(example.id for example in concept_set.examples if example.id in kept)
    order = [label for label in (*CATEGORIES, ALL) if label in concepts]
    return Mix(
        name=name,
        concepts={label: tuple(concepts[label]) for label in order},
        examples=tuple(kept[name] for name in in_order),
        regularisation=concept_set.split(REGULARISATION),
    )
