"""Feedback of one server: taken, listed, reported on."""

import hashlib
import json

from prm.errors import InvalidInput, RungError
from search.answers import MathAnswers
from server.feedback.labelling import Labelling
from server.feedback.memory import Memory
from server.feedback.metrics import FeedbackMetrics
from server.feedback.report import report_of
from server.feedback.store import FeedbackStore, Request
from server.feedback.types import Label
from server.schemas.feedback import FeedbackReport, FeedbackRequest
from server.serving import Serving


class FeedbackService:
    """`accept`, `page`, `report`. What was accepted survives whatever is killed afterwards.

    A key may give `per_day` labels a day; none gives more than `key_share` of a training's weight.
    """

    def __init__(
        self,
        store: FeedbackStore,
        memory: Memory,
        serving: Serving,
        math: MathAnswers,
        metrics: FeedbackMetrics,
        *,
        per_day: int,
        key_share: float,
        max_items: int,
    ) -> None:
        self.store = store
        self._labelling = Labelling(memory, serving, math)
        self._serving = serving
        self._metrics = metrics
        self._per_day = per_day
        self._key_share = key_share
        self._max_items = max_items

    async def accept(
        self, request: FeedbackRequest, *, key_id: str, idempotency_key: str | None = None
    ) -> list[Label]:
        """Keep the labels of a request, all or none; a repeated request is kept once.

        Raises CallerError, QuotaSpent, Unavailable.
        """
        try:
            return await self._accept(request, key_id, idempotency_key)
        except RungError as error:
            self._metrics.refused(error)
            raise

    async def _accept(
        self, request: FeedbackRequest, key_id: str, idempotency_key: str | None
    ) -> list[Label]:
        items = request.all_items
        if len(items) > self._max_items:
            raise InvalidInput(
                f"items: {len(items)} labels, and one request takes at most {self._max_items}; "
                "send several requests",
                param="items",
            )
        asked = Request(
            key_id=key_id,
            body=_hash(request),
            per_day=self._per_day,
            idempotency_key=idempotency_key,
        )
        # What it was about may be forgotten by now, and its answer is not.
        if (before := await self.store.known(asked)) is not None:
            return before
        labels = [
            await self._labelling.label(
                item, key_id, "" if request.items is None else f"items[{place}]."
            )
            for place, item in enumerate(items)
        ]
        kept = await self.store.add(labels, asked)
        if kept and kept[0].id == labels[0].id:
            for label in kept:
                self._metrics.accepted(label)
        return kept

    async def page(
        self, *, limit: int, after: str | None, model: str | None
    ) -> tuple[list[Label], bool]:
        """See `FeedbackStore.page`."""
        return await self.store.page(limit=limit, after=after, model=model)

    async def report(self, model: str | None) -> FeedbackReport:
        """On the labels of a PRM; None is the only one served. Raises CallerError, Unavailable."""
        if model is None:
            names = sorted({s.manifest.name for s in self._serving.snapshot.scorers.values()})
            if len(names) != 1:
                raise InvalidInput(
                    f"model: name a PRM: {', '.join(names) or 'none is served here'}", param="model"
                )
            model = names[0]
        else:
            model = self._serving.scorer(model, param="model").manifest.name
        return await report_of(self.store, model, key_share=self._key_share)


def _hash(request: FeedbackRequest) -> str:
    """The same for bodies that say the same."""
    body = request.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
