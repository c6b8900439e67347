"""What a policy, and a PRM beside it, are worth on problems that nobody trained on."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from prm.chat import ChatTokenizer
from prm.types import Step, Trajectory
from training.credit.base import frozen_logprobs
from training.data import messages_of
from training.metrics import average_at_n, pass_at_n
from training.models import TrainedLM
from training.rollout_batch import Group, RolloutBatch, Written
from training.tasks import Task
from training.tasks.base import separated_spans
from training.types import Problem

MICRO_TOKENS = 32_768
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseReader:
    """How responses are read: steps always, answers and first errors where a task knows them."""

    step_spans: Callable[[str], Sequence[tuple[int, int]]]
    separator: str
    answer_of: Callable[[str], str | None] | None = None
    first_error: Callable[[Problem, str], int | None] | None = None

    @classmethod
    def of_task(cls, task: Task) -> "ResponseReader":
        """A task's own way."""
        # Of programs nobody knows an answer to vote on.
        is_exact = task.graded_by == "task"
        return cls(
            step_spans=task.step_spans,
            separator=task.separator,
            answer_of=task.answer_of if is_exact else None,
            first_error=task.first_error,
        )

    @classmethod
    def of_text(cls, separator: str) -> "ResponseReader":
        """Steps that end with a separator."""
        return cls(step_spans=lambda text: separated_spans(text, separator), separator=separator)


def policy_figures(groups: Sequence[Group], reader: ResponseReader) -> dict[str, float]:
    """avg@n, pass@n and majority@n; in a vote between equals the one seen first wins."""
    correct = [[rollout.reward >= 1 for rollout in group] for group in groups]
    told = {"average": average_at_n(correct), "pass": pass_at_n(correct)}
    if reader.answer_of is None:
        return told
    votes = [[reader.answer_of(rollout.text) for rollout in group] for group in groups]
    winners = [Counter(vote for vote in row if vote is not None).most_common(1) for row in votes]
    right = [
        bool(winner) and any(ok for ok, vote in zip(row, own, strict=True) if vote == winner[0][0])
        for winner, row, own in zip(winners, correct, votes, strict=True)
    ]
    return told | {"majority": sum(right) / len(right)}


def prm_figures(
    groups: Sequence[Group],
    reader: ResponseReader,
    tokenizer: ChatTokenizer,
    prm: TrainedLM,
    reference: TrainedLM | None,
) -> dict[str, float]:
    """Best-of-n by the least step reward and by the sum, and how well first errors are found.

    `first_error_f1` is ProcessBench's (arXiv 2412.06559 §4), with the threshold that is best on
    half of the problems, read on the other half.
    """
    return ranking_figures(groups, reader, step_rewards(groups, reader, tokenizer, prm, reference))


def ranking_figures(
    groups: Sequence[Group], reader: ResponseReader, scores: Sequence[Sequence[Sequence[float]]]
) -> dict[str, float]:
    """The figures of `prm_figures`, of these step scores per rollout of each group."""
    told = {
        "best_of_n_min": _best_of_n(groups, [[min(steps) for steps in own] for own in scores]),
        "best_of_n_sum": _best_of_n(groups, [[sum(steps) for steps in own] for own in scores]),
    }
    if reader.first_error is None:
        return told
    labels = [[reader.first_error(r.problem, r.text) for r in group] for group in groups]
    return told | {"first_error_f1": first_error_f1(scores, labels)}


def step_rewards(
    groups: Sequence[Group],
    reader: ResponseReader,
    tokenizer: ChatTokenizer,
    prm: TrainedLM,
    reference: TrainedLM | None,
) -> list[list[list[float]]]:
    """log π_φ − log π_ref summed over each step's tokens, per rollout of each group.

    A response without a step has one, the whole; the end token belongs to the last step.
    """
    batch = RolloutBatch.of(groups)
    ratio = frozen_logprobs(prm, batch, MICRO_TOKENS)
    if reference is not None:
        ratio = ratio - frozen_logprobs(reference, batch, MICRO_TOKENS)
    rows = iter(zip(batch.rollouts, ratio, strict=True))
    return [[by_step(*next(rows), reader, tokenizer) for _ in group] for group in groups]


def trajectory_of(rollout: Written, reader: ResponseReader) -> Trajectory | None:
    """A rollout as a PRM's family takes it; None where it has no step."""
    steps = []
    for index, (start, end) in enumerate(reader.step_spans(rollout.text)):
        text = rollout.text[start:end].removesuffix(reader.separator)
        steps.append(Step(index=index, text=text, char_start=start, char_end=start + len(text)))
    if not steps:
        return None
    return Trajectory(
        messages=messages_of(rollout.problem),
        response=rollout.text,
        steps=tuple(steps),
        is_cut=True,
    )


def by_step(
    rollout: Written, rewards: torch.Tensor, reader: ResponseReader, tokenizer: ChatTokenizer
) -> list[float]:
    """Token rewards of a rollout summed over each of its steps; see `step_rewards`."""
    ends = [end for _, end in reader.step_spans(rollout.text)] or [len(rollout.text)]
    offsets = tokenizer.encode_response(rollout.text).char_offsets
    values = rewards.tolist()
    sums = [0.0] * len(ends)
    step = 0
    for place in range(len(rollout.logprobs)):
        if place < len(offsets):
            while step < len(ends) - 1 and offsets[place][0] >= ends[step]:
                step += 1
        sums[step] += values[place]
    return sums


def _best_of_n(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> float:
    picked = [
        group[max(range(len(group)), key=lambda place: own[place])]
        for group, own in zip(groups, scores, strict=True)
    ]
    return sum(rollout.reward >= 1 for rollout in picked) / len(picked)


def first_error_f1(
    scores: Sequence[Sequence[Sequence[float]]], labels: Sequence[Sequence[int | None]]
) -> float:
    """ProcessBench's F1 (arXiv 2412.06559 §4) of a group's rollouts with their first errors.

    The first step below a threshold is what the PRM calls the first error; the threshold is the
    best one on the first half of the groups, the F1 that of the second half.
    """
    half = len(scores) // 2
    flat = sorted({value for group in scores[:half] for steps in group for value in steps})
    thresholds = np.array(flat[:: max(1, len(flat) // 200)] or [0.0])
    tuned = _f1(scores[:half], labels[:half], thresholds)
    best = thresholds[int(tuned.argmax())]
    return float(_f1(scores[half:], labels[half:], np.array([best]))[0])


def _f1(
    scores: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[int | None]],
    thresholds: Floats,
) -> Floats:
    """Of each threshold, the harmonic mean of the accuracies on erroneous and right responses."""
    accuracies = []
    for is_erroneous in (True, False):
        spans = np.array(
            [
                _right_between(steps, label)
                for group, own in zip(scores, labels, strict=True)
                for steps, label in zip(group, own, strict=True)
                if (label is not None) == is_erroneous
            ]
        ).reshape(-1, 2)
        hits = (spans[:, :1] < thresholds) & (thresholds <= spans[:, 1:])
        accuracies.append(hits.mean(0) if len(spans) else np.zeros(len(thresholds)))
    wrong, right = accuracies
    total = wrong + right
    return np.where(total > 0, 2 * wrong * right / np.where(total > 0, total, 1.0), 0.0)


def _right_between(steps: Sequence[float], label: int | None) -> tuple[float, float]:
    """Thresholds above the first and up to the second find this first error, or that none is."""
    least = [math.inf, *accumulate(steps, min)]
    if label is None:
        return -math.inf, least[-1]
    return (least[label + 1], least[label]) if label < len(steps) else (math.inf, -math.inf)
