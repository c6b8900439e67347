"""Labels as rows of SQLite, and back."""

import json
from typing import Any

from server.feedback.types import Label, answer_fields, answer_of

COLUMNS = (
    "id, created, key_id, model, version, source, source_id, content, problem, answer, correct, "
    "prm_correct, given_answer, note, metadata"
)
PLACES = ", ".join("?" * len(COLUMNS.split(", ")))


def row_of(label: Label) -> tuple[object, ...]:
    """A label in the order of `COLUMNS`."""
    answer = label.answer
    return (
        label.id,
        label.created,
        label.key_id,
        label.model,
        label.version,
        label.source,
        label.source_id,
        answer.content,
        answer.problem,
        json.dumps(answer_fields(answer), ensure_ascii=False),
        label.correct,
        answer.prm_correct,
        label.given_answer,
        label.note,
        json.dumps(label.metadata),
    )


def label_of(row: tuple[Any, ...]) -> Label:
    """The label of a row."""
    fields = dict(zip(COLUMNS.split(", "), row, strict=True))
    del fields["content"], fields["problem"]
    prm_correct = bool_of(fields.pop("prm_correct"))
    answer = answer_of(json.loads(fields["answer"]) | {"prm_correct": prm_correct})
    return Label(
        **fields
        | {
            "answer": answer,
            "correct": bool_of(fields["correct"]),
            "metadata": json.loads(fields["metadata"]),
        }
    )


def bool_of(value: object) -> bool | None:
    """SQLite's 0, 1 and NULL."""
    return None if value is None else bool(value)
