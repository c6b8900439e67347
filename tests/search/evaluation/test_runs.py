"""Every arm over every problem, with searches whose outcome is known."""

import asyncio
from collections.abc import Sequence

import pytest

from prm.errors import InvalidInput
from search.answers import ExactAnswers
from search.evaluation.arms import Arm, by_work, with_selections
from search.evaluation.problems import LabelledProblem
from search.evaluation.runs import ArmRun, run_arms
from search.run import Strategy
from search.strategies.adaptive import Adaptive
from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN
from search.types import SearchResult
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio

FIRST = Arm(strategy=BestOfN(n=3, selection="first"))
MAJORITY = Arm(strategy=BestOfN(n=3, selection="majority"))
BEST = Arm(strategy=BestOfN(n=3))
BEAM = Arm(strategy=Beam(n=2, width=1))

# What the n-th candidate answers, and how its only step is scored.
ANSWERS = ("5", "5", "9")
SCORES = {"5": 0.2, "9": 0.8}


def problems(*answers: str) -> list[LabelledProblem]:
    return [
        LabelledProblem(where=f"p.jsonl, line {n}", question={"problem": f"{n}?"}, answer=answer)
        for n, answer in enumerate(answers, start=1)
    ]


async def scripted(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
    generator = ScriptedGenerator(lambda _, nth: (f"Answer: {ANSWERS[nth]}", "eos"))
    scorer = ScriptedScorer(lambda step: SCORES[step.strip()[-1]])
    _, result = await finish(strategy, new_run(generator, scorer))
    return result


async def run(
    arms: Sequence[Arm], of: Sequence[LabelledProblem], search: object = scripted, seats: int = 4
) -> list[ArmRun]:
    found: list[ArmRun] = []
    await run_arms(
        arms,
        of,
        search,  # type: ignore[arg-type]
        ExactAnswers(),
        seed=7,
        concurrency=seats,
        on_progress=lambda done, doing: None,
        on_run=found.append,
    )
    return found


async def test_selections_are_graded_on_the_candidates_of_one_search() -> None:
    asked = []

    async def search(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
        asked.append(strategy)
        return await scripted(problem, strategy, seed)

    found = await run([FIRST, MAJORITY, BEST], problems("5", "9"), search)
    right = {each.arm.name: [o.is_correct for o in each.outcomes] for each in found}
    assert right == {
        "best of n": [False, True],
        "pass@1": [True, False],
        "majority": [True, False],
    }
    shares = [o.right_share for o in found[0].outcomes]
    assert shares == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    # One that needs the PRM leads, or there would be no scores to rank the others by.
    assert asked == [BEST.strategy] * 2
    assert {each.wall_s for each in found} == {found[0].wall_s}


async def test_tokens_are_those_of_all_candidates_and_a_vote_reads_none() -> None:
    by_name = {
        each.arm.name: each.outcomes[0] for each in await run([MAJORITY, BEST], problems("5"))
    }
    tokens = 3 * len("Answer: 5")
    assert by_name["best of n"].generated_tokens == tokens
    assert by_name["majority"].generated_tokens == tokens
    assert by_name["best of n"].read_tokens == tokens
    assert by_name["majority"].read_tokens == 0


async def test_so_many_searches_run_at_a_time_and_outcomes_keep_the_order_of_the_problems() -> None:
    running, most = 0, 0

    async def search(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        # The first problem ends last.
        for _ in range(3 if problem.answer == "9" else 1):
            await asyncio.sleep(0)
        running -= 1
        return await scripted(problem, strategy, seed)

    (found,) = await run([BEST], problems("9", "5", "5", "9", "5"), search, seats=2)
    assert [outcome.is_correct for outcome in found.outcomes] == [True, False, False, True, False]
    assert most == 2


async def test_a_problem_has_the_same_seed_in_all_arms_and_another_than_its_neighbour() -> None:
    seeds: dict[str, list[int]] = {}

    async def search(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
        seeds.setdefault(problem.where, []).append(seed)
        return await scripted(problem, strategy, seed)

    await run([BEST, BEAM], problems("5", "9"), search)
    (first, again), (second, _) = seeds.values()
    assert first == again != second


async def test_a_bad_problem_is_named_by_its_line_and_nothing_is_left_running() -> None:
    ended = 0

    async def search(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
        nonlocal ended
        if problem.answer == "bad":
            raise InvalidInput("too long", param="problem")
        try:
            await asyncio.sleep(60)
        finally:
            ended += 1
        raise AssertionError("it was to be cancelled")

    with pytest.raises(InvalidInput, match=r"p\.jsonl, line 2: too long"):
        await run([BEST], problems("5", "bad", "5"), search)
    assert ended == 2


async def test_cancelled_it_stops_its_searches_and_what_was_told_stays_told() -> None:
    told: list[ArmRun] = []
    is_in_beam = asyncio.Event()
    ended = 0

    async def search(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
        nonlocal ended
        if strategy is BEST.strategy:
            return await scripted(problem, strategy, seed)
        is_in_beam.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended += 1
        raise AssertionError("it was to be cancelled")

    task = asyncio.create_task(
        run_arms(
            [BEST, BEAM],
            problems("5", "9"),
            search,
            ExactAnswers(),
            seed=0,
            concurrency=8,
            on_progress=lambda done, doing: None,
            on_run=told.append,
        )
    )
    await is_in_beam.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == 2
    assert [each.arm for each in told] == [BEST]


async def test_selections_of_a_search_in_steps_share_its_candidates() -> None:
    asked = []

    async def search(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
        asked.append(strategy)
        # 5 and 5 weigh 0.4 together, 9 weighs 0.3.
        generator = ScriptedGenerator(lambda _, nth: (f"Answer: {ANSWERS[nth]}", "eos"))
        scorer = ScriptedScorer(lambda step: {"5": 0.2, "9": 0.3}[step[-1]])
        _, result = await finish(strategy, new_run(generator, scorer))
        return result

    beam = Arm(strategy=Beam(n=3, width=3))
    arms = with_selections([beam, BEST, FIRST], ["prm", "weighted"])
    found = await run(arms, problems("5"), search)
    right = {each.arm.label: each.outcomes[0].is_correct for each in found}
    assert right == {
        "beam by score 3x3": False,
        "beam by weighted vote 3x3": True,
        "best of n 3": False,
        "weighted 3": True,
        "pass@1 3": True,
    }
    assert asked == [Beam(n=3, width=3, selection="prm"), BEST.strategy]


def test_settings_beyond_the_sizes_tell_lines_apart() -> None:
    arms = [
        Arm(strategy=Beam(n=8)),
        Arm(strategy=Beam(n=8, aggregation="last")),
        Arm(strategy=Adaptive(n=8, selection="majority", wave=2)),
    ]
    assert [arm.label for arm in arms] == [
        "beam by weighted vote 8x4",
        "beam by weighted vote, aggregation last 8x4",
        "adaptive, wave 2, selection majority 8",
    ]


def test_what_stops_differently_does_not_share_its_work() -> None:
    votes = [Arm(strategy=Adaptive(selection=name)) for name in ("weighted", "majority")]
    wide = Arm(strategy=BestOfN(n=4))
    assert by_work([FIRST, BEST, *votes, wide, BEST]) == [
        [BEST, FIRST],
        [votes[0]],
        [votes[1]],
        [wide],
    ]


def test_who_makes_probabilities_leads_those_that_share_its_work() -> None:
    beams = [Arm(strategy=Beam(n=4, selection=name)) for name in ("prm", "majority", "calibrated")]
    assert by_work(beams) == [[beams[2], beams[0], beams[1]]]
    votes = [Arm(strategy=BestOfN(n=4, selection=name)) for name in ("majority", "calibrated")]
    assert by_work([*votes, *beams]) == [[votes[1], votes[0]], [beams[2], beams[0], beams[1]]]


def test_only_what_chooses_among_its_candidates_is_measured_under_several_selections() -> None:
    arms = [FIRST, MAJORITY, BEST, BEAM, Arm(strategy=Adaptive())]
    found = with_selections(arms, ["first", "prm", "majority"])
    assert [arm.label for arm in found] == [
        "pass@1 3", "best of n 3", "majority 3", "beam by score 2x1", "beam by majority 2x1",
        "adaptive 16",
    ]  # fmt: skip
