"""What the services tell of their answers: kept for feedback, and sampled for the gate."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prm.aggregation import predicted_error
from prm.manifest import ModelVersion, PrmManifest
from prm.scorer import ScoredBatch
from prm.types import Message, ScoredTrajectory
from search.types import Candidate, SearchResult
from server.feedback.recent import RecentItems
from server.feedback.served import ServedStore
from server.feedback.types import Answer, Served

_PREFIXES = {"search": ("search-", "chatcmpl-"), "score": ("prm-", "rerank-")}


class Memory:
    """Told after every answer; nothing is done before `start`. `aclose` last.

    A telling only keeps a reference: the work is done later, in a thread.
    """

    def __init__(self, runs: Path, *, hours: float, megabytes: int) -> None:
        self.hours = hours
        self._served = ServedStore(runs, hours=hours, megabytes=megabytes)
        self._recent = RecentItems(runs)

    def start(self) -> None:
        """Remember from now on; with 0 hours nothing ever is."""
        self._served.start()
        if self.hours > 0:
            self._recent.start()

    async def aclose(self) -> None:
        """Write what is left."""
        await self._served.aclose()
        await self._recent.aclose()

    async def find(self, answer_id: str) -> Served | None:
        """What was answered under `search-…`, `chatcmpl-…`, `prm-…` or `rerank-…`.

        A search and the completion made of it are one. Raises Unavailable.
        """
        for kind, prefixes in _PREFIXES.items():
            for prefix in prefixes:
                if answer_id.startswith(prefix):
                    return await self._served.find(f"{kind}-{answer_id.removeprefix(prefix)}")
        return None

    def scored(self, answer_id: str, version: ModelVersion, batch: ScoredBatch) -> None:
        """A scoring request was answered."""
        created_s = time.time()
        builds = [partial(_scored_answer, item) for item in batch.items]
        self._remember(answer_id.replace("prm-", "score-", 1), version.key, created_s, builds)
        self._recent.add(version.manifest.name, version.manifest.version, builds)

    def searched(
        self,
        search_id: str,
        messages: tuple[Message, ...],
        prm: ModelVersion | None,
        result: SearchResult,
        *,
        given: int,
    ) -> None:
        """A search was answered, with the `given` best of its candidates."""
        created_s = time.time()
        manifest = prm.manifest if prm else None
        threshold = manifest.threshold if isinstance(manifest, PrmManifest) else None
        build = partial(_found_answer, messages, threshold)
        builds = [partial(build, candidate) for candidate in result.ranking[:given]]
        self._remember(search_id, prm.key if prm else None, created_s, builds)
        if prm is not None:
            scored = [c for c in result.candidates if c.score is not None]
            self._recent.add(
                prm.manifest.name, prm.manifest.version, [partial(build, c) for c in scored]
            )

    def _remember(
        self,
        served_id: str,
        prm: str | None,
        created_s: float,
        builds: Sequence["partial[Answer]"],
    ) -> None:
        is_search = served_id.startswith("search-")
        self._served.remember(
            served_id,
            lambda: Served(
                id=served_id,
                kind="search" if is_search else "score",
                prm=prm,
                created_s=created_s,
                answers=tuple(build() for build in builds),
            ),
        )


def _scored_answer(item: ScoredTrajectory) -> Answer:
    return Answer(
        messages=item.trajectory.messages,
        response=item.trajectory.response,
        steps=tuple(step.text for step in item.trajectory.steps),
        score=item.score,
        prm_correct=item.first_error is None,
    )


def _found_answer(
    messages: tuple[Message, ...], threshold: float | None, candidate: Candidate
) -> Answer:
    scores = [step.score.score for step in candidate.steps if step.score is not None]
    is_judged = threshold is not None and scores and len(scores) == len(candidate.steps)
    return Answer(
        messages=messages,
        response=candidate.text,
        steps=tuple(step.text for step in candidate.steps),
        answer=candidate.answer,
        score=candidate.score,
        prm_correct=predicted_error(scores, threshold) is None
        if is_judged and threshold is not None
        else None,
    )
