"""Speculative rejection on a script: who is given up after which chunk."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.budget import Budget
from search.generator import EndedBy
from search.strategies.speculative_rejection import SpeculativeRejection
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run

pytestmark = pytest.mark.anyio

# Eight characters each: with chunks of two, four rounds. A digit is what the text is worth so far.
TEXTS = ["11111111", "42424242", "33333333", "24444444"]


def continued(texts: list[str]) -> ScriptedGenerator:
    """Candidates in the order of `texts`, wherever they are continued from."""

    def script(prefix: str, nth: int) -> tuple[str, EndedBy]:
        text = texts[nth] if not prefix else next(t for t in texts if t.startswith(prefix))
        return text[len(prefix) :], "eos"

    return ScriptedGenerator(script)


def last_digit(step: str) -> float:
    return int(step[-1]) / 10


async def test_the_worst_half_is_given_up_after_every_chunk() -> None:
    generator = continued(TEXTS)
    scorer = ScriptedScorer(last_digit)
    run = new_run(generator, scorer)
    events, result = await finish(SpeculativeRejection(n=4, chunk=2), run)
    # After two characters they are worth 1 2 3 4; then 3 4; the last one runs to its end alone.
    assert [[w.prefix.text for w in wants] for wants, _ in generator.calls] == [
        [""] * 4,
        ["24", "33"],
        ["2444"],
        ["244444"],
    ]
    assert all(params.keep_stop == () for _, params in generator.calls)
    assert [c.text for c in result.candidates] == ["24444444"]
    assert (result.rounds, result.stopped_by) == (4, "finished")
    assert result.usage.generated_tokens == 2 * (4 + 2 + 1 + 1)
    assert result.usage.discarded_tokens == 2 * (4 + 2 + 1 + 1) - 8
    assert len(scorer.calls) == 4
    pruned = [(e.round, e.candidate) for e in events if e.type == "pruned"]
    assert pruned == [(0, 1), (0, 0), (1, 5)]


async def test_a_short_text_that_has_ended_is_out_of_danger() -> None:
    generator = continued(["1", "4444", "33333333"])
    run = new_run(generator, ScriptedScorer(last_digit))
    _, result = await finish(SpeculativeRejection(n=3, chunk=2), run)
    # "1" is the worst of all, but done; of the two others the worse one goes.
    assert [c.text for c in result.candidates] == ["1", "4444"]
    assert result.winner is not None
    assert result.winner.text == "4444"


async def test_without_rejection_it_is_best_of_n_in_chunks() -> None:
    run = new_run(continued(TEXTS), ScriptedScorer(last_digit))
    _, result = await finish(SpeculativeRejection(n=4, chunk=3, rejection=0), run)
    assert sorted(c.text for c in result.candidates) == sorted(TEXTS)
    assert result.usage.generated_tokens == 32
    assert result.winner is not None
    assert result.winner.text == "24444444"


async def test_a_candidates_own_limit_ends_it_by_length() -> None:
    run = new_run(continued(TEXTS), ScriptedScorer(last_digit), max_tokens=5)
    _, result = await finish(SpeculativeRejection(n=4, chunk=2), run)
    assert [(c.text, c.finish_reason) for c in result.candidates] == [("24444", "length")]


async def test_at_the_end_of_the_budget_the_best_so_far_is_the_answer() -> None:
    run = new_run(continued(TEXTS), ScriptedScorer(last_digit), budget=Budget(tokens=9))
    _, result = await finish(SpeculativeRejection(n=4, chunk=2), run)
    # Eight of nine tokens are spent on the first chunk, and one is left for the better of two.
    assert result.stopped_by == "budget.tokens"
    assert result.usage.generated_tokens == 9
    assert [(c.text, c.finish_reason) for c in result.candidates] == [
        ("33", "budget"),
        ("244", "budget"),
    ]
    assert result.winner is not None
    assert result.winner.text == "244"


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text("12345", min_size=1, max_size=12), min_size=1, max_size=6, unique=True),
    rejection=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    chunk=st.integers(1, 5),
    tokens=st.none() | st.integers(6, 60),
)
async def test_the_batch_only_ever_shrinks_and_somebody_wins(
    texts: list[str], rejection: float, chunk: int, tokens: int | None
) -> None:
    generator = continued(texts)
    run = new_run(generator, ScriptedScorer(last_digit), budget=Budget(tokens=tokens))
    strategy = SpeculativeRejection(n=len(texts), rejection=rejection, chunk=chunk)
    _, result = await finish(strategy, run)
    sizes = [len(wants) for wants, _ in generator.calls]
    assert sizes == sorted(sizes, reverse=True)
    assert all(want.max_tokens is not None and want.max_tokens <= chunk
               for wants, _ in generator.calls for want in wants)  # fmt: skip
    assert result.winner in result.candidates
    assert tokens is None or result.usage.generated_tokens <= tokens
