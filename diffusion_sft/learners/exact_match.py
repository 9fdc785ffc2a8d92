"""When is an answer in words right? Exact match after the usual normalisation (Gekhman et al., 2024, section 3)."""

from __future__ import annotations

import re
import string

from ..records import Fact


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, white space collapsed (as SQuAD's and EntityQuestions' scorers)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def is_right(text: str, fact: Fact) -> bool:
    """Exact match with any of the right answers after `normalised`; where that leaves nothing, literally."""
    said = normalised(text)
    return any(said == normalised(answer) and (said or text.strip() == answer.strip()) for answer in fact.answers)
