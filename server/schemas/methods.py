"""`method` of a fine-tuning job: `{"type": T, T: {…}}` with T an algorithm of ours.

The object T holds the algorithm's own settings (`training/settings/`) and, beside them, what else a
run is made of. Everything has a default, so that `{"type": "prime"}` is a whole method. Models are
named as the server knows them; no path and no address ever comes from a caller.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from prm.evaluation.gate import GateSettings
from prm.manifest import Name
from server.schemas.common import Wire
from training.settings import (
    Grpo,
    ImplicitPrm,
    LambdaGrpo,
    Prime,
    Prl,
    Repirl,
    Rloo,
    Sft,
    StepBce,
)
from training.settings.base import AlgorithmSettings, Positive
from training.spec import Adapter, Count, Evaluation, Optimizer, Precision, Rollouts
from training.tasks import AnyTask

# NAME, the version that is live, or NAME@VERSION.
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=140)]
Device = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda(:[0-9]{1,2})?)$")]


class Hyperparameters(Wire):
    """OpenAI's three: they set `steps`, `rollouts.problems` and `optimizer.lr` (docs/jobs.md)."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Positive = "auto"


class OptimizerIn(Optimizer):
    """As in a job's file; `lr` null is what suits a model of this size."""

    lr: Positive | None = None  # type: ignore[assignment]


class RolloutsIn(Rollouts):
    """As in a job's file, but for `server`: null, or this server's own `policy_url`."""

    server: str | None = Field(default=None, max_length=500)  # type: ignore[assignment]


class RunIn(Wire):
    """What a run is made of beside its algorithm. Null is what docs/jobs.md says of each.

    `task` makes problems by program, in place of a training file; `problems` of them, or new ones
    in every step. `prm`: what the PRM begins as, `reference_model`: the frozen model of log-ratios
    and KL, both names of models here. `prm_name` and `policy_name`: what the results are versions
    of. `gate`: what decides whether the new PRM goes live; false: it only becomes available.
    """

    hyperparameters: Hyperparameters = Hyperparameters()
    steps: Count | None = None
    rollouts: RolloutsIn = RolloutsIn()
    optimizer: OptimizerIn = OptimizerIn()
    prm_optimizer: OptimizerIn | None = None
    checkpoint_every: Count | None = None
    evaluation: Evaluation | Literal[False] | None = None
    reference_kl_every: Count | None = None
    train_policy: bool = True
    demonstrations: Count = 1
    adapter: Adapter | None = None
    prm_adapter: Adapter | None = None
    precision: Precision = "float32"
    activation_checkpointing: bool = False
    device: Device | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    task: AnyTask | None = None
    problems: Count | None = None
    separator: str | None = Field(default=None, min_length=1, max_length=100)
    prm: ModelName | None = None
    reference_model: ModelName | None = None
    prm_name: Name | None = None
    policy_name: Name | None = None
    gate: GateSettings | Literal[False] | None = None

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        given = self.hyperparameters
        twice = [
            ("n_epochs", given.n_epochs, "steps", self.steps),
            ("learning_rate_multiplier", given.learning_rate_multiplier, "optimizer.lr",
             self.optimizer.lr),
            ("batch_size", given.batch_size, "rollouts.problems",
             "problems" in self.rollouts.model_fields_set or None),
        ]  # fmt: skip
        for name, value, other, set_there in twice:
            if value != "auto" and set_there is not None:
                raise ValueError(f"hyperparameters.{name} and {other} say the same; give one")
        if self.problems is not None and self.task is None:
            raise ValueError("problems: how many are made of a task; give task, or leave it out")
        return self


class SftIn(RunIn, Sft):
    """Imitation of a task's solutions."""


class ImplicitPrmIn(RunIn, ImplicitPrm):
    """An implicit PRM from outcome labels."""


class StepBceIn(RunIn, StepBce):
    """A PRM from step labels."""


class RlooIn(RunIn, Rloo):
    """REINFORCE with a leave-one-out baseline."""


class GrpoIn(RunIn, Grpo):
    """Group relative policy optimisation."""


class LambdaGrpoIn(RunIn, LambdaGrpo):
    """GRPO with each shared prefix counted once."""


class PrimeIn(RunIn, Prime):
    """A policy with dense rewards of an implicit PRM that learns beside it."""


class PrlIn(RunIn, Prl):
    """GRPO minus the KL that is still to come. `eta`: 3.3 to 10 for a dozen tokens, 100 to 200
    for a thousand."""

    eta: Positive = 100.0


class RepirlIn(RunIn, Repirl):
    """A PRM by inverse reinforcement learning, and the policy that it rewards."""


class PrimeFeedbackIn(RunIn):
    """An implicit PRM on outcome labels of what was served: PRIME's cross-entropy.

    β is that of the PRM that is trained further.
    """


class _Sft(Wire):
    type: Literal["sft"]
    sft: SftIn = SftIn()


class _ImplicitPrm(Wire):
    type: Literal["implicit_prm"]
    implicit_prm: ImplicitPrmIn = ImplicitPrmIn()


class _StepBce(Wire):
    type: Literal["step_bce"]
    step_bce: StepBceIn = StepBceIn()


class _Rloo(Wire):
    type: Literal["rloo"]
    rloo: RlooIn = RlooIn()


class _Grpo(Wire):
    type: Literal["grpo"]
    grpo: GrpoIn = GrpoIn()


class _LambdaGrpo(Wire):
    type: Literal["lambda_grpo"]
    lambda_grpo: LambdaGrpoIn = LambdaGrpoIn()


class _Prime(Wire):
    type: Literal["prime"]
    prime: PrimeIn = PrimeIn()


class _Prl(Wire):
    type: Literal["prl"]
    prl: PrlIn = PrlIn()


class _Repirl(Wire):
    type: Literal["repirl"]
    repirl: RepirlIn = RepirlIn()


class _PrimeFeedback(Wire):
    type: Literal["prime_feedback"]
    prime_feedback: PrimeFeedbackIn = PrimeFeedbackIn()


Method = Annotated[
    _Sft
    | _ImplicitPrm
    | _StepBce
    | _Rloo
    | _Grpo
    | _LambdaGrpo
    | _Prime
    | _Prl
    | _Repirl
    | _PrimeFeedback,
    Field(discriminator="type"),
]


def run_of(method: Any) -> RunIn:
    """The object under the method's own name."""
    run = getattr(method, method.type)
    assert isinstance(run, RunIn)
    return run


def own_settings(run: RunIn) -> dict[str, Any]:
    """The algorithm's settings among those of T; empty where T has none of its own."""
    owner = next((c for c in type(run).__bases__ if issubclass(c, AlgorithmSettings)), None)
    return {} if owner is None else {name: getattr(run, name) for name in owner.model_fields}
