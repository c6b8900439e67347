"""Who competes with whom at what, and the rounds of it."""

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.contestant import Contestant, vllm_environment
from benchmarks.scoring.child import Spec, Task
from benchmarks.scoring.shapes import BUNDLED_ROOT, model_folder

ROWS = ("flat", "flat-implicit", "best-of-64", "beam", "single", "clients")
VLLM_ROWS = ("flat-implicit", "best-of-64", "beam")
PEERS = ("rung", "transformers", "transformers-sorted", "matmul")
# What each contestant said of each of its turns, by contestant.
Answers = dict[str, list[dict[str, Any]]]
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Match:
    """Contestants with one model loaded, and who takes part in which workload."""

    model: str
    dtype: str
    threads: int
    turns: Mapping[str, Sequence[str]]

    @property
    def contestants(self) -> list[str]:
        """All of them, once each."""
        return list(dict.fromkeys(name for names in self.turns.values() for name in names))

    def only(self, rows: Iterable[str]) -> "Match":
        """The same with fewer workloads."""
        turns = {name: self.turns[name] for name in self.turns if name in rows}
        return Match(model=self.model, dtype=self.dtype, threads=self.threads, turns=turns)

    def __str__(self) -> str:
        return f"{self.model} in {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How matches are run."""

    rounds: int
    is_quick: bool
    vllm: Path
    models_root: Path


def matches(
    *,
    large: str,
    large_dtypes: Sequence[str],
    large_threads: int,
    models: Sequence[str],
    dtypes: Sequence[str],
    threads: int,
) -> list[Match]:
    """All of them: beside transformers, beside vLLM, over HTTP."""
    beside_transformers = [
        Match(model=large, dtype=dtype, threads=large_threads, turns={"flat": PEERS})
        for dtype in large_dtypes
    ]
    beside_vllm = [
        Match(
            model=model,
            dtype=dtype,
            threads=threads,
            turns=dict.fromkeys(VLLM_ROWS, ("rung", "vllm")),
        )
        for model in models
        for dtype in dtypes
    ]
    over_http = Match(
        model="bundled",
        dtype="float32",
        threads=threads,
        turns={"single": ("engine-call", "server"), "clients": ("engine-flat", "server")},
    )
    return [*beside_transformers, *beside_vllm, over_http]


def num_turns(match: Match, rounds: int) -> int:
    """Turns of a match, the warm-up among them."""
    return (rounds + 1) * sum(map(len, match.turns.values()))


def play(match: Match, settings: Settings, log: IO[bytes], tell: Tell) -> dict[str, Answers]:
    """Load all, warm them up, then the rounds; answers by workload. Raises ContestantEnded."""
    answers: dict[str, Answers] = {
        workload: {name: [] for name in names} for workload, names in match.turns.items()
    }
    with ExitStack() as stack:
        contestants = {}
        for name in match.contestants:
            contestants[name] = _start(name, match, settings, log)
            stack.callback(contestants[name].close)
        for round_, workload, name in _order(match, settings.rounds):
            # Round 0 warms up, and is small.
            task = Task(workload=workload, round=round_, is_quick=settings.is_quick or round_ == 0)
            tell(f"{match}: {workload}, {'warm-up' if not round_ else f'round {round_}'}, {name}")
            answer = contestants[name].take_turn(asdict(task))
            if round_ > 0:
                answers[workload][name].append(answer)
    return answers


def _order(match: Match, rounds: int) -> Iterator[tuple[int, str, str]]:
    """Every turn. Who goes first is drawn anew in each round: nobody profits from his place."""
    draw = random.Random(0)
    for round_ in range(rounds + 1):
        for workload, names in match.turns.items():
            for name in draw.sample(list(names), len(names)):
                yield round_, workload, name


def _start(name: str, match: Match, settings: Settings, log: IO[bytes]) -> Contestant:
    is_http = name in ("engine-call", "engine-flat", "server")
    folder = BUNDLED_ROOT if is_http else model_folder(match.model, settings.models_root)
    spec = Spec(
        kind=name,
        folder=str(folder),
        dtype=match.dtype,
        threads=match.threads,
        is_eager=settings.is_quick,
    )
    python = str(settings.vllm) if name == "vllm" else sys.executable
    command = [python, "-m", "benchmarks.scoring.child", spec.to_json()]
    environment = vllm_environment(match.threads) if name == "vllm" else None
    return Contestant(name, command, log, environment=environment)
