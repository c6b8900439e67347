"""The file behind `rung keys`: keys as SHA-256, with their scopes, readable by its owner only.

A key is 32 random bytes: it has full entropy, so a password hash would only cost time.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from filelock import FileLock, Timeout
from pydantic import BaseModel, TypeAdapter, ValidationError

from prm.errors import RungError
from prm.files import write_durably
from prm.manifest import Sha256

Scope = Literal["score", "search", "train", "admin"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
KEY_PREFIX = "rung-"
# A change takes milliseconds; who waits longer waits for a process that hangs.
LOCK_TIMEOUT_S = 10


class KeysFileError(RungError):
    """The keys file cannot be read or changed: which file, where in it, and what to do."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class KeyRecord(BaseModel):
    """A key as it is stored: enough to recognise it, not enough to use it."""

    id: str
    name: str
    sha256: Sha256
    scopes: tuple[Scope, ...]
    created: int

    def allows(self, scope: Scope) -> bool:
        """Whether this key may do that; admin may do everything."""
        return scope in self.scopes or "admin" in self.scopes


_records = TypeAdapter(list[KeyRecord])


class Stamp(NamedTuple):
    """Differs when the file was changed; the inode where two changes share a clock tick."""

    modified_ns: int
    bytes: int
    inode: int


class KeyFile:
    """Keys on disk, for any number of processes at once. Methods raise KeysFileError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def list(self) -> list[KeyRecord]:
        """All keys, oldest first."""
        remedy = "repair it, or remove it and make new keys with `rung keys create`"
        try:
            return _records.validate_python(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeysFileError(self._path, f"cannot be read: {error.strerror}") from error
        except json.JSONDecodeError as error:
            reason = f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
            raise KeysFileError(self._path, f"{reason}; {remedy}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
            raise KeysFileError(self._path, f"keys{where}: {first['msg']}; {remedy}") from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise KeysFileError(self._path, f"not JSON in UTF-8; {remedy}") from error

    def create(self, name: str, scopes: Sequence[Scope]) -> str:
        """Make a key and return it: the only time that it is seen."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(
            id=secrets.token_hex(4),
            name=name,
            sha256=hash_key(key),
            scopes=tuple(scopes),
            created=int(time.time()),
        )
        with self._alone():
            self._save([*self.list(), record])
        return key

    def revoke(self, key_id: str) -> bool:
        """Forget a key; False when there is none of this id."""
        with self._alone():
            records = self.list()
            kept = [record for record in records if record.id != key_id]
            if len(kept) < len(records):
                self._save(kept)
        return len(kept) < len(records)

    @property
    def stamp(self) -> Stamp | None:
        """Changes when the file does; None while there is none."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeysFileError(self._path, f"cannot be read: {error.strerror}") from error
        return Stamp(found.st_mtime_ns, found.st_size, found.st_ino)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While this is open nobody else changes the file. Readers need no lock: see `_save`."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(lock, timeout=LOCK_TIMEOUT_S, mode=0o600):
                yield
        except Timeout as error:
            raise KeysFileError(
                self._path,
                f"another process has held {lock.name} for {LOCK_TIMEOUT_S} s; end that one",
            ) from error
        except OSError as error:
            raise KeysFileError(self._path, f"cannot be changed: {error.strerror}") from error

    def _save(self, records: Sequence[KeyRecord]) -> None:
        """Replace the file at once, so that a reader finds the old keys or the new ones."""
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        write_durably(
            fresh, json.dumps([record.model_dump() for record in records], indent=2) + "\n"
        )
        fresh.rename(self._path)


def hash_key(key: str) -> str:
    """What is stored of a key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
