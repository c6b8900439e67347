"""From a request, its models and its data to the job that the trainer gets. See docs/jobs.md.

What decides that a combination means nothing stands in one place, `training.spec.TrainingJob`; here
its objections get the request's own names.
"""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prm.errors import InvalidInput
from prm.evaluation.gate import GateSettings
from prm.manifest import ModelVersion
from prm.weights import stored_tensors
from server.jobs.data import JobData
from server.jobs.models import JobModels
from server.schemas.fine_tuning import JobRequest
from server.schemas.methods import Hyperparameters, OptimizerIn, RunIn, own_settings, run_of
from server.settings import Settings
from training.settings import ImplicitPrm
from training.spec import Evaluation, LabelledData, TaskData, TrainingJob

# Where nobody says how long: as many steps, of at most as many passes.
_STEPS, _MOST_EPOCHS = 100, 10
_CHECKPOINTS = 5
_PER_STEP = 32
_MOST_TOKENS = 1024
_HELD_OUT = 200
# The learning rate of a policy of a million weights, and of PRIME's of seven billion (arXiv
# 2502.01456 §4.1, rounded); a line between them in the logarithms.
_SMALL, _LARGE = (1e6, 3e-4), (7e9, 1e-6)
# A PRM's, as TrainingJob's own advice: a few times the policy's.
_PRM_LR = 3.0
# One that is trained further knows most of it: a single pass in larger steps, at a small rate that
# ends at 0. Chosen on the bundled PRM with 2,000 answers: docs/training.md, "From feedback".
_FURTHER_LR, _FURTHER_PER_STEP = 0.2, 64
# A fifth of 2,000 labels tells a difference of AUROC to 0.008.
_FEEDBACK_MARGIN = 0.02
# Adapters take ten times the rate of whole weights.
_ADAPTER_LR = 10.0
_SPLIT = re.compile(r"[a-z_]+(?:\.[a-z_]+)*")
_ADVICE = re.compile(r"(?:leave|give|set) ([a-z_]+(?:\.[a-z_]+)*)")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request with what was found for it."""

    job_id: str
    request: JobRequest
    models: JobModels
    data: JobData
    seed: int

    @property
    def kind(self) -> str:
        """The method's type."""
        return self.request.method.type

    @property
    def run(self) -> RunIn:
        """The object under it."""
        return run_of(self.request.method)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """OpenAI's three, from either place."""
        return self.request.hyperparameters or self.run.hyperparameters


