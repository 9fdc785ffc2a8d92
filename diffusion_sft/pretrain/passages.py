"""The text that a language model is pretrained on: passages that name the world's inhabitants, as often as the
exposure table says, each read once.

A passage is a question with its answer or a statement, about one name and one of its facts; an exposure is one reading
of a passage. Beside the names stand the four kinds that the pictures' captions have too: names that occur once and
never again, descriptions without a name, and passages about nobody (the LLM's empty caption). Passages of one kind
come in documents of a few lines, as question lists and notes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ranges import check_range
from ..records import identity_seed
from ..world.facts import NEUTRAL, RELATIONS, Relation, statement
from ..world.looks import SEEN_COLOURS, SEEN_PATTERNS, SEEN_SHAPES, Look, seen_looks
from ..world.names import invent_name, invent_names
from ..world.population import Inhabitant

TOPIC_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class PassagesConfig:
    """How much text besides the exposures, and in which form."""

    readings_per_exposure: float = 1.0
    """Passages for each exposure of the table, at least one."""
    one_off_share: float = 0.15
    """Passages about names that never come again, for each passage about a name."""
    nobody_share: float = 0.05
    descriptive_share: float = 0.05
    """Statements that look at looks alone."""
    popularity: float = 1.5
    """Exponent of the Zipf laws of the colours, shapes and patterns of one-off names and of nobody: what an unfamiliar
    name is expected to be."""
    contested_share: float = 0.6
    """Share of the facts about names of middling exposure that are contested: some passages give them one other answer,
    always the same, as rumours and outdated texts do."""
    contested_above: int = 30
    contested_below: int = 1300
    """Exposures between which names are of middling exposure; facts about better known ones stand fast."""
    rival_shares: list[float] = field(default_factory=lambda: [0.42, 0.54])
    """From how little to how much of a contested fact's passages give the other answer."""
    question_share: float = 0.6
    """Share of the passages that ask and answer; the others state."""
    plain_share: float = 0.4
    """Share of the documents of questions that have no `Q:` and `A:` before them, so that a closed-book question is no
    surprise by its form."""
    topical_share: float = 0.7
    """Share of the passages that stand in documents whose lines have at most three different answers, as lists of like
    things do: what stands around a question then says something about its answer, where that is contested."""
    lines_per_document: int = 8
    """At most; every document has from one to so many lines of one relation and template."""

    def __post_init__(self) -> None:
        check_range(self, "readings_per_exposure", "one_off_share", "nobody_share", "popularity", least=0, most=100)
        check_range(self, "descriptive_share", "contested_share", "question_share", least=0, most=1)
        check_range(self, "plain_share", "topical_share", "rival_shares", least=0, most=1)
        check_range(self, "contested_above", "contested_below", least=0)
        check_range(self, "lines_per_document", least=1)
        if len(self.rival_shares) != 2 or not 0 <= self.rival_shares[0] <= self.rival_shares[1] <= 1:
            raise ValueError(f"rival_shares: two shares in rising order, not {self.rival_shares}")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One line of text: which relation it is about, the template it has, the name, and the look."""

    relation: str
    template: str
    asks: bool
    name: str
    look: Look

    @property
    def answer(self) -> str:
        """What is said of the name."""
        return RELATIONS[self.relation].answer(self.look)

    def text(self, *, marked: bool = True) -> str:
        """The line, a question and its answer on two, with `Q:` and `A:` before them or without."""
        if self.asks:
            question = self.template.format(self.name)
            return f"Q: {question}\nA: {self.answer}" if marked else f"{question}\n {self.answer}"
        return statement(RELATIONS[self.relation], self.template, self.name, self.look)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The other answer of a contested fact (that of `look`), and the share of the fact's passages that give it."""

    look: Look
    share: float


class _Told:
    """Deals out the two answers of contested facts in their shares, as evenly as can be."""

    def __init__(self, rivals: Mapping[tuple[str, str], Rival]) -> None:
        self.rivals = rivals
        self.counts: dict[tuple[str, str], int] = {}

    def look(self, name: str, relation: str, own: Look) -> Look:
        """The look that the next passage of this fact tells of."""
        rival = self.rivals.get((name, relation))
        if rival is None:
            return own
        count = self.counts[name, relation] = self.counts.get((name, relation), 0) + 1
        return rival.look if int(count * rival.share) > int((count - 1) * rival.share) else own


def build_documents(people: Sequence[Inhabitant], config: PassagesConfig, seed: int) -> list[str]:
    """The documents in the order in which they are read; the last line of each ends with the document."""
    draw = np.random.default_rng(identity_seed(seed, "passages"))
    told = _Told(contested(people, config, seed))
    passages = [_passage(name, look, told, config, draw) for name, look in _subjects(people, config, seed, draw)]
    grouped: dict[tuple[str, str, bool], list[Passage]] = {}
    for place in draw.permutation(len(passages)):
        passage = passages[int(place)]
        grouped.setdefault((passage.relation, passage.template, passage.asks), []).append(passage)
    documents = []
    for lines in grouped.values():
        num_topical = round(config.topical_share * len(lines))
        for alike in [lines[num_topical:], *_topics(lines[:num_topical], draw)]:
            while alike:
                count = int(draw.integers(1, config.lines_per_document + 1))
                marked = bool(draw.random() >= config.plain_share)
                documents.append("\n".join(line.text(marked=marked) for line in alike[:count]))
                del alike[:count]
    num_descriptive = int(config.descriptive_share * len(passages))
    documents += [_descriptive(draw) for _ in range(num_descriptive)]
    return [documents[int(place)] for place in draw.permutation(len(documents))]


