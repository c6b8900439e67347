"""Text ↔ steps, with exact character offsets into the response.

Two ways in: the caller has steps already (they are joined, and the join is what the model reads),
or the caller has raw text (it is cut, and what lies between two steps is a separator; the ways to
cut are in `prm/segmentation.py`).
"""

import re
from collections.abc import Iterable, Sequence

from prm.errors import InvalidInput
from prm.types import Step

# From, and up to but not with, this character of a text.
Span = tuple[int, int]


def join_steps(steps: Sequence[str], separator: str) -> tuple[str, tuple[Step, ...]]:
    """The response that these steps make, and each step's place in it.

    >>> join_steps(["3+4=7", "7*2=14"], "\\n")[0]
    '3+4=7\\n7*2=14'

    Raises InvalidInput for no steps, or for a step of white space alone: it has nothing to score.
    """
    if not steps:
        raise InvalidInput("steps is empty; give at least one step", param="steps")
    placed = []
    start = 0
    for index, text in enumerate(steps):
        if not text.strip():
            raise InvalidInput(
                f"step {index} is empty or only white space; leave it out", param=f"steps[{index}]"
            )
        placed.append(Step(index=index, text=text, char_start=start, char_end=start + len(text)))
        start += len(text) + len(separator)
    return separator.join(steps), tuple(placed)


def cut_steps(response: str, separator: str) -> tuple[Step, ...]:
    """Cut raw text at runs of the separator; pieces of white space alone belong to the cut.

    >>> [step.text for step in cut_steps("3+4=7\\n\\n7*2=14\\n", "\\n")]
    ['3+4=7', '7*2=14']

    Raises InvalidInput when nothing but white space and separators is there.
    """
    return place_steps(response, at_separators(response, separator))


def at_separators(response: str, separator: str) -> list[Span]:
    """The pieces between the separators, empty ones among them."""
    cuts = (cut.span() for cut in re.finditer(re.escape(separator), response))
    return between(cuts, 0, len(response))


def between(cuts: Iterable[Span], start: int, end: int) -> list[Span]:
    """What `cuts`, disjoint and in order, leave of the stretch from `start` to `end`."""
    pieces = []
    for cut_start, cut_end in cuts:
        pieces.append((start, cut_start))
        start = cut_end
    return [*pieces, (start, end)]


def place_steps(
    response: str, pieces: Iterable[Span], *, most: int | None = None
) -> tuple[Step, ...]:
    """The steps at these places, pieces of white space alone left out.

    Raises InvalidInput when no piece is left, or more than `most`.
    """
    kept = [(start, end) for start, end in pieces if response[start:end].strip()]
    if not kept:
        raise InvalidInput("response holds no step, only white space", param="response")
    if most is not None and len(kept) > most:
        raise InvalidInput(
            f"response is cut into {len(kept)} steps, and {most} is the most; shorten it or "
            "choose another segmentation",
            param="response",
        )
    return tuple(
        Step(index=index, text=response[start:end], char_start=start, char_end=end)
        for index, (start, end) in enumerate(kept)
    )
