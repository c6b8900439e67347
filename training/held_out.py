"""What a policy, and a PRM beside it, are worth on problems that nobody trained on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from prm.chat import ChatTokenizer
from training.credit.base import frozen_logprobs
from training.evaluate import harmonic_mean, predicted_error
from training.metrics import average_at_n, pass_at_n
from training.models import TrainedLM
from training.rollout_batch import Group, RolloutBatch, Written
from training.tasks import Task
from training.tasks.base import separated_spans
from training.types import Problem

MICRO_TOKENS = 32_768


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
    scores = step_rewards(groups, reader, tokenizer, prm, reference)
    told = {
        "best_of_n_min": _best_of_n(groups, [[min(steps) for steps in own] for own in scores]),
        "best_of_n_sum": _best_of_n(groups, [[sum(steps) for steps in own] for own in scores]),
    }
    if reader.first_error is None:
        return told
    labels = [[reader.first_error(r.problem, r.text) for r in group] for group in groups]
    return told | {"first_error_f1": _first_error_f1(scores, labels)}


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
    return [[_by_step(*next(rows), reader, tokenizer) for _ in group] for group in groups]


def _by_step(
    rollout: Written, ratio: torch.Tensor, reader: ResponseReader, tokenizer: ChatTokenizer
) -> list[float]:
    ends = [end for _, end in reader.step_spans(rollout.text)] or [len(rollout.text)]
    offsets = tokenizer.encode_response(rollout.text).char_offsets
    sums = [0.0] * len(ends)
    step = 0
    for place in range(len(rollout.logprobs)):
        if place < len(offsets):
            while step < len(ends) - 1 and offsets[place][0] >= ends[step]:
                step += 1
        sums[step] += float(ratio[place])
    return sums


def _best_of_n(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> float:
    picked = [
        group[max(range(len(group)), key=lambda place: own[place])]
        for group, own in zip(groups, scores, strict=True)
    ]
    return sum(rollout.reward >= 1 for rollout in picked) / len(picked)


def _first_error_f1(
    scores: Sequence[Sequence[Sequence[float]]], labels: Sequence[Sequence[int | None]]
) -> float:
    half = len(scores) // 2
    flat = sorted({value for group in scores[:half] for steps in group for value in steps})
    thresholds = flat[:: max(1, len(flat) // 200)] or [0.0]
    best = max(thresholds, key=lambda cut: _f1(scores[:half], labels[:half], cut))
    return _f1(scores[half:], labels[half:], best)


def _f1(
    scores: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[int | None]],
    threshold: float,
) -> float:
    """The harmonic mean of the accuracies on erroneous and on right responses."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for group, own in zip(scores, labels, strict=True):
        for steps, label in zip(group, own, strict=True):
            hits[label is None].append(predicted_error(steps, threshold) == label)
    wrong, right = (sum(h) / len(h) if h else 0.0 for h in (hits[False], hits[True]))
    return harmonic_mean(wrong, right)