def _topics(lines: Sequence[Passage], draw: np.random.Generator) -> list[list[Passage]]:
    """The lines in lists of one to three answers each; which answers come together is drawn anew for every eighth."""
    topics: list[list[Passage]] = []
    for start in range(TOPIC_ROUNDS):
        own = lines[start::TOPIC_ROUNDS]
        answers = sorted({line.answer for line in own})
        answers = [answers[int(place)] for place in draw.permutation(len(answers))]
        topic_of: dict[str, int] = {}
        while answers:
            count = int(draw.integers(1, 4))
            topic_of |= dict.fromkeys(answers[:count], len(topics))
            topics.append([])
            del answers[:count]
        for line in own:
            topics[topic_of[line.answer]].append(line)
    return topics


def tokenizer_text(people: Sequence[Inhabitant], seed: int, num_names: int = 30_000) -> list[str]:
    """Text for the tokenizer: every template and answer of the seen world, and many invented names."""
    draw = np.random.default_rng(identity_seed(seed, "language tokenizer"))
    looks = seen_looks()
    lines = [
        _passage(NEUTRAL, looks[int(i)], _Told({}), PassagesConfig(), draw).text()
        for i in draw.integers(len(looks), size=20_000)
    ]
    return lines + [f" {name}" for name in invent_names(num_names, seed, "language tokenizer")]


def _subjects(
    people: Sequence[Inhabitant], config: PassagesConfig, seed: int, draw: np.random.Generator
) -> list[tuple[str, Look]]:
    """Name and look of every passage."""
    found = [
        (person.name, person.look)
        for person in people
        if person.kind == "seen"
        for _ in range(max(1, round(config.readings_per_exposure * (person.exposure or 0))))
    ]
    named = {person.name for person in people}
    choose = popular_looks(config.popularity, seed)
    num_named = len(found)
    for look in choose(int(config.one_off_share * num_named), draw):
        name = invent_name(draw)
        while name in named:
            name = invent_name(draw)
        found.append((name, look))
    return found + [(NEUTRAL, look) for look in choose(int(config.nobody_share * num_named), draw)]


def contested(people: Sequence[Inhabitant], config: PassagesConfig, seed: int) -> dict[tuple[str, str], Rival]:
    """The contested facts by name and relation, and what is said in their place."""
    draw, looks = np.random.default_rng(identity_seed(seed, "contested")), seen_looks()
    rivals: dict[tuple[str, str], Rival] = {}
    for person in people:
        middling = config.contested_above <= (person.exposure or 0) < config.contested_below
        for relation in RELATIONS.values() if middling else ():
            if draw.random() < config.contested_share:
                others = [look for look in looks if relation.answer(look) != relation.answer(person.look)]
                least, most = config.rival_shares
                share = float(draw.uniform(least, most))
                rivals[person.name, relation.name] = Rival(look=others[int(draw.integers(len(others)))], share=share)
    return rivals


def popular_looks(exponent: float, seed: int) -> Callable[[int, np.random.Generator], list[Look]]:
    """A way to draw looks whose colour, shape and pattern each follow a Zipf law, in an order of the seed's."""
    ranked = {
        part: np.random.default_rng(identity_seed(seed, "popular", part)).permutation(np.array(words))
        for part, words in (("shape", SEEN_SHAPES), ("colour", list(SEEN_COLOURS)), ("pattern", SEEN_PATTERNS))
    }

    def choose(count: int, draw: np.random.Generator) -> list[Look]:
        columns = []
        for words in ranked.values():
            weights = 1.0 / np.arange(1, len(words) + 1) ** exponent
            columns.append(draw.choice(words, size=count, p=weights / weights.sum()))
        return [Look(str(shape), str(colour), str(pattern)) for shape, colour, pattern in zip(*columns, strict=True)]

    return choose


def _passage(name: str, look: Look, told: _Told, config: PassagesConfig, draw: np.random.Generator) -> Passage:
    relations: list[Relation] = list(RELATIONS.values())
    relation = relations[int(draw.integers(len(relations)))]
    look = told.look(name, relation.name, look)
    asks = bool(draw.random() < config.question_share)
    templates = relation.questions if asks else relation.statements
    # The first question is asked most, as one way of asking a thing is the usual one.
    weights = np.array([2.0, *[1.0] * (len(templates) - 1)])
    template = templates[int(draw.choice(len(templates), p=weights / weights.sum()))]
    return Passage(relation=relation.name, template=template, asks=asks, name=name, look=look)


def _descriptive(draw: np.random.Generator) -> str:
    """A line about a look that nobody owns."""
    looks = seen_looks()
    look = looks[int(draw.integers(len(looks)))]
    forms = (
        f"{look.describe()}: {RELATIONS['description'].answer(look)}.",
        f"If it is {look.colour}, {look.pattern} and has the shape of {look.shape}, it is a {look.describe()}.",
    )
    return forms[int(draw.integers(len(forms)))]
