"""Who trains what in a round, and the rounds of it."""

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.contestant import ROOT, Contestant
from benchmarks.training.models import model_folder
from benchmarks.training.tasks import Setup
from training.environment import TRAINING_ENVIRONMENT
from training.tasks.arithmetic import problems

ROWS = ("grpo", "lambda_grpo", "prime")
MODELS = ("bundled", "30m")
# What each contestant told of each of its turns, by row, model and contestant.
Answers = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]
Tell = Callable[[str], None]

# By model: problems of a step, most tokens of a response, rollouts and tokens of a micro-batch, and
# steps of a turn.
_SIZES: Mapping[str, tuple[int, int, int, int, int]] = {
    "bundled": (32, 96, 256, 32_768, 2),
    "30m": (8, 64, 32, 4096, 1),
    "tiny": (2, 16, 8, 4096, 1),
}
PER_PROBLEM = 8
# Ours as `rung train` starts it; TRL's threads spin while they wait, as torch's do by default.
_ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    "rung": TRAINING_ENVIRONMENT,
    "trl": {"OMP_WAIT_POLICY": "active"},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is played. `trl` is the Python of TRL's environment, or None."""

    rows: Sequence[str]
    models: Sequence[str]
    rounds: int
    threads: int
    trl: Path | None
    root: Path
    micro_rollouts: int | None = None

    def entrants(self, row: str) -> list[str]:
        """Who takes part in a row."""
        return ["rung", "trl"] if row == "grpo" and self.trl else ["rung"]


def setup_of(settings: Settings, row: str, model: str) -> Setup:
    """The run of a row on a model; its prompts are written beside the model.

    Problems are of the test split: the bundled policy was trained on none of them.
    """
    count, max_tokens, micro_rollouts, micro_tokens, steps = _SIZES[model]
    wanted = count * (1 + settings.rounds * steps)
    prompts = settings.root / f"prompts-{row}-{model}.json"
    drawn = problems(ROWS.index(row), wanted, "test")
    prompts.write_text(json.dumps([problem.text for problem in drawn]))
    return Setup(
        algorithm=row,
        folder=str(model_folder(model, settings.root)),
        prompts=str(prompts),
        problems=count,
        per_problem=PER_PROBLEM,
        max_tokens=max_tokens,
        threads=settings.threads,
        micro_rollouts=settings.micro_rollouts or micro_rollouts,
        micro_tokens=micro_tokens,
    )


def play(settings: Settings, log: IO[bytes], tell: Tell) -> Answers:
    """All rounds, a row after the other. Who goes first is drawn anew for every round."""
    return {
        (row, model): _play_row(settings, row, model, log, tell)
        for row in settings.rows
        for model in settings.models
    }


def _play_row(
    settings: Settings, row: str, model: str, log: IO[bytes], tell: Tell
) -> dict[str, list[dict[str, Any]]]:
    setup, steps = setup_of(settings, row, model), _SIZES[model][-1]
    rng = random.Random(f"{row} {model}")
    names = settings.entrants(row)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    contestants: dict[str, Contestant] = {}
    try:
        for name in names:
            command, environment = _command(settings, name, setup), _ENVIRONMENTS[name]
            contestants[name] = Contestant(name, command, log, environment=environment)
            # Its first step: what is compiled, allocated or looked up once.
            contestants[name].take_turn({"steps": 1})
            tell(f"{row}, {model}, {name}: loaded")
        for round_ in range(1, settings.rounds + 1):
            for name in rng.sample(names, len(names)):
                answers[name].append(contestants[name].take_turn({"steps": steps}))
                seconds = answers[name][-1]["seconds"] / steps
                tell(f"round {round_}, {row}, {model}, {name}: {seconds:.2f} s a step")
    finally:
        for contestant in contestants.values():
            contestant.close()
    return answers


def _command(settings: Settings, name: str, setup: Setup) -> list[str]:
    if name == "trl":
        script = ROOT / "benchmarks" / "training" / "theirs.py"
        return [str(settings.trl), str(script), setup.to_json()]
    return [sys.executable, "-m", "benchmarks.training.ours", setup.to_json()]