def training_job(asked: Asked, settings: Settings) -> TrainingJob:
    """The trainer's job. Raises InvalidInput with its own objection, and the request's field."""
    run, models = asked.run, asked.models
    per_step = _per_step(asked)
    steps = _steps(asked, per_step)
    fields: dict[str, Any] = {
        "name": asked.job_id,
        "seed": asked.seed,
        "device": run.device or settings.device,
        "threads": run.threads or max(1, (os.cpu_count() or 1) // 2),
        "precision": run.precision,
        "activation_checkpointing": run.activation_checkpointing,
        "policy": models.policy.folder.absolute(),
        "adapter": run.adapter,
        "prm_adapter": run.prm_adapter,
        "reference": models.reference and models.reference.folder.absolute(),
        "prm": models.prm and models.prm.folder.absolute(),
        "data": asked.data.data,
        "algorithm": _algorithm(asked),
        "train_policy": run.train_policy,
        "demonstrations": run.demonstrations,
        "rollouts": _rollouts(asked, per_step, settings),
        "steps": steps,
        "checkpoint_every": run.checkpoint_every or max(1, min(50, steps // _CHECKPOINTS)),
        "evaluation": _evaluation(asked),
        "reference_kl_every": run.reference_kl_every,
        **_optimizers(asked),
    }
    try:
        return TrainingJob.model_validate(_plain(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidInput(message, param=_param(asked.kind, first["loc"], message)) from error


def gate_of(asked: Asked, training: TrainingJob, *, makes_prm: bool) -> GateSettings | None:
    """What decides whether the PRM goes live. Raises InvalidInput where nothing could be judged."""
    wanted, param = asked.run.gate, f"method.{asked.kind}.gate"
    metrics = asked.data.metrics
    can_judge = bool(metrics) if metrics is not None else training.evaluation is not False
    if wanted is False or (wanted is None and not (makes_prm and can_judge)):
        return None
    if wanted is None:
        usual = GateSettings(metric=metrics[0] if metrics else "best_of_n")
        is_feedback = asked.kind == "prime_feedback"
        return usual.model_copy(update={"margin": _FEEDBACK_MARGIN}) if is_feedback else usual
    if not makes_prm:
        raise InvalidInput(
            f"gate: it compares PRMs, and this {asked.kind} job makes none; leave it out",
            param=param,
        )
    if not can_judge:
        raise InvalidInput(
            "gate: there is nothing to compare by; give a validation_file (of responses with right "
            "and wrong ones among them), or set gate to false",
            param=param,
        )
    if metrics is not None and wanted.metric not in metrics:
        if "metric" not in wanted.model_fields_set:
            return wanted.model_copy(update={"metric": metrics[0]})
        raise InvalidInput(
            f"gate.metric {wanted.metric}: the labels of the validation file do not give it; they "
            f"give {', '.join(metrics)}",
            param=f"{param}.metric",
        )
    return wanted


def default_lr(version: ModelVersion) -> float:
    """A policy's learning rate by the number of its weights, two digits."""
    (small, high), (large, low) = _SMALL, _LARGE
    weights = sum(math.prod(tensor.shape) for tensor in stored_tensors(version.folder).values())
    count = min(max(weights, small), large)
    share = math.log(count / small) / math.log(large / small)
    return float(f"{high * (low / high) ** share:.1e}")


def _algorithm(asked: Asked) -> dict[str, Any]:
    own = own_settings(asked.run)
    if not own:
        own = ImplicitPrm(loss="ce").model_dump()
    return own | asked.models.kept


def _per_step(asked: Asked) -> int:
    run, given = asked.run, asked.hyperparameters.batch_size
    if given != "auto":
        return given
    if "problems" in run.rollouts.model_fields_set:
        return run.rollouts.problems
    usual = _FURTHER_PER_STEP if asked.models.trains_further else _PER_STEP
    return min(usual, asked.data.examples or usual)


def _steps(asked: Asked, per_step: int) -> int:
    examples, epochs = asked.data.examples, asked.hyperparameters.n_epochs
    if asked.run.steps is not None:
        return asked.run.steps
    if examples is None:
        if epochs != "auto":
            raise InvalidInput(
                f"n_epochs {epochs}: a task makes new problems in every step, of which there is no "
                f"pass; give method.{asked.kind}.steps, or method.{asked.kind}.problems",
                param=f"method.{asked.kind}.hyperparameters.n_epochs",
            )
        return _STEPS
    fitting = max(1, min(_MOST_EPOCHS, _STEPS * per_step // examples))
    if asked.models.trains_further:
        fitting = 1
    return math.ceil((fitting if epochs == "auto" else epochs) * examples / per_step)


def _rollouts(asked: Asked, per_step: int, settings: Settings) -> dict[str, Any]:
    given, param = asked.run.rollouts, f"method.{asked.kind}.rollouts"
    found = given.model_dump(exclude_unset=True, exclude={"server"}) | {"problems": per_step}
    is_files = not isinstance(asked.data.data, TaskData | LabelledData)
    if is_files and given.max_tokens is None:
        found["max_tokens"] = min(_MOST_TOKENS, asked.models.policy.context_limit // 2)
    if given.server is not None:
        ours = settings.policy_url
        if ours is None or given.server.rstrip("/") != ours.rstrip("/"):
            raise InvalidInput(
                "rollouts.server: nobody but this server's own policy server writes for a job"
                f"{'' if ours else ', and it has none'}; leave it out, and the trainer writes",
                param=f"{param}.server",
            )
        found["server"] = {"url": settings.policy_url, "key_variable": "RUNG_POLICY_API_KEY"}
    return found


def _evaluation(asked: Asked) -> Evaluation | bool:
    run, held_out = asked.run, asked.data.held_out
    if run.evaluation is False:
        return False
    if isinstance(asked.data.data, TaskData):
        return run.evaluation or Evaluation()
    if held_out is not None:
        return run.evaluation or Evaluation(problems=min(_HELD_OUT, held_out))
    if run.evaluation is not None:
        raise InvalidInput(
            "evaluation: there is nothing to measure on that the job does not train on; give a "
            "validation_file, or leave it out",
            param=f"method.{asked.kind}.evaluation",
        )
    return False


def _optimizers(asked: Asked) -> dict[str, Any]:
    """`optimizer` and `prm_optimizer`, with a rate where the request gives none."""
    run, models = asked.run, asked.models
    wanted = asked.hyperparameters.learning_rate_multiplier
    factor = 1.0 if wanted == "auto" else wanted
    own = _algorithm(asked)
    trains_policy = getattr(type(run), "trains_policy", False) and run.train_policy
    trains_prm = getattr(type(run), "trains_prm", True)
    own_lr = _FURTHER_LR if models.trains_further else _PRM_LR
    for_prm = factor * own_lr * (_ADAPTER_LR if run.prm_adapter else 1)
    for_policy = factor * (_ADAPTER_LR if run.adapter else 1)
    if not trains_policy:
        begins = models.prm or models.policy
        found = {"optimizer": _optimizer(run.optimizer, begins, for_prm)}
        if models.trains_further:
            found["optimizer"] = {"schedule": "cosine"} | found["optimizer"]
    else:
        found = {"optimizer": _optimizer(run.optimizer, models.policy, for_policy)}
    needs_one = getattr(type(run), "trains_policy", False) and trains_prm
    stays = own.get("update") == "never"
    if run.prm_optimizer is not None or (needs_one and not stays):
        given = run.prm_optimizer or OptimizerIn(micro_tokens=run.optimizer.micro_tokens)
        found["prm_optimizer"] = _optimizer(given, models.prm or models.policy, for_prm)
    return found


def _optimizer(given: OptimizerIn, version: ModelVersion, factor: float) -> dict[str, Any]:
    lr = default_lr(version) * factor if given.lr is None else given.lr
    return given.model_dump(exclude_unset=True) | {"lr": float(f"{lr:.3g}")}


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Of models their fields: a subclass of the wire's is none of the trainer's."""
    return {
        name: value.model_dump() if hasattr(value, "model_dump") else value
        for name, value in fields.items()
    }


def _param(kind: str, place: tuple[int | str, ...], message: str) -> str:
    """The request's field that an objection of TrainingJob is about."""
    words = ".".join(str(part) for part in place)
    if not words:
        first, advice = _SPLIT.match(message), _ADVICE.search(message)
        known = (*TrainingJob.model_fields, "algorithm")
        candidates = [first and first[0], advice and advice[1]]
        words = next((w for w in candidates if w and w.split(".")[0] in known), "")
    head, _, rest = words.partition(".")
    match head:
        case "policy" | "reference":
            return "model"
        case "data":
            return "validation_file" if rest.startswith("held_out") else "training_file"
        case "algorithm":
            rest = rest.removeprefix(f"{kind}.")
            return f"method.{kind}.{rest}" if rest else f"method.{kind}"
        case "":
            return f"method.{kind}"
        case _:
            return f"method.{kind}.{words}"
