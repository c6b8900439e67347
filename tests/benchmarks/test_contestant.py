"""The turns of a benchmark, with real processes."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from benchmarks.contestant import Contestant, ContestantEnded, vllm_environment

# Counts the milliseconds for which it runs, and tells them when it is its turn.
COUNTING = """
import threading, time
from benchmarks.contestant import serve_turns
count = 0
def run():
    global count
    while True:
        count += 1
        time.sleep(0.001)
threading.Thread(target=run, daemon=True).start()
print("a library's own line", flush=True)
serve_turns(lambda task: {"task": task, "count": count})
"""
DYING = "import sys; sys.stdin.readline(); print('last words', flush=True); sys.exit(3)"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[IO[bytes]]:
    with open(tmp_path / "log", "wb") as file:
        yield file


def test_a_turn_answers_its_task_and_others_output_goes_to_the_log(log: IO[bytes]) -> None:
    contestant = Contestant("counting", [sys.executable, "-c", COUNTING], log)
    try:
        assert contestant.take_turn({"round": 1})["task"] == {"round": 1}
    finally:
        contestant.close()
    assert b"a library's own line" in Path(log.name).read_bytes()


def test_a_contestant_stands_still_between_its_turns(log: IO[bytes]) -> None:
    contestant = Contestant("counting", [sys.executable, "-c", COUNTING], log)
    try:
        before = contestant.take_turn()["count"]
        time.sleep(1.0)
        after = contestant.take_turn()["count"]
    finally:
        contestant.close()
    # A second at a millisecond each would be hundreds more.
    assert after - before < 100


def test_one_that_ends_is_told_by_name_and_status(log: IO[bytes]) -> None:
    contestant = Contestant("dying", [sys.executable, "-c", DYING], log)
    try:
        with pytest.raises(ContestantEnded, match="dying ended with 3"):
            contestant.take_turn()
        with pytest.raises(ContestantEnded):
            contestant.take_turn()
    finally:
        contestant.close()
    assert b"last words" in Path(log.name).read_bytes()


@pytest.mark.parametrize(("threads", "cores"), [(1, "3-3"), (3, "1-3"), (9, "0-3")])
def test_vllm_gets_as_many_cores_as_ours(
    threads: int, cores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert vllm_environment(threads)["VLLM_CPU_OMP_THREADS_BIND"] == cores
