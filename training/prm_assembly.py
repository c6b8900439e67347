"""A job's PRM put together: what it begins as, what teaches it, and how it is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from training.bench import Bench, LabelledBench, OutcomeBench
from training.credit.implicit import ImplicitTeacher
from training.credit.read_outs import ActionHead, LogRatios, ReadOut
from training.credit.repirl import IrlTeacher
from training.credit.steps import HeadLogits, RatioLogits, StepLogits, StepTeacher
from training.demonstrating import TaskExperts
from training.events import Events
from training.heads import TrainedHead
from training.job_models import JobModels
from training.labelled_outcomes import LabelledOutcomes
from training.labelled_steps import LabelledSteps
from training.learner import Learner
from training.models import TrainedLM
from training.ranks import Ranks
from training.served import family_of, served_as
from training.settings import ImplicitPrm, Repirl, StepBce
from training.spec import LabelledData, Optimizer, TaskData, TrainingJob
from training.supervised import LabelledTraining, OutcomeTraining
from training.trained_prm import TrainedPrm


def prm_learner(job: TrainingJob, models: JobModels) -> Learner:
    """φ as a language model, with its optimizer."""
    return Learner("prm", models.prm(), _optimizer(job), job.steps)


def irl_teacher(
    job: TrainingJob,
    settings: Repirl,
    models: JobModels,
    tokenizer: ChatTokenizer,
    policy: TrainedLM,
    reference: TrainedLM | None,
) -> IrlTeacher:
    """rePIRL's PRM, with the read-out that the job asks for."""
    assert isinstance(job.data, TaskData)
    experts = TaskExperts(job.data.task, tokenizer, job.demonstrations, job.seed)
    read_out: ReadOut
    if settings.read_out == "head":
        read_out = ActionHead(_head_learner(job, models, policy.engine.num_ids))
    else:
        read_out = LogRatios(prm_learner(job, models))
    return IrlTeacher(settings, read_out, policy, reference, experts)


def trained_prm(
    job: TrainingJob, folder: Path, learner: Learner[Any], reference: TrainedLM | None
) -> TrainedPrm:
    """The PRM of this job as it will be served; `folder` is the policy's."""
    served = served_as(job)
    assert served is not None, "this job has a PRM"
    model = learner.model
    is_actions = served.family == "repirl"
    family = family_of(served, folder, outputs=model.outputs if is_actions else None)
    divisor = reference if served.has_reference else None
    return TrainedPrm(family, model, divisor, served.step_separator)


def step_teacher(
    job: TrainingJob, settings: StepBce, models: JobModels, reference: TrainedLM | None
) -> StepTeacher:
    """A PRM that learns step labels."""
    logits: StepLogits
    if settings.read_out == "head":
        logits = HeadLogits(_head_learner(job, models, 2))
    else:
        assert reference is not None
        logits = RatioLogits(prm_learner(job, models), reference, settings.beta)
    return StepTeacher(settings, logits)


def labelled_parts(
    job: TrainingJob,
    data: LabelledData,
    models: JobModels,
    reference: TrainedLM | None,
    events: Events,
) -> tuple[TrainedPrm, LabelledTraining | OutcomeTraining, Bench]:
    """What learns from labelled files, and where it is measured."""
    if isinstance(job.algorithm, ImplicitPrm):
        assert reference is not None
        return _outcomes(job, data, job.algorithm, models, reference, events)
    assert isinstance(job.algorithm, StepBce)
    teacher = step_teacher(job, job.algorithm, models, reference)
    prm = trained_prm(job, models.prm_folder, teacher.learner, reference)
    return prm, *_steps(job, data, teacher, prm, events)


def _outcomes(
    job: TrainingJob,
    data: LabelledData,
    settings: ImplicitPrm,
    models: JobModels,
    reference: TrainedLM,
    events: Events,
) -> tuple[TrainedPrm, OutcomeTraining, OutcomeBench]:
    learner = prm_learner(job, models)
    check_same_ids("prm", learner.model, reference)
    prm = trained_prm(job, models.prm_folder, learner, reference)
    end = ChatTokenizer(models.prm_folder).eos_id
    assert end is not None, "checked before any model is loaded"

    def outcomes(files: Sequence[Path]) -> LabelledOutcomes:
        limit = learner.model.engine.context_limit
        return LabelledOutcomes(
            files, data.separator, prm, settings, job.seed, end=end, limit=limit
        )

    train = outcomes(data.files)
    held_out = outcomes(data.held_out) if data.held_out else None
    teacher = ImplicitTeacher(settings, learner, reference)
    return (
        prm,
        OutcomeTraining(
            job=job, outcomes=train, teacher=teacher, reference=reference, events=events
        ),
        OutcomeBench(
            settings=settings, reference=reference, prm=prm, trained_on=train, held_out=held_out
        ),
    )


def _steps(
    job: TrainingJob, data: LabelledData, teacher: StepTeacher, prm: TrainedPrm, events: Events
) -> tuple[LabelledTraining, LabelledBench]:
    train = LabelledSteps(data.files, data.separator, prm.family, job.seed)
    held_out = None
    if data.held_out:
        held_out = LabelledSteps(data.held_out, data.separator, prm.family, job.seed)
    training = LabelledTraining(job=job, steps=train, teacher=teacher, events=events)
    return training, LabelledBench(prm=prm, trained_on=train, held_out=held_out)


def check_same_ids(field: str, model: TrainedLM, other: TrainedLM) -> None:
    """Raises InvalidInput for models of two vocabularies; `other` is the job's policy."""
    ours, theirs = other.engine.num_ids, model.engine.num_ids
    if ours != theirs:
        raise InvalidInput(
            f"{field}: it has {theirs} tokens and the policy {ours}: log-probs of the same ids can "
            "only be compared between models of one vocabulary",
            param=field,
        )


def check_alone(job: TrainingJob, ranks: Ranks) -> None:
    """Raises InvalidInput where several processes would have to train what only one does."""
    algorithm = job.algorithm
    has_head = getattr(algorithm, "read_out", None) == "head"
    if ranks.count > 1 and (has_head or isinstance(algorithm, StepBce)):
        what = 'read_out "head"' if has_head else algorithm.type
        raise InvalidInput(
            f"algorithm: {what} trains in one process, and these are {ranks.count}: start one",
            param="algorithm",
        )


def _head_learner(job: TrainingJob, models: JobModels, outputs: int) -> Learner[TrainedHead]:
    model = TrainedHead.load(job.prm or models.folder, outputs, device=job.device)
    return Learner("prm", model, _optimizer(job), job.steps)


def _optimizer(job: TrainingJob) -> Optimizer:
    return job.prm_optimizer or job.optimizer
