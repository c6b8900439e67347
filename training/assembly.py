"""From a job to what runs it: models, who writes, who grades, who assigns credit."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from training.bench import Bench, RolloutBench
from training.checkpoints import ModelSize, new_model, save_model
from training.credit.base import Credit
from training.credit.implicit import ImplicitTeacher
from training.credit.outcome import OutcomeCredit
from training.credit.prime import PrimeCredit
from training.credit.repirl import RepirlCredit
from training.events import Events
from training.grades import Grader, OutcomeGrader, SharedGrader
from training.held_out import ResponseReader
from training.job_models import JobModels
from training.learner import Learner
from training.loop import OnlineTraining
from training.lora import AdaptedLM
from training.models import TrainedLM
from training.prm_assembly import (
    check_alone,
    check_same_ids,
    irl_teacher,
    labelled_parts,
    prm_learner,
    step_teacher,
    trained_prm,
)
from training.problems import problems_of
from training.ranks import ALONE, Ranks
from training.served import GOLDEN, GOLDEN_PRM, HELD_OUT
from training.settings import Grpo, ImplicitPrm, LambdaGrpo, Prime, Prl, Repirl, Rloo, Sft, StepBce
from training.spec import Evaluation, FileData, LabelledData, TaskData, TrainingJob
from training.step_labels import MonteCarloLabels, StepLabeller, TaskLabels
from training.supervised import Imitation, OfflineIrl, OfflinePrm, OfflineSteps
from training.telling import PrmJudge
from training.trained_prm import TrainedPrm
from training.verifiers import CodeVerifier, MathVerifier, TaskJudge, Verifier, VerifierPool
from training.writers import InProcessWriter, Writer

NUM_GOLDEN = 8
# What makes a folder a model's, beside its weights.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Training(Protocol):
    """One kind of loop."""

    @property
    def learners(self) -> dict[str, Learner[Any]]: ...
    def step(self, number: int) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A job's loop, and what is done beside it."""

    job: TrainingJob
    out: Path
    folder: Path
    tokenizer: ChatTokenizer
    training: Training
    bench: Bench
    reference: TrainedLM | None
    prm: TrainedPrm | None
    ranks: Ranks

    def evaluate(self, settings: Evaluation) -> dict[str, float]:
        """See `Bench.evaluate`."""
        return self.bench.evaluate(settings, self.training.learners)

    def save_models(self) -> dict[str, Path]:
        """Each trained model as a folder that transformers, vLLM and `rung models import` read."""
        folders = {}
        for name, learner in self.training.learners.items():
            folders[name] = self.out / name
            learner.model.save(folders[name])
            if isinstance(learner.model, AdaptedLM):
                learner.model.save_adapter(self.out / f"{name}-adapter")
            for file in _TOKENIZER_FILES if self.ranks.index == 0 else ():
                if (self.folder / file).is_file():
                    shutil.copyfile(self.folder / file, folders[name] / file)
        self._write_golden_items()
        self._write_held_out()
        self.ranks.wait()
        return folders

    def _write_golden_items(self) -> None:
        """`golden.jsonl`: problems and steps for the golden scores of whoever imports the models.

        The importer's own are in plain English, which a model over a small alphabet cannot read.
        `golden-prm.jsonl`: the same with the raw scores that the trainer's own weights give, which
        an importer has to come to.
        """
        items = self.bench.items(NUM_GOLDEN, self.training.learners)
        scored = []
        for problem, steps in items if self.prm is not None else ():
            assert self.prm is not None
            raw = self.prm.raw_of_steps(problem, steps)
            if raw is not None:
                scored.append({"problem": problem, "steps": steps, "raw": raw})
        if self.ranks.index == 0:
            _write_lines(self.out / GOLDEN, [{"problem": p, "steps": s} for p, s in items])
            if scored:
                _write_lines(self.out / GOLDEN_PRM, scored)

    def _write_held_out(self) -> None:
        """`held_out.jsonl`: of a run whose PRM learnt from rollouts, what the gate judges it on."""
        if self.prm is None or not self.job.evaluation:
            return
        lines = self.bench.labelled(self.job.evaluation, self.training.learners)
        if lines and self.ranks.index == 0:
            _write_lines(self.out / HELD_OUT, lines)


