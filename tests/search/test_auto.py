"""`auto` without measured curves: a vote that the budget pays, and its reason."""

import pytest

from search.budget import Budget
from search.generator import EndedBy
from search.strategies.auto import Auto
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio

# 15 has the votes, 12 the weight.
TEXTS = ["bad\nAnswer: 15", "bad\nAnswer: 15", "good\nAnswer: 12"]
SCORES = {"bad": 0.1, "good": 0.9}


def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
    return TEXTS[nth % 3], "eos"


@pytest.mark.parametrize(
    ("scorer", "selection", "answer"),
    [
        (ScriptedScorer(lambda step: SCORES.get(step, 0.95)), "weighted", "12"),
        (None, "majority", "15"),
    ],
)
async def test_it_votes_with_as_many_as_the_budget_pays(
    scorer: ScriptedScorer | None, selection: str, answer: str
) -> None:
    generator = ScriptedGenerator(script)
    run = new_run(generator, scorer, budget=Budget(tokens=320), max_tokens=100)
    _, result = await finish(Auto(), run)
    # A candidate may take 100 tokens, so 320 pay three.
    assert [len(wants) for wants, _ in generator.calls] == [3]
    assert result.winner is not None
    assert result.winner.answer == answer
    assert result.choice is not None
    assert result.choice["strategy"]["selection"] == selection
    assert result.choice["strategy"]["n"] == 3
    assert result.choice["reason"].startswith("nothing was measured for this policy")


async def test_a_budget_below_one_candidate_still_pays_one() -> None:
    run = new_run(ScriptedGenerator(script), None, budget=Budget(tokens=5))
    _, result = await finish(Auto(), run)
    assert result.stopped_by == "budget.tokens"
    assert result.usage.generated_tokens == 5
    assert result.winner is not None
