"""What is kept of an uploaded file: `RUNS/files/file-…/file.json`, beside its `content.jsonl`."""

import re

from pydantic import BaseModel, ConfigDict

FILE_ID = re.compile(r"file-[a-z0-9]{16}")
PURPOSE = "fine-tune"


class FileRecord(BaseModel):
    """One file. `lines` are those that hold an object; it never changes once it is there."""

    model_config = ConfigDict(frozen=True)

    id: str
    created_at: int
    bytes: int
    lines: int
    filename: str
    purpose: str = PURPOSE
    key_id: str | None = None
