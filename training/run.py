"""A run from its job to its models: the loop, and everything around it that is not the method.

python -m training.run job.toml --out runs/mine [--resume]

runs/mine/job.json            the job as it was read
runs/mine/events.jsonl        a line per step and evaluation
runs/mine/checkpoints/        to resume from
runs/mine/policy/, prm/       the models, when the run is done
"""

import argparse
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from prm.errors import InvalidInput, RungError
from training.spec import TrainingJob, read_job

# Told after every step: how many are done, and the step's numbers.
Watch = Callable[[int, dict[str, float]], None]
JOB, EVENTS, CHECKPOINTS = "job.json", "events.jsonl", "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where a finished run's models are, and its last evaluation."""

    models: dict[str, Path]
    evaluation: dict[str, float]


def run_job(
    job: TrainingJob, out: Path, *, resume: bool = False, watch: Watch = lambda step, told: None
) -> Outcome:
    """Train as the job says, from the start or from the last checkpoint.

    Raises InvalidInput for a folder that holds another run, and Diverged, with the last checkpoint
    left as it is.
    """
    _claim(job, out, resume)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from training.assembly import assemble
    from training.events import Events, JsonLines
    from training.state import last_checkpoint, load_checkpoint, save_checkpoint

    torch.set_num_threads(job.threads)
    checkpoint = last_checkpoint(out / CHECKPOINTS) if resume else None
    events = Events([])
    with ExitStack() as stack:
        run = assemble(job, events, out, stack)
        learners = run.training.learners
        done = load_checkpoint(checkpoint, learners) if checkpoint else 0
        events.sinks.append(JsonLines(out / EVENTS, after_step=done if resume else None))
        measured: dict[str, float] = {}
        for step in range(done + 1, job.steps + 1):
            try:
                told = run.training.step(step)
            except torch.OutOfMemoryError as error:
                raise InvalidInput(
                    f"step {step}: {job.device} has no memory left; lower optimizer.micro_tokens "
                    f"({job.optimizer.micro_tokens}) or rollouts.max_batch "
                    f"({job.rollouts.max_batch}), which change nothing else, and resume",
                    param="optimizer.micro_tokens",
                ) from error
            events.write("step", step, told)
            watch(step, told)
            last = step == job.steps
            if job.evaluation and (step % job.evaluation.every == 0 or last):
                measured = run.evaluate(job.evaluation)
                events.write("evaluation", step, measured)
            if step % job.checkpoint_every == 0 or last:
                save_checkpoint(out / CHECKPOINTS, step, learners)
        return Outcome(models=run.save_models(), evaluation=measured)


def _claim(job: TrainingJob, out: Path, resume: bool) -> None:
    """The folder is this job's and nobody else's."""
    path = out / JOB
    wanted = job.model_dump_json(indent=1) + "\n"
    if path.exists() and not resume:
        raise InvalidInput(
            f"{out} holds a run already; give another folder, or --resume to go on with it",
            param="out",
        )
    if resume and (not path.exists() or path.read_text() != wanted):
        what = "holds no run" if not path.exists() else "holds the run of another job"
        raise InvalidInput(f"--resume: {out} {what}", param="out")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted)


def main() -> None:
    """Read the command line and run the job."""
    parser = argparse.ArgumentParser(prog="python -m training.run", description="Train a model.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        done = _run_with_a_bar(read_job(arguments.job), arguments.out, arguments.resume)
    except RungError as error:
        raise SystemExit(f"error: {error}") from error
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


def _run_with_a_bar(job: TrainingJob, out: Path, resume: bool) -> Outcome:
    from training.progress import stage

    with stage(job.name, job.steps) as advance:
        return run_job(job, out, resume=resume, watch=lambda step, told: advance(step, _word(told)))


def _word(told: dict[str, float]) -> str:
    return " ".join(
        f"{name} {told[name]:.3f}" for name in ("reward", "policy_loss", "loss") if name in told
    )


if __name__ == "__main__":
    main()
