"""Particle filtering: the drawing worked out by hand, and a population on a script."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search.generator import EndedBy
from search.strategies.particle_filter import (
    ParticleFilter,
    effective_sample_size,
    systematic_resample,
)
from search.strategies.weights import logits_of
from search.types import Candidate
from search.writing import derive_seed
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio


def two_steps(prefix: str, nth: int) -> tuple[str, EndedBy]:
    """Step a or b by turns, then the answer."""
    if prefix:
        return f"Answer: {prefix[0]}", "eos"
    return ["a\n", "b\n"][nth % 2], "separator"


def odds(ratio: float) -> float:
    """The score whose log-odds are log(ratio)."""
    return ratio / (1 + ratio)


async def test_particles_are_drawn_in_proportion_to_the_odds() -> None:
    generator = ScriptedGenerator(two_steps)
    # Odds of 3 and 1: eight particles weigh 3/16 and 1/16 by turns, so 6 of 8 come from an a.
    scorer = ScriptedScorer(lambda step: odds(3 if step == "a" else 1), aggregation="last")
    events, result = await finish(ParticleFilter(n=8), new_run(generator, scorer))
    drawn = Counter(want.prefix.text for want in generator.calls[1][0])
    assert drawn == {"a\n": 6, "b\n": 2}
    expected = 1 / (4 * (3 / 16) ** 2 + 4 * (1 / 16) ** 2)
    assert expected == pytest.approx(6.4)
    told = {event.ess for event in events if event.round == 0 and event.type == "scored"}
    assert [*told] == [pytest.approx(6.4)]
    assert {event.ess for event in events if event.type == "expanded"} == {None}
    assert (result.rounds, result.stopped_by) == (2, "finished")


async def test_one_that_weighs_all_is_the_only_one_to_go_on() -> None:
    generator = ScriptedGenerator(two_steps)
    scorer = ScriptedScorer(lambda step: 0.0 if step == "b" else 0.9, aggregation="last")
    run = new_run(generator, scorer)
    _, result = await finish(ParticleFilter(n=4, temperature=0.1), run)
    assert {want.prefix.text for want in generator.calls[1][0]} == {"a\n"}
    # Both a were written once each and drawn twice each: their four children differ in seed only.
    assert Counter(w.prefix.text for w in generator.calls[1][0]) == {"a\n": 4}
    assert len({want.seed for want in generator.calls[1][0]}) == 4
    assert {c.answer for c in result.candidates} == {"a"}


@pytest.mark.parametrize(("below", "prefixes"), [(0.7, {"a\n", "b\n"}), (0.9, {"a\n"})])
async def test_nobody_is_drawn_while_the_effective_sample_size_is_large(
    below: float, prefixes: set[str]
) -> None:
    generator = ScriptedGenerator(two_steps)
    # Odds of 3 and 1 weigh 0.75 and 0.25: the effective sample size is 1 / 0.625 = 1.6, 0.8 of 2.
    # The points drawn at are u/2 and (1 + u)/2: both lie in the first for u < 0.5.
    scorer = ScriptedScorer(lambda step: odds(3 if step == "a" else 1), aggregation="last")
    run = new_run(generator, scorer)
    seed = next(s for s in range(99) if random.Random(derive_seed(s, 1, -1)).random() < 0.5)
    run.sampling = replace(run.sampling, seed=seed)
    await finish(ParticleFilter(n=2, resample_below=below), run)
    assert {want.prefix.text for want in generator.calls[1][0]} == prefixes


async def test_a_finished_particle_writes_no_more_but_can_be_drawn() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if not prefix and nth == 0:
            return "Answer: soon", "eos"
        return ("b\n", "separator") if prefix.count("\n") < 2 else ("Answer: late", "eos")

    # The finished one outweighs all: it alone is left, and nothing more is written.
    generator = ScriptedGenerator(script)
    scorer = ScriptedScorer(lambda step: 0.999999 if "soon" in step else 0.01, aggregation="last")
    events, result = await finish(ParticleFilter(n=4), new_run(generator, scorer))
    assert len(generator.calls) == 1
    assert [c.answer for c in result.candidates] == ["soon"]
    assert [e.candidate for e in events if e.type == "pruned"] == [1, 2, 3]
    assert result.stopped_by == "finished"
    # The finished one weighs next to nothing: it is not drawn and no candidate.
    generator = ScriptedGenerator(script)
    scorer = ScriptedScorer(lambda step: 1e-6 if "soon" in step else 0.5, aggregation="last")
    _, result = await finish(ParticleFilter(n=4), new_run(generator, scorer))
    assert [c.answer for c in result.candidates] == ["late"] * 4


async def test_the_seed_decides_who_is_drawn() -> None:
    def prefixes(generator: ScriptedGenerator) -> list[str]:
        return [want.prefix.text for want in generator.calls[1][0]]

    seen = set()
    for seed in range(8):
        twice = []
        for _ in range(2):
            generator = ScriptedGenerator(two_steps)
            run = new_run(generator, ScriptedScorer(lambda s: 0.6 if s == "a" else 0.5))
            run.sampling = replace(run.sampling, seed=seed)
            await finish(ParticleFilter(n=3), run)
            twice.append(tuple(prefixes(generator)))
        assert twice[0] == twice[1]
        seen.add(twice[0])
    assert len(seen) > 1


async def test_particles_that_nobody_can_read_weigh_nothing() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if prefix:
            return "Answer: 1", "eos"
        return ["x" * 40 + "\n", "a\n"][nth % 2], "separator"

    generator = ScriptedGenerator(script)
    run = new_run(generator, ScriptedScorer(lambda _: 0.1, longest=30))
    await finish(ParticleFilter(n=4), run)
    assert [want.prefix.text for want in generator.calls[1][0]] == ["a\n"] * 4


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda ws: sum(ws) > 1e-6),
    st.floats(0, 1, exclude_max=True),
)
def test_each_is_drawn_as_often_as_its_weight_says(raw: list[float], uniform: float) -> None:
    weights = [weight / math.fsum(raw) for weight in raw]
    n = len(weights)
    places = systematic_resample(weights, uniform, n)
    assert places == sorted(places)
    assert len(places) == n
    drawn = Counter(places)
    for place, weight in enumerate(weights):
        assert abs(drawn[place] - n * weight) < 1 + 1e-6
        assert weight > 0 or not drawn[place]
    assert 1 - 1e-9 <= effective_sample_size(weights) <= n + 1e-9


def test_logits_of_the_surest_scores_are_finite() -> None:
    scores = [0.0, 0.5, 1.0, None]
    low, middle, high, none = logits_of([Candidate(index=0, score=score) for score in scores])
    assert (middle, none) == (0.0, None)
    assert [high, low] == pytest.approx([math.log(1e7), -math.log(1e7)], rel=1e-6)


def test_the_logit_of_a_sum_is_refused() -> None:
    with pytest.raises(ValidationError, match="choose weights 'score' or another aggregation"):
        ParticleFilter(aggregation="sum")
    assert ParticleFilter(aggregation="sum", weights="score").aggregation == "sum"
