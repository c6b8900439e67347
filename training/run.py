"""A run from its job to its models: the loop, and everything around it that is not the method.

python -m training.run job.toml --out runs/mine [--resume]
torchrun … -m training.run job.toml --out runs/mine        the same by several processes

SIGTERM ends a run of one process behind the step that it is in, with a checkpoint and exit code 75;
--resume goes on from there, as after a full disk (74) and a server that was away (69).

runs/mine/job.json            the job as it was read
runs/mine/events.jsonl        a line per step and evaluation
runs/mine/heartbeat           touched whenever something was done
runs/mine/checkpoints/        to resume from
runs/mine/policy/, prm/       the models, when the run is done
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from prm.errors import InvalidInput, RungError, Unavailable
from prm.files import is_out_of_space, replace_durably
from training.exits import AWAY, FULL, STOPPED
from training.heartbeat import Heartbeat
from training.launch import Place, fail, has_lost_another
from training.ranks import ALONE, Ranks
from training.spec import TrainingJob, read_job
from training.trackers import Trackers

# Told after every step: how many are done, and the step's numbers.
Watch = Callable[[int, dict[str, float]], None]
JOB, EVENTS, CHECKPOINTS, HEARTBEAT = "job.json", "events.jsonl", "checkpoints", "heartbeat"


class Stopped(Exception):
    """The run was asked to stop, and did: its last step lies in a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where a finished run's models are, and its last evaluation."""

    models: dict[str, Path]
    evaluation: dict[str, float]


