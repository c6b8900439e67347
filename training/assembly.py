"""From a job to what runs it: models, who writes, who grades, who assigns credit."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from training.checkpoints import ModelSize, new_model, save_model
from training.credit.base import Credit
from training.credit.implicit import ImplicitTeacher
from training.credit.outcome import OutcomeCredit
from training.credit.prime import PrimeCredit
from training.credit.repirl import IrlTeacher, RepirlCredit
from training.demonstrating import TaskExperts
from training.events import Events
from training.grades import Grader, TaskGrader
from training.held_out import ResponseReader, policy_figures, prm_figures
from training.learner import Learner
from training.loop import OnlineTraining
from training.models import TrainedLM
from training.problems import held_out_problems, problems_of
from training.settings import Grpo, ImplicitPrm, LambdaGrpo, Prime, Prl, Repirl, Rloo, Sft
from training.spec import Evaluation, FileData, Optimizer, TaskData, TrainingJob
from training.supervised import Imitation, OfflineIrl, OfflinePrm
from training.verified import VerifiedGrader
from training.verifiers import CodeVerifier, MathVerifier, Verifier, VerifierPool
from training.writers import InProcessWriter

GOLDEN, NUM_GOLDEN = "golden.jsonl", 8
# What makes a folder a model's, beside its weights.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Training(Protocol):
    """One kind of loop."""

    @property
    def learners(self) -> dict[str, Learner]: ...
    def step(self, number: int) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A job's loop, and what is done beside it."""

    job: TrainingJob
    out: Path
    folder: Path
    tokenizer: ChatTokenizer
    training: Training
    writer: InProcessWriter
    grader: Grader
    reader: ResponseReader
    reference: TrainedLM | None

    def evaluate(self, settings: Evaluation) -> dict[str, float]:
        """The policy on held-out problems, the same every time, and the PRM where one trains."""
        problems = held_out_problems(self.job, settings.problems)
        written = self.writer.write(
            problems, seed="held-out", policy_step=0, per_problem=settings.per_problem
        )
        groups = self.grader.grade(written).groups
        told = policy_figures(groups, self.reader)
        prm = self.training.learners.get("prm")
        if prm is None:
            return told
        return told | prm_figures(groups, self.reader, self.tokenizer, prm.model, self.reference)

    def save_models(self) -> dict[str, Path]:
        """Each trained model as a folder that transformers, vLLM and `rung models import` read."""
        folders = {}
        for name, learner in self.training.learners.items():
            folders[name] = self.out / name
            learner.model.model.save_pretrained(folders[name])
            for file in _TOKENIZER_FILES:
                if (self.folder / file).is_file():
                    shutil.copyfile(self.folder / file, folders[name] / file)
        self._write_golden_items()
        return folders

    def _write_golden_items(self) -> None:
        """`golden.jsonl`: problems and steps for the golden scores of whoever imports the models.

        The importer's own are in plain English, which a model over a small alphabet cannot read.
        """
        written = self.writer.write(
            held_out_problems(self.job, NUM_GOLDEN), seed="golden", policy_step=0, per_problem=1
        )
        lines = []
        for (rollout,) in written:
            spans = self.reader.step_spans(rollout.text)
            steps = [
                rollout.text[start:end].removesuffix(self.reader.separator) for start, end in spans
            ]
            if steps:
                item = {"problem": rollout.problem.text, "steps": steps}
                lines.append(json.dumps(item, ensure_ascii=False))
        (self.out / GOLDEN).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def assemble(job: TrainingJob, events: Events, out: Path, stack: ExitStack) -> Run:
    """Load the models and put a run together; `stack` ends the processes that grade.

    Raises InvalidInput, ModelFolderError, and Unavailable where graders cannot work here.
    """
    torch.manual_seed(job.seed)
    folder = _policy_folder(job, out)
    tokenizer = ChatTokenizer(folder)
    if tokenizer.eos_id is None:
        raise InvalidInput(
            f"policy: the tokenizer of {folder} names no end token, so that no response would ever "
            "end; set eos_token in its tokenizer_config.json",
            param="policy",
        )
    policy = TrainedLM.load(folder, device=job.device)
    reference = _reference(job, folder, policy)
    writer = InProcessWriter(
        policy,
        tokenizer,
        job.rollouts,
        max_tokens=_max_tokens(job),
    )
    problems = problems_of(job)
    grader = _grader(job.data, stack)
    shared: dict[str, Any] = {"job": job, "problems": problems, "events": events}
    training: Training
    match job.algorithm:
        case Sft():
            assert isinstance(job.data, TaskData)
            learner = Learner("policy", policy, job.optimizer, job.steps)
            training = Imitation(data=job.data, tokenizer=tokenizer, policy=learner, **shared)
        case ImplicitPrm() as settings:
            assert reference is not None
            prm = _prm(job, folder, job.prm_optimizer or job.optimizer)
            policy.freeze()
            training = OfflinePrm(
                writer=writer,
                grader=grader,
                prm=prm,
                teacher=ImplicitTeacher(settings, prm, reference),
                reference=reference,
                **shared,
            )
        case Repirl() as settings if not job.train_policy:
            assert reference is not None
            policy.freeze()
            teacher = _irl_teacher(job, settings, folder, tokenizer, policy, reference)
            training = OfflineIrl(
                writer=writer, grader=grader, prm=teacher.learner, teacher=teacher, **shared
            )
        case Rloo() | Grpo() | LambdaGrpo() | Prl() | Prime() | Repirl():
            total = job.steps * job.optimizer.minibatches
            training = OnlineTraining(
                writer=writer,
                grader=grader,
                credit=_credit(job, folder, tokenizer, policy, reference),
                policy=Learner("policy", policy, job.optimizer, total),
                **shared,
            )
        case other:
            raise InvalidInput(f"algorithm: {other.type} cannot be run as a job", param="algorithm")
    return Run(
        job=job,
        out=out,
        folder=folder,
        tokenizer=tokenizer,
        training=training,
        writer=writer,
        grader=grader,
        reader=_reader(job.data),
        reference=reference,
    )


