"""An uploaded file looked at line by line, while it arrives: JSON objects in UTF-8, and some."""

import json

from prm.errors import InvalidInput

# No line of training data is longer; beyond, a file without line ends would fill the memory.
MAX_LINE_BYTES = 8 << 20
_NEWLINE = b"\n"


class LineCheck:
    """Feed it the file in pieces, then `finish`. Both raise InvalidInput that names the line."""

    def __init__(self) -> None:
        self.objects = 0
        self._number = 0
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        """The next bytes of the file."""
        *lines, self._rest = (self._rest + piece).split(_NEWLINE)
        for line in lines:
            self._look(line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise _wrong(
                self._number + 1,
                f"longer than {MAX_LINE_BYTES} bytes; JSON Lines has an object in each line",
            )

    def finish(self) -> None:
        """There is no more. Raises InvalidInput, too, for a file without an object."""
        self._look(self._rest)
        if not self.objects:
            raise InvalidInput(
                "the file is empty; it needs a JSON object in each line, such as "
                '{"problem": "2+2?", "answer": "4"}',
                param="file",
            )

    def _look(self, line: bytes) -> None:
        self._number += 1
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _wrong(
                self._number,
                f"byte {error.start + 1} is {line[error.start]:#04x}, which is not UTF-8; convert "
                "the file (iconv -t UTF-8)",
            ) from error
        if not text.strip():
            return
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _wrong(self._number, f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise _wrong(
                self._number, f"not a JSON object, but a {type(row).__name__}; write one a line"
            )
        self.objects += 1


def _wrong(number: int, what: str) -> InvalidInput:
    return InvalidInput(f"line {number}: {what}", param="file")
