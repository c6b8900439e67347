"""Which callers are known: by keys from `RUNG_API_KEYS` (all scopes) and from the keys file.

Keys are compared in constant time; the file is read again when it changes.
"""

import hmac
import logging
from collections.abc import Iterable

from server.key_file import SCOPES, KeyFile, KeyRecord, KeysFileError, hash_key

logger = logging.getLogger(__name__)


class Keys:
    """Recognises callers by their key. Making one raises KeysFileError for a damaged file.

    Whether keys are asked for is settled when the server starts: off loopback always, on loopback
    when there are any. Revoking the last key locks a server; it never opens one.
    """

    def __init__(self, from_settings: Iterable[str], file: KeyFile, *, is_loopback: bool) -> None:
        self._fixed = [
            KeyRecord(
                id=f"env-{number}",
                name="RUNG_API_KEYS",
                sha256=hash_key(key),
                scopes=SCOPES,
                created=0,
            )
            for number, key in enumerate(from_settings)
        ]
        self._file = file
        self._stamp = file.stamp
        self._from_file = file.list()
        self.exist = bool(self._all())
        self.are_required = self.exist or not is_loopback

    def find(self, key: str) -> KeyRecord | None:
        """The record of this key, or None."""
        self._read_if_changed()
        wanted = hash_key(key)
        found = None
        for record in self._all():
            # No early exit: the time taken says nothing about which key came close.
            if hmac.compare_digest(record.sha256, wanted):
                found = record
        return found

    def _all(self) -> list[KeyRecord]:
        return [*self._fixed, *self._from_file]

    def _read_if_changed(self) -> None:
        try:
            stamp = self._file.stamp
            if stamp != self._stamp:
                # Taken before the reading, and kept where that fails: said once, not per request.
                self._stamp = stamp
                self._from_file = self._file.list()
        except KeysFileError as error:
            logger.error("%s; the keys known so far stay", error)
