"""Which of several whole candidates wins: by score, by vote, by calibrated vote.

Best of n takes the highest score (Lightman et al., arXiv 2305.20050 §2.5), majority the answer that
most candidates give (Wang et al., arXiv 2203.11171), weighted the one whose candidates' scores add
up to most (Li et al., arXiv 2206.02336 §3.2). `calibrated` adds up probabilities instead: those of
a logistic regression on the step scores, fitted to candidates labelled right or wrong. It can tell
a long sound solution from a short lucky one, and how much a score is worth, which no fixed
aggregation of step scores does for every PRM. What else was tried: docs/reranking.md.
"""

from collections.abc import Callable, Mapping, Sequence
from math import fsum, log
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from prm.evaluation.reliability import Interval
from prm.families.base import sigmoid
from prm.manifest import Finite
from search.records import Record
from search.stopping import leader

# Of what a search in steps ends with, the first is no plain sample: nothing speaks for it.
StepSelection = Literal["prm", "weighted", "majority", "calibrated"]
Selection = Literal["first", "prm", "weighted", "majority", "calibrated"]
VoteSelection = Literal["weighted", "majority", "calibrated"]
FeatureName = Literal["logit_min", "logit_last", "log_product"]

# Step scores come in half precision: nearer to 0 and 1 than this they tell nothing apart.
MARGIN = 1e-3

FEATURES: Mapping[FeatureName, Callable[[Sequence[float]], float]] = MappingProxyType(
    {
        "logit_min": lambda scores: _logit(min(scores)),
        "logit_last": lambda scores: _logit(scores[-1]),
        "log_product": lambda scores: fsum(log(max(score, MARGIN)) for score in scores),
    }
)


class Term(BaseModel):
    """One feature of the step scores: standardised by `mean` and `scale`, times `weight`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: FeatureName
    mean: Finite
    scale: Annotated[Finite, Field(gt=0)]
    weight: Finite


class Selector(BaseModel):
    """Candidate → probability that it is right: σ(intercept + Σ weight·(feature − mean)/scale).

    `l2` is the penalty that cross-validation inside the fitted problems chose.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    intercept: Finite
    terms: tuple[Term, ...] = Field(min_length=1)
    l2: Annotated[Finite, Field(gt=0)]

    def probability(self, step_scores: Sequence[float]) -> float:
        """The probability in [0, 1] that a candidate with these step scores is right.

        0 without any step score: nobody vouches for it.
        """
        if not step_scores:
            return 0.0
        return sigmoid(
            self.intercept
            + fsum(
                t.weight * (FEATURES[t.feature](step_scores) - t.mean) / t.scale for t in self.terms
            )
        )

    def select(
        self, step_scores: Sequence[Sequence[float]], groups: Sequence[int | None]
    ) -> int | None:
        """The index of the winner: the most probable candidate of the answer with most probability.

        `step_scores[i]` are candidate i's, `groups[i]` the class of its answer, None without one.
        Where nobody gave an answer, the most probable candidate; None without candidates.
        """
        return pick(groups, [self.probability(scores) for scores in step_scores])


class SelectionRecord(Record):
    """A selector as it lies beside a PRM version: of which weights, for which policy, how good.

    `threshold` is what `search.stopping.is_decided` should stop at with this selector, in waves of
    `wave`, to spend the part `budget` of what a fixed width would, and `threshold_votes` the same
    where votes alone decide. The accuracies are cross-validated, with all candidates.
    """

    folder: ClassVar[str] = "selection"

    selector: Selector
    threshold: Annotated[Finite, Field(ge=0, le=1)]
    threshold_votes: Annotated[Finite, Field(ge=0, le=1)]
    wave: int = Field(default=1, ge=1)
    budget: Annotated[Finite, Field(gt=0, le=1)]
    problems: int = Field(ge=1)
    candidates: int = Field(ge=1)
    accuracy: Mapping[Literal["majority", "weighted", "calibrated"], Interval]


def pick(
    groups: Sequence[int | None],
    votes: Sequence[float] | None = None,
    ranks: Sequence[float] | None = None,
) -> int | None:
    """The index of the winner: within the answer of most votes, the highest rank.

    `votes[i]` in [0, 1] is what candidate i's vote weighs, 1 where None. `ranks` are by default the
    votes. The first of equals wins, among answers and among candidates. Where nobody gave an answer
    the highest rank of all; None without candidates.

    >>> pick([0, 1, 0], [0.4, 0.7, 0.5])
    2
    >>> pick([0, 1, 1]), pick([None, None], [0.1, 0.9]), pick([])
    (1, 1, None)
    """
    ahead = leader(groups, votes)
    ranks = ranks if ranks is not None else votes if votes is not None else [1.0] * len(groups)
    inside = [index for index, group in enumerate(groups) if ahead is None or group == ahead]
    return max(inside, key=lambda index: ranks[index], default=None)


def _logit(score: float) -> float:
    score = min(max(score, MARGIN), 1 - MARGIN)
    return log(score / (1 - score))
