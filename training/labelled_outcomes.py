"""Outcome labels out of files: responses that somebody, or something, called right or wrong."""

from collections.abc import Sequence
from pathlib import Path

from prm.errors import InvalidInput
from prm.families.base import LogprobRead
from training.data import Example
from training.labelled_files import (
    LabelledResponse,
    places_of_step,
    read_responses,
    single_turns,
)
from training.rollout_batch import Group, Written
from training.settings import ImplicitPrm
from training.trained_prm import TrainedPrm
from training.types import Problem


class LabelledOutcomes:
    """The responses of these files, each a rollout that was graded; taken in passes.

    What a loss of pairs takes are problems with all of their responses, and only those that have a
    right and a wrong one; what any other takes are responses. Weights are divided by their mean, so
    that a learning rate means the same whatever their scale.
    """

    def __init__(
        self,
        files: Sequence[Path],
        separator: str,
        prm: TrainedPrm,
        settings: ImplicitPrm,
        seed: int,
        *,
        end: int,
        limit: int,
    ) -> None:
        """`end` is the token that ends a response, `limit` how many tokens the PRM reads.

        Raises InvalidInput, naming file and line, for what cannot be read or learnt from.
        """
        self._names = ", ".join(map(str, files))
        self.responses = read_responses(files, separator, prm.family)
        weights = [response.labelled.response.weight for response in self.responses]
        self._check(weights, settings)
        mean = sum(weights) / len(weights)
        self._seed = seed
        ending = () if settings.end_token else (end,)
        self.rollouts = [
            _rollout(response, ending, limit, weight / mean)
            for response, weight in zip(self.responses, weights, strict=True)
        ]
        self._units = self._pairable() if settings.takes_pairs else [[r] for r in self.rollouts]

    def draw(self, step: int, count: int) -> list[Group]:
        """The responses of step `step` (from 1), by problem: of `count` responses, or problems."""
        places = places_of_step(len(self._units), step, count, self._seed)
        return by_problem([rollout for place in places for rollout in self._units[place]])

    def texts(self, count: int) -> list[tuple[str, list[str]]]:
        """See `single_turns`."""
        return list(single_turns(self.responses, count))

    def _pairable(self) -> list[list[Written]]:
        groups = by_problem(self.rollouts)
        found = [list(g) for g in groups if len({rollout.reward > 0.5 for rollout in g}) == 2]
        if not found:
            raise InvalidInput(
                f"{self._names}: none of {len(groups)} problems has both a right and a wrong "
                'response to make a pair of; set algorithm.loss to "ce", which takes responses one '
                "by one",
                param="algorithm.loss",
            )
        return found

    def _check(self, weights: Sequence[float], settings: ImplicitPrm) -> None:
        labels = {float(_outcome(response)) for response in self.responses}
        if len(labels) == 1:
            raise InvalidInput(
                f"{self._names}: all {len(self.responses)} responses are labelled alike (correct "
                f"{labels.pop():g}), from which nobody can tell right from wrong; give others, too",
                param="data.files",
            )
        if not any(weights):
            raise InvalidInput(
                f"{self._names}: every weight is 0, so that no response counts; leave weight out, "
                "or give some more than 0",
                param="data.files",
            )
        for response, weight in zip(self.responses, weights, strict=True):
            if settings.takes_pairs and weight != 1:
                raise InvalidInput(
                    f"{response.labelled.where}: weight {weight:g}: a pair has two responses, and "
                    f'loss "{settings.loss}" takes no weights; leave weight out, or set '
                    'algorithm.loss to "ce"',
                    param="algorithm.loss",
                )


def by_problem(rollouts: Sequence[Written]) -> list[Group]:
    """The rollouts of each problem, in the order in which problems are met."""
    groups: dict[Problem, list[Written]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.problem, []).append(rollout)
    return list(groups.values())


def _outcome(response: LabelledResponse) -> float | bool:
    correct = response.labelled.response.correct
    if correct is None:
        raise InvalidInput(
            f"{response.labelled.where}: does not say whether the response is correct, which is "
            "what implicit_prm learns from; give correct (true, false, or a number from 0 to 1), "
            "or leave the line out",
            param="data.files",
        )
    return correct


def _rollout(
    response: LabelledResponse, ending: tuple[int, ...], limit: int, weight: float
) -> Written:
    read = response.encoded.reads[0]
    assert isinstance(read, LogprobRead), "an implicit PRM reads log-probs"
    ids = (*read.ids, *ending)
    if len(ids) > limit:
        raise InvalidInput(
            f"{response.labelled.where}: {len(ids)} tokens with the one that ends the response, "
            f"and the PRM reads at most {limit}; shorten it, or leave it out",
            param="data.files",
        )
    return Written(
        problem=Problem(text=response.text),
        example=Example(ids=ids, first=read.first),
        text=response.trajectory.response,
        logprobs=(0.0,) * (len(ids) - read.first),
        policy_step=0,
        is_cut=False,
        reward=float(_outcome(response)),
        weight=weight,
    )
