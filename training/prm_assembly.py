"""A job's PRM put together: what it begins as, what teaches it, and how it is read."""

from pathlib import Path
from typing import Any

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from training.bench import LabelledBench
from training.credit.read_outs import ActionHead, LogRatios, ReadOut
from training.credit.repirl import IrlTeacher
from training.credit.steps import HeadLogits, RatioLogits, StepLogits, StepTeacher
from training.demonstrating import TaskExperts
from training.events import Events
from training.heads import TrainedHead
from training.job_models import JobModels
from training.labelled_steps import LabelledSteps
from training.learner import Learner
from training.models import TrainedLM
from training.ranks import Ranks
from training.served import family_of, served_as
from training.settings import Repirl, StepBce
from training.spec import LabelledData, Optimizer, TaskData, TrainingJob
from training.supervised import LabelledTraining
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


def labelled_steps(
    job: TrainingJob, data: LabelledData, teacher: StepTeacher, prm: TrainedPrm, events: Events
) -> tuple[LabelledTraining, LabelledBench]:
    """Step labels out of files, and where they are measured."""
    train = LabelledSteps(data.files, data.separator, prm.family, job.seed)
    held_out = None
    if data.held_out:
        held_out = LabelledSteps(data.held_out, data.separator, prm.family, job.seed)
    training = LabelledTraining(job=job, steps=train, teacher=teacher, events=events)
    return training, LabelledBench(prm=prm, trained_on=train, held_out=held_out)


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
