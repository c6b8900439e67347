"""Contestants of a benchmark: processes that take turns, so that nobody measures a neighbour.

    parent   start all ── a turn of the first ── a turn of the second ── … ── end all
    child    load, then one turn for each line on stdin, answered by one line of JSON

Each is a process group of its own, and stopped (SIGSTOP) while it is not its turn. This file needs
nothing but the standard library on the child's side: vLLM's environment has none of our packages.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
# Begins the one line of a child's stdout that is an answer; libraries print there as well.
ANSWER = "ANSWER "


class ContestantEnded(Exception):
    """A contestant's process ended while it was its turn."""


class Contestant:
    """A child process that does a turn when told so."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: IO[bytes],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        from prm.engine.process import ENGINE_ENVIRONMENT

        self.name = name
        self._log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ
            | ENGINE_ENVIRONMENT
            | {"PYTHONPATH": str(ROOT), "VLLM_NO_USAGE_STATS": "1"}
            | dict(environment or {}),
            start_new_session=True,
        )

    def take_turn(self, task: object = None) -> dict[str, Any]:
        """Let it do one task. The first call also waits until it has loaded.

        Raises ContestantEnded; its last words are in the log.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        # Broken when it has ended; its stdout says so, too.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                self._signal(signal.SIGSTOP)
                answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return answer
            self._log.write(line.encode())
            self._log.flush()
        raise ContestantEnded(
            f"{self.name} ended with {self._process.wait()}; see {self._log.name}"
        )

    def close(self) -> None:
        """End it and all that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        # Not there when it has ended, and all of its group.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def serve_turns(take_turn: Callable[[Any], Mapping[str, Any]]) -> None:
    """The child's side, once it has loaded: a turn for each task on stdin."""
    for line in sys.stdin:
        tell_answer(take_turn(json.loads(line)))


def next_task() -> Any:
    """The child's side, where a library holds the reins: the task of the next turn.

    Ends the process when there is none.
    """
    if not (line := sys.stdin.readline()):
        sys.exit()
    return json.loads(line)


def tell_answer(answer: Mapping[str, Any]) -> None:
    """The end of a turn."""
    print(ANSWER + json.dumps(answer), flush=True)


def vllm_environment(threads: int) -> dict[str, str]:
    """vLLM on the last `threads` cores of this machine, with 1 GiB for keys and values."""
    cores = os.cpu_count() or 1
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"{max(0, cores - threads)}-{cores - 1}",
    }


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Ours over theirs, round by round: what slowed both down in a round cancels out."""
    return [mine / its for mine, its in zip(ours, theirs, strict=True)]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest, and all of them."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }
