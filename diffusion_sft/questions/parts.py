"""Which part each fact is in, and which facts are left out of it: the filters of Gekhman et al. (2024, section 2)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from ..errors import UserError
from ..parsing import few
from ..records import DEVELOPMENT, EXEMPLAR, OTHER_RELATIONS, TEST, TRAIN, identity_seed
from .config import FEWEST_EXEMPLARS, QuestionsConfig
from .facts import AskedFact
from .rows import key

PARTS = (TRAIN, DEVELOPMENT, TEST, OTHER_RELATIONS, EXEMPLAR)
WORDS = {OTHER_RELATIONS: "other-relations test"}
"""What a part is called in remarks, where its own name does not say it."""


def assign_parts(facts: list[AskedFact], config: QuestionsConfig) -> tuple[list[AskedFact], list[str]]:
    """Every fact with its part: the set's own, else by a hash of its subject, so that a subject's facts are together.

    Training facts of the relations that are never trained on are left out.
    """
    notes = []
    if any(fact.part is None for fact in facts):
        facts = [replace(fact, part=fact.part or _part_of(fact.subject, config)) for fact in facts]
        notes.append(
            f"the set has no splits of its own: {config.test_share:.0%} of the subjects are for the test and"
            f" {config.dev_share:.0%} for development, chosen by a hash of the subject (seed {config.seed})"
        )
    heldout = set(config.heldout_relations)
    other = {TEST: OTHER_RELATIONS, DEVELOPMENT: EXEMPLAR}
    kept = [
        fact if fact.relation not in heldout else replace(fact, part=other[str(fact.part)])
        for fact in facts
        if fact.relation not in heldout or fact.part != TRAIN
    ]
    if len(kept) < len(facts):
        count = _count(len(facts) - len(kept))
        notes.append(f"relations that are never trained on: dropped {count} of train")
    return kept, notes


def filter_facts(facts: list[AskedFact], config: QuestionsConfig) -> tuple[list[AskedFact], list[str]]:
    """The facts that the settings leave, and how many each filter dropped."""
    notes: list[str] = []
    # of all test facts, those too that the next filter drops: so the counts of Gekhman et al.'s table come out
    subjects, answers = _asked(facts)
    if not config.keep_several_answers:
        facts = _kept(facts, "several right answers", notes, lambda fact: len(fact.answers) == 1)
    if config.drop_overlap:
        reason = "subject asked in test"
        facts = _kept(facts, reason, notes, lambda fact: fact.part != TRAIN or key(fact.subject) not in subjects)
    if config.drop_overlap and config.overlap_by_answers:
        reason = "subject an answer in test, or answer a subject in test"
        facts = _kept(facts, reason, notes, lambda fact: fact.part != TRAIN or not _crosses(fact, subjects, answers))
    if config.max_facts_per_relation is not None:
        chosen = _first_by_hash(facts, config.max_facts_per_relation, config.seed)
        facts = _kept(facts, "max_facts_per_relation", notes, lambda fact: fact.name in chosen)
    return facts, [*notes, *_shared_answers(facts)]


def check_exemplars(title: str, facts: list[AskedFact]) -> None:
    """Demand enough facts for the prompts of every relation that is trained on or asked.

    Raises:
        UserError: a relation has too few; it names all of these.
    """
    wanted = dict.fromkeys(fact.relation for fact in facts if fact.part not in (DEVELOPMENT, EXEMPLAR))
    counts = Counter(fact.relation for fact in facts if fact.part in (DEVELOPMENT, EXEMPLAR))
    lacking = [f"{relation} has {counts[relation]}" for relation in wanted if counts[relation] < FEWEST_EXEMPLARS]
    if lacking:
        raise UserError(
            f"{title}: few-shot prompts need at least {FEWEST_EXEMPLARS} development facts of each relation;"
            f" {few(lacking)}; give more of them, raise dev_share where the set has no splits, or name only the others"
            " in relations"
        )


def _part_of(subject: str, config: QuestionsConfig) -> str:
    place = identity_seed(config.seed, "question part", key(subject)) / 2**63
    if place < config.test_share:
        return TEST
    return DEVELOPMENT if place < config.test_share + config.dev_share else TRAIN


def _asked(facts: list[AskedFact]) -> tuple[set[str], set[str]]:
    """The subjects and the answers of the test facts, of other relations too."""
    asked = [fact for fact in facts if fact.part in (TEST, OTHER_RELATIONS)]
    return {key(fact.subject) for fact in asked}, {key(text) for fact in asked for text in fact.right}


def _crosses(fact: AskedFact, subjects: set[str], answers: set[str]) -> bool:
    return key(fact.subject) in answers or any(key(text) in subjects for text in fact.right)


def _first_by_hash(facts: list[AskedFact], limit: int, seed: int) -> set[str]:
    groups: defaultdict[tuple[str, str | None], list[AskedFact]] = defaultdict(list)
    for fact in facts:
        groups[fact.relation, fact.part].append(fact)

    def order(fact: AskedFact) -> tuple[int, str]:
        return identity_seed(seed, "question order", key(fact.subject)), fact.subject

    return {fact.name for group in groups.values() for fact in sorted(group, key=order)[:limit]}


def _shared_answers(facts: list[AskedFact]) -> list[str]:
    _, answers = _asked(facts)
    trained = [fact for fact in facts if fact.part == TRAIN]
    shared = sum(any(key(text) in answers for text in fact.right) for fact in trained)
    return [f"{_of(shared, len(trained), 'train')} have an answer that a test fact has too; kept"] if shared else []


def _kept(
    facts: list[AskedFact], reason: str, notes: list[str], wanted: Callable[[AskedFact], bool]
) -> list[AskedFact]:
    """The wanted facts, with a remark on how many of each part are not."""
    kept = [fact for fact in facts if wanted(fact)]
    before, after = (Counter(str(fact.part) for fact in group) for group in (facts, kept))
    dropped = [
        _of(before[part] - after[part], before[part], WORDS.get(part, part))
        for part in PARTS
        if before[part] > after[part]
    ]
    if dropped:
        notes.append(f"{reason}: dropped {', '.join(dropped)}")
    return kept


def _of(number: int, total: int, part: str) -> str:
    return f"{number} of {total} {part} facts ({number / total:.1%})"


def _count(number: int) -> str:
    return "1 fact" if number == 1 else f"{number} facts"
