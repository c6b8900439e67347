"""Cancel, pause and resume: what callers ask of a job, whoever runs it.

Where somebody runs it, he is asked (`wanted`) and ends it in his own time; where nobody does, it is
done at once.
"""

import time

from prm.errors import CallerError, Conflict
from server.files.store import FileStore
from server.jobs.records import JobState
from server.jobs.store import JobStore


def cancel(store: JobStore, job_id: str) -> None:
    """End a job. Raises NotFound, and Conflict for one that is over."""
    is_held = store.is_held(job_id)

    def change(state: JobState) -> JobState:
        _check_open(job_id, state, "cancelled")
        asked = state.model_copy(update={"wanted": "cancel"})
        if is_held:
            return asked
        return asked.model_copy(update={"status": "cancelled", "finished_at": int(time.time())})

    state = store.change(job_id, change)
    store.tell(job_id, "Cancelled" if state.is_finished else "Asked to cancel")


def pause(store: JobStore, job_id: str) -> None:
    """Stop a job so that it can go on. Raises NotFound, and Conflict for one that is over."""
    is_held = store.is_held(job_id)

    def change(state: JobState) -> JobState:
        _check_open(job_id, state, "paused")
        status = state.status if is_held else "queued"
        return state.model_copy(update={"wanted": "pause", "status": status})

    store.change(job_id, change)
    store.tell(job_id, "Asked to pause" if is_held else "Paused")


def resume(store: JobStore, files: FileStore, job_id: str) -> None:
    """Let a paused or failed job go on from its last checkpoint.

    Raises NotFound, and Conflict for a job that does neither wait nor failed, or whose files are
    gone.
    """
    request = store.record(job_id).request
    for file_id in filter(None, (request.training_file, request.validation_file)):
        try:
            files.get(file_id)
        except CallerError as error:
            raise Conflict(f"{job_id} cannot go on: {file_id} was deleted") from error

    def change(state: JobState) -> JobState:
        is_paused = state.wanted == "pause" and not state.is_finished
        if not is_paused and state.status != "failed":
            raise Conflict(
                f"{job_id} is {state.status}, and only a job that was paused or has failed is "
                "resumed"
            )
        return state.model_copy(
            update={
                "status": "queued",
                "wanted": "run",
                "attempts": 0,
                "error": None,
                "finished_at": None,
            }
        )

    store.change(job_id, change)
    store.tell(job_id, "Resumed")


def _check_open(job_id: str, state: JobState, what: str) -> None:
    if state.is_finished:
        raise Conflict(f"{job_id} is {state.status}: what is over cannot be {what}")
    if state.wanted == "cancel":
        raise Conflict(f"{job_id} is being cancelled already")
