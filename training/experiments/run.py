"""Experiments: `python -m training.experiments.run NAME --out FOLDER [--quick]`.

FOLDER/NAME/units/ARM.SEED/result.json   what a unit found; a unit that has one is not run again
FOLDER/NAME/NAME.json                    all of them
FOLDER/NAME/NAME.md, NAME.svg            the report

A run that was stopped goes on where it was. `--quick` shows that everything works, in a folder and
in a process of its own, one unit after the other, with figures that mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from prm.errors import InvalidInput, RungError
from training.experiments.base import Experiment, Folders, Report, Result, Unit
from training.experiments.page import write_page
from training.experiments.table import experiment_named
from training.progress import stage

RESULT, LOG = "result.json", "log.txt"


def run_experiment(
    experiment: Experiment, base: Path, *, quick: bool, processes: int
) -> dict[Unit, Result]:
    """Every unit that has no result yet, then all results. Raises InvalidInput naming a failed one.

    When a unit fails, those of its round are let finish, so that nothing is done twice.
    """
    rounds = experiment.rounds(quick)
    folders = Folders(base)
    total = sum(len(units) for units in rounds)
    done = 0
    do = partial(_in_this_process, experiment) if quick else partial(_in_a_process, experiment.name)
    # Units of a quick run take a second, and a process takes several to begin.
    workers = 1 if quick else processes
    with stage(experiment.name, total) as advance, ThreadPoolExecutor(workers) as pool:
        for units in rounds:
            missing = [unit for unit in units if not (folders[unit] / RESULT).is_file()]
            done += len(units) - len(missing)
            advance(done, "")
            running = {pool.submit(do, unit, folders): unit for unit in missing}
            failed = []
            for future in as_completed(running):
                done += 1
                advance(done, str(running[future]))
                if future.result() != 0:
                    failed.append(running[future])
            if failed:
                raise InvalidInput(_why(failed, folders))
    return {unit: _read(folders, unit) for units in rounds for unit in units}


def _in_this_process(experiment: Experiment, unit: Unit, folders: Folders) -> int:
    """One unit of a quick run. What went wrong is in its log."""
    folders[unit].mkdir(parents=True, exist_ok=True)
    try:
        _run_unit(experiment, unit, folders, quick=True)
    except Exception:
        (folders[unit] / LOG).write_text(traceback.format_exc())
        return 1
    return 0


def _in_a_process(name: str, unit: Unit, folders: Folders) -> int:
    """One unit by itself: nothing of another's state, and memory that is given back."""
    folders[unit].mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "training.experiments.run", name, f"--out={folders.base}"]
    command += [f"--unit={unit}"]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    with (folders[unit] / LOG).open("w") as log:
        return subprocess.run(command, stdout=log, stderr=log, env=environment).returncode


def _why(failed: Sequence[Unit], folders: Folders) -> str:
    lines = [f"{len(failed)} runs failed; run the command again to go on"]
    for unit in sorted(failed):
        log = folders[unit] / LOG
        last = (log.read_text(errors="replace").strip().splitlines() or ["(no output)"])[-1]
        lines.append(f"{unit}: {last} ({log})")
    return "\n".join(lines)


def _run_unit(experiment: Experiment, unit: Unit, folders: Folders, *, quick: bool) -> None:
    import torch

    torch.set_num_threads(1)
    result = experiment.run(unit, folders, quick=quick)
    whole = folders[unit] / f"{RESULT}.part"
    whole.write_text(json.dumps(result))
    whole.rename(folders[unit] / RESULT)


def _read(folders: Folders, unit: Unit) -> Result:
    result: Result = json.loads((folders[unit] / RESULT).read_text())
    return result


def publish(
    experiment: Experiment,
    report: Report,
    results: Mapping[Unit, Result],
    folder: Path,
    *,
    quick: bool,
) -> Path:
    """The page, its picture, and the results that both were made from."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {str(unit): result for unit, result in results.items()}
    text = json.dumps(told, indent=1, sort_keys=True)
    (folder / f"{experiment.name}.json").write_text(f"{text}\n")
    facts = f"{len(results)} runs{'; --quick: the figures mean nothing' if quick else ''}."
    return write_page(experiment, report, folder, facts)


def main() -> None:
    """Read the command line; run an experiment, or one unit of it."""
    parser = argparse.ArgumentParser(
        prog="python -m training.experiments.run", description="A paper's claim, scaled down."
    )
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--docs", type=Path, help="publish page, picture and results here, too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        experiment = experiment_named(arguments.name)
        if arguments.unit:
            arm, _, seed = arguments.unit.rpartition(".")
            _run_unit(experiment, Unit(arm, int(seed)), Folders(arguments.out), quick=False)
            return
        base = arguments.out / (f"{experiment.name}-quick" if arguments.quick else experiment.name)
        results = run_experiment(
            experiment, base, quick=arguments.quick, processes=arguments.processes
        )
    except RungError as error:
        raise SystemExit(f"error: {error}") from error
    report = experiment.report(results, quick=arguments.quick)
    for folder in (base, arguments.docs):
        if folder is not None:
            page = publish(experiment, report, results, folder, quick=arguments.quick)
    if arguments.json:
        told = {"verdict": report.verdict, "sentence": report.sentence, "page": str(page)}
        print(json.dumps(told))
        return
    print(f"{report.verdict}: {report.sentence}\n{page}")


if __name__ == "__main__":
    main()
