"""What a PRM says of sampled responses, step by step: which one it picks, which step it blames."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm.chat import ChatTokenizer
from training.evaluate import fit_threshold, step_accuracy, threshold_hits
from training.held_out import ResponseReader, step_rewards
from training.models import TrainedLM
from training.rollout_batch import Group
from training.tasks import Task
from training.types import Rollout

# Of each response of each group, what each of its steps is worth.
Scores = Sequence[Sequence[Sequence[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Responses of a policy, as they were sampled and with both labels."""

    groups: Sequence[Group]
    labelled: Sequence[Sequence[Rollout]]

    @classmethod
    def of(cls, task: Task, groups: Sequence[Group]) -> "Candidates":
        """Labels by the task."""
        labelled = [[task.label(r.problem, r.text) for r in group] for group in groups]
        return cls(groups=groups, labelled=labelled)


def scores_of(
    candidates: Candidates, task: Task, model: Path, reference: Path | None
) -> list[list[list[float]]]:
    """log π_φ of each step, less log π_ref where there is a reference."""
    return step_rewards(
        candidates.groups,
        ResponseReader.of_task(task),
        ChatTokenizer(model),
        TrainedLM.load(model).freeze(),
        None if reference is None else TrainedLM.load(reference).freeze(),
    )


def best_of(
    candidates: Candidates,
    scores: Scores,
    count: int,
    aggregate: Callable[[Sequence[float]], float] = min,
) -> list[bool]:
    """Per problem, whether the best of the first `count` candidates is right."""
    return [
        group[max(range(count), key=lambda place: aggregate(steps[place]))].is_correct
        for group, steps in zip(candidates.labelled, scores, strict=True)
    ]


def majority(candidates: Candidates, task: Task, count: int) -> list[bool]:
    """Per problem, whether the answer that most of the first `count` give is right.

    Between equals the one seen first wins. A response with the right answer may be no right one.
    """
    found = []
    for group, labelled in zip(candidates.groups, candidates.labelled, strict=True):
        votes = [task.answer_of(rollout.text) for rollout in group[:count]]
        winner = Counter(vote for vote in votes if vote is not None).most_common(1)
        pairs = zip(labelled, votes, strict=False)
        found.append(
            bool(winner) and any(r.is_correct and vote == winner[0][0] for r, vote in pairs)
        )
    return found


def oracle(candidates: Candidates, count: int) -> list[bool]:
    """Per problem, whether any of the first `count` candidates is right."""
    return [any(rollout.is_correct for rollout in group[:count]) for group in candidates.labelled]


def located(
    candidates: Candidates, scores: Scores, wrong_steps: Callable[[Rollout], Sequence[int]]
) -> float:
    """Of the responses with exactly one wrong step, the share whose least step score is there.

    0 where there is no such response.
    """
    hits = [
        min(range(len(steps)), key=steps.__getitem__) == wrong[0]
        for group, own in zip(candidates.labelled, scores, strict=True)
        for rollout, steps in zip(group, own, strict=True)
        if len(wrong := wrong_steps(rollout)) == 1
    ]
    return sum(hits) / len(hits) if hits else 0.0


def first_error_f1(
    fitted_on: tuple[Candidates, Scores], read_on: tuple[Candidates, Scores]
) -> float:
    """ProcessBench's F1 (arXiv 2412.06559 §4), its threshold from other problems."""
    threshold, _ = fit_threshold(fitted_on[0].labelled, fitted_on[1])
    candidates, scores = read_on
    hits = threshold_hits(candidates.labelled, scores, threshold)
    return step_accuracy(candidates.labelled, hits).f1.mean
