"""Rung's own loop, taking turns: `python -m benchmarks.training.ours SETUP`."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestant import serve_turns
from benchmarks.memory import resident_bytes, watch_peak
from benchmarks.training.tasks import Setup, reward_of, summed
from training.assembly import assemble
from training.events import Events, Numbers
from training.grades import Graded
from training.loop import OnlineTraining
from training.rollout_batch import Group
from training.spec import TrainingJob
from training.types import Problem


class Prompts:
    """The given problems, each once; see `training.problems.ProblemSource`."""

    def __init__(self, texts: Sequence[str], count: int) -> None:
        self._problems = [Problem(text=text, answer="0") for text in texts]
        self._count = count

    def draw(self, step: int, draw: int) -> Sequence[Problem]:
        """Those of this step."""
        assert draw == 0
        return self._problems[(step - 1) * self._count : step * self._count]


class ChecksumGrader:
    """See `training.grades.Grader`, and `reward_of`."""

    def __init__(self, levels: int) -> None:
        self._levels = levels

    def grade(self, groups: Sequence[Group]) -> Graded:
        """Every rollout with its reward."""
        rewarded = tuple(
            [
                replace(one, reward=reward_of(one.text, sample, self._levels))
                for sample, one in enumerate(group)
            ]
            for group in groups
        )
        return Graded(groups=rewarded, errors=0)


class LastEvent:
    """Keeps what a step told."""

    numbers: Numbers

    def write(self, kind: str, step: int, numbers: Numbers) -> None:
        """See `training.events.Sink`."""
        self.numbers = numbers


def job_of(setup: Setup) -> TrainingJob:
    """The job of a setup, as its file would say it."""
    trains_prm = {"prm_optimizer": {"lr": setup.lr}} if setup.algorithm == "prime" else {}
    return TrainingJob.model_validate(
        {
            "name": "benchmark",
            "threads": setup.threads,
            "policy": setup.folder,
            "data": {"type": "task", "task": {"type": "arithmetic"}},
            "algorithm": {"type": setup.algorithm},
            "rollouts": {
                "problems": setup.problems,
                "per_problem": setup.per_problem,
                "max_tokens": setup.max_tokens,
                "max_batch": setup.rollouts,
            },
            "optimizer": {"lr": setup.lr, "micro_tokens": setup.micro_tokens},
            "steps": 1000,
            "evaluation": False,
            **trains_prm,
        }
    )


def main() -> None:
    """Load what the argument says, then take turns of so many steps."""
    setup = Setup(**json.loads(sys.argv[1]))
    torch.set_num_threads(setup.threads)
    base_bytes = resident_bytes()
    last = LastEvent()
    events = Events([last])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rung-bench-")))
        run = assemble(job_of(setup), events, folder, stack)
        assert isinstance(run.training, OnlineTraining)
        training = replace(
            run.training,
            problems=Prompts(setup.read_prompts(), setup.problems),
            grader=ChecksumGrader(1000 if setup.algorithm == "grpo" else 2),
        )
        done = 0

        def step() -> dict[str, float]:
            nonlocal done
            done += 1
            started = time.perf_counter()
            told = training.step(done)
            seconds = time.perf_counter() - started
            events.write("step", done, told)
            found = last.numbers
            return {
                "seconds": seconds,
                "seconds_rollouts": found["seconds_rollouts"],
                "seconds_credit": found["seconds_credit"],
                "tokens": found["tokens"],
                "written": found["rollouts"] * found["length"],
                "rollouts": found["rollouts"],
                "entropy": found["entropy"],
                "grad_norm": found["grad_norm"],
            }

        def take_turn(task: Any) -> dict[str, Any]:
            with watch_peak() as peak:
                steps = [step() for _ in range(task["steps"])]
                return summed(steps, peak_bytes=peak() - base_bytes)

        serve_turns(take_turn)


if __name__ == "__main__":
    main()
