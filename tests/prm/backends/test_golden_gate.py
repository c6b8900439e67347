"""A backend that must reproduce the golden scores first: when it is asked, and what is believed."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from prm.backends.golden_gate import GoldenGate, VerdictGate
from prm.engine.model import CausalLM
from prm.errors import InvalidInput, Unavailable
from prm.families.base import Read
from prm.generative_scorer import GenerativeScorer
from prm.manifest import ModelVersion
from prm.registry import read_version
from prm.scorer import Scorer
from prm.steps import join_steps
from prm.types import Trajectory
from prm.verification import Ask, Style, Written
from tests.factories import POLICY, PRM, user
from tests.generative import LocalVerdicts, publish_generative, set_recipe, trajectory
from tests.published import LocalBackend, LocalReply

pytestmark = pytest.mark.anyio

RESPONSE, PLACED = join_steps(["1+1=2", "Answer: 2"], "\n")
ITEM = Trajectory(messages=user("Evaluate 1+1"), response=RESPONSE, steps=PLACED)
GOLDEN = 1  # one golden score in each tiny version, one read of the backend


class Elsewhere(LocalBackend):
    """A server's stand-in: counts what it is asked, and fails or waits as it is told."""

    def __init__(self, prm: ModelVersion, policy: ModelVersion, weights: ModelVersion) -> None:
        """`weights`: the version whose weights it runs under the PRM's name."""
        models = {policy.key: CausalLM.load(policy.folder)}
        super().__init__(models | {prm.key: CausalLM.load(weights.folder)})
        self.asked = 0
        self.error: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def read(self, reads: Sequence[Read]) -> LocalReply:
        self.asked += 1
        await self.is_open.wait()
        if self.error is not None:
            raise self.error
        return await super().read(reads)


@pytest.fixture
def prm(tiny_models: Path) -> ModelVersion:
    return read_version(tiny_models / PRM / "1")


@pytest.fixture
def policy(tiny_models: Path) -> ModelVersion:
    return read_version(tiny_models / POLICY / "1")


@pytest.fixture
async def elsewhere(prm: ModelVersion, policy: ModelVersion, anyio_backend: str) -> Elsewhere:
    return Elsewhere(prm, policy, prm)


@pytest.fixture
def scorer(prm: ModelVersion, elsewhere: Elsewhere) -> Scorer:
    return Scorer(prm, GoldenGate(prm, elsewhere))


async def test_golden_scores_are_computed_once_for_all_that_wait(
    scorer: Scorer, elsewhere: Elsewhere
) -> None:
    assert elsewhere.asked == 0
    first, second = await asyncio.gather(scorer.score([ITEM]), scorer.score([ITEM]))
    assert elsewhere.asked == GOLDEN + 2
    assert first.items == second.items
    # A copy that reads at other boundaries believes what was proven.
    await scorer.as_published().score([ITEM])
    assert elsewhere.asked == GOLDEN + 3


async def test_other_weights_under_the_name_are_not_believed(
    prm: ModelVersion, policy: ModelVersion
) -> None:
    swapped = Elsewhere(prm, policy, policy)
    # The scorer alone would believe it: all log-ratios are 0, and 0 is a score.
    (believed,) = (await Scorer(prm, swapped).score([ITEM])).items
    assert [step.raw for step in believed.step_scores] == [0.0, 0.0]
    gated = Scorer(prm, GoldenGate(prm, swapped))
    for _ in range(2):
        before = swapped.asked
        with pytest.raises(Unavailable, match=r"golden score 0, .* does not serve what was publis"):
            await gated.score([ITEM])
        assert swapped.asked == before + GOLDEN


async def test_what_comes_back_after_a_failure_must_prove_itself_again(
    scorer: Scorer, elsewhere: Elsewhere
) -> None:
    await scorer.score([ITEM])
    elsewhere.error = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):
        await scorer.score([ITEM])
    elsewhere.error, elsewhere.asked = None, 0
    await scorer.score([ITEM])
    assert elsewhere.asked == GOLDEN + 1


async def test_a_callers_mistake_proves_nothing_about_the_server(
    scorer: Scorer, elsewhere: Elsewhere
) -> None:
    await scorer.score([ITEM])
    elsewhere.error = InvalidInput("too long for that server")
    with pytest.raises(InvalidInput):
        await scorer.score([ITEM])
    elsewhere.error, elsewhere.asked = None, 0
    await scorer.score([ITEM])
    assert elsewhere.asked == 1


async def test_a_golden_score_that_the_server_refuses_is_no_mistake_of_the_caller(
    scorer: Scorer, elsewhere: Elsewhere
) -> None:
    elsewhere.error = InvalidInput("an item is 30 tokens long")
    with pytest.raises(Unavailable, match="tiny-prm@1: a golden score: an item is 30 tokens"):
        await scorer.score([ITEM])


async def test_who_leaves_does_not_end_the_check_for_the_others(
    scorer: Scorer, elsewhere: Elsewhere
) -> None:
    elsewhere.is_open.clear()
    leaving = asyncio.create_task(scorer.score([ITEM]))
    staying = asyncio.create_task(scorer.score([ITEM]))
    while not elsewhere.asked:
        await asyncio.sleep(0.001)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    elsewhere.is_open.set()
    await staying
    assert elsewhere.asked == GOLDEN + 1


async def test_a_generative_model_writes_nothing_before_it_is_proven(tmp_path: Path) -> None:
    version = publish_generative(tmp_path, "verifier", {"name": "thinkprm", "max_tokens": 8})
    model = LocalVerdicts(version)
    await GenerativeScorer(version, VerdictGate(version, model)).score([trajectory()])
    # The golden trajectory's verdicts first, and those of what was written.
    assert (len(model.asks), len(model.reads)) == (3, 6)
    set_recipe(version, decision_temperature=3.0)
    changed = read_version(version.folder)
    model = LocalVerdicts(changed)
    with pytest.raises(Unavailable, match="does not serve what was published"):
        await GenerativeScorer(changed, VerdictGate(changed, model)).score([trajectory()])
    assert model.asks == []


async def test_who_cannot_write_must_prove_itself_again(tmp_path: Path) -> None:
    class Failing(LocalVerdicts):
        async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
            raise Unavailable("gone")

    version = publish_generative(tmp_path, "verifier", {"name": "thinkprm", "max_tokens": 8})
    model = Failing(version)
    scorer = GenerativeScorer(version, VerdictGate(version, model))
    for number in (1, 2):
        with pytest.raises(Unavailable, match="gone"):
            await scorer.score([trajectory(["a"])])
        assert len(model.reads) == 3 * number, "the golden trajectory's three steps, each time"
