"""Particle filtering (Puri et al., "A Probabilistic Inference Approach to Inference-Time Scaling of
LLMs using Particle-Based Monte Carlo Methods", arXiv 2502.01618 §3, algorithm 1).

`n` particles write one step each; the weights [n] are the softmax of the PRM scores' log-odds, and
n particles are drawn by them to go on, so that a good one goes on several times and a poor one
sometimes. A finished particle writes no more but stays in the population: it can be drawn again, or
not. It ends when all particles are finished; the one with the highest score wins.

A weight is of the whole trajectory, so it replaces the round before's. Drawing is systematic (one
uniform number for all n, each particle as often as its weight says to within one; Carpenter et al.,
1999) where the paper draws independently: the same expectation at less variance. The heaviest come
first, so that this holds for all particles of one weight together as well: were heavy and light to
take turns, one number would decide for all of them alike.
"""

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from search.run import SearchRun
from search.strategies.base import MAX_CANDIDATES, SteeredSettings
from search.strategies.expanding import not_continued, prune
from search.strategies.stepwise import StepRound, end_active
from search.strategies.weights import logits_of, scores_of, softmax
from search.types import Candidate, SearchEvent
from search.writing import derive_seed

# The place in a round from which the drawing takes its seed; the candidates' are 0 and up.
_DRAWING = -1


class ParticleFilter(SteeredSettings):
    """`n` particles, drawn anew by weight when the effective sample size falls below a share of n.

    `weights` are taken from the log-odds of the scores or from the scores as they are, both divided
    by `temperature`. With `resample_below` 1, as in the paper, every round draws.
    """

    is_forward_only: ClassVar[bool] = True

    type: Literal["particle_filter"] = "particle_filter"
    n: int = Field(default=16, ge=1, le=MAX_CANDIDATES)
    weights: Literal["logit", "score"] = "logit"
    temperature: float = Field(default=1.0, ge=0.001, le=100, allow_inf_nan=False)
    resample_below: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    max_rounds: int = Field(default=40, ge=1, le=1000)

    @model_validator(mode="after")
    def _logits_are_of_probabilities(self) -> Self:
        if self.weights == "logit" and self.aggregation == "sum":
            raise ValueError(
                "aggregation 'sum' is no number between 0 and 1 and has no logit; choose weights "
                "'score' or another aggregation"
            )
        return self

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Step, weigh, draw; `run.candidates` ends as the population, each particle once."""
        done: list[Candidate] = []
        active: list[Candidate] = []
        parents: Sequence[Candidate | None] = [None] * self.n
        for number in range(self.max_rounds):
            paid = run.affordable(len(parents))
            active = not_continued(parents, paid)
            if paid == 0:
                break
            round_ = StepRound(run, number, aggregation=self.aggregation, keeps_repeated=True)
            told = []
            async with aclosing(round_.events(parents[:paid])) as events:
                async for each in events:
                    if each.type == "expanded":
                        yield each
                    else:
                        told.append(each)
            done += round_.ended
            active += round_.active
            weights = self._weights([*done, *active])
            size = effective_sample_size(weights)
            for each in told:
                yield replace(each, ess=size)
            if run.stopped_by != "finished" or not active:
                break
            if number == self.max_rounds - 1:
                run.stopped_by = "max_rounds"
                break
            if size < self.resample_below * self.n:
                drawn = self._draw(run, [*done, *active], weights)
                for each in prune(run, _distinct([*done, *active]), number, kept=drawn):
                    yield replace(each, ess=size)
                done = [particle for particle in drawn if particle.finish_reason is not None]
                active = [particle for particle in drawn if particle.finish_reason is None]
            if not active:
                break
            parents = active
        left, _ = end_active(run, _distinct(active), round_=run.rounds - 1)
        run.candidates = _distinct(done) + left

    def _weights(self, particles: Sequence[Candidate]) -> list[float]:
        values = logits_of(particles) if self.weights == "logit" else scores_of(particles)
        return softmax(values, self.temperature)

    def _draw(
        self, run: SearchRun, particles: Sequence[Candidate], weights: Sequence[float]
    ) -> list[Candidate]:
        seed = derive_seed(run.sampling.seed, run.rounds, _DRAWING)
        order = sorted(range(len(weights)), key=lambda place: -weights[place])
        ordered = [weights[place] for place in order]
        places = systematic_resample(ordered, random.Random(seed).random(), self.n)
        return [particles[order[place]] for place in places]


def effective_sample_size(weights: Sequence[float]) -> float:
    """1 / Σ w² of weights that add up to 1: n where all are alike, 1 where one has it all.

    >>> effective_sample_size([0.25] * 4), effective_sample_size([1.0, 0.0])
    (4.0, 1.0)
    """
    return 1 / sum(weight * weight for weight in weights)


def systematic_resample(weights: Sequence[float], uniform: float, n: int) -> list[int]:
    """n places in ascending order, place i drawn ⌊n·wᵢ⌋ or ⌈n·wᵢ⌉ times.

    Place i is drawn for each of (0 + u)/n, (1 + u)/n, … that its part of the cumulated weights
    holds, with u = `uniform` in [0, 1).

    >>> systematic_resample([0.5, 0.1, 0.4], 0.5, 4)
    [0, 0, 2, 2]
    """
    places = []
    place, reached = 0, weights[0]
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    for i in range(n):
        # Rounding can leave the whole a hair below the last point.
        while (i + uniform) / n >= reached and place < last:
            place += 1
            reached += weights[place]
        places.append(place)
    return places


def _distinct(particles: Sequence[Candidate]) -> list[Candidate]:
    """Each particle once, in the order first seen."""
    return list({particle.index: particle for particle in particles}.values())
