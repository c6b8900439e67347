"""The labels of a PRM as two files that a training and its gate read (docs/calibration.md).

One line per response that the keys agree about, weighted; split by a hash of the problem, the same
one always, so that what a gate is asked about is never trained on, by no later training either.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm.files import write_durably
from server.feedback.report import report_on, weigh
from server.feedback.store import FeedbackStore
from server.feedback.types import Label, problem_fields
from server.feedback.weights import Agreed
from server.schemas.feedback import FeedbackReport

HELD_OUT = 0.2
# Of the newest; more take a training longer and tell it little.
MOST_RESPONSES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file's responses."""

    right: int
    wrong: int

    @property
    def has_both(self) -> bool:
        """Whether anything can be learned, or measured, from it."""
        return self.right > 0 and self.wrong > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was written, and the report on the labels behind it."""

    model: str
    training: Part
    held_out: Part
    report: FeedbackReport


async def take_snapshot(
    store: FeedbackStore,
    model: str,
    out: Path,
    held_out: Path,
    *,
    separator: str,
    key_share: float,
    upto: int | None = None,
) -> Snapshot:
    """Write the labels of a PRM up to number `upto`. `separator`: what stands between its steps.

    Raises Unavailable, OSError.
    """
    weighed = weigh(await store.votes(model, upto=upto), key_share)
    rows = [row for row in zip(weighed.agreed, weighed.weights, strict=True) if row[1] > 1e-6]
    rows = sorted(rows, key=lambda row: row[0].seq)[-MOST_RESPONSES:]
    labels = await store.labels([agreed.seq for agreed, _ in rows])
    parts: list[list[tuple[Agreed, str]]] = [[], []]
    for label, (agreed, weight) in zip(labels, rows, strict=True):
        line = json.dumps(_line(label, agreed, weight, separator), ensure_ascii=False)
        parts[is_held_out(label.answer.problem)].append((agreed, line))
    for path, lines in zip((out, held_out), parts, strict=True):
        write_durably(path, "".join(f"{line}\n" for _, line in lines))
    return Snapshot(
        model=model,
        training=_part(parts[False]),
        held_out=_part(parts[True]),
        report=await report_on(store, model, weighed, key_share=key_share),
    )


def is_held_out(problem: str) -> bool:
    """Whether the problem of this hash is kept for the gate."""
    return int(problem[:8], 16) / 2**32 < HELD_OUT


def _line(label: Label, agreed: Agreed, weight: float, separator: str) -> dict[str, Any]:
    answer = label.answer
    fields = problem_fields(answer.messages)
    if answer.steps is not None and separator.join(answer.steps) == answer.response:
        fields["steps"] = answer.steps
    else:
        # The steps of another separator's cut are not those that this PRM would be asked about.
        fields["response"] = answer.response
    return fields | {"correct": agreed.correct, "weight": round(weight, 6)}


def _part(rows: Sequence[tuple[Agreed, str]]) -> Part:
    right = sum(agreed.correct for agreed, _ in rows)
    return Part(right=right, wrong=len(rows) - right)