def run_job(
    job: TrainingJob,
    out: Path,
    *,
    resume: bool = False,
    watch: Watch = lambda step, told: None,
    trackers: Trackers | None = None,
    ranks: Ranks = ALONE,
    is_to_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train as the job says, from the start or from the last checkpoint.

    `ranks` train together; the first of them writes, and `out` is a folder that all of them see.
    `is_to_stop` is asked after every step. Raises InvalidInput for a folder that holds another run,
    Diverged, with the last checkpoint left as it is, and Stopped.
    """
    if ranks.index == 0:
        _claim(job, out, resume)
    ranks.wait()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from training.assembly import assemble
    from training.events import Events, JsonLines
    from training.state import last_checkpoint, load_checkpoint, save_checkpoint

    torch.set_num_threads(job.threads)
    checkpoint = last_checkpoint(out / CHECKPOINTS) if resume else None
    events = Events([], beat=Heartbeat(out / HEARTBEAT).beat)
    with ExitStack() as stack:
        run = assemble(job, events, out, stack, ranks)
        learners = run.training.learners
        done = load_checkpoint(checkpoint, learners, ranks) if checkpoint else 0
        after_step = done if resume else None
        if ranks.index == 0:
            events.sinks.append(JsonLines(out / EVENTS, after_step=after_step))
        if trackers is not None and ranks.index == 0:
            from training.tracking import start_trackers

            events.sinks += start_trackers(trackers, job, stack, _warn, after_step=after_step)
        measured: dict[str, float] = {}
        for step in range(done + 1, job.steps + 1):
            started = time.perf_counter()
            try:
                told = run.training.step(step)
            except torch.OutOfMemoryError as error:
                raise InvalidInput(
                    f"step {step}: {job.device} has no memory left; lower optimizer.micro_tokens "
                    f"({job.optimizer.micro_tokens}) or rollouts.max_batch "
                    f"({job.rollouts.max_batch}), or set activation_checkpointing to true, which "
                    "change nothing else, and resume",
                    param="optimizer.micro_tokens",
                ) from error
            told |= _pace(told, time.perf_counter() - started)
            events.write("step", step, told)
            watch(step, told)
            last = step == job.steps
            if job.evaluation and (step % job.evaluation.every == 0 or last):
                measured = run.evaluate(job.evaluation)
                events.write("evaluation", step, measured)
            stops = not last and is_to_stop()
            if step % job.checkpoint_every == 0 or last or stops:
                save_checkpoint(out / CHECKPOINTS, step, learners, ranks=ranks)
            if stops:
                raise Stopped(f"stopped after step {step} of {job.steps}, with a checkpoint")
        return Outcome(models=run.save_models(), evaluation=measured)


def _pace(told: dict[str, float], seconds: float) -> dict[str, float]:
    """The seconds of a whole step, and the response tokens that it trained on in each of them."""
    return {"seconds": seconds, "tokens_per_s": told.get("tokens", 0.0) / seconds}


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr, flush=True)


def _claim(job: TrainingJob, out: Path, resume: bool) -> None:
    """The folder is this job's and nobody else's."""
    path = out / JOB
    wanted = job.model_dump_json(indent=1) + "\n"
    if path.exists() and not resume:
        raise InvalidInput(
            f"{out} holds a run already; give another folder, or --resume to go on with it",
            param="out",
        )
    if resume and not (path.exists() and _same(job, path)):
        what = "holds no run" if not path.exists() else "holds the run of another job"
        raise InvalidInput(f"--resume: {out} {what}", param="out")
    out.mkdir(parents=True, exist_ok=True)
    replace_durably(path, wanted)


def _same(job: TrainingJob, path: Path) -> bool:
    """Whether the job there becomes the same, up to rounding: memory and speed may differ."""
    try:
        other = TrainingJob.model_validate_json(path.read_text())
    except ValueError:
        return False
    return _without_costs(job) == _without_costs(other)


def _without_costs(job: TrainingJob) -> dict[str, Any]:
    costs = {"micro_tokens"}
    return job.model_dump(
        mode="json",
        exclude={
            "threads": True,
            "activation_checkpointing": True,
            "rollouts": {"max_batch"},
            "optimizer": costs,
            "prm_optimizer": costs,
        },
    )


def main() -> None:
    """Read the command line and run the job."""
    parser = argparse.ArgumentParser(prog="python -m training.run", description="Train a model.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tensorboard", type=Path)
    parser.add_argument("--trackio")
    arguments = parser.parse_args()
    place = Place.here()
    try:
        job = read_job(arguments.job)
        with _ranks(place, job.device) as ranks:
            done = _run_with_a_bar(job, arguments, ranks)
    except Stopped as stopped:
        print(f"{stopped}; go on with --resume", file=sys.stderr)
        raise SystemExit(STOPPED) from stopped
    except RungError as error:
        if place.count > 1:
            fail(error, place)
        if is_out_of_space(error):
            _end(str(error), FULL)
        if isinstance(error, Unavailable):
            _end(str(error), AWAY)
        raise SystemExit(f"error: {error}") from error
    except Exception as error:
        if is_out_of_space(error):
            _end(f"{arguments.out}: no room left; make some and resume from the checkpoint", FULL)
        if has_lost_another(error, place):
            fail(error, place)
        raise
    if place.index > 0:
        return
    if arguments.plot:
        from training.plotting import draw_run

        draw_run(arguments.out / EVENTS, arguments.plot)
    models = {name: str(folder) for name, folder in done.models.items()}
    if arguments.json:
        print(json.dumps({"models": models, "evaluation": done.evaluation}))
        return
    for name, folder in models.items():
        print(f"{name}: {folder}")
    for name, value in done.evaluation.items():
        print(f"{name}: {value:.3f}")


def _end(message: str, code: int) -> NoReturn:
    """Say why and end with this code, also where what is said is written to the full disk."""
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(code)


def _ranks(place: Place, device: str) -> AbstractContextManager[Ranks]:
    if place.count == 1:
        return nullcontext(ALONE)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from training.distributed import torchrun

    return torchrun(place, device)


def _run_with_a_bar(job: TrainingJob, arguments: argparse.Namespace, ranks: Ranks) -> Outcome:
    from training.progress import in_passing, stage

    if ranks.index > 0:
        return run_job(job, arguments.out, resume=arguments.resume, ranks=ranks)
    asked: list[int] = []
    if ranks.count == 1:
        # Of several, each would hear it in another step: they end, and resume from before.
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    trackers = Trackers(tensorboard=arguments.tensorboard, trackio=arguments.trackio)
    # With --json, stdout is for a machine.
    with stage(job.name, job.steps, sys.stderr if arguments.json else sys.stdout) as advance:
        return run_job(
            job,
            arguments.out,
            resume=arguments.resume,
            watch=lambda step, told: advance(step, in_passing(told)),
            trackers=trackers,
            ranks=ranks,
            is_to_stop=lambda: bool(asked),
        )


if __name__ == "__main__":
    main()
