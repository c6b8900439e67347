"""Training with Rung's loop, beside `trl`'s GRPOTrainer.

    python -m benchmarks.training --json out.json --markdown

Both train the same model on the same prompts, and take turns: see `benchmarks/contestant.py`. Every
figure is a median over rounds, every ratio the median of the rounds' ratios. `--quick` only shows
that it works.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.contestant import ROOT
from benchmarks.scoring.report import markdown, table
from benchmarks.training.play import MODELS, ROWS, Settings, play
from benchmarks.training.report import CHECKS, FIGURES, check_lines, figure_lines, to_json

CORES = os.cpu_count() or 1


def main() -> None:
    """Play what was asked for and tell the result."""
    arguments = _parse_arguments()
    trl = arguments.trl if arguments.trl.exists() else None
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rung-bench-") as folder:
        settings = Settings(
            rows=arguments.rows,
            models=["tiny"] if arguments.quick else arguments.models,
            rounds=1 if arguments.quick else arguments.rounds,
            threads=arguments.threads,
            trl=trl,
            root=Path(folder),
            micro_rollouts=arguments.micro_rollouts,
        )
        with open(arguments.log, "wb") as log:
            answers = play(settings, log, lambda what: print(what, file=sys.stderr, flush=True))
    left_out = [] if trl else [f"trl: not at {arguments.trl}; `make bench-train` installs it"]
    if arguments.json:
        result = _machine(trl, load) | {"left_out": left_out, "rows": to_json(answers)}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for header, lines in ((FIGURES, figure_lines(answers)), (CHECKS, check_lines(answers))):
        if arguments.markdown:
            print(markdown(header, lines), end="\n\n")
        else:
            console.print(table(header, lines))
    for what in left_out:
        print(f"left out: {what}")


def _machine(trl: Path | None, load: float) -> dict[str, Any]:
    """What one needs to know to judge the figures, or to get them again."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    if trl:
        code = "from importlib.metadata import version as v; print(*map(v, {names}))"
        names = ("trl", "torch", "transformers", "accelerate")
        found = subprocess.check_output([str(trl), "-c", code.format(names=names)], text=True)
        versions |= {f"{n} (trl's)": v for n, v in zip(names, found.split(), strict=True)}
    return {
        "command": " ".join(["python", "-m", "benchmarks.training", *sys.argv[1:]]),
        "cores": CORES,
        "processor": platform.processor() or platform.machine(),
        "load_before": load,
        "versions": versions,
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=CORES, help="everyone's")
    parser.add_argument("--trl", type=Path, default=ROOT / ".venv-trl/bin/python")
    parser.add_argument("--micro-rollouts", type=int, help="of one forward of TRL's")
    parser.add_argument("--quick", action="store_true", help="small; only to see that it works")
    parser.add_argument("--markdown", action="store_true", help="tables for the documentation")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--log",
        type=Path,
        default=Path(tempfile.gettempdir()) / "rung-bench-train.log",
        help="what the contestants say",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
