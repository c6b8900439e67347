"""Scoring beside transformers' padded forward, beside vLLM, and over HTTP.

    python -m benchmarks.scoring --json out.json --markdown

Contestants take turns: see `benchmarks/contestant.py`. Every figure is a median over rounds, every
ratio the median of the rounds' ratios. `--quick` runs all of it on next to nothing, to see that it
works; nothing is to be learnt from its numbers.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.contestant import ROOT
from benchmarks.scoring.matches import ROWS, Match, Settings, matches, num_turns, play
from benchmarks.scoring.report import (
    CHECKS,
    FIGURES,
    Row,
    check_lines,
    figure_lines,
    markdown,
    table,
)

DTYPES = ("float32", "bfloat16")
CORES = os.cpu_count() or 1


def main() -> None:
    """Run the matches that were asked for and tell the result."""
    arguments = _parse_arguments()
    chosen, left_out = _choose(arguments)
    load = os.getloadavg()[0]
    rows = _play_all(chosen, arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for header, lines in ((FIGURES, figure_lines(rows)), (CHECKS, check_lines(rows))):
        if arguments.markdown:
            print(markdown(header, lines), end="\n\n")
        else:
            console.print(table(header, lines))
    for what in left_out:
        console.print(f"left out: {what}", markup=False)
    if arguments.json:
        result = _machine(arguments, load) | {
            "left_out": left_out,
            "rows": [row.to_json() for row in rows],
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _choose(arguments: argparse.Namespace) -> tuple[list[Match], list[str]]:
    """The matches to play, and in words those that cannot be."""
    quick = arguments.quick
    found = matches(
        large="tiny" if quick else "120m",
        large_dtypes=arguments.large_dtypes[: 1 if quick else None],
        large_threads=arguments.large_threads,
        models=["bundled"] if quick else arguments.models,
        dtypes=arguments.dtypes,
        threads=arguments.threads,
    )
    wanted = [match.only(arguments.rows) for match in found]
    playable, left_out = [], []
    for match in wanted:
        if not match.turns:
            continue
        if "vllm" in match.contestants and not arguments.vllm.exists():
            left_out.append(f"{', '.join(match.turns)} on {match}: no vLLM at {arguments.vllm}")
        else:
            playable.append(match)
    return playable, left_out


def _play_all(chosen: list[Match], arguments: argparse.Namespace) -> list[Row]:
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rung-bench-")))
        log = stack.enter_context(open(arguments.log, "wb"))
        settings = Settings(
            rounds=arguments.rounds,
            is_quick=arguments.quick,
            vllm=arguments.vllm,
            models_root=folder,
        )
        columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        total = sum(num_turns(match, arguments.rounds) for match in chosen)
        bar = progress.add_task("loading", total=total)

        def tell(what: str) -> None:
            progress.update(bar, description=what, advance=1)

        for match in chosen:
            answers = play(match, settings, log, tell)
            rows += [Row(workload=w, match=match, answers=answers[w]) for w in match.turns]
    return sorted(rows, key=lambda row: ROWS.index(row.workload))


def _machine(arguments: argparse.Namespace, load: float) -> dict[str, Any]:
    """What one needs to know to judge the figures, or to get them again."""
    return {
        "command": " ".join(["python", "-m", "benchmarks.scoring", *sys.argv[1:]]),
        "cores": CORES,
        "processor": platform.processor() or platform.machine(),
        "load_before": load,
        "rounds": arguments.rounds,
        "is_quick": arguments.quick,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    names = f"of {', '.join(ROWS)}; separated by commas"
    parser.add_argument("--rows", type=_names(ROWS), default=ROWS, help=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=_names(("bundled", "30m", "120m")), help="beside vLLM")
    parser.add_argument("--dtypes", type=_names(DTYPES), default=("float32",), help="beside vLLM")
    parser.add_argument("--threads", type=int, default=max(1, CORES - 1), help="everyone's")
    parser.add_argument(
        "--large-dtypes", type=_names(DTYPES), default=DTYPES, help="beside transformers"
    )
    parser.add_argument(
        "--large-threads", type=int, default=CORES, help="everyone's beside transformers"
    )
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--quick", action="store_true", help="small; only to see that it works")
    parser.add_argument("--markdown", action="store_true", help="tables for the documentation")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--log",
        type=Path,
        default=Path(tempfile.gettempdir()) / "rung-bench-score.log",
        help="what the contestants say",
    )
    parser.set_defaults(models=("bundled", "30m"))
    return parser.parse_args()


def _names(known: tuple[str, ...]) -> Any:
    """A parser of names separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, text.split(",")))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main()
