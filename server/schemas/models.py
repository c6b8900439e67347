"""Wire types of the model listings."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.schemas.common import Wire


class ModelOut(BaseModel):
    """One served model, in OpenAI's shape with a little more."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rung"
    kind: Literal["policy", "prm"]
    version: str
    max_model_len: int | None = None


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


class CalibrationOut(BaseModel):
    """What was fitted for one policy, from how much. `method`: null where no step had a label."""

    policy: str
    created: int
    method: Literal["isotonic", "platt"] | None
    has_fitted_aggregation: bool
    problems: int
    steps: int
    responses: int


State = Literal["live", "canary", "shadow", "available", "rejected"]


class TallyOut(BaseModel):
    """What a version has done since the server began to serve it.

    `score`: the mean over items. `difference` and `distance`: of a shadow, the mean of its score
    minus the live version's, and the mean of its absolute value.
    """

    requests: int
    failures: int
    items: int
    score: float | None
    difference: float | None = None
    distance: float | None = None


class TrialOut(BaseModel):
    """The version that is tried on a share of the callers, and what was seen of it so far."""

    version: str
    fraction: float
    seen: TallyOut


class VersionIn(Wire):
    """Which version shall answer."""

    version: str = Field(min_length=1, max_length=100)


class TrialIn(Wire):
    """Which version shall be tried on how many of the callers; `version` null: none any more."""

    version: str | None = Field(max_length=100)
    fraction: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class VersionOut(BaseModel):
    """One version of a PRM. `reason`: why it does not serve."""

    id: str
    created: int
    state: State
    reason: str | None = None
    weights_sha256: str
    metrics: dict[str, Any]
    calibrations: list[CalibrationOut] = []


class PrmOut(BaseModel):
    """One PRM and its versions."""

    id: str
    object: Literal["prm.model"] = "prm.model"
    family: str
    live: str
    canary: TrialOut | None = None
    shadow: TrialOut | None = None
    previous: str | None = None
    step_separator: str
    aggregation: str
    threshold: float
    context_limit: int
    versions: list[VersionOut]


class PrmList(BaseModel):
    """`GET /v1/prm/models`."""

    object: Literal["list"] = "list"
    data: list[PrmOut]
