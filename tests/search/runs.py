"""A search of scripted parts, run to its end."""

from search.answers import TaskAnswers
from search.budget import Budget
from search.run import SearchRun, Strategy, run_search
from search.selection import Selector
from search.types import Sampling, SearchEvent, SearchProblem, SearchResult
from tests.factories import user
from tests.search.fakes import ScriptedGenerator, ScriptedScorer


def new_run(
    generator: ScriptedGenerator,
    scorer: ScriptedScorer | None,
    *,
    budget: Budget | None = None,
    max_tokens: int = 100,
    selector: Selector | None = None,
    answers: TaskAnswers | None = None,
) -> SearchRun:
    """A search of the problem "?"."""
    return SearchRun(
        SearchProblem(messages=user("?")),
        generator,
        scorer,
        sampling=Sampling(max_tokens=max_tokens, seed=1),
        budget=budget or Budget(),
        step_separator="\n",
        answers=answers,
        selector=selector,
    )


async def finish(strategy: Strategy, run: SearchRun) -> tuple[list[SearchEvent], SearchResult]:
    """All its events, and its result."""
    found = [event async for event in run_search(strategy, run)]
    assert isinstance(found[-1], SearchResult)
    return [event for event in found if isinstance(event, SearchEvent)], found[-1]


def asked(generator: ScriptedGenerator) -> list[list[str]]:
    """The prefixes that every round continued, without line breaks: "a", "ab"."""
    return [[w.prefix.text.replace("\n", "") for w in wants] for wants, _ in generator.calls]