def _write_lines(path: Path, items: Sequence[object]) -> None:
    lines = [json.dumps(item, ensure_ascii=False) for item in items]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def assemble(
    job: TrainingJob, events: Events, out: Path, stack: ExitStack, ranks: Ranks = ALONE
) -> Run:
    """Load the models and put a run together; `stack` ends the processes that grade.

    Raises InvalidInput, ModelFolderError, and Unavailable where graders cannot work here.
    """
    torch.manual_seed(job.seed)
    check_alone(job, ranks)
    models = JobModels(job, _policy_folder(job, out, ranks), ranks)
    # The texts of files are read by the PRM alone, and so by its own tokenizer.
    by_prm = isinstance(job.data, LabelledData)
    folder = models.prm_folder if by_prm else models.folder
    tokenizer = ChatTokenizer(folder)
    if tokenizer.eos_id is None:
        raise InvalidInput(
            f"{'prm' if by_prm and job.prm else 'policy'}: the tokenizer of {folder} names no end "
            "token, so that no response would ever end; set eos_token in its tokenizer_config.json",
            param="policy",
        )
    policy = models.policy()
    reference = _reference(job, models, policy)
    common: dict[str, Any] = {
        "job": job,
        "out": out,
        "folder": folder,
        "tokenizer": tokenizer,
        "reference": reference,
        "ranks": ranks,
    }
    if isinstance(job.data, LabelledData):
        prm, labelled, measured = labelled_parts(job, job.data, models, reference, events)
        return Run(training=labelled, bench=measured, prm=prm, **common)
    writer = _writer(job, policy, tokenizer, events, out, stack)
    grader = SharedGrader(_grader(job.data, stack), ranks)
    reader = _reader(job.data)
    training = _training(job, models, tokenizer, policy, reference, writer, grader, reader, events)
    learner = training.learners.get("prm")
    own = None if learner is None else trained_prm(job, folder, learner, reference)
    bench = RolloutBench(
        job=job,
        tokenizer=tokenizer,
        writer=writer,
        grader=grader,
        reader=reader,
        reference=reference,
        prm=own,
        ranks=ranks,
    )
    return Run(training=training, bench=bench, prm=own, **common)


def _training(
    job: TrainingJob,
    models: JobModels,
    tokenizer: ChatTokenizer,
    policy: TrainedLM,
    reference: TrainedLM | None,
    writer: Writer,
    grader: Grader,
    reader: ResponseReader,
    events: Events,
) -> Training:
    """The job's loop, of rollouts or of a task's solutions."""
    shared: dict[str, Any] = {"job": job, "problems": problems_of(job), "events": events}
    judge = PrmJudge(reader, tokenizer)
    rolled: dict[str, Any] = {"writer": writer, "grader": grader, "judge": judge, **shared}
    match job.algorithm:
        case Sft():
            assert isinstance(job.data, TaskData)
            learner = Learner("policy", policy, job.optimizer, job.steps)
            return Imitation(data=job.data, tokenizer=tokenizer, policy=learner, **shared)
        case ImplicitPrm() as settings:
            assert reference is not None
            prm = prm_learner(job, models)
            policy.freeze()
            teacher = ImplicitTeacher(settings, prm, reference)
            return OfflinePrm(prm=prm, teacher=teacher, reference=reference, **rolled)
        case StepBce() as settings:
            policy.freeze()
            steps = step_teacher(job, settings, models, reference)
            labeller: StepLabeller = (
                TaskLabels(reader)
                if settings.labels == "step"
                else MonteCarloLabels(
                    settings, policy, tokenizer, reader, grader, job.rollouts,
                    max_tokens=_max_tokens(job),
                )
            )  # fmt: skip
            return OfflineSteps(
                prm=steps.learner,
                teacher=steps,
                labeller=labeller,
                reader=reader,
                trained=trained_prm(job, models.folder, steps.learner, reference),
                **rolled,
            )
        case Repirl() as settings if not job.train_policy:
            policy.freeze()
            irl = irl_teacher(job, settings, models, tokenizer, policy, reference)
            return OfflineIrl(prm=irl.learner, teacher=irl, **rolled)
        case Rloo() | Grpo() | LambdaGrpo() | Prl() | Prime() | Repirl():
            total = job.steps * job.optimizer.minibatches
            return OnlineTraining(
                credit=_credit(job, models, tokenizer, policy, reference),
                policy=Learner("policy", policy, job.optimizer, total),
                reference=reference,
                **rolled,
            )


