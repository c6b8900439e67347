"""A PRM learns step labels: by a head with two classes, or by an implicit PRM's Q at their ends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from prm.families.base import EncodedTrajectory, HeadRead, LogprobRead
from training.algorithms.implicit_prm import token_rewards
from training.algorithms.prime import pair_accuracy
from training.algorithms.step_bce import prefix_logits, step_bce_losses
from training.data import Example
from training.heads import TrainedHead
from training.held_out import first_error_f1
from training.learner import Learner
from training.models import TrainedLM, response_mask
from training.settings import StepBce
from training.trained_prm import pieces


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """A response as its PRM reads it, with a label in [0, 1] per step; None: nobody knows.

    `group` numbers its problem, `reward` is its outcome where that is known. `first_error` (None:
    there is none) counts where `knows_first_error`.
    """

    encoded: EncodedTrajectory
    labels: tuple[float | None, ...]
    group: int = 0
    reward: float | None = None
    first_error: int | None = None
    knows_first_error: bool = False


class StepLogits(Protocol):
    """A PRM, and the logit that it gives each step."""

    @property
    def learner(self) -> Learner[Any]:
        """What trains."""
        ...

    def __call__(self, encoded: Sequence[EncodedTrajectory]) -> Float[Tensor, "steps"]:
        """All steps of these, in order, with gradients."""
        ...


class HeadLogits:
    """Right minus wrong, of a head with two classes."""

    def __init__(self, learner: Learner[TrainedHead]) -> None:
        self.learner = learner

    def __call__(self, encoded: Sequence[EncodedTrajectory]) -> Float[Tensor, "steps"]:
        """See `StepLogits`."""
        reads = [read for item in encoded for read in item.reads if isinstance(read, HeadRead)]
        classes = self.learner.model.steps([(read.ids, read.positions) for read in reads])
        return classes[:, 1] - classes[:, 0]


class RatioLogits:
    """β · log-ratio from the response's first token to the step's last one."""

    def __init__(self, learner: Learner, reference: TrainedLM, beta: float) -> None:
        self.learner = learner
        self._reference = reference
        self._beta = beta

    def __call__(self, encoded: Sequence[EncodedTrajectory]) -> Float[Tensor, "steps"]:
        """See `StepLogits`."""
        reads = [item.reads[0] for item in encoded]
        examples = [
            Example(ids=read.ids, first=read.first)
            for read in reads
            if isinstance(read, LogprobRead)
        ]
        ours = self.learner.model.logprobs(examples)
        with torch.no_grad():
            theirs = self._reference.logprobs(examples)
        mask = response_mask(examples, ours.device)
        ends = torch.zeros_like(mask)
        for row, item in enumerate(encoded):
            ends[row, [end - 1 for end in item.step_values]] = True
        most = max(len(item.step_values) for item in encoded)
        rewards = token_rewards(ours, theirs, mask, beta=self._beta)
        logits, is_step = prefix_logits(rewards, ends, most)
        return logits[is_step]


class StepTeacher:
    """One optimizer step per batch of labelled responses."""

    def __init__(self, settings: StepBce, logits: StepLogits) -> None:
        self.learner: Learner[Any] = logits.learner
        self._settings = settings
        self._logits = logits

    def teach(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Minimise the loss on these once; without a label nothing is learnt. Raises Diverged.

        What is told of the PRM is what it knew of these responses before it saw them.
        """
        labelled = sum(label is not None for item in judged for label in item.labels)
        if not labelled:
            return {"prm_labelled_steps": 0.0}
        before: list[list[float]] = []
        step = self.learner.step(self._losses(judged, labelled, before))
        return {f"prm_{name}": value for name, value in step.items()} | {
            "prm_labelled_steps": float(labelled),
            **step_figures(judged, before),
        }

    def _losses(
        self, judged: Sequence[Judged], total: int, before: list[list[float]]
    ) -> Iterator[Float[Tensor, ""]]:
        """The loss in parts; the logits on the way go to `before`."""
        items = iter(judged)
        micro = self.learner.settings.micro_tokens
        for piece in pieces([item.encoded for item in judged], micro):
            some = [next(items) for _ in piece]
            logits = self._logits(piece)
            labels = [label for item in some for label in item.labels]
            known = torch.tensor([label is not None for label in labels], device=logits.device)
            targets = torch.tensor([label or 0.0 for label in labels], device=logits.device)
            losses = step_bce_losses(logits[None], targets[None], known[None], self._settings)
            told = iter(logits.tolist())
            before += [[next(told) for _ in item.labels] for item in some]
            yield losses.sum() / total


def step_figures(judged: Sequence[Judged], logits: Sequence[Sequence[float]]) -> dict[str, float]:
    """How logits fit the labels: of steps, of first errors, and of right against wrong responses.

    A response's score is its least logit. Figures of which nothing is known are left out.
    """
    pairs = [
        (logit, label)
        for item, row in zip(judged, logits, strict=True)
        for logit, label in zip(row, item.labels, strict=True)
        if label is not None
    ]
    told = {
        "prm_step_accuracy": sum((z > 0) == (y > 0.5) for z, y in pairs) / max(1, len(pairs)),
        "prm_right_steps": sum(y for _, y in pairs) / max(1, len(pairs)),
    }
    known = [
        (item.group, row, item.first_error)
        for item, row in zip(judged, logits, strict=True)
        if item.knows_first_error
    ]
    if known:
        groups = sorted({group for group, _, _ in known})
        told["prm_first_error_f1"] = first_error_f1(
            [[row for of, row, _ in known if of == group] for group in groups],
            [[error for of, _, error in known if of == group] for group in groups],
        )
    if all(item.reward is not None for item in judged):
        told["prm_pair_accuracy"] = float(
            pair_accuracy(
                torch.tensor([min(row) for row in logits]),
                torch.tensor([float(item.reward or 0.0) for item in judged]),
                torch.tensor([item.group for item in judged]),
            )
        )
    return told
