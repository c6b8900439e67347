"""What was served lately, so that feedback can name it: `RUNS/served.db`.

    remember (no work on the request's path) → every half second, in a thread → SQLite

A crash loses what was not written yet, the last half second; a power cut a little more, as these
commits do not wait for the disk. It is a file of its own: what is written all the time keeps no
label waiting.
"""

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prm.errors import Unavailable
from server.feedback.database import Database
from server.feedback.types import Served, answer_fields, answer_of

# Feedback through another process finds what is this old.
FLUSH_S = 0.5
# Written sooner than that when there are so many: a thread that makes JSON of hundreds would hold
# up the requests of that moment.
FLUSH_COUNT = 64
# While the disk takes nothing; the oldest go first.
MOST_WAITING = 10_000
_TABLES = """
CREATE TABLE IF NOT EXISTS served (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    prm TEXT,
    created_s REAL NOT NULL,
    answers TEXT NOT NULL
);
"""
# How many of the oldest go at once, and how often at most after one writing.
_OLDEST, _TIMES = 256, 64
# Nothing is kept for much longer than it may be, also where nothing more is served.
TIDY_S = 60.0
_EXPIRED = """
DELETE FROM served WHERE rowid IN (
    SELECT rowid FROM (SELECT rowid, created_s FROM served ORDER BY rowid LIMIT ?)
    WHERE created_s < ?
)
"""
# A sixteenth. They are numbered as they come.
_EXCESS = """
DELETE FROM served WHERE rowid <= (SELECT min(rowid) + (max(rowid) - min(rowid)) / 16 FROM served)
"""

Build = Callable[[], Served]
logger = logging.getLogger(__name__)


class ServedStore:
    """Remembers for `hours`, and the newest `megabytes` at most. `start` first, `aclose` last.

    Before `start`, and with 0 hours, it remembers nothing. For one event loop.
    """

    def __init__(self, runs: Path, *, hours: float, megabytes: int) -> None:
        self.hours = hours
        self._most_bytes = megabytes << 20
        self._database = Database(runs / "served.db", _TABLES, synchronous="NORMAL")
        self._waiting: dict[str, Build] = {}
        self._writing: dict[str, Build] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._has_failed = False

    def start(self) -> None:
        """Remember from now on."""
        if self.hours > 0:
            self._task = asyncio.create_task(self._write_behind(), name="served")

    @property
    def is_on(self) -> bool:
        """Whether anything is remembered."""
        return self._task is not None

    def remember(self, served_id: str, build: Build) -> None:
        """Keep what `build` makes; it is called later, in another thread."""
        if self._task is None:
            return
        self._waiting[served_id] = build
        if len(self._waiting) >= FLUSH_COUNT:
            self._wake.set()
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]

    async def find(self, served_id: str) -> Served | None:
        """What was served under this id, if it is remembered. Raises Unavailable."""
        build = self._waiting.get(served_id) or self._writing.get(served_id)
        if build is not None:
            return await asyncio.to_thread(build)
        if not self._database.path.exists():
            return None
        return await self._database.read(
            lambda connection: _find(connection, served_id, self._oldest_s())
        )

    async def aclose(self) -> None:
        """Write what is left and close the file."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._flush()
        await self._database.aclose()

    async def _write_behind(self) -> None:
        tidy_at = time.monotonic() + TIDY_S
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), FLUSH_S)
            self._wake.clear()
            is_tidying = time.monotonic() > tidy_at and self._database.path.exists()
            if self._waiting or is_tidying:
                await self._flush()
            if is_tidying:
                tidy_at = time.monotonic() + TIDY_S

    async def _flush(self) -> None:
        self._writing, self._waiting = self._waiting, {}
        builds = list(self._writing.values())
        try:
            await self._database.write(lambda connection: self._write(connection, builds))
            self._has_failed = False
        except Unavailable as error:
            self._waiting = self._writing | self._waiting
            if not self._has_failed:
                logger.error("what is served cannot be remembered for feedback: %s", error)
            self._has_failed = True
        self._writing = {}

    def _write(self, connection: sqlite3.Connection, builds: list[Build]) -> None:
        for build in builds:
            served = build()
            answers = json.dumps([answer_fields(a) for a in served.answers], ensure_ascii=False)
            connection.execute(
                "INSERT OR REPLACE INTO served VALUES (?, ?, ?, ?, ?)",
                (served.id, served.kind, served.prm, served.created_s, answers),
            )
        for _ in range(_TIMES):
            if not self._forget_oldest(connection):
                break

    def _forget_oldest(self, connection: sqlite3.Connection) -> int:
        """How many of the oldest were forgotten: those too old, and a part of what is too much."""
        count = connection.execute(_EXPIRED, (_OLDEST, self._oldest_s())).rowcount
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self._most_bytes:
            count += connection.execute(_EXCESS).rowcount
        return count

    def _oldest_s(self) -> float:
        return time.time() - 3600 * self.hours


def _find(connection: sqlite3.Connection, served_id: str, since_s: float) -> Served | None:
    row = connection.execute(
        "SELECT kind, prm, created_s, answers FROM served WHERE id = ? AND created_s >= ?",
        (served_id, since_s),
    ).fetchone()
    if row is None:
        return None
    kind, prm, created_s, answers = row
    return Served(
        id=served_id,
        kind=kind,
        prm=prm,
        created_s=created_s,
        answers=tuple(answer_of(each) for each in json.loads(answers)),
    )
