"""Uploaded files on disk.

A file is written beside its place and renamed into it, so that there is all of it or nothing. The
ids are ours: nothing that a caller sends becomes part of a path. Everything here blocks: call it in
a thread.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from filelock import FileLock
from pydantic import ValidationError

from prm.errors import Conflict, ModelFolderError, NotFound
from prm.files import read_json, sync_folder, write_durably
from server.files.lines import LineCheck
from server.files.records import FILE_ID, FileRecord
from server.jobs.records import new_id

RECORD, CONTENT = "file.json", "content.jsonl"
_UPLOAD, _LOCK = ".upload-", ".lock"
_LOCK_TIMEOUT_S = 10
# Nobody uploads for so long: what is left of it is of a server that was killed.
_FORGOTTEN_S = 24 * 3600.0
_PIECE = 1 << 20


class FileStore:
    """The files under one folder, for any number of threads and processes at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def upload(self) -> "Upload":
        """A file that is about to arrive: a context, which leaves nothing behind on an error."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._forget_uploads()
        return Upload(self.folder, new_id("file"))

    def adopt(self, path: Path, filename: str, key_id: str | None = None) -> FileRecord:
        """A copy of a file of this machine. Raises InvalidInput as an upload does, and OSError."""
        with self.upload() as upload, path.open("rb") as source:
            while piece := source.read(_PIECE):
                upload.write(piece)
            return upload.finish(filename, key_id)

    def get(self, file_id: str, param: str = "file_id") -> FileRecord:
        """Raises NotFound naming `param`; an id that is none touches no file."""
        if FILE_ID.fullmatch(file_id):
            try:
                return FileRecord.model_validate(read_json(self.folder / file_id / RECORD))
            except (ModelFolderError, ValidationError):
                pass
        raise NotFound(
            f"no file {file_id[:100]!r} here; upload it first (POST /v1/files)", param=param
        )

    def content(self, file_id: str) -> Path:
        """Where the lines of a file that is there lie."""
        return self.folder / file_id / CONTENT

    def all(self) -> list[FileRecord]:
        """Every file, the newest first."""
        try:
            names = [name for name in os.listdir(self.folder) if FILE_ID.fullmatch(name)]
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            try:
                made = (self.folder / name / RECORD).stat().st_mtime_ns
                found.append((made, self.get(name)))
            except (OSError, NotFound):
                continue
        return [record for _, record in sorted(found, key=lambda pair: pair[0], reverse=True)]

    @contextmanager
    def kept(self, file_ids: Sequence[str]) -> Iterator[None]:
        """While this is open none of these files is deleted. Raises NotFound for one that is gone.

        A job that needs them is written in here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            for file_id in file_ids:
                self.get(file_id, "training_file")
            yield

    def delete(self, file_id: str, users: Iterator[str]) -> None:
        """Forget a file. Raises NotFound, and Conflict where there is a user of it.

        `users` are asked for while no job can begin.
        """
        self.get(file_id)
        with self._alone():
            if user := next(users, None):
                raise Conflict(
                    f"{file_id} is used by {user}, which is not finished; cancel that first, or "
                    "wait",
                    param="file_id",
                )
            gone = self.folder / f"{_UPLOAD}{file_id}"
            try:
                (self.folder / file_id).rename(gone)
            except FileNotFoundError:  # by another process, since it was looked for
                return
        shutil.rmtree(gone, ignore_errors=True)

    def _alone(self) -> FileLock:
        return FileLock(self.folder / _LOCK, timeout=_LOCK_TIMEOUT_S)

    def _forget_uploads(self) -> None:
        for left in self.folder.glob(f"{_UPLOAD}*"):
            try:
                is_old = time.time() - left.stat().st_mtime > _FORGOTTEN_S
            except FileNotFoundError:
                continue
            if is_old:
                shutil.rmtree(left, ignore_errors=True)


class Upload:
    """A file as it arrives: `write` its bytes, then `finish`. Both raise InvalidInput, OSError."""

    def __init__(self, folder: Path, file_id: str) -> None:
        self._id = file_id
        self._place = folder / file_id
        self._holding = folder / f"{_UPLOAD}{file_id}"
        self._holding.mkdir()
        self._file: BinaryIO = (self._holding / CONTENT).open("xb")
        self._check = LineCheck()
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        shutil.rmtree(self._holding, ignore_errors=True)

    def write(self, piece: bytes) -> None:
        """The next bytes of the file; a line that is no JSON object ends it."""
        self._check.feed(piece)
        self._file.write(piece)
        self._bytes += len(piece)

    def finish(self, filename: str, key_id: str | None = None) -> FileRecord:
        """Put it in its place, durably."""
        self._check.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        record = FileRecord(
            id=self._id,
            created_at=int(time.time()),
            bytes=self._bytes,
            lines=self._check.objects,
            filename=filename,
            key_id=key_id,
        )
        write_durably(self._holding / RECORD, record.model_dump_json(indent=1) + "\n")
        sync_folder(self._holding)
        self._holding.rename(self._place)
        sync_folder(self._place.parent)
        return record
