"""Which labels were trained on already, and by which job: durable, beside the labels.

A training is written down before it is made, with the number of the last label that it takes. So
one is begun once, whatever process sees that it is due, and one whose process died is found and
finished by another.
"""

import sqlite3
import time
from dataclasses import dataclass

from server.feedback.database import Database

_COLUMNS = "seq, model, upto, labels, begun, owner, job_id, outcome"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training on the labels up to number `upto`, of which `labels` were new.

    `owner` is the server that makes its job; `outcome` is how it ended, None while it has not.
    """

    seq: int
    model: str
    upto: int
    labels: int
    begun: int
    owner: str
    job_id: str | None
    outcome: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Labels of a PRM that say something and that no training has taken yet.

    `upto` is the last one's number, `since` when the first of them came. `last` is the training
    before.
    """

    model: str
    labels: int
    upto: int
    since: int
    last: Training | None


class Trainings:
    """The trainings in a feedback database. Methods raise Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: tuple[int, int] | None = None
        self._waiting: list[Waiting] = []

    async def waiting(self) -> list[Waiting]:
        """Every PRM that has labels, or had. Counts again only where something was written."""
        if not self._database.path.exists():
            return []

        def work(connection: sqlite3.Connection) -> list[Waiting]:
            # Others' commits, and ours.
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            seen = version, connection.total_changes
            if seen != self._seen:
                self._waiting = _all_waiting(connection)
                self._seen = seen
            return self._waiting

        return await self._database.read(work)

    async def begin(self, waiting: Waiting, owner: str) -> Training | None:
        """Take the labels that wait for a training; None where another process was faster."""

        def work(connection: sqlite3.Connection) -> Training | None:
            if _last(connection, waiting.model) != waiting.last:
                return None
            connection.execute(
                "INSERT INTO retrainings (model, upto, labels, begun, owner) "
                "VALUES (?, ?, ?, ?, ?)",
                (waiting.model, waiting.upto, waiting.labels, int(time.time()), owner),
            )
            return _last(connection, waiting.model)

        return await self._database.write(work)

    async def take_over(self, training: Training, owner: str) -> Training | None:
        """Finish what another process has begun; None where it is no longer as it was."""

        def work(connection: sqlite3.Connection) -> Training | None:
            if _last(connection, training.model) != training:
                return None
            connection.execute(
                "UPDATE retrainings SET owner = ?, begun = ? WHERE seq = ?",
                (owner, int(time.time()), training.seq),
            )
            return _last(connection, training.model)

        return await self._database.write(work)

    async def created(self, training: Training, job_id: str) -> None:
        """Its job is there."""
        await self._update("job_id", job_id, training)

    async def ended(self, training: Training, outcome: str) -> None:
        """It has ended, or there is nothing to train on."""
        await self._update("outcome", outcome, training)

    async def _update(self, column: str, value: str, training: Training) -> None:
        query = f"UPDATE retrainings SET {column} = ? WHERE seq = ?"
        await self._database.write(
            lambda connection: connection.execute(query, (value, training.seq)).rowcount
        )


def _all_waiting(connection: sqlite3.Connection) -> list[Waiting]:
    models = connection.execute("SELECT DISTINCT model FROM labels").fetchall()
    return [_waiting(connection, model) for (model,) in models]


def _waiting(connection: sqlite3.Connection, model: str) -> Waiting:
    last = _last(connection, model)
    before = last.upto if last else 0
    count, upto, since = connection.execute(
        "SELECT count(*), max(seq), min(created) FROM labels "
        "WHERE model = ? AND seq > ? AND correct IS NOT NULL",
        (model, before),
    ).fetchone()
    return Waiting(model=model, labels=count, upto=upto or before, since=since or 0, last=last)


def _last(connection: sqlite3.Connection, model: str) -> Training | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM retrainings WHERE model = ? ORDER BY seq DESC LIMIT 1", (model,)
    ).fetchone()
    return None if row is None else Training(**dict(zip(_COLUMNS.split(", "), row, strict=True)))
