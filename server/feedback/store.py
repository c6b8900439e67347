"""Accepted feedback, durable: `RUNS/feedback.db`.

`add` commits labels, what their key has used of its day, and the answer to their Idempotency-Key
together or not at all; SQLite writes one transaction at a time, so that two requests with one
Idempotency-Key, in whatever processes, are one.
"""

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prm.errors import Conflict, NotFound, Overloaded
from server.feedback.database import Database
from server.feedback.rows import COLUMNS, PLACES, bool_of, label_of, row_of
from server.feedback.types import Answer, Label, answer_of
from server.feedback.weights import Vote

# What one report, or one training, looks at: the newest ones.
MOST_LABELS = 50_000
DAY_S = 86_400
_TABLES = """
CREATE TABLE IF NOT EXISTS labels (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT,
    source TEXT NOT NULL,
    source_id TEXT,
    content TEXT NOT NULL,
    problem TEXT NOT NULL,
    answer TEXT NOT NULL,
    correct INTEGER,
    prm_correct INTEGER,
    given_answer TEXT,
    note TEXT,
    metadata TEXT NOT NULL
);
-- With what is counted, so that nobody reads texts to count them.
CREATE INDEX IF NOT EXISTS labels_of_model ON labels (model, seq, correct, created);
CREATE TABLE IF NOT EXISTS days (
    key_id TEXT NOT NULL, day INTEGER NOT NULL, used INTEGER NOT NULL, PRIMARY KEY (key_id, day)
);
CREATE TABLE IF NOT EXISTS requests (
    key_id TEXT NOT NULL, idempotency_key TEXT NOT NULL, body TEXT NOT NULL, ids TEXT NOT NULL,
    PRIMARY KEY (key_id, idempotency_key)
);
CREATE TABLE IF NOT EXISTS retrainings (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    upto INTEGER NOT NULL,
    labels INTEGER NOT NULL,
    begun INTEGER NOT NULL,
    owner TEXT NOT NULL,
    job_id TEXT,
    outcome TEXT
);
CREATE INDEX IF NOT EXISTS retrainings_of_model ON retrainings (model, seq);
"""


class QuotaSpent(Overloaded):
    """The key has given as many labels as it may on one day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Who asks to keep labels. `body` is a hash of what was sent under `idempotency_key`.

    `per_day` is how many labels the key may give between two midnights, UTC.
    """

    key_id: str
    body: str
    per_day: int
    idempotency_key: str | None = None