def _writer(
    job: TrainingJob,
    policy: TrainedLM,
    tokenizer: ChatTokenizer,
    events: Events,
    out: Path,
    stack: ExitStack,
) -> Writer:
    """This process; or the job's server, whose connections `stack` ends."""
    most = _max_tokens(job)
    if (wanted := job.rollouts.server) is None:
        return InProcessWriter(policy, tokenizer, job.rollouts, max_tokens=most)
    if policy.ranks.count > 1:
        raise InvalidInput(
            f"rollouts.server: {policy.ranks.count} processes train, and one would have to speak "
            "for them; start one process, or leave it out",
            param="rollouts.server",
        )
    from training.vllm_writer import VllmWriter
    from training.weight_updates import RolloutServer, WeightsOnDisk

    folder = (wanted.weights_folder or out) / f"weights-{job.name}"
    server = RolloutServer(wanted.url, api_key=os.environ.get(wanted.key_variable))
    weights = WeightsOnDisk(folder, policy)
    writer = VllmWriter(policy, tokenizer, job.rollouts, server, weights, events, max_tokens=most)
    return stack.enter_context(writer)


def _max_tokens(job: TrainingJob) -> int:
    if job.rollouts.max_tokens is not None:
        return job.rollouts.max_tokens
    assert isinstance(job.data, TaskData)
    return job.data.task.max_tokens


def _grader(data: TaskData | FileData, stack: ExitStack) -> Grader:
    """The task itself where it knows; else workers, which are started here."""
    if isinstance(data, TaskData) and data.task.graded_by == "task":
        return OutcomeGrader(TaskJudge(data.task))
    is_math = isinstance(data, FileData) and data.grading == "math"
    verifier: Verifier = MathVerifier() if is_math else CodeVerifier()
    return OutcomeGrader(stack.enter_context(VerifierPool(verifier)))


def _reader(data: TaskData | FileData) -> ResponseReader:
    if isinstance(data, TaskData):
        return ResponseReader.of_task(data.task)
    return ResponseReader.of_text(data.separator)


def _credit(
    job: TrainingJob,
    models: JobModels,
    tokenizer: ChatTokenizer,
    policy: TrainedLM,
    reference: TrainedLM | None,
) -> Credit:
    match job.algorithm:
        case Repirl() as settings:
            teacher = irl_teacher(job, settings, models, tokenizer, policy, reference)
            return RepirlCredit(settings, teacher)
        case Prime() as settings:
            prm = prm_learner(job, models)
            if settings.update == "never":
                prm.model.freeze()
            return PrimeCredit(settings, prm, reference)
        case Rloo() | Grpo() | LambdaGrpo() | Prl() as settings:
            return OutcomeCredit(
                settings,
                reference,
                tokenizer,
                job.optimizer.micro_tokens,
                job.rollouts.temperature,
            )
        case other:
            raise AssertionError(other)


def _policy_folder(job: TrainingJob, out: Path, ranks: Ranks) -> Path:
    """The policy's folder; that of a new model is made first, in the run's."""
    if isinstance(job.policy, Path):
        return job.policy
    folder = out / "initial"
    assert isinstance(job.data, TaskData)
    alphabet = job.data.task.alphabet
    size = ModelSize(**{f.name: getattr(job.policy, f.name) for f in fields(ModelSize)})
    if ranks.index == 0:
        save_model(new_model(size, seed=job.seed, alphabet=alphabet), folder, alphabet=alphabet)
    ranks.wait()
    return folder


def _reference(job: TrainingJob, models: JobModels, policy: TrainedLM) -> TrainedLM | None:
    if not (job.algorithm.needs_reference or job.reference_kl_every):
        return None
    found = models.reference()
    check_same_ids("reference", found, policy)
    return found