def _max_tokens(job: TrainingJob) -> int:
    if job.rollouts.max_tokens is not None:
        return job.rollouts.max_tokens
    assert isinstance(job.data, TaskData)
    return job.data.task.max_tokens


def _grader(data: TaskData | FileData, stack: ExitStack) -> Grader:
    """The task itself where it knows; else workers, which are started here."""
    if isinstance(data, TaskData) and data.task.graded_by == "task":
        return TaskGrader(data.task)
    is_math = isinstance(data, FileData) and data.grading == "math"
    verifier: Verifier = MathVerifier() if is_math else CodeVerifier()
    return VerifiedGrader(stack.enter_context(VerifierPool(verifier)))


def _reader(data: TaskData | FileData) -> ResponseReader:
    if isinstance(data, TaskData):
        return ResponseReader.of_task(data.task)
    return ResponseReader.of_text(data.separator)


def _credit(
    job: TrainingJob,
    folder: Path,
    tokenizer: ChatTokenizer,
    policy: TrainedLM,
    reference: TrainedLM | None,
) -> Credit:
    match job.algorithm:
        case Repirl() as settings:
            assert reference is not None
            teacher = _irl_teacher(job, settings, folder, tokenizer, policy, reference)
            return RepirlCredit(settings, teacher)
        case Prime() as settings:
            assert job.prm_optimizer is not None
            return PrimeCredit(settings, _prm(job, folder, job.prm_optimizer), reference)
        case Rloo() | Grpo() | LambdaGrpo() | Prl() as settings:
            return OutcomeCredit(settings, reference, tokenizer, job.optimizer.micro_tokens)
        case other:
            raise AssertionError(other)


def _irl_teacher(
    job: TrainingJob,
    settings: Repirl,
    folder: Path,
    tokenizer: ChatTokenizer,
    policy: TrainedLM,
    reference: TrainedLM,
) -> IrlTeacher:
    if settings.read_out == "head":
        raise InvalidInput(
            'algorithm.read_out: a job trains the "log_ratio" read-out; "head" is not built into '
            "the loop",
            param="algorithm.read_out",
        )
    assert isinstance(job.data, TaskData)
    experts = TaskExperts(job.data.task, tokenizer, job.demonstrations, job.seed)
    prm = _prm(job, folder, job.prm_optimizer or job.optimizer)
    return IrlTeacher(settings, prm, policy, reference, experts)


def _policy_folder(job: TrainingJob, out: Path) -> Path:
    """The policy's folder; that of a new model is made first, in the run's."""
    if isinstance(job.policy, Path):
        return job.policy
    folder = out / "initial"
    assert isinstance(job.data, TaskData)
    alphabet = job.data.task.alphabet
    size = ModelSize(**{f.name: getattr(job.policy, f.name) for f in fields(ModelSize)})
    save_model(new_model(size, seed=job.seed, alphabet=alphabet), folder, alphabet=alphabet)
    return folder


def _reference(job: TrainingJob, folder: Path, policy: TrainedLM) -> TrainedLM | None:
    if not job.algorithm.needs_reference:
        return None
    found = TrainedLM.load(job.reference or folder, device=job.device).freeze()
    _check_same_ids("reference", found, policy)
    return found


def _prm(job: TrainingJob, folder: Path, optimizer: Optimizer) -> Learner:
    """φ, which begins as the policy where the job names no other."""
    model = TrainedLM.load(job.prm or folder, device=job.device)
    return Learner("prm", model, optimizer, job.steps)


def _check_same_ids(field: str, model: TrainedLM, policy: TrainedLM) -> None:
    ours, theirs = policy.engine.num_ids, model.engine.num_ids
    if ours != theirs:
        raise InvalidInput(
            f"{field}: it has {theirs} tokens and the policy {ours}: log-probs of the same ids can "
            "only be compared between models of one vocabulary",
            param=field,
        )
