"""The three pieces of work: imitate, roll out, learn from outcomes. Folders in, folders out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from training.algorithms.implicit_prm import implicit_prm_loss, sequence_log_ratio
from training.algorithms.sft import sft_loss
from training.checkpoints import load_model, new_model, save_model
from training.data import Batch, Example, batches, encode_example
from training.demonstration.settings import DemoSettings
from training.logprobs import response_logprobs
from training.optimizer import OptimizerSettings, fit
from training.progress import stage
from training.rollouts import sample_rollouts
from training.scoring import FORWARD_ROWS
from training.tasks import arithmetic
from training.tasks.base import Split
from training.tasks.slips import write_solution
from training.types import Rollout

Groups = Sequence[Sequence[Rollout]]


def train_policy(settings: DemoSettings, folder: Path) -> None:
    """SFT from random weights, on slipping solutions to problems that are each seen once."""
    model = new_model(settings.size, seed=settings.seed)
    save_model(model, folder)
    examples = _solutions(settings, ChatTokenizer(folder))
    with stage("policy", settings.sft_steps) as advance:
        fit(
            model,
            batches(examples, settings.sft_batch_size, settings.seed),
            lambda batch: sft_loss(response_logprobs(model, batch), batch.is_target),
            OptimizerSettings(lr=settings.sft_lr),
            num_steps=settings.sft_steps,
            on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
    save_model(model, folder)


def roll_out(
    settings: DemoSettings,
    policy_folder: Path,
    split: Split,
    num_problems: int,
    per_problem: int,
) -> Groups:
    """The policy's answers, at temperature 1, to problems of one split."""
    problems = arithmetic.problems(settings.seed + 1, num_problems, split, settings.operations)
    with stage(f"rollouts ({split})", num_problems * per_problem) as advance:
        return sample_rollouts(
            CausalLM.load(policy_folder, device="cpu", dtype=torch.float32),
            ChatTokenizer(policy_folder),
            problems,
            per_problem=per_problem,
            seed=settings.seed + 1,
            on_done=lambda count: advance(count, ""),
        )


def train_prm(settings: DemoSettings, policy_folder: Path, folder: Path, rollouts: Groups) -> None:
    """Cross-entropy on outcome labels; φ starts from the policy, which stays the reference."""
    model = load_model(policy_folder)
    examples = _labelled(rollouts, policy_folder)
    num_steps = settings.prm_epochs * -(-len(examples) // settings.prm_batch_size)

    def loss_of(batch: Batch) -> torch.Tensor:
        log_ratio = sequence_log_ratio(
            response_logprobs(model, batch), batch.is_target, batch.reference_logprobs
        )
        return implicit_prm_loss(log_ratio, batch.labels, beta=settings.beta)

    with stage("prm", num_steps) as advance:
        fit(
            model,
            _epochs(settings, examples),
            loss_of,
            OptimizerSettings(lr=settings.prm_lr),
            num_steps=num_steps,
            on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
    save_model(model, folder)


def _solutions(settings: DemoSettings, tokenizer: ChatTokenizer) -> list[Example]:
    count = settings.sft_steps * settings.sft_batch_size
    problems = arithmetic.problems(settings.seed, count, "train", settings.operations)
    rng = Random(settings.seed)
    return [
        encode_example(
            tokenizer,
            problem,
            arithmetic.SEPARATOR.join(write_solution(problem, rng, settings.slip_probability)),
        )
        for problem in problems
    ]


def _labelled(rollouts: Groups, reference_folder: Path) -> list[Example]:
    """Rollouts as examples: outcome label, and what the reference makes of the response."""
    tokenizer = ChatTokenizer(reference_folder)
    reference = CausalLM.load(reference_folder, device="cpu", dtype=torch.float32)
    examples = [
        encode_example(
            tokenizer,
            rollout.problem,
            arithmetic.SEPARATOR.join(rollout.steps),
            label=float(rollout.is_correct),
        )
        for group in rollouts
        for rollout in group
    ]
    labelled: list[Example] = []
    for start in range(0, len(examples), FORWARD_ROWS):
        chunk = examples[start : start + FORWARD_ROWS]
        logprobs = reference.logprobs([e.ids for e in chunk], [e.first for e in chunk])
        labelled += [
            replace(example, reference_logprob=float(row.sum()))
            for example, row in zip(chunk, logprobs, strict=True)
        ]
    return labelled


def _epochs(settings: DemoSettings, examples: Sequence[Example]) -> Iterator[Batch]:
    for epoch in range(settings.prm_epochs):
        yield from batches(examples, settings.prm_batch_size, settings.seed + epoch)
