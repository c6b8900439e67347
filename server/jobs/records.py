"""What is kept of a job: what was asked and decided (never changes), and how far it is.

RUNS/ftjob-…/job.json     JobRecord
RUNS/ftjob-…/state.json   JobState
"""

import re
import secrets
import string
from typing import Literal

from pydantic import BaseModel, ConfigDict

from prm.evaluation.gate import GateSettings
from prm.manifest import Name
from server.schemas.fine_tuning import JobError, JobRequest, Status
from training.spec import TrainingJob

JOB_ID = re.compile(r"ftjob-[a-z0-9]{16}")
FINISHED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")

_ALPHABET = string.ascii_lowercase + string.digits
_ID_LENGTH = 16
_VERSION_LENGTH = 8
# With the id behind it, a version is as long as a version may be.
_MOST_SUFFIX = 55


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True)


class Publication(_Kept):
    """A version that a job makes. `reference`: NAME@VERSION that a log-ratio is divided by.

    `like`: the PRM that was trained further, whose recipe, separator, aggregation and threshold
    stay; None where the job says how the PRM is read (`training.served`).
    """

    role: Literal["prm", "policy"]
    name: Name
    version: Name
    reference: str | None = None
    like: str | None = None

    @property
    def key(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


class JobRecord(_Kept):
    """`job.json`: durable before anybody is told of the job.

    `base` is NAME@VERSION of the request's model when it was accepted. `gate` None: what comes out
    is published, and nobody is asked whether it should go live. `training` has absolute paths,
    which the server made.
    """

    id: str
    created_at: int
    key_id: str | None = None
    request: JobRequest
    base: str
    publishes: tuple[Publication, ...]
    gate: GateSettings | None
    training: TrainingJob


class JobState(_Kept):
    """`state.json`. `wanted` is what callers ask of whoever runs the job.

    `fine_tuned_model` is NAME@VERSION, once published; `starts` counts all of them, and `attempts`
    those since the last checkpoint, that of step `reached`.
    """

    status: Status = "queued"
    wanted: Literal["run", "pause", "cancel"] = "run"
    phase: Literal["train", "publish", "gate", "done"] = "train"
    starts: int = 0
    attempts: int = 0
    reached: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    error: JobError | None = None
    fine_tuned_model: str | None = None
    verdict: Literal["passed", "rejected"] | None = None
    trained_tokens: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nobody works on it, nor will without being asked."""
        return self.status in FINISHED


def new_id(kind: str) -> str:
    """`kind-` and sixteen random letters and digits."""
    return f"{kind}-{''.join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))}"


def version_of(job_id: str, suffix: str | None) -> str:
    """The version that a job publishes: no two jobs have the same.

    >>> version_of("ftjob-0123456789abcdef", None), version_of("ftjob-0123456789abcdef", "may")
    ('89abcdef', 'may-89abcdef')
    """
    own = job_id[-_VERSION_LENGTH:]
    return own if suffix is None else f"{suffix[:_MOST_SUFFIX]}-{own}"
