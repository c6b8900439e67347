"""Texts that outgrow the PRM: what had come to its end wins, and the search says why it stopped."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from prm.errors import InvalidInput
from search.generator import EndedBy
from search.strategies import Strategy
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio

LONGEST = 12
LONG = 2 * LONGEST * "b"
STEPPING: list[dict[str, Any]] = [
    {"type": "beam", "n": 4, "width": 2},
    {"type": "dvts", "n": 4, "width": 2},
    {"type": "lookahead", "n": 4, "width": 2, "depth": 1},
    {"type": "rebase", "n": 4},
    {"type": "particle_filter", "n": 4},
    {"type": "mcts", "n": 1, "width": 4},
]


def settings(given: dict[str, Any]) -> Any:
    adapter: TypeAdapter[Strategy] = TypeAdapter(Strategy)
    return adapter.validate_python(given)


def by_type(given: dict[str, Any]) -> str:
    return str(given["type"])


def scorer() -> ScriptedScorer:
    return ScriptedScorer(lambda step: 0.6 if step == "a" else 0.5, longest=LONGEST)


@pytest.mark.parametrize("strategy", STEPPING, ids=by_type)
async def test_what_ended_wins_when_all_that_comes_after_is_too_long(
    strategy: dict[str, Any],
) -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        if prefix:
            return f"{LONG}\n", "separator"
        return ("Answer: 1", "eos") if nth % 2 == 0 else ("a\n", "separator")

    _, result = await finish(settings(strategy), new_run(ScriptedGenerator(script), scorer()))
    assert result.stopped_by == "prm.context"
    assert result.winner is not None
    assert (result.winner.answer, result.winner.score) == ("1", 0.5)
    assert all(c.score is None for c in result.candidates if LONG in c.text)


async def test_chunks_that_outgrow_the_prm_stop_with_what_has_ended() -> None:
    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        return ("Answer: 1", "eos") if not prefix and nth % 2 == 0 else ("b" * 9, "length")

    strategy = settings({"type": "speculative_rejection", "n": 4, "chunk": 9})
    _, result = await finish(strategy, new_run(ScriptedGenerator(script), scorer()))
    assert result.stopped_by == "prm.context"
    assert result.winner is not None
    assert result.winner.answer == "1"


async def test_a_wave_that_outgrows_the_prm_is_the_last() -> None:
    texts = iter(["Answer: 1", "Answer: 2", f"{LONG}", f"{LONG}", "Answer: 3"])
    generator = ScriptedGenerator(lambda prefix, nth: (next(texts), "eos"))
    strategy = settings({"type": "adaptive", "n": 8, "wave": 2})
    _, result = await finish(strategy, new_run(generator, scorer()))
    assert (result.stopped_by, result.rounds) == ("prm.context", 2)
    assert result.winner is not None
    assert result.winner.answer == "1"


@pytest.mark.parametrize("strategy", STEPPING, ids=by_type)
async def test_with_nothing_ended_it_is_refused(strategy: dict[str, Any]) -> None:
    generator = ScriptedGenerator(lambda prefix, _: (f"{LONG}\n" if prefix else "a\n", "separator"))
    with pytest.raises(InvalidInput, match="no candidate can be scored") as caught:
        await finish(settings(strategy), new_run(generator, scorer()))
    assert caught.value.param == "sampling.max_tokens"
