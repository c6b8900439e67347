"""What the live PRM says of labelled responses that it has never scored: texts given whole."""

from prm.errors import InvalidInput
from prm.scorer import StepScorer
from prm.steps import cut_steps
from prm.tasks import off_loop_if_long
from prm.types import Trajectory
from server.feedback.store import FeedbackStore
from server.feedback.types import Answer

# The newest; a key that poisons is seen by fewer.
MOST = 2_000
_AT_ONCE = 32


async def judge_unscored(
    store: FeedbackStore, scorer: StepScorer, model: str, *, upto: int
) -> None:
    """Keep what this PRM says of them. Raises Unavailable, ModelFault."""
    found = await store.unscored(model, upto=upto, limit=MOST)
    readable = []
    for seq, answer in found:
        trajectory = await _trajectory(scorer, answer)
        if trajectory is not None:
            readable.append((seq, trajectory))
    for start in range(0, len(readable), _AT_ONCE):
        some = readable[start : start + _AT_ONCE]
        batch = await scorer.score([trajectory for _, trajectory in some])
        says = [
            (seq, item.first_error is None)
            for (seq, _), item in zip(some, batch.items, strict=True)
        ]
        await store.scored(says, scorer.manifest.version)


async def _trajectory(scorer: StepScorer, answer: Answer) -> Trajectory | None:
    """The response, cut; None where this PRM cannot read it."""
    try:
        trajectory = Trajectory(
            messages=answer.messages,
            response=answer.response,
            steps=cut_steps(answer.response, scorer.step_separator),
            is_cut=True,
        )
        await off_loop_if_long(answer.num_characters, scorer.check, trajectory)
    except InvalidInput:
        return None
    return trajectory
