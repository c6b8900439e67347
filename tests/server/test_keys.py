"""The keys file under many hands and damaged; callers without a key, and the bodies they send."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from filelock import FileLock

from prm.registry import Registry
from server import key_file
from server.app import create_app
from server.auth import Keys
from server.deps import KeyFirst
from server.key_file import KeyFile, KeysFileError
from server.settings import Settings
from tests.factories import PRM
from tests.server.commands import rung, rung_process
from tests.server.conftest import RunningServer, rung_serve

SCORE = json.dumps({"model": PRM, "items": [{"problem": "1+1", "steps": ["1+1=2"]}]})
KEY = "a-key"
LIMIT = 100_000


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "new" / "keys.json"
    code = (
        "import sys; from pathlib import Path; from server.key_file import KeyFile\n"
        f"file = KeyFile(Path({str(file)!r}))\n"
        "for number in range(25): print(file.create(f'{sys.argv[1]}-{number}', ['score']))"
    )
    makers = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    made = [maker.communicate(timeout=60)[0].split() for maker in makers]
    assert all(maker.returncode == 0 for maker in makers)
    names = {record.name for record in KeyFile(file).list()}
    assert names == {f"{maker}-{number}" for maker in range(4) for number in range(25)}
    keys = Keys([], KeyFile(file), is_loopback=True)
    assert all(keys.find(key) for keys_of_one in made for key in keys_of_one)
    assert {path.stat().st_mode & 0o077 for path in file.parent.iterdir()} == {0}


def test_keys_made_and_revoked_by_threads_are_all_as_they_were_left(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for name in ("a", "b", "c", "d"):
        KeyFile(path).create(name, ["score"])
    before = [record.id for record in KeyFile(path).list()]
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(KeyFile(path).create, f"new-{n}", ["search"]) for n in range(8)]
        gone = [pool.submit(KeyFile(path).revoke, key_id) for key_id in before]
        assert all(done.result() for done in made)
        assert all(done.result() for done in gone)
    assert {r.name for r in KeyFile(path).list()} == {f"new-{n}" for n in range(8)}


def test_a_lock_that_is_not_given_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "LOCK_TIMEOUT_S", 0.1)
    with (
        FileLock(tmp_path / ".keys.json.lock"),
        pytest.raises(KeysFileError, match=r"keys\.json: another process has held \.keys\.json\."),
    ):
        KeyFile(tmp_path / "keys.json").create("x", ["score"])
    assert not (tmp_path / "keys.json").exists()


GOOD = '{"id": "1", "name": "n", "sha256": "%s", "scopes": ["score"], "created": 1}' % ("a" * 64)
DAMAGED = {
    "cut": (f"[\n{GOOD},\n{GOOD[:40]}", "line 3, column 36: not valid JSON: Unterminated string"),
    "no list": ('{"a": 1}', "keys: Input should be a valid list"),
    "no hash": (f"[{GOOD}, {GOOD.replace('a' * 64, 'zz')}]", "keys[1].sha256: String should match"),
    "unknown scope": (f"[{GOOD.replace('score', 'fly')}]", "keys[0].scopes[0]: Input should be"),
    "empty": ("", "line 1, column 1: not valid JSON"),
    "nested without end": ("[" * 200_000, "not JSON in UTF-8"),
    "not text": ("\udcff\udcfe", "not JSON in UTF-8"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_with_the_place_and_the_remedy_and_left_alone(
    tmp_path: Path, name: str
) -> None:
    content, message = DAMAGED[name]
    path = tmp_path / "keys.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    file = KeyFile(path)
    for work in (file.list, lambda: file.create("x", ["score"]), lambda: file.revoke("1")):
        with pytest.raises(KeysFileError) as error:
            work()
        assert str(error.value).startswith(f"{path}: {message}")
        assert str(error.value).endswith("make new keys with `rung keys create`")
        assert "aaaa" not in str(error.value)
    assert path.read_bytes() == content.encode("utf-8", "surrogateescape")


def test_the_command_line_tells_it_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("[{")
    for command in (["list"], ["create", "--name=x"], ["revoke", "1"]):
        done = rung("keys", *command, RUNG_KEYS_FILE=str(path))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"rung: {path}: line 1, column 3: not valid JSON")
        assert len(done.stderr.splitlines()) == 1
    folder = rung("keys", "create", "--name=x", RUNG_KEYS_FILE="/proc/nowhere/keys.json")
    assert folder.returncode == 1
    assert "/proc/nowhere/keys.json: cannot be changed: " in folder.stderr
    assert "Traceback" not in folder.stderr


def test_a_server_does_not_start_open_beside_a_damaged_file(
    tiny_models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    path.write_text("[{")
    done = rung_process("serve", f"--models={tiny_models}", "--port=0", RUNG_KEYS_FILE=str(path))
    assert done.returncode == 2
    assert f"rung: {path}: line 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def keyed(tiny_models: Path) -> Iterator[RunningServer]:
    with rung_serve(tiny_models, RUNG_API_KEYS=KEY, RUNG_MAX_BODY_BYTES=str(LIMIT)) as running:
        yield running


def begin(server: RunningServer, *headers: str, path: str = "/v1/prm/score") -> socket.socket:
    """The head of a POST, without a byte of its body."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    connection.sendall("\r\n".join([*head, "", ""]).encode())
    return connection


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """Status and the rest, read until the server closes the connection or the body is whole."""
    got = b""
    while True:
        head, _, body = got.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [int(li.split(b":")[1]) for li in lines if li.startswith(b"content-length:")]
        if lengths and len(body) >= lengths[0]:
            return int(got.split(b" ")[1]), got
        piece = connection.recv(65536)
        assert piece, f"closed after {got!r}"
        got += piece


