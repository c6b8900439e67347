"""One SQLite file, for any number of processes on one host. Its work is done in a thread.

A commit with `synchronous="FULL"` is on the disk when it returns (sqlite.org/pragma.html): whatever
is killed afterwards, it stays. WAL lets readers read while somebody writes; it needs shared memory,
so that the file must not lie on a network's file system.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from prm.errors import Unavailable

_T = TypeVar("_T")
Work = Callable[[sqlite3.Connection], _T]

# A commit takes milliseconds; who waits longer for the others waits for a process that hangs.
BUSY_S = 10.0


class Database:
    """A file with these tables, made when it is first used. `aclose` last.

    `write` and `read` do their work in one transaction each. Both raise Unavailable where the file
    cannot be used: a full disk, a damaged file, a folder that may not be written to.
    """

    def __init__(
        self, path: Path, tables: str, *, synchronous: Literal["FULL", "NORMAL"] = "FULL"
    ) -> None:
        self.path = path
        self._tables = tables
        self._synchronous = synchronous
        self._connection: sqlite3.Connection | None = None
        # One thread: SQLite would make them wait for each other anyway.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"sqlite-{path.stem}")

    async def write(self, work: Work[_T]) -> _T:
        """Do the work alone, commit, and return what it returned."""
        return await self._in_thread(work, "BEGIN IMMEDIATE")

    async def read(self, work: Work[_T]) -> _T:
        """Do the work on what is there at one moment."""
        return await self._in_thread(work, "BEGIN")

    async def aclose(self) -> None:
        """Finish what is under way and close the file."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._connection is not None:
            self._connection.close()

    async def _in_thread(self, work: Work[_T], begin: str) -> _T:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._transaction, work, begin
        )

    def _transaction(self, work: Work[_T], begin: str) -> _T:
        try:
            connection = self._opened()
            connection.execute(begin)
            try:
                found = work(connection)
                connection.execute("COMMIT")
            finally:
                # A full disk may have ended it already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(f"{self.path.name} cannot be used now: {error}") from error
        return found

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA synchronous={self._synchronous}")
                connection.executescript(self._tables)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection
