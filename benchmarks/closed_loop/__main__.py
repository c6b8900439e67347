"""The closed loop, played through: damage refused, feedback learnt, swapped in under load.

    python -m benchmarks.closed_loop [--json out.json]

On a copy of the bundled models, by a server of its own. What is reported is of test problems that
nothing was trained on or chosen by.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.closed_loop.answers import Sizes, write_answers
from benchmarks.closed_loop.story import Told, tell
from prm.evaluation.reliability import Interval
from server.settings import BUNDLED_MODELS
from training.progress import say


def main() -> None:
    """Read the command line, play, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.closed_loop", description=__doc__)
    parser.add_argument("--answers", type=int, default=2000, help="graded answers of feedback")
    parser.add_argument("--test-problems", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}
    started = time.monotonic()
    sizes = Sizes(
        feedback=arguments.answers, test_problems=arguments.test_problems, seed=arguments.seed
    )
    with tempfile.TemporaryDirectory(prefix="rung-story-") as folder:
        root = Path(shutil.copytree(BUNDLED_MODELS, Path(folder) / "models"))
        say("the policy writes, and its answers are graded")
        answers = write_answers(root / "rung-arith-policy" / "1", sizes)
        told = tell(root, Path(folder) / "runs", answers, num_clients=arguments.clients)
    _print(told)
    say(f"all of it: {time.monotonic() - started:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(told), indent=1) + "\n")


def as_json(told: Told) -> dict[str, object]:
    """What is told, but for the clients' answers."""
    return {
        "refused": told.refused,
        "refusal": told.refusal,
        "live": told.live,
        "retrain_s": told.retrain_s,
        "answers": told.load.versions,
        "failures": len(told.load.failures),
        "greatest_gap": told.gap,
        "figures": {name: report.model_dump(mode="json") for name, report in told.figures.items()},
    }


def _print(told: Told) -> None:
    say("")
    for name, report in told.figures.items():
        assert report.live is not None
        assert report.new is not None
        assert report.difference is not None
        before, after = _share(report.live.figure), _share(report.new.figure)
        say(f"{name}: before {before}, after {after}, difference {_share(report.difference)}")
    by_version = ", ".join(f"{count} by version {v}" for v, count in told.load.versions.items())
    say(f"answers under load: {by_version}; failed: {len(told.load.failures)}")
    say(f"greatest difference of a score from its version's, read alone: {told.gap:.1e}")


def _share(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


if __name__ == "__main__":
    main()
