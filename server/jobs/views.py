"""Jobs as the API tells of them: record, state, and what the run itself has written so far."""

import json
import time
from pathlib import Path
from typing import Any

from server.jobs.records import JobRecord, JobState
from server.jobs.store import EVENTS, RUN, JobStore
from server.schemas.fine_tuning import CheckpointOut, JobOut
from server.schemas.methods import run_of
from training.spec import TrainingJob

# Of a run's events: enough for its last steps, however long it is.
_TAIL_BYTES = 1 << 16
_RECENT_STEPS = 20
# Of a step's numbers, what OpenAI calls its loss.
_LOSSES = ("policy_loss", "loss", "prm_loss")
# Where the request left it open, the answer says what it came to.
_SETTLED = ("steps", "checkpoint_every", "threads", "device")


def job_out(store: JobStore, job_id: str) -> JobOut:
    """A job. Raises NotFound."""
    record, state = store.record(job_id), store.state(job_id)
    request = record.request
    return JobOut(
        id=record.id,
        created_at=record.created_at,
        finished_at=state.finished_at,
        estimated_finish=_estimated_finish(store, record, state),
        status=state.status,
        paused=state.wanted == "pause" and not state.is_finished,
        phase=state.phase,
        model=record.base,
        fine_tuned_model=state.fine_tuned_model,
        publishes=[each.key for each in record.publishes],
        verdict=state.verdict,
        error=state.error,
        training_file=request.training_file,
        validation_file=request.validation_file,
        trained_tokens=state.trained_tokens,
        seed=record.training.seed,
        suffix=request.suffix,
        hyperparameters=(request.hyperparameters or run_of(request.method).hyperparameters)
        .model_dump(),
        method=_settled(record),
        integrations=[each.model_dump() for each in request.integrations or []],
        metadata=request.metadata or {},
    )  # fmt: skip


def checkpoints_of(store: JobStore, job_id: str) -> list[CheckpointOut]:
    """The states that the job can go on from, the newest first. Raises NotFound."""
    record, run = store.record(job_id), store.folder(job_id) / RUN
    numbers = _numbers_by_step(run / EVENTS)
    name = record.publishes[0].key if record.publishes else record.base
    found = []
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            made = int((folder / "state.json").stat().st_mtime)
        except OSError:  # removed for a newer one, or not whole
            continue
        step = int(folder.name.removeprefix("step-"))
        found.append(
            CheckpointOut(
                id=f"ftckpt-{job_id.removeprefix('ftjob-')}-{step}",
                created_at=made,
                fine_tuning_job_id=job_id,
                fine_tuned_model_checkpoint=f"{name}:ckpt-step-{step}",
                step_number=step,
                metrics=_metrics(step, numbers.get(step, {})),
            )
        )
    return found


def last_step(store: JobStore, job_id: str) -> int:
    """The step that its run has told of last; 0 before the first."""
    rows = _tail(store.folder(job_id) / RUN / EVENTS)
    return max((int(row.get("step", 0)) for row in rows), default=0)


def _metrics(step: int, numbers: dict[str, Any]) -> dict[str, float | None]:
    loss = next((numbers[name] for name in _LOSSES if name in numbers), None)
    kept = {name: value for name, value in numbers.items() if name not in ("kind", "step")}
    return {**kept, "step": step, "train_loss": loss}


def _settled(record: JobRecord) -> dict[str, Any]:
    """The method as it runs: what the request left open is what it came to."""
    method = record.request.method
    asked = run_of(method).model_dump(mode="json", exclude={"type"})
    training = record.training.model_dump(mode="json")
    given = training["data"]
    asked |= {name: training[name] for name in _SETTLED}
    asked |= {"evaluation": training["evaluation"], "separator": given.get("separator")}
    asked |= {name: training[name] for name in ("optimizer", "prm_optimizer")}
    kept = set(TrainingJob.model_fields["rollouts"].get_default().model_dump()) - {"server"}
    asked["rollouts"] |= {name: training["rollouts"][name] for name in kept}
    asked["gate"] = False if record.gate is None else record.gate.model_dump(mode="json")
    for each in record.publishes:
        asked[f"{each.role}_name"] = each.name
    return {"type": method.type, method.type: asked}


def _estimated_finish(store: JobStore, record: JobRecord, state: JobState) -> int | None:
    """By the pace of the last steps; None while nothing trains."""
    if state.status != "running" or state.phase != "train":
        return None
    events = _tail(store.folder(record.id) / RUN / EVENTS)
    steps = [event for event in events if event.get("kind") == "step" and event.get("seconds")]
    recent = steps[-_RECENT_STEPS:]
    if not recent:
        return None
    pace = sum(step["seconds"] for step in recent) / len(recent)
    return int(time.time() + pace * (record.training.steps - recent[-1]["step"]))


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last events of a run."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            return _rows(file.read())
    except FileNotFoundError:
        return []


def _numbers_by_step(path: Path) -> dict[int, dict[str, Any]]:
    """Of each step everything that was told of it, its evaluation's numbers among them."""
    try:
        rows = _rows(path.read_bytes())
    except FileNotFoundError:
        return {}
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row.get("step", 0), {}).update(row)
    return found


def _rows(raw: bytes) -> list[dict[str, Any]]:
    """The whole lines of it; one that was cut is none."""
    found = []
    for line in raw.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
