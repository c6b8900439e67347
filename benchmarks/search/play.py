"""Who does what in a round, and the rounds of it."""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.contestant import Contestant
from benchmarks.processes import cpu_seconds
from benchmarks.search.servers import Server, free_port, running_rung, running_vllm
from benchmarks.search.tasks import PRM, Task
from training.tasks.arithmetic import problems

ROWS = ("concurrent", "best-of-64", "beam-64")
# What each entrant told of each of its turns, by row and entrant.
Answers = dict[str, dict[str, list[dict[str, Any]]]]
Tell = Callable[[str], None]
# its_hub's own default, and as many requests at once as there are candidates.
CONCURRENCY = {"its_hub": 32, "its_hub, 64 at once": 64}

_VLLM_COUNTERS = {
    "tokens": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "continuations": "vllm:request_success_total",
}
_RUNG_COUNTERS = {"scored_tokens": f'rung_tokens_total{{kind="scored",model="{PRM}"}}'}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is played."""

    rows: Sequence[str]
    rounds: int
    is_quick: bool
    vllm: Path
    its_hub: Path
    is_eager: bool
    block_size: int | None
    threads: int


def entrants(row: str) -> Sequence[str]:
    """Who takes part in a row. In `concurrent` it is Rung twice."""
    return {
        "concurrent": ("at once", "one by one"),
        "best-of-64": ("rung", *CONCURRENCY),
        "beam-64": ("rung", "its_hub"),
    }[row]


def task_of(row: str, entrant: str, round_: int, *, is_quick: bool) -> Task:
    """What an entrant does in a round: the same searches for all of a row, new in every round."""
    count = {"concurrent": 16}.get(row, 4)
    n, width = (16, 4) if row == "concurrent" else (64, 4)
    if is_quick:
        count, n = max(1, count // 4), n // 4
    # The test split: neither model was trained on any of them.
    drawn = problems(1000 * ROWS.index(row) + round_, count, "test")
    return Task(
        strategy="best_of_n" if row == "best-of-64" else "beam",
        n=n,
        width=width,
        problems=[problem.text for problem in drawn],
        seed=1000 * round_,
        is_at_once=entrant == "at once",
    )


def play(settings: Settings, log: IO[bytes], tell: Tell) -> Answers:
    """All rounds. Who goes first is drawn anew for every row of a round."""
    answers: Answers = {row: {name: [] for name in entrants(row)} for row in settings.rows}
    rng = random.Random(0)
    with ExitStack() as stack:
        vllm = stack.enter_context(
            running_vllm(
                free_port(),
                python=settings.vllm,
                is_eager=settings.is_eager,
                block_size=settings.block_size,
                log=log,
                threads=settings.threads,
            )
        )
        arena = _Arena(vllm, free_port(), settings, log)
        stack.callback(arena.close)
        for round_ in range(1, settings.rounds + 1):
            for row in settings.rows:
                for name in rng.sample(entrants(row), len(entrants(row))):
                    task = task_of(row, name, round_, is_quick=settings.is_quick)
                    answers[row][name].append(arena.turn(name, task))
                    seconds = answers[row][name][-1]["seconds"]
                    tell(f"round {round_}, {row}, {name}: {seconds:.2f} s")
    return answers


class _Arena:
    """The servers and the clients, of which one at a time has its turn."""

    def __init__(self, vllm: Server, port: int, settings: Settings, log: IO[bytes]) -> None:
        self._vllm = vllm
        self._port = port
        self._settings = settings
        self._log = log
        self._clients: dict[str, Contestant] = {}

    def turn(self, name: str, task: Task) -> dict[str, Any]:
        """One task with a Rung that knows nothing yet, after a search that counts for nobody."""
        client = self._client(name)
        with running_rung(
            self._port, vllm=self._vllm, log=self._log, threads=self._settings.threads
        ) as rung:
            warm_up = replace(task, problems=["Evaluate 1+2*3-4"], n=task.width * 2)
            client.take_turn(warm_up.to_json())
            before = self._read(rung)
            answer = client.take_turn(task.to_json())
            after = self._read(rung)
        spent = {key: after[key] - before[key] for key in after}
        return answer | spent | {"searches": len(task.problems)}

    def close(self) -> None:
        """End the clients."""
        for client in self._clients.values():
            client.close()

    def _client(self, name: str) -> Contestant:
        if name not in self._clients:
            self._clients[name] = Contestant(name, self._command(name), self._log)
        return self._clients[name]

    def _command(self, name: str) -> list[str]:
        rung = f"http://127.0.0.1:{self._port}"
        if name in CONCURRENCY:
            python, module = str(self._settings.its_hub), "benchmarks.search.theirs"
            return [python, "-m", module, self._vllm.url, rung, str(CONCURRENCY[name])]
        return [sys.executable, "-m", "benchmarks.search.ours", rung]

    def _read(self, rung: Server) -> Mapping[str, float]:
        """What the servers have done so far, by their own count, and the CPU time it took."""
        counted = _counted(self._vllm, _VLLM_COUNTERS) | _counted(rung, _RUNG_COUNTERS)
        return counted | {
            "vllm_cpu_s": cpu_seconds(self._vllm.process.pid),
            "rung_cpu_s": cpu_seconds(rung.process.pid),
        }


def _counted(server: Server, names: Mapping[str, str]) -> dict[str, float]:
    found = server.counters(*names.values())
    return {key: found[name] for key, name in names.items()}