@pytest.mark.parametrize("path", ["/v1/prm/score", "/v1/search"])
@pytest.mark.parametrize(
    "headers",
    [
        [f"Content-Length: {LIMIT}"],
        ["Transfer-Encoding: chunked"],
        [f"Content-Length: {LIMIT}", "Authorization: Bearer wrong"],
        [f"Content-Length: {LIMIT}", "Expect: 100-continue"],
        [f"Content-Length: {1 << 40}"],
    ],
    ids=["long", "chunked", "wrong key", "asking first", "too long"],
)
def test_without_a_key_nobody_waits_for_the_body(
    keyed: RunningServer, path: str, headers: list[str]
) -> None:
    with begin(keyed, *headers, path=path) as connection:
        status, answer = answer_of(connection)
        assert status == 401
        assert b"invalid_api_key" in answer
        assert b"100 Continue" not in answer
        # And the line is closed, so that none of the body is taken in either.
        assert connection.recv(1) == b""


def test_who_sends_on_without_a_key_is_cut_off(keyed: RunningServer) -> None:
    with begin(keyed, f"Content-Length: {1 << 40}") as connection:
        sent = 0
        # A reset or a broken pipe, whichever comes first.
        with suppress(ConnectionError):
            while sent < 1 << 28:
                sent += connection.send(b"x" * 65536)
    assert sent < 1 << 26


def test_with_a_key_the_body_is_waited_for_and_answered(keyed: RunningServer) -> None:
    allowed = f"Authorization: Bearer {KEY}"
    with begin(keyed, allowed, f"Content-Length: {len(SCORE)}") as connection:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(20)
        connection.sendall(SCORE.encode())
        assert answer_of(connection)[0] == 200
    with begin(keyed, allowed, f"Content-Length: {LIMIT + 1}") as connection:
        status, answer = answer_of(connection)
        assert status == 413
        assert b"too_large" in answer


def test_every_route_with_a_body_looks_at_the_key_first(tiny_models: Path) -> None:
    app: FastAPI = create_app(Settings(models=tiny_models), Registry.open(tiny_models))
    routes = [r for r in app.routes if isinstance(r, APIRoute) and r.body_field is not None]
    assert {route.path for route in routes} >= {"/v1/prm/score", "/v1/search"}
    assert all(isinstance(route, KeyFirst) for route in routes)
