"""`multipart/form-data` as it arrives: the file goes to its store, a piece at a time.

Neither the memory nor a second disk has to hold it: what Starlette's form would give is spooled to
a temporary folder first, and could only be refused when all of it is there.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from prm.errors import InvalidInput
from server.files.records import PURPOSE, FileRecord
from server.files.store import FileStore, Upload

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# Of `purpose`.
_MAX_FIELD_BYTES = 1000
_MAX_NAME = 255


async def receive_file(
    content_type: str, body: AsyncIterator[bytes], store: FileStore, key_id: str | None
) -> FileRecord:
    """Store the body's `file`. Raises InvalidInput for what is no upload, or no JSON Lines."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidInput(
            "send multipart/form-data with the parts purpose and file, as OpenAI's clients do",
            param="file",
        )
    upload = await asyncio.to_thread(store.upload)
    with upload:
        form = _Form(upload)
        parser = MultipartParser(options[b"boundary"], form.callbacks)
        try:
            async for piece in body:
                # Beside the loop: a line is JSON to be read, and the disk may be slow.
                await asyncio.to_thread(parser.write, piece)
            parser.finalize()
        except MultipartParseError as error:
            raise InvalidInput(f"the body is not multipart/form-data: {error}") from error
        filename = form.checked()
        return await asyncio.to_thread(upload.finish, filename, key_id)


class _Form:
    """What the parts are: one `file`, one `purpose`, and nothing else."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._purpose: bytes | None = None
        self._filename: str | None = None
        self._ended = False
        self._header: list[bytearray] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = b""

    @property
    def callbacks(self) -> "MultipartCallbacks":
        """For the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self._grow(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_end": self._end,
        }

    def checked(self) -> str:
        """The file's name, when everything is there. Raises InvalidInput."""
        if not self._ended:
            raise InvalidInput("the body ends before its last part does; send it again")
        if self._filename is None:
            raise InvalidInput(
                "file: there is none; send JSON Lines as the part file", param="file"
            )
        purpose = (self._purpose or b"").decode("utf-8", "replace")
        if purpose != PURPOSE:
            what = f"{purpose[:50]!r} is not known here" if purpose else "it is missing"
            raise InvalidInput(f'purpose: {what}; it has to be "{PURPOSE}"', param="purpose")
        return self._filename

    def _begin(self) -> None:
        self._headers = {}

    def _begin_header(self) -> None:
        self._header = [bytearray(), bytearray()]

    def _grow(self, side: int, data: bytes) -> None:
        self._header[side] += data

    def _end_header(self) -> None:
        field, value = map(bytes, self._header)
        self._headers[field.lower()] = value

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"")
        if self._name == b"file" and self._filename is None:
            name = options.get(b"filename", b"").decode("utf-8", "replace")
            self._filename = name[-_MAX_NAME:] or "upload.jsonl"
        elif self._name == b"purpose" and self._purpose is None:
            self._purpose = b""
        else:
            name = self._name.decode("utf-8", "replace")[:50]
            if name in ("file", "purpose"):
                raise InvalidInput(f"{name}: it is there twice; send one", param=name)
            remedy = (
                "files stay until they are deleted; leave it out"
                if name.startswith("expires_after")
                else "there is file and purpose"
            )
            raise InvalidInput(f"{name or 'a part without a name'}: {remedy}", param=name or None)

    def _data(self, data: bytes) -> None:
        if self._name == b"file":
            self._upload.write(data)
            return
        self._purpose = (self._purpose or b"") + data
        if len(self._purpose) > _MAX_FIELD_BYTES:
            raise InvalidInput(f"purpose is longer than {_MAX_FIELD_BYTES} bytes", param="purpose")

    def _end(self) -> None:
        self._ended = True
