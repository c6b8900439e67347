"""Tokens per second of a training step's rollouts: in process, and from a running vLLM.

    VLLM_SERVER_DEV_MODE=1 vllm serve POLICY … &
    python -m benchmarks.rollouts POLICY --server http://127.0.0.1:8000

The same problems and limits, `--rounds` rounds of both in turn, the weights sent anew in
every round as after an optimizer step. Tokens are those that are trained on, ends included.
"""

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main() -> None:
    """Measure, and print medians with their ranges."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollouts", description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--server", required=True)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--per-problem", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        found = measure(arguments, Path(folder), stack)
    for name, values in found.items():
        low, high = min(values), max(values)
        print(f"{name}: {statistics.median(values):.4g} ({low:.4g} to {high:.4g})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n")


def measure(arguments: argparse.Namespace, out: Path, stack: ExitStack) -> dict[str, list[float]]:
    """Each figure, a number per round; the first round warms up and is left out."""
    import torch

    from training.assembly import assemble
    from training.events import Events
    from training.loop import OnlineTraining
    from training.spec import TrainingJob

    torch.set_num_threads(arguments.threads)
    events = Events([])
    writers = {}
    for name, server in (("in process", None), ("vLLM", {"url": arguments.server})):
        fields: dict[str, Any] = {
            "name": "rollouts",
            "policy": arguments.policy,
            "threads": arguments.threads,
            "data": {"type": "task", "task": {"type": "arithmetic"}},
            "algorithm": {"type": "grpo"},
            "rollouts": {
                "problems": arguments.problems,
                "per_problem": arguments.per_problem,
                "server": server,
            },
            "optimizer": {"lr": 1e-4},
            "steps": 1,
        }
        job = TrainingJob.model_validate(fields)
        training = assemble(job, events, out / name.replace(" ", "-"), stack).training
        assert isinstance(training, OnlineTraining)
        writers[name] = training
    found: dict[str, list[float]] = {}
    for round_number in range(arguments.rounds + 1):
        problems = writers["vLLM"].problems.draw(round_number + 1, 0)
        for name, training in writers.items():
            started = time.perf_counter()
            groups = training.writer.write(
                problems,
                seed=str(round_number),
                policy_step=round_number,
                per_problem=arguments.per_problem,
            )
            spent = time.perf_counter() - started
            tokens = sum(len(rollout.logprobs) for group in groups for rollout in group)
            if round_number:
                found.setdefault(f"{name}, tokens/s", []).append(tokens / spent)
                found.setdefault(f"{name}, s", []).append(spent)
    return found


if __name__ == "__main__":
    main()
