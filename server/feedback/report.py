"""What the labels of a PRM come to: whom they are from, what they weigh, where they disagree."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.feedback.store import FeedbackStore
from server.feedback.weights import Agreed, Vote, agree, capped, last_votes, trusts
from server.schemas.feedback import Disputed, DisputedLabel, FeedbackReport, KeyReport

MOST_DISPUTED = 100
MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Labels, what they say together, and what that weighs; `shares` by key."""

    last: Mapping[str, Mapping[str, Vote]]
    trust: Mapping[str, float]
    agreed: Sequence[Agreed]
    weights: Sequence[float]
    shares: Mapping[str, float]


def weigh(votes: Sequence[Vote], key_share: float) -> Weighed:
    """What these labels, oldest first, come to: see `weights.py`."""
    last = last_votes(votes)
    trust = trusts(last)
    agreed = agree(last, trust)
    weights, shares = capped(agreed, key_share)
    return Weighed(last=last, trust=trust, agreed=agreed, weights=weights, shares=shares)


async def report_of(store: FeedbackStore, model: str, *, key_share: float) -> FeedbackReport:
    """The report on a PRM's newest labels. Raises Unavailable."""
    votes = await store.votes(model)
    return await report_on(store, model, weigh(votes, key_share), key_share=key_share)


async def report_on(
    store: FeedbackStore, model: str, weighed: Weighed, *, key_share: float
) -> FeedbackReport:
    """The report on labels that were weighed already."""
    disputed = [
        list(votes.values())
        for votes in weighed.last.values()
        if len({vote.correct for vote in votes.values()}) > 1
    ]
    disputed.sort(key=lambda votes: -max(vote.seq for vote in votes))
    return FeedbackReport(
        model=model,
        labels=sum(map(len, weighed.last.values())),
        responses=len(weighed.last),
        key_share=key_share,
        keys=_keys(weighed),
        num_disputed=len(disputed),
        disputed=[await _disputed(store, weighed, votes) for votes in disputed[:MOST_DISPUTED]],
    )


def _keys(weighed: Weighed) -> list[KeyReport]:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for votes in weighed.last.values():
        sums = sum(1 if vote.correct else -1 for vote in votes.values())
        for key, vote in votes.items():
            count = counts[key]
            count["labels"] += 1
            own = 1 if vote.correct else -1
            if others := sums - own:
                count["contested"] += 1
                count["contradictions"] += (others > 0) != vote.correct
            if vote.prm_correct is not None:
                count["judged"] += 1
                count["prm_contradictions"] += vote.prm_correct != vote.correct
    names = ("labels", "contested", "contradictions", "judged", "prm_contradictions")
    return [
        KeyReport(
            key_id=key,
            **{name: counts[key][name] for name in names},
            contradiction_rate=_rate(counts[key], "contradictions", "contested"),
            prm_contradiction_rate=_rate(counts[key], "prm_contradictions", "judged"),
            trust=weighed.trust[key],
            share=weighed.shares.get(key, 0.0),
        )
        for key in sorted(counts, key=lambda key: (-counts[key]["labels"], key))
    ]


async def _disputed(store: FeedbackStore, weighed: Weighed, votes: Sequence[Vote]) -> Disputed:
    labels = await store.labels([vote.seq for vote in votes])
    answer = labels[-1].answer
    content = votes[0].content
    agreed = next((each for each in weighed.agreed if each.content == content), None)
    return Disputed(
        problem=answer.messages[-1].content[:MOST_CHARACTERS],
        response=answer.response[:MOST_CHARACTERS],
        labels=[
            DisputedLabel(id=label.id, key_id=label.key_id, correct=vote.correct)
            for label, vote in zip(labels, votes, strict=True)
        ],
        correct=agreed.correct if agreed else None,
        prm_correct=next((v.prm_correct for v in votes if v.prm_correct is not None), None),
    )


def _rate(count: Mapping[str, int], part: str, whole: str) -> float | None:
    return count[part] / count[whole] if count[whole] else None
