"""A server that takes jobs and runs none: what becomes of them is said by the tests."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from server.jobs.store import JobStore
from tests.server.conftest import RunningServer, rung_serve

PROBLEMS = [{"problem": f"{n}+1", "answer": str(n + 1)} for n in range(6)]
TASK = {"type": "running_sum", "digits": [3, 3]}
Upload = Callable[[Sequence[Any]], str]


def response(correct: Any, **more: Any) -> dict[str, Any]:
    """A labelled response."""
    return {"problem": "1+1", "steps": ["1+1=2", "Answer: 2"], "correct": correct} | more


OUTCOMES = [response(True), response(False), response(0.5, weight=2.0), response(1)]
STEPS = [response(False, first_error=1), response(True, labels=[True, True])]


@dataclass(frozen=True, kw_only=True)
class JobsServer:
    """The server, and the folder that its workers would share."""

    running: RunningServer
    store: JobStore

    @property
    def url(self) -> str:
        """Its address."""
        return self.running.url


@pytest.fixture(scope="session")
def jobs_server(
    tiny_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JobsServer]:
    """One server for all tests of jobs."""
    runs = tmp_path_factory.mktemp("jobs") / "runs"
    with rung_serve(
        tiny_models, RUNG_RUNS=str(runs), RUNG_WORKER="false", RUNG_MAX_FILE_MB="1"
    ) as running:
        yield JobsServer(running=running, store=JobStore(runs))


@pytest.fixture
def client(jobs_server: JobsServer) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, as it comes."""
    with openai.OpenAI(base_url=f"{jobs_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def plain(jobs_server: JobsServer) -> Iterator[httpx2.Client]:
    """For what OpenAI's client would not send."""
    with httpx2.Client(base_url=jobs_server.url, timeout=30) as client:
        yield client


@pytest.fixture
def upload(client: openai.OpenAI) -> Upload:
    """Uploads rows as JSON Lines; returns the file's id."""

    def uploaded(rows: Sequence[Any]) -> str:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        return client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune").id

    return uploaded
