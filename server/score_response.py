"""From a scored batch to the answer of `POST /v1/prm/score`."""

import time
import uuid
from collections.abc import Sequence

from prm.scorer import ScoredBatch, StepScorer
from prm.types import ScoredTrajectory
from server.schemas.score import (
    ItemOut,
    ScoreRequest,
    ScoreResponse,
    ScoreTiming,
    ScoreUsage,
    StepOut,
    TokensOut,
)


def score_response(
    request: ScoreRequest, scorer: StepScorer, batch: ScoredBatch, started_s: float
) -> ScoreResponse:
    """What the request asked to be told of each item, the usage, and the time since `started_s`."""
    prompt_tokens = sum(item.prompt_tokens for item in batch.items)
    return ScoreResponse(
        id=f"prm-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=scorer.manifest.name,
        model_version=scorer.manifest.version,
        family=scorer.manifest.family,
        recipe=scorer.recipe.label,
        data=[
            _item_out(index, wanted.id, scored, set(request.include))
            for index, (wanted, scored) in enumerate(zip(request.items, batch.items, strict=True))
        ],
        usage=ScoreUsage(
            prompt_tokens=prompt_tokens,
            cached_tokens=sum(item.cached_tokens for item in batch.items),
            scored_tokens=sum(item.scored_tokens for item in batch.items),
            **_written(batch.items),
            total_tokens=prompt_tokens,
        ),
        timing_ms=ScoreTiming(
            queue=batch.queue_ms,
            encode=batch.encode_ms,
            inference=batch.inference_ms,
            total=1e3 * (time.perf_counter() - started_s),
        ),
    )


def _written(items: Sequence[ScoredTrajectory]) -> dict[str, int]:
    """What a generative PRM wrote; nothing for the others, which only read."""
    counts = ("generated_tokens", "cut_samples", "discarded_samples")
    written = {name: sum(getattr(item, name) for item in items) for name in counts}
    return written if any(written.values()) else {}


def _item_out(
    index: int, item_id: str | None, scored: ScoredTrajectory, include: set[str]
) -> ItemOut:
    tokens = scored.tokens if "tokens" in include else None
    calibrated = scored.calibrated if "calibrated" in include else None
    return ItemOut(
        index=index,
        id=item_id,
        steps=[
            StepOut(
                index=step.index,
                text=step.text,
                char_start=step.char_start,
                char_end=step.char_end,
                score=score.score,
                raw=score.raw if "raw" in include else None,
                calibrated=calibrated[step.index] if calibrated else None,
                cumulative=score.cumulative if "cumulative" in include else None,
                cached=step.index < scored.cached_steps,
            )
            for step, score in zip(scored.trajectory.steps, scored.step_scores, strict=True)
        ],
        aggregates=dict(scored.aggregates),
        score=scored.score,
        first_error=scored.first_error,
        tokens=TokensOut(
            ids=list(tokens.ids),
            char_offsets=list(tokens.char_offsets),
            rewards=list(tokens.rewards),
        )
        if tokens
        else None,
    )
