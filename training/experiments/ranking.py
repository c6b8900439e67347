"""What a PRM is worth as a judge of rollouts: which one it picks, where it sees the first error."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prm.chat import ChatTokenizer
from prm.engine.loading import read_config
from search.selection import pick
from training.algorithms.repirl import head_rewards
from training.heads import TrainedHead
from training.held_out import ResponseReader, by_step, ranking_figures, step_rewards
from training.models import TrainedLM
from training.rollout_batch import Group, RolloutBatch, Written
from training.tasks import Task

Scores = Sequence[Sequence[float]]


def ranking(
    groups: Sequence[Group], task: Task, prm: Path, reference: Path | None
) -> dict[str, float]:
    """What a folder's PRM makes of them; without a reference its log-probs are the rewards.

    best_of_n        the response of the highest mean token reward is right
    vote             so is the answer of the largest Σ exp(mean token reward): rePIRL's evaluator
    auc              a right response outranks a wrong one of its problem
    first_error_f1   ProcessBench's, by a threshold that half of the problems chose for the others
    """
    reader = ResponseReader.of_task(task)
    steps = _step_rewards(groups, reader, prm, reference)
    means = [
        [math.fsum(rewards) / len(rollout.logprobs) for rollout, rewards in zip(*both, strict=True)]
        for both in zip(groups, steps, strict=True)
    ]
    return {
        "best_of_n": best_of_n(groups, means),
        "vote": weighted_vote(groups, means, task),
        "auc": auc_within(groups, means),
        "first_error_f1": ranking_figures(groups, reader, steps)["first_error_f1"],
    }


def _step_rewards(
    groups: Sequence[Group], reader: ResponseReader, prm: Path, reference: Path | None
) -> list[list[list[float]]]:
    """Token rewards summed over each step: of a head over actions, or log-ratios."""
    tokenizer = ChatTokenizer(prm)
    config = read_config(prm)
    if not (config.architectures or [""])[0].endswith("ForTokenClassification"):
        divisor = None if reference is None else TrainedLM.load(reference).freeze()
        return step_rewards(groups, reader, tokenizer, TrainedLM.load(prm).freeze(), divisor)
    assert config.num_labels is not None
    head = TrainedHead.load(prm, config.num_labels)
    return [[by_step(*row, reader, tokenizer) for row in _head_rows(head, g)] for g in groups]


@torch.no_grad()
def _head_rows(head: TrainedHead, group: Group) -> Iterator[tuple[Written, Tensor]]:
    batch = RolloutBatch.of([group])
    rewards = head_rewards(head.actions(batch.examples), batch.mask)
    return zip(batch.rollouts, rewards, strict=True)


def best_of_n(groups: Sequence[Group], scores: Scores) -> float:
    """The share of problems whose best-scored response is right; of equals the first."""
    return _right(groups, [pick([None] * len(own), None, own) for own in scores])


def weighted_vote(groups: Sequence[Group], scores: Scores, task: Task) -> float:
    """The share of problems whose answer of the largest Σ exp(score) is right.

    The best-scored response with that answer counts: a right answer in a wrong format is not right.
    """
    picked = []
    for group, own in zip(groups, scores, strict=True):
        answers = [task.answer_of(rollout.text) for rollout in group]
        classes = [None if answer is None else answers.index(answer) for answer in answers]
        # A vote weighs at most 1; the winner is the same whatever all are divided by.
        picked.append(pick(classes, [math.exp(score - max(own)) for score in own], own))
    return _right(groups, picked)


def _right(groups: Sequence[Group], picked: Sequence[int | None]) -> float:
    hits = [
        place is not None and group[place].reward >= 1
        for group, place in zip(groups, picked, strict=True)
    ]
    return sum(hits) / len(hits)


def auc_within(groups: Sequence[Group], scores: Scores) -> float:
    """The chance that a right response scores above a wrong one of its problem, ties a half.

    A mean over the problems that have both; 0.5 where none has. Across problems it would reward
    knowing which of them are easy.
    """
    found = []
    for group, own in zip(groups, scores, strict=True):
        right = [score for rollout, score in zip(group, own, strict=True) if rollout.reward >= 1]
        wrong = [score for rollout, score in zip(group, own, strict=True) if rollout.reward < 1]
        if right and wrong:
            wins = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
            found.append(wins / (len(right) * len(wrong)))
    return math.fsum(found) / len(found) if found else 0.5
