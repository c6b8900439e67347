"""How far each key is trusted, what the keys come to together, and what no key may exceed.

**Trust.** A key is taken for right with probability p, whatever the response (the one-coin form of
Dawid and Skene 1979). p is counted where other keys have labelled the same response: how often the
key goes with them, weighted by how far they are trusted themselves, from a prior of `PRIOR`. Of the
gradient of a label that is flipped with probability 1 - p, a share 2p - 1 is left in expectation
(as in Natarajan et al. 2013, Lemma 1), so that is its weight, over the prior's: a key that can be
compared with no other counts 1, one that is right half of the time counts 0.

**Votes.** One per key and response, its last one. A response's label is the sign of the trusts'
sum, its weight the sum's size over the number of keys; a tie is dropped.

**Share.** No key gives more than a share of all weight, where there are two or more: what exceeds
it is scaled down, but no label below `LEAST_SCALE` of its weight. Without that floor a single label
of a second key would weigh as much as thousands of the first one's.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Labels before any was seen: how many agreed and how many did not.
PRIOR = (4.0, 1.0)
# From one round to the next trusts change by less than a tenth; ten rounds settle them.
ROUNDS = 10
LEAST_SCALE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What a key said of a response. `seq` is the label's number, the latest the highest."""

    seq: int
    content: str
    key_id: str
    correct: bool
    prm_correct: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What the keys say of a response together; `by` are those that said so, with their shares."""

    content: str
    seq: int
    correct: bool
    weight: float
    by: Mapping[str, float]


def last_votes(votes: Sequence[Vote]) -> dict[str, dict[str, Vote]]:
    """By response and key; `votes` are oldest first."""
    last: dict[str, dict[str, Vote]] = defaultdict(dict)
    for vote in votes:
        last[vote.content][vote.key_id] = vote
    return dict(last)


def trusts(last: Mapping[str, Mapping[str, Vote]]) -> dict[str, float]:
    """How far each key is trusted, from 0 to 1.

    >>> ab = [Vote(seq=0, content=str(n), key_id=k, correct=True) for n in range(9) for k in "ab"]
    >>> c = [Vote(seq=0, content=str(n), key_id="c", correct=False) for n in range(9)]
    >>> trusts(last_votes(ab + c))["c"]
    0.0
    """
    keys = {key for votes in last.values() for key in votes}
    trust = dict.fromkeys(keys, 1.0)
    shared = [votes for votes in last.values() if len(votes) > 1]
    expected = PRIOR[0] / sum(PRIOR)
    for _ in range(ROUNDS):
        agreed, differed = dict.fromkeys(keys, PRIOR[0]), dict.fromkeys(keys, PRIOR[1])
        for votes in shared:
            total = sum(_signed(vote, trust) for vote in votes.values())
            for key, vote in votes.items():
                # At most one vote's worth, however many others there are.
                others = max(-1.0, min(1.0, total - _signed(vote, trust)))
                goes_with = others > 0 if vote.correct else others < 0
                (agreed if goes_with else differed)[key] += abs(others)
        trust = {
            key: _clipped(
                (2 * agreed[key] / (agreed[key] + differed[key]) - 1) / (2 * expected - 1)
            )
            for key in keys
        }
    return trust


def agree(last: Mapping[str, Mapping[str, Vote]], trust: Mapping[str, float]) -> list[Agreed]:
    """What the keys say together of each response that they can be said to agree about."""
    found = []
    for content, votes in last.items():
        total = sum(_signed(vote, trust) for vote in votes.values())
        correct = total > 0
        by = {key: trust[key] for key, vote in votes.items() if vote.correct == correct}
        support = sum(by.values())
        if abs(total) < 1e-9:
            continue
        found.append(
            Agreed(
                content=content,
                seq=max(vote.seq for key, vote in votes.items() if key in by),
                correct=correct,
                weight=abs(total) / len(votes),
                by={key: value / support for key, value in by.items() if value},
            )
        )
    return found


def capped(agreed: Sequence[Agreed], share: float) -> tuple[list[float], dict[str, float]]:
    """Each one's weight when no key gives more than `share`, and what each key gives then."""
    totals: dict[str, float] = defaultdict(float)
    for each in agreed:
        for key, part in each.by.items():
            totals[key] += each.weight * part
    most = _most(sorted(totals.values(), reverse=True), share)
    scale = {key: max(LEAST_SCALE, min(1.0, most / total)) for key, total in totals.items()}
    weights = [
        each.weight * sum(part * scale[key] for key, part in each.by.items()) for each in agreed
    ]
    given = {key: total * scale[key] for key, total in totals.items()}
    whole = sum(given.values())
    return weights, {key: value / whole for key, value in given.items()}


def _most(totals: Sequence[float], share: float) -> float:
    """What a key may give at most so that it is this share of what all give then.

    With the m largest at the limit L and the rest R as it is, L = share · (m L + R).
    """
    if len(totals) < 2:
        return sum(totals)
    share = max(share, 1 / len(totals))
    for at_limit, following in enumerate(totals):
        left = 1 - at_limit * share
        limit = share * sum(totals[at_limit:]) / left if left > 1e-9 else totals[-1]
        if following <= limit * (1 + 1e-9):
            return limit
    return totals[-1]


def _signed(vote: Vote, trust: Mapping[str, float]) -> float:
    return trust[vote.key_id] if vote.correct else -trust[vote.key_id]


def _clipped(value: float) -> float:
    return max(0.0, min(1.0, value))
