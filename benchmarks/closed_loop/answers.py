"""What the story needs of the bundled policy: graded answers, written before anything is measured.

feedback    answers to training problems: what users call right or wrong
judged      to validation problems, with first errors: what the gate of the damage looks at
test        to test problems, many to each: what is reported, and nothing is chosen by
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from training.labelled import Line, labelled_solutions
from training.tasks.base import Split

# Tasks are cut so that two processes have about the same to do.
_PART = 500


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many answers of each kind; the seeds are drawn from `seed`."""

    feedback: int = 2000
    judged_problems: int = 60
    test_problems: int = 100
    samples: int = 16
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Lines as `training.labelled` writes them."""

    feedback: list[Line]
    judged: list[Line]
    test: list[Line]


def write_answers(policy: Path, sizes: Sizes, processes: int = 2) -> Answers:
    """Sample and grade; the same for the same sizes."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:

        def ask(split: Split, problems: int, samples: int, seed: int) -> Future[list[Line]]:
            return pool.submit(
                labelled_solutions,
                policy, split=split, problems=problems, samples=samples, seed=seed,
            )  # fmt: skip

        first = 1_000 * (sizes.seed + 1)
        parts = range(0, sizes.feedback, _PART)
        feedback = [
            ask("train", min(_PART, sizes.feedback - start), 1, first + number)
            for number, start in enumerate(parts)
        ]
        judged = ask("validation", sizes.judged_problems, sizes.samples, first + 900)
        test = ask("test", sizes.test_problems, sizes.samples, first + 901)
        return Answers(
            feedback=[line for part in feedback for line in part.result()],
            judged=judged.result(),
            test=test.result(),
        )


def as_items(lines: Sequence[Line]) -> list[dict[str, object]]:
    """Items of `POST /v1/prm/score`."""
    return [{"problem": line["problem"], "steps": line["steps"]} for line in lines]
