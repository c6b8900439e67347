"""The final answer in a text, and the groups of candidates that gave the same one."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Protocol

from search.types import Candidate, Vote

# The last such line decides: models restate and correct themselves.
_PHRASE = re.compile(
    r"(?:^|[\s.*])(?:final\s+)?answer\s*(?:is|:|=)\s*[:$*]*\s*(?P<answer>[^\n]+)", re.IGNORECASE
)
# A longer "answer" is a paragraph, not something that two candidates could agree on.
MAX_ANSWER_CHARS = 256
_NUMBER = re.compile(r"[+-]?(?:\d+(?:,\d{3})*|\d*)(?:\.\d+)?")


def extract_answer(text: str) -> str | None:
    r"""The final answer that a text states, or None.

    The last `\boxed{…}` wins (braces balanced), else the last "answer is …" or "Answer: …".

    >>> extract_answer("14-5=9\nAnswer: 9")
    '9'
    """
    answer = _last_boxed(text)
    if answer is None:
        phrases = list(_PHRASE.finditer(text))
        answer = phrases[-1]["answer"] if phrases else None
    if answer is None:
        return None
    answer = normalise(answer)
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None


def normalise(answer: str) -> str:
    """One spelling for the same answer: no decoration, numbers in their shortest form.

    >>> normalise(" **1,024.0**. "), normalise("$-0$")
    ('1024', '0')
    """
    answer = answer.strip(" \t\r\n*$").rstrip(".*$ \t")
    if answer and _NUMBER.fullmatch(answer):
        try:
            number = Decimal(answer.replace(",", ""))
        except InvalidOperation:
            return answer
        text = format(number, "f")
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        return "0" if text in ("-0", "") else text.removeprefix("+")
    return answer


class Equivalence(Protocol):
    """Says which answers mean the same."""

    async def group(self, answers: Sequence[str]) -> list[int]:
        """For each answer, the place of the first that it is equivalent to."""
        ...


class ExactAnswers:
    """Answers mean the same when they are written the same."""

    async def group(self, answers: Sequence[str]) -> list[int]:
        """See `Equivalence.group`."""
        first: dict[str, int] = {}
        return [first.setdefault(answer, place) for place, answer in enumerate(answers)]


def count_votes(candidates: Sequence[Candidate]) -> list[Vote]:
    """Votes for each distinct answer, most votes first; among equals the first seen.

    The weight is the sum of the candidates' scores, None when nothing was scored.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        answer = candidate.group if candidate.group is not None else candidate.answer
        if answer is not None:
            groups.setdefault(answer, []).append(candidate)
    is_scored = any(candidate.score is not None for candidate in candidates)
    votes = [
        Vote(
            answer=answer,
            count=len(group),
            weight=sum(member.score or 0.0 for member in group) if is_scored else None,
        )
        for answer, group in groups.items()
    ]
    # By count alone: this is the baseline that a PRM is held against, so it takes no part.
    return sorted(votes, key=lambda vote: -vote.count)


def _last_boxed(text: str) -> str | None:
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    begin = start + len(r"\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None
