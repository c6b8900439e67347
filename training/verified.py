"""A verifier as the loop's grader: what could not be graded is left out and counted."""

from collections.abc import Sequence
from dataclasses import replace

from training.grades import Graded
from training.rollout_batch import Group
from training.verifiers import Outcome, VerifierPool


class VerifiedGrader:
    """Grades by a pool that is open as long as the loop runs.

    A response that was cut off by its limit is wrong, and is not graded. A group of which nothing
    could be graded is left out.
    """

    def __init__(self, pool: VerifierPool) -> None:
        self._pool = pool

    def grade(self, groups: Sequence[Group]) -> Graded:
        """See `training.grades.Grader`."""
        whole = [rollout for group in groups for rollout in group if not rollout.is_cut]
        outcomes = iter(self._pool.grade([(rollout.problem, rollout.text) for rollout in whole]))
        wrong = Outcome(reward=0.0)
        graded, errors = [], 0
        for group in groups:
            rewarded = []
            for rollout in group:
                outcome = wrong if rollout.is_cut else next(outcomes)
                if outcome.reward is None:
                    errors += 1
                else:
                    rewarded.append(replace(rollout, reward=outcome.reward))
            if rewarded:
                graded.append(rewarded)
        return Graded(groups=tuple(graded), errors=errors)
