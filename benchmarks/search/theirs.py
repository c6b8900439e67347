"""`its_hub` on the same servers: `python -m benchmarks.search.theirs VLLM RUNG CONCURRENCY`.

Runs in an environment that has `its_hub[lm]` and nothing of ours, in the library's documented form:
`BestOfN` and `BeamSearch` through `ainfer`, its own language model and orchestrator. Its reward
model asks Rung's `/v1/prm/score`: one request for all that are to be scored at once.
"""

import asyncio
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import aiohttp  # type: ignore[import-not-found, unused-ignore]
from its_hub.api import (  # type: ignore[import-not-found]
    AbstractOutcomeRewardModel,
    AbstractProcessRewardModel,
)
from its_hub.core.algorithms.beam_search import BeamSearch  # type: ignore[import-not-found]
from its_hub.core.algorithms.bon import BestOfN  # type: ignore[import-not-found]
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel  # type: ignore[import-not-found]
from its_hub.core.lms.step_generation import StepGeneration  # type: ignore[import-not-found]
from its_hub.core.orchestrator import LMOrchestrator  # type: ignore[import-not-found]

from benchmarks.contestant import serve_turns
from benchmarks.search.tasks import (
    MAX_STEPS,
    MAX_TOKENS,
    POLICY,
    PRM,
    TEMPERATURE,
    Task,
    search_in_turn,
    told,
)

SEPARATOR = "\n"
# Begins the last line of every solution of the bundled task: its_hub ends a text by its own stop
# token alone, not by the model's end of turn.
LAST_STEP = "Answer:"


class RungScores(AbstractOutcomeRewardModel, AbstractProcessRewardModel):  # type: ignore[misc]
    """Rung's PRM over HTTP, a request for each call."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    def score(self, *_: Any, **__: Any) -> list[float]:
        """Nobody asks for it: searches here are async."""
        raise NotImplementedError

    async def ascore(
        self, prompt_or_chats: Any, texts: Sequence[str] | None = None, **_: Any
    ) -> list[float]:
        """A score for each chat that ends in a solution, or for each text of one prompt."""
        if texts is not None:
            pairs = [(str(prompt_or_chats), text) for text in texts]
        else:
            pairs = [(chat[-2].content, chat[-1].content) for chat in prompt_or_chats]
        return await self._scores(pairs)

    async def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        said = [pair for pair in pairs if pair[1].strip()]
        items = [{"problem": problem, "response": text} for problem, text in said]
        if not items:
            return [0.0] * len(pairs)
        body = {"model": PRM, "items": items}
        async with self._http.post(f"{self._url}/v1/prm/score", json=body) as response:
            answer = await response.json()
        assert response.status == 200, answer
        scores = iter([float(item["score"]) for item in answer["data"]])
        return [next(scores) if text.strip() else 0.0 for _, text in pairs]


async def do(task: Task, vllm: str, rung: str, concurrency: int) -> dict[str, Any]:
    """All searches of the task, one after the other."""
    lm = OpenAICompatibleLanguageModel(
        endpoint=f"{vllm}/v1",
        api_key="none",
        model_name=POLICY,
        temperature=TEMPERATURE,
        max_completion_tokens=MAX_TOKENS,
    )
    async with lm, aiohttp.ClientSession() as http:
        scores = RungScores(http, rung)
        if task.strategy == "beam":
            steps = StepGeneration(
                max_steps=MAX_STEPS,
                step_token=SEPARATOR,
                stop_token=LAST_STEP,
                temperature=TEMPERATURE,
            )
            algorithm = BeamSearch(steps, scores, beam_width=task.n // task.width)
        else:
            algorithm = BestOfN(scores, LMOrchestrator(max_concurrency=concurrency))

        async def search(problem: str, _: int) -> str:
            return str((await algorithm.ainfer(lm, problem, budget=task.n))["content"])

        started = time.perf_counter()
        found = await search_in_turn(task, search)
        return told(found, time.perf_counter() - started)


def main() -> None:
    """Take turns."""
    vllm, rung, concurrency = sys.argv[1:]
    # The library says of its own beam search that it calls a deprecated method.
    warnings.simplefilter("ignore", DeprecationWarning)
    logging.getLogger().setLevel(logging.WARNING)
    serve_turns(lambda task: asyncio.run(do(Task(**task), vllm, rung, int(concurrency))))


if __name__ == "__main__":
    main()
