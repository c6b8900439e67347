"""`/v1/files` through OpenAI's own client."""

import json
import os
from pathlib import Path

import httpx2
import openai
import pytest

from server.files.lines import LineCheck
from server.files.store import FileStore
from tests.server.jobs.conftest import PROBLEMS, JobsServer, Upload

LINE = b'{"problem": "1+1", "answer": "2"}\n'


def test_a_file_is_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    before = {file.id for file in client.files.list()}
    made = client.files.create(file=("sums.jsonl", LINE * 3), purpose="fine-tune")
    assert (made.filename, made.bytes, made.purpose) == ("sums.jsonl", 3 * len(LINE), "fine-tune")
    other = client.files.create(file=("more.jsonl", LINE), purpose="fine-tune")
    newest = [file.id for file in client.files.list() if file.id not in before]
    assert newest == [other.id, made.id]
    first = client.files.list(limit=1)
    assert first.data[0].id == other.id
    assert first.has_next_page()
    assert first.get_next_page().data[0].id == made.id
    oldest = [file.id for file in client.files.list(order="asc") if file.id not in before]
    assert oldest == [made.id, other.id]
    assert client.files.list(purpose="batch").data == []
    assert client.files.content(made.id).read() == LINE * 3
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (LINE + b'{"problem": \n', "line 2: not JSON"),
        (LINE + b"\n[1]\n", "line 3: not a JSON object, but a list"),
        (LINE + b'{"problem": "\xff"}', "line 2: byte 14 is 0xff, which is not UTF-8"),
        (LINE + b"[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_line_that_is_no_object_is_named(
    content: bytes, said: str, client: openai.OpenAI, jobs_server: JobsServer
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.files.create(file=("bad.jsonl", content), purpose="fine-tune")
    folder = jobs_server.store.runs / "files"
    assert not list(folder.glob(".upload-*"))  # nothing is left of it


def test_its_size_is_limited_by_a_limit_of_its_own(
    client: openai.OpenAI, plain: httpx2.Client
) -> None:
    most = (1 << 20) - 1000  # one MiB, as the server was told
    row = json.dumps({"problem": "x" * 1000, "answer": "1"}).encode() + b"\n"
    fits = row * (most // len(row))
    assert client.files.create(file=("big.jsonl", fits), purpose="fine-tune").bytes == len(fits)
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("bigger.jsonl", fits * 2), purpose="fine-tune")
    assert refused.value.status_code == 413
    # Without a length, it is counted as it comes.
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    pieces = iter([head, *[row * 100] * 30])
    assert plain.post("/v1/files", content=pieces, headers=boundary).status_code == 413
    # And every other route has the smaller one, whatever this one's is.
    assert plain.post("/v1/prm/score", content=b"x" * (9 << 20)).status_code == 413


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "fine-tune"}, "file"),
        ({"file": LINE}, "purpose"),
        ({"file": LINE, "purpose": "batch"}, "purpose"),
        ({"file": LINE, "purpose": "fine-tune", "expires_after[seconds]": "3600"}, "expires_after"),
        ({"file": LINE, "purpose": "fine-tune", "path": "/etc/passwd"}, "path"),
    ],
)
def test_a_form_that_is_no_upload_is_refused(
    form: dict[str, str | bytes], param: str, plain: httpx2.Client
) -> None:
    parts = {
        name: (f"{name}.jsonl", value) if isinstance(value, bytes) else (None, value)
        for name, value in form.items()
    }
    answer = plain.post("/v1/files", files=parts)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize(
    "body",
    [
        {"content": LINE, "headers": {"Content-Type": "application/json"}},
        {"content": LINE, "headers": {"Content-Type": "multipart/form-data"}},
        {"content": LINE, "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + LINE,
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
    ],
)
def test_a_body_that_is_no_form_is_refused(body: dict[str, object], plain: httpx2.Client) -> None:
    answer = plain.post("/v1/files", **body)  # type: ignore[arg-type]
    assert answer.status_code == 400, answer.text


def test_a_name_is_kept_and_never_used_as_a_path(
    client: openai.OpenAI, jobs_server: JobsServer
) -> None:
    made = client.files.create(file=("../../etc/passwd", LINE), purpose="fine-tune")
    assert made.filename.endswith("passwd")
    assert {path.name for path in (jobs_server.store.runs / "files" / made.id).iterdir()} == {
        "file.json",
        "content.jsonl",
    }
    for wrong in ("file-0", "..%2F..", "file-ABCDEFGHIJKLMNOP", "%00", "x" * 5000):
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(wrong)
        with pytest.raises(openai.NotFoundError):
            client.files.delete(wrong)


def test_a_file_of_a_job_that_is_not_over_stays(client: openai.OpenAI, upload: Upload) -> None:
    used = upload(PROBLEMS)
    job = client.fine_tuning.jobs.create(
        model="tiny-policy",
        training_file=used,
        method={"type": "rloo"},  # type: ignore[arg-type]
    )
    with pytest.raises(openai.ConflictError, match=f"{used} is used by {job.id}"):
        client.files.delete(used)
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(used).deleted


def test_lines_may_come_in_any_pieces() -> None:
    text = LINE + '{"problem": "½", "answer": "1"}'.encode()
    check = LineCheck()
    for byte in text:
        check.feed(bytes([byte]))
    check.finish()
    assert check.objects == 2


def test_what_a_killed_server_left_is_removed_in_time(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    left = tmp_path / ".upload-file-0123456789abcdef"
    left.mkdir()
    (left / "content.jsonl").write_bytes(LINE[:9])
    with store.upload():
        assert left.exists()
    os.utime(left, (0, 0))
    with store.upload():
        assert not left.exists()
