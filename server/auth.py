"""API keys: 32 random bytes, stored as SHA-256, compared in constant time.

A key has full entropy, so a password hash would only cost time. Keys come from `RUNG_API_KEYS`
(all scopes) and from the file that `rung keys` writes, which is read again when it changes.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, TypeAdapter

from prm.files import write_durably
from prm.manifest import Sha256

Scope = Literal["score", "search", "train", "admin"]
logger = logging.getLogger(__name__)

SCOPES: tuple[Scope, ...] = get_args(Scope)
KEY_PREFIX = "rung-"


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


class KeyFile:
    """The file behind `rung keys`. Only its owner can read it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def list(self) -> list[KeyRecord]:
        """All keys, oldest first."""
        if not self._path.exists():
            return []
        return _records.validate_json(self._path.read_bytes())

    def create(self, name: str, scopes: Sequence[Scope]) -> str:
        """Make a key and return it: the only time that it is seen."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(
            id=secrets.token_hex(4),
            name=name,
            sha256=_hash(key),
            scopes=tuple(scopes),
            created=int(time.time()),
        )
        self._save([*self.list(), record])
        return key

    def revoke(self, key_id: str) -> bool:
        """Forget a key; False when there is none of this id."""
        records = self.list()
        kept = [record for record in records if record.id != key_id]
        if len(kept) == len(records):
            return False
        self._save(kept)
        return True

    @property
    def stamp(self) -> int:
        """Changes when the file does."""
        return self._path.stat().st_mtime_ns if self._path.exists() else 0

    def _save(self, records: Sequence[KeyRecord]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        write_durably(
            fresh, json.dumps([record.model_dump() for record in records], indent=2) + "\n"
        )
        fresh.rename(self._path)


class Keys:
    """Recognises callers by their key.

    Whether keys are asked for is settled when the server starts: off loopback always, on loopback
    when there are any. Revoking the last key locks a server; it never opens one.
    """

    def __init__(self, from_settings: Iterable[str], file: KeyFile, *, is_loopback: bool) -> None:
        self._fixed = [
            KeyRecord(
                id=f"env-{number}",
                name="RUNG_API_KEYS",
                sha256=_hash(key),
                scopes=SCOPES,
                created=0,
            )
            for number, key in enumerate(from_settings)
        ]
        self._file = file
        self._stamp = -1
        self._from_file: list[KeyRecord] = []
        self.exist = bool(self._all())
        self.are_required = self.exist or not is_loopback

    def find(self, key: str) -> KeyRecord | None:
        """The record of this key, or None."""
        wanted = _hash(key)
        found = None
        for record in self._all():
            # No early exit: the time taken says nothing about which key came close.
            if hmac.compare_digest(record.sha256, wanted):
                found = record
        return found

    def _all(self) -> list[KeyRecord]:
        if (stamp := self._file.stamp) != self._stamp:
            try:
                self._from_file = self._file.list()
            except (OSError, ValueError) as error:
                # Half written or not ours to read: the keys known so far stay.
                logger.warning("the keys file cannot be read: %s", type(error).__name__)
            self._stamp = stamp
        return [*self._fixed, *self._from_file]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
