"""`python -m training.labelled`: a policy's own solutions with exact labels, for `rung eval`.

Each line is one sampled solution: problem, steps, first_error (0-based or null), correct.
"""

import argparse
import json
import os
from pathlib import Path


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(prog="python -m training.labelled", description=__doc__)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--policy", type=Path, default=Path("models/rung-arith-policy/1"))
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--problems", type=int, default=600)
    parser.add_argument("--samples", type=int, default=8, help="per problem, at temperature 1")
    parser.add_argument("--seed", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    import torch

    from prm.chat import ChatTokenizer
    from prm.engine.model import CausalLM
    from training.progress import stage
    from training.rollouts import sample_rollouts
    from training.tasks import arithmetic

    problems = arithmetic.problems(arguments.seed, arguments.problems, arguments.split)
    with stage("solutions", arguments.problems * arguments.samples) as advance:
        groups = sample_rollouts(
            CausalLM.load(arguments.policy, device="cpu", dtype=torch.float32),
            ChatTokenizer(arguments.policy),
            problems,
            per_problem=arguments.samples,
            seed=arguments.seed,
            on_done=lambda count: advance(count, ""),
        )
    lines = [
        {
            "problem": rollout.problem.text,
            "steps": rollout.steps,
            "first_error": rollout.first_error,
            "correct": rollout.is_correct,
        }
        for group in groups
        for rollout in group
        if rollout.steps  # a text of nothing but line ends has nothing to score
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
