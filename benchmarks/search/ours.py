"""A client of Rung's `/v1/search`: `python -m benchmarks.search.ours RUNG_URL`."""

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from benchmarks.contestant import serve_turns
from benchmarks.search.tasks import (
    MAX_STEPS,
    MAX_TOKENS,
    POLICY,
    PRM,
    TEMPERATURE,
    Task,
    search_in_turn,
    timed,
    told,
)


async def do(task: Task, url: str) -> dict[str, Any]:
    """All searches of the task, on connections that are opened for it."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as http:

        async def search(problem: str, place: int) -> str:
            response = await http.post("/v1/search", json=body_of(task, problem, place))
            assert response.status_code == 200, response.text
            return str(response.json()["text"])

        started = time.perf_counter()
        if task.is_at_once:
            searches = (timed(search, problem, i) for i, problem in enumerate(task.problems))
            found = await asyncio.gather(*searches)
        else:
            found = await search_in_turn(task, search)
        return told(found, time.perf_counter() - started)


def body_of(task: Task, problem: str, place: int) -> Mapping[str, Any]:
    """The request of one search; the winner is all that it asks to be told."""
    strategy: dict[str, Any] = {"type": task.strategy, "n": task.n}
    if task.strategy == "beam":
        strategy |= {"width": task.width, "max_rounds": MAX_STEPS}
    sampling = {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS, "seed": task.seed + place}
    return {
        "policy": POLICY,
        "prm": PRM,
        "problem": problem,
        "strategy": strategy,
        "sampling": sampling,
        "include": [],
    }


def main() -> None:
    """Take turns."""
    url = sys.argv[1]
    serve_turns(lambda task: asyncio.run(do(Task(**task), url)))


if __name__ == "__main__":
    main()
