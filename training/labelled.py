"""`python -m training.labelled`: a policy's own solutions with exact labels, for `rung eval`.

Each line is one sampled solution: problem, steps, first_error (0-based or null), correct. With
--flip a solution is called right where it is wrong and the other way round, and nothing is said of
its steps: what a PRM must not learn. With --feedback the file is the body of one `POST
/v1/feedback`.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.progress import stage
from training.tasks import arithmetic
from training.tasks.base import Split

POLICY = Path("models/rung-arith-policy/1")
Line = dict[str, Any]


def labelled_solutions(
    policy: Path,
    *,
    split: Split,
    problems: int,
    samples: int,
    seed: int,
    threads: int = 1,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[Line]:
    """`samples` solutions to each of so many problems, at temperature 1; see the module.

    `on_done` hears how many there are.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    import torch

    from prm.chat import ChatTokenizer
    from prm.engine.model import CausalLM
    from training.rollouts import sample_rollouts

    torch.set_num_threads(threads)
    asked = arithmetic.problems(seed, problems, split)
    model = CausalLM.load(policy, device="cpu", dtype=torch.float32)
    with model.fused_for_now():
        groups = sample_rollouts(
            model,
            ChatTokenizer(policy),
            asked,
            per_problem=samples,
            seed=seed,
            on_done=on_done,
        )
    return [
        {
            "problem": rollout.problem.text,
            "steps": list(rollout.steps),
            "first_error": rollout.first_error,
            "correct": rollout.is_correct,
        }
        for group in groups
        for rollout in group
        if rollout.steps  # a text of nothing but line ends has nothing to score
    ]


def flipped(lines: Sequence[Line]) -> list[Line]:
    """The same solutions with the opposite outcomes."""
    return [
        {"problem": line["problem"], "steps": line["steps"], "correct": not line["correct"]}
        for line in lines
    ]


def as_feedback(lines: Sequence[Line]) -> list[Line]:
    """Items of `POST /v1/feedback`: texts given whole, and their outcomes."""
    return [
        {
            "problem": line["problem"],
            "response": arithmetic.SEPARATOR.join(line["steps"]),
            "correct": line["correct"],
        }
        for line in lines
    ]


def write_lines(path: Path, lines: Sequence[Line]) -> Path:
    """One line of JSON each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(prog="python -m training.labelled", description=__doc__)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--split", choices=["train", "validation", "test"], default="validation")
    parser.add_argument("--problems", type=int, default=600)
    parser.add_argument("--samples", type=int, default=8, help="per problem, at temperature 1")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flip", action="store_true", help="every outcome the wrong way round")
    parser.add_argument("--feedback", action="store_true", help="a request, not lines")
    arguments = parser.parse_args()
    with stage("solutions", arguments.problems * arguments.samples) as advance:
        lines = labelled_solutions(
            arguments.policy,
            split=arguments.split,
            problems=arguments.problems,
            samples=arguments.samples,
            seed=arguments.seed,
            threads=arguments.threads,
            on_done=lambda count: advance(count, ""),
        )
    lines = flipped(lines) if arguments.flip else lines
    write_lines(arguments.out, [{"items": as_feedback(lines)}] if arguments.feedback else lines)


if __name__ == "__main__":
    main()