class FeedbackStore:
    """Labels on disk. `aclose` last. Methods raise Unavailable where the file cannot be used."""

    def __init__(self, runs: Path) -> None:
        self.database = Database(runs / "feedback.db", _TABLES)
        # What takes seconds keeps nobody's label waiting.
        self.reader = Database(runs / "feedback.db", _TABLES)

    async def aclose(self) -> None:
        """Close the file."""
        await self.database.aclose()
        await self.reader.aclose()

    async def known(self, request: Request) -> list[Label] | None:
        """What the same request was answered with before; None where it is new. Raises Conflict."""
        if request.idempotency_key is None:
            return None
        return await self.database.read(lambda connection: _known(connection, request))

    async def add(self, labels: Sequence[Label], request: Request) -> list[Label]:
        """Keep all of them, durably; or return what the same request was answered with before.

        Raises Conflict for another body under the same Idempotency-Key, QuotaSpent.
        """

        def work(connection: sqlite3.Connection) -> list[Label]:
            if (before := _known(connection, request)) is not None:
                return before
            _use(connection, request, len(labels))
            connection.executemany(
                f"INSERT INTO labels ({COLUMNS}) VALUES ({PLACES})",
                [row_of(label) for label in labels],
            )
            if request.idempotency_key is not None:
                ids = json.dumps([label.id for label in labels])
                connection.execute(
                    "INSERT INTO requests VALUES (?, ?, ?, ?)",
                    (request.key_id, request.idempotency_key, request.body, ids),
                )
            return list(labels)

        return await self.database.write(work)

    async def page(
        self, *, limit: int, after: str | None = None, model: str | None = None
    ) -> tuple[list[Label], bool]:
        """Up to `limit` labels, the newest first, and whether there are more.

        `after` is the last id of the page before. Raises NotFound.
        """

        def work(connection: sqlite3.Connection) -> list[Label]:
            before = 1 << 62
            if after is not None:
                found = connection.execute(
                    "SELECT seq FROM labels WHERE id = ?", (after,)
                ).fetchone()
                if found is None:
                    raise NotFound(f"after: no feedback {after[:100]!r} here", param="after")
                before = found[0]
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM labels WHERE seq < ? AND (? IS NULL OR model = ?) "
                "ORDER BY seq DESC LIMIT ?",
                (before, model, model, limit + 1),
            )
            return [label_of(row) for row in rows]

        labels = await self.reader.read(work)
        return labels[:limit], len(labels) > limit

    async def votes(self, model: str, *, upto: int | None = None) -> list[Vote]:
        """What the newest labels of a PRM say, oldest first: those that say something."""

        def work(connection: sqlite3.Connection) -> list[Vote]:
            rows = connection.execute(
                "SELECT seq, content, key_id, correct, prm_correct FROM labels "
                "WHERE model = ? AND correct IS NOT NULL AND seq <= ? ORDER BY seq DESC LIMIT ?",
                (model, 1 << 62 if upto is None else upto, MOST_LABELS),
            ).fetchall()
            return [
                Vote(
                    seq=seq,
                    content=content,
                    key_id=key,
                    correct=bool(correct),
                    prm_correct=bool_of(prm),
                )
                for seq, content, key, correct, prm in reversed(rows)
            ]

        return await self.reader.read(work)

    async def labels(self, seqs: Sequence[int]) -> list[Label]:
        """These labels, in this order."""

        def work(connection: sqlite3.Connection) -> list[Label]:
            query = f"SELECT {COLUMNS} FROM labels WHERE seq = ?"
            return [label_of(connection.execute(query, (seq,)).fetchone()) for seq in seqs]

        return await self.reader.read(work)

    async def unscored(self, model: str, *, upto: int, limit: int) -> list[tuple[int, Answer]]:
        """Labelled responses that no PRM has scored, the newest first, each with its number."""

        def work(connection: sqlite3.Connection) -> list[tuple[int, Answer]]:
            rows = connection.execute(
                "SELECT seq, answer FROM labels WHERE model = ? AND correct IS NOT NULL "
                "AND prm_correct IS NULL AND seq <= ? ORDER BY seq DESC LIMIT ?",
                (model, upto, limit),
            )
            return [(seq, answer_of(json.loads(answer))) for seq, answer in rows]

        return await self.reader.read(work)

    async def scored(self, judged: Sequence[tuple[int, bool]], version: str) -> None:
        """What a PRM's version says of responses: whether each is right, by its number."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE labels SET prm_correct = ?, version = ? WHERE seq = ?",
                [(int(correct), version, seq) for seq, correct in judged],
            )

        await self.database.write(work)


def _known(connection: sqlite3.Connection, request: Request) -> list[Label] | None:
    found = connection.execute(
        "SELECT body, ids FROM requests WHERE key_id = ? AND idempotency_key = ?",
        (request.key_id, request.idempotency_key),
    ).fetchone()
    if found is None:
        return None
    body, ids = found
    if body != request.body:
        raise Conflict(
            f"Idempotency-Key {request.idempotency_key!r} came with another body before; send the "
            "same body, or a new key",
            param="Idempotency-Key",
        )
    query = f"SELECT {COLUMNS} FROM labels WHERE id = ?"
    return [label_of(connection.execute(query, (each,)).fetchone()) for each in json.loads(ids)]


def _use(connection: sqlite3.Connection, request: Request, count: int) -> None:
    """Book labels on the key's day. Raises QuotaSpent where they are too many."""
    now = time.time()
    day = int(now // DAY_S)
    found = connection.execute(
        "SELECT used FROM days WHERE key_id = ? AND day = ?", (request.key_id, day)
    ).fetchone()
    used = found[0] if found else 0
    if used + count > request.per_day:
        raise QuotaSpent(
            f"{count} more labels, and this key has given {used} of the {request.per_day} that it "
            "may give on one day (UTC); send them tomorrow",
            retry_after_s=(day + 1) * DAY_S - now,
        )
    connection.execute(
        "INSERT INTO days VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET used = used + excluded.used",
        (request.key_id, day, count),
    )
    connection.execute("DELETE FROM days WHERE day < ?", (day - 1,))
