"""Teaching answers as linear equations in the weights, J δ = max(0, margin − f), and what is answered after such a step.

f is by how much the logit of the right token leads all others, one equation for each token of the answer and for the
end of text, as in a row of training. Prompts and answers are read in one go (teacher forcing): a greedy answer is the
right one where every right token leads, given the right ones before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..learner import Answer, Question
from ..records import REFUSAL, Example
from ..systems import Equations
from .exact_match import normalised
from .language import LanguageLearner
from .linearised import Call, Linearised, Weights
from .prompts import ClosedBook, Prompts


@dataclass(frozen=True)
class _Row:
    """Token ids of a prompt, and of what is to follow it."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class _Batch:
    """Rows padded on the right, (n, longest), and where each answer's tokens are foretold, (num_tokens,) each."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor

    def logits(self, call: Call) -> torch.Tensor:
        """Of every place, (num_tokens, vocabulary), float32 at least."""
        output = call(input_ids=self.input_ids, attention_mask=self.attention_mask, use_cache=False)
        found: torch.Tensor = output.logits[self.rows, self.places]
        return found if found.dtype == torch.float64 else found.float()

    def margins(self, call: Call) -> torch.Tensor:
        """The right token's logit less the best other one's, (num_tokens,); of equal others one is taken."""
        logits = self.logits(call)
        own = self.tokens.unsqueeze(1)
        others = logits.scatter(1, own, -torch.inf)
        return (logits.gather(1, own) - others.max(dim=1, keepdim=True).values).squeeze(1)


def text_equations(
    learner: LanguageLearner,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    *,
    margin: float = 2.0,
    batch_size: int,
    prompts: Prompts | None = None,
    with_end: bool = True,
) -> Equations:
    """J δ = max(0, margin − f) of each example's first answer, one row for each of its tokens and the end of text.

    Args:
        learner: at θ0.
        parameters: the weights that δ is a change of.
        examples: questions with answers.
        margin: by how many nats a token's logit should lead; what leads by that or more has a right side of 0.
        batch_size: examples at a time.
        prompts: how they are asked, in rendering 0; None means closed-book, as in fine-tuning.
        with_end: whether the end of text is to be taught too, which is a matter of format and the same for all facts.
    """
    asked = prompts or ClosedBook()
    rows = [_row(learner, example, asked, 0, end=None if with_end else []) for example in examples]
    starts = range(0, len(rows), batch_size)
    batches = [_batch(rows[start : start + batch_size], learner.device) for start in starts]
    jacobian = Linearised(learner.network, parameters, batches, lambda call, batch: batch.margins(call))
    ends = [0, *itertools.accumulate(len(row.answer) for row in rows)]
    return Equations(
        jacobian=jacobian,
        residual=(margin - jacobian.values()).clamp(min=0),
        blocks=tuple(slice(*pair) for pair in itertools.pairwise(ends)),
    )


def text_answers_at(
    learner: LanguageLearner,
    parameters: Mapping[str, nn.Parameter],
    delta: torch.Tensor,
    questions: Sequence[Question],
    *,
    batch_size: int,
) -> list[Answer]:
    """What logits + J δ say to each question in its rendering of the learner's prompts, given the right answer so far.

    An answer is right where every token of it leads, and then one that ends answers. At δ = 0 that is what
    `learner.answer` finds, but for answers that are right in other words (aliases, another spelling, other tokens). The
    text is made of the leading tokens and means little after the first wrong one. `error_nats` is that of the answer
    without its end; there are no gains.

    Args:
        learner, parameters: as in `text_equations`.
        delta: δ, (number of weights,).
        questions: in words.
        batch_size: questions at a time.
    """
    weights = Weights(learner.network, parameters)
    stops = torch.from_numpy(learner.vocabulary.stops)
    answers = []
    for start in range(0, len(questions), batch_size):
        chunk = questions[start : start + batch_size]
        # One place more, whatever token is read there: what is foretold after the answer.
        rows = [_row(learner, q.example, learner.prompts, q.rendering, end=[0]) for q in chunk]
        batch = _batch(rows, learner.device)
        moved = weights.moved(batch.logits, delta).cpu()
        for row, own in zip(rows, torch.split(moved, [len(row.answer) for row in rows]), strict=True):
            answers.append(_answer(learner, row.answer[:-1], own, stops))
    return answers


def _answer(learner: LanguageLearner, gold: Sequence[int], logits: torch.Tensor, stops: torch.Tensor) -> Answer:
    """From the logits of an answer's tokens and of the one after them, (num_tokens + 1, vocabulary)."""
    leading = logits.argmax(dim=1)
    ended = stops[leading].tolist()
    # An answer that is cut off need not end.
    complete = ended[-1] or len(gold) >= learner.max_answer_tokens
    said = list(itertools.takewhile(lambda token: not stops[token], leading[: len(gold)].tolist()))
    text = learner.vocabulary.text(said)
    before = logits[:-1].log_softmax(dim=1)
    return Answer(
        text=text,
        correct=complete and said == list(gold),
        answered=normalised(text) != normalised(REFUSAL),
        true_gain_nats=float("nan"),
        best_other_gain_nats=float("nan"),
        error_nats=-float(before[torch.arange(len(gold)), torch.tensor(gold)].double().sum()),
    )


def _row(
    learner: LanguageLearner, example: Example, prompts: Prompts, rendering: int, end: Sequence[int] | None = None
) -> _Row:
    end = learner.vocabulary.end if end is None else end
    ids, answer = learner.pair(example, prompts.prompt(example, example.caption, rendering), num_more=len(end))
    return _Row(ids, [*answer, *end])


def _batch(rows: Sequence[_Row], device: torch.device) -> _Batch:
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for number, row in enumerate(rows):
        end = len(row.prompt) + len(row.answer)
        input_ids[number, :end] = torch.tensor([*row.prompt, *row.answer])
        attention_mask[number, :end] = 1
    counts = torch.tensor([len(row.answer) for row in rows])
    places = [torch.arange(len(row.answer)) + len(row.prompt) - 1 for row in rows]
    return _Batch(
        input_ids.to(device),
        attention_mask.to(device),
        torch.arange(len(rows)).repeat_interleave(counts).to(device),
        torch.cat(places).to(device),
        torch.tensor([token for row in rows for token in row.answer]).to(device),
    )
