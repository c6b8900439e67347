"""A response as a model reads it: the caller's text, and what a recipe writes into it.

Some PRMs were trained on steps that begin with `Step 1: `. What is written in has no place in the
caller's text: whatever is found is told in offsets into the response.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from prm.types import Step, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The text that is read, and where in it each step ends.

    `pieces` are the verbatim stretches in order: (start in the text, start in the response,
    length). Between them the text is the recipe's.
    """

    text: str
    step_ends: tuple[int, ...]
    pieces: tuple[tuple[int, int, int], ...]

    def span_in_response(self, start: int, end: int) -> tuple[int, int]:
        """What of the response this stretch of the text is; empty for what was written in."""
        # The first piece that ends behind `start`, and the last that begins before `end`.
        after = bisect_right(self.pieces, start, key=lambda piece: piece[0] + piece[2])
        before = bisect_right(self.pieces, end - 1, key=lambda piece: piece[0]) - 1
        if after == len(self.pieces):
            _, in_response, length = self.pieces[-1]
            return in_response + length, in_response + length
        in_text, in_response, _ = self.pieces[after]
        first = in_response + max(0, start - in_text)
        if before < after:
            return first, first
        in_text, in_response, length = self.pieces[before]
        return first, in_response + min(length, end - in_text)


def read_as_written(trajectory: Trajectory, prefix: str | None) -> Reading:
    """The response itself, each step behind its prefix where the recipe has one."""
    if prefix is None:
        return Reading(
            text=trajectory.response,
            step_ends=tuple(step.char_end for step in trajectory.steps),
            pieces=((0, 0, len(trajectory.response)),),
        )
    writer = _Writer(trajectory.response)
    ends = []
    written = 0
    for step in trajectory.steps:
        writer.copy(written, step.char_start)
        writer.write(_prefix_of(step, prefix))
        ends.append(writer.copy(step.char_start, step.char_end))
        written = step.char_end
    writer.copy(written, len(trajectory.response))
    return writer.reading(ends)


def read_joined(trajectory: Trajectory, prefix: str | None, separator: str) -> Reading:
    """The steps alone, each behind its prefix, joined by this separator and nothing else."""
    writer = _Writer(trajectory.response)
    ends = []
    for step in trajectory.steps:
        writer.write(separator if step.index else "")
        writer.write(_prefix_of(step, prefix) if prefix is not None else "")
        ends.append(writer.copy(step.char_start, step.char_end))
    return writer.reading(ends)


class _Writer:
    """Builds a text out of stretches of the response and strings of the recipe."""

    def __init__(self, response: str) -> None:
        self._response = response
        self._parts: list[str] = []
        self._length = 0
        self._pieces: list[tuple[int, int, int]] = []

    def write(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def copy(self, start: int, end: int) -> int:
        """Returns where the stretch ends in the text."""
        if start < end:
            self._pieces.append((self._length, start, end - start))
            self.write(self._response[start:end])
        return self._length

    def reading(self, step_ends: Sequence[int]) -> Reading:
        return Reading(
            text="".join(self._parts), step_ends=tuple(step_ends), pieces=tuple(self._pieces)
        )


def _prefix_of(step: Step, prefix: str) -> str:
    """The step's prefix; nothing where its own text begins with one, whatever the number."""
    pattern = re.escape(prefix.rstrip()).replace(re.escape("{n}"), r"\d+")
    if re.match(pattern, step.text):
        return ""
    return prefix.replace("{n}", str(step.index + 1))
