"""Wire types of `/v1/files`: OpenAI's shapes."""

from typing import Literal

from pydantic import BaseModel

from server.files.records import FileRecord


class FileOut(BaseModel):
    """An uploaded file. `lines` is ours: how many objects it holds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None
    expires_at: None = None
    lines: int

    @classmethod
    def of(cls, record: FileRecord) -> "FileOut":
        """As it is told."""
        return cls.model_validate(record.model_dump(exclude={"key_id"}))


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileOut]
    has_more: bool
    first_id: str | None
    last_id: str | None


class FileDeleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
