"""Wire types of `/v1/fine_tuning/jobs`: OpenAI's shapes, with our algorithms as methods."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator

from server.schemas.common import Text, Wire
from server.schemas.methods import Hyperparameters, Method, ModelName, run_of

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]

# OpenAI's limits.
MetadataKey = Annotated[Text, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[Text, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
FileId = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Suffix = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
ProjectName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class TensorBoard(Wire):
    """TensorBoard's event files, in the job's folder."""

    type: Literal["tensorboard"]


class _TrackioProject(Wire):
    project: ProjectName


class Trackio(Wire):
    """A project of trackio's on the machine that trains."""

    type: Literal["trackio"]
    trackio: _TrackioProject


Integration = Annotated[TensorBoard | Trackio, Field(discriminator="type")]


class JobRequest(Wire):
    """A job as a caller asks for it. `training_file` null: the method's `task` makes the problems.

    `hyperparameters` is OpenAI's older place of those in the method.
    """

    model: ModelName
    training_file: FileId | None = None
    validation_file: FileId | None = None
    method: Method
    hyperparameters: Hyperparameters | None = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    suffix: Suffix | None = None
    metadata: Metadata | None = None
    integrations: list[Integration] | None = Field(default=None, max_length=2)

    @model_validator(mode="after")
    def _hyperparameters_stand_once(self) -> Self:
        given = run_of(self.method).hyperparameters
        if self.hyperparameters is not None and given != Hyperparameters():
            raise ValueError(
                f"hyperparameters stand in method.{self.method.type} and beside it; give one"
            )
        return self


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobOut(BaseModel):
    """A job. `status` is one of OpenAI's six; `paused` tells what they cannot.

    Beside OpenAI's: `publishes`, the versions that come out, `verdict` of the gate, `phase`.
    """

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Status
    paused: bool
    phase: str
    model: str
    fine_tuned_model: str | None
    publishes: list[str]
    verdict: Literal["passed", "rejected"] | None
    error: JobError | None
    training_file: str | None
    validation_file: str | None
    result_files: list[str] = []
    trained_tokens: int | None
    seed: int
    suffix: str | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    integrations: list[dict[str, Any]]
    metadata: dict[str, str]
    organization_id: str = "rung"


class JobList(BaseModel):
    """A page of jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobOut]
    has_more: bool


class JobEvent(BaseModel):
    """What happened to a job, or the numbers of one of its steps (type "metrics")."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Level = "info"
    message: str
    type: EventType = "message"
    data: dict[str, Any] = {}


class EventList(BaseModel):
    """A page of events, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


class CheckpointOut(BaseModel):
    """A state that the job can go on from. `metrics` are those of its step that are known."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float | None]


class CheckpointList(BaseModel):
    """A page of checkpoints, the newest first."""

    object: Literal["list"] = "list"
    data: list[CheckpointOut]
    has_more: bool
    first_id: str | None
    last_id: str | None
