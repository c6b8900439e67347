"""One round of writing: how much each candidate may write, and what becomes of what was written.

parents → drafts in the tree, a want for each → policy → take: the candidate, booked
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from search.accounts import Accounts
from search.answers import TaskAnswers
from search.generator import Want, Written
from search.types import Candidate, FinishReason, Prefix, Sampling


@dataclass(frozen=True, slots=True)
class _Cut:
    """How much a candidate may write now, and why it ends there. None: it does not."""

    tokens: int
    reason: FinishReason | None


class Writing:
    """One new candidate per parent (None: from the start): a draft until the policy has written it.

    Making one adds the drafts to the tree and books the calls. Each may write what its own limit,
    its equal share of the token budget and `at_most` leave.
    """

    def __init__(
        self,
        parents: Sequence[Candidate | None],
        *,
        tree: list[Candidate],
        accounts: Accounts,
        sampling: Sampling,
        answers: TaskAnswers,
        round_: int,
        at_most: int | None,
    ) -> None:
        self._tree = tree
        self._accounts = accounts
        self._answers = answers
        self._first = len(tree)
        share = accounts.meter.share(len(parents))
        self._cuts = [_cut(sampling, parent, share, at_most) for parent in parents]
        accounts.meter.calls += len(parents)
        tree.extend(
            Candidate(
                index=self._first + place,
                parent=parent.index if parent else None,
                round=round_,
                tokens=parent.tokens if parent else 0,
            )
            for place, parent in enumerate(parents)
        )
        self.wants = [
            Want(
                number=self._first + place,
                prefix=parent.prefix if parent else Prefix(),
                seed=derive_seed(sampling.seed, round_, place),
                max_tokens=self._cuts[place].tokens,
            )
            for place, parent in enumerate(parents)
        ]

    def take(self, written: Written) -> Candidate:
        """Book what was written and make it a candidate."""
        self._accounts.meter.generated_tokens += written.tokens
        self._accounts.prompt_tokens = written.prompt_tokens
        draft = self._tree[written.number]
        finish = self._finish(written, draft)
        candidate = replace(
            draft,
            prefix=written.prefix,
            tokens=draft.tokens + written.tokens,
            answer=self._answers.extract(written.prefix.text) if finish else None,
            finish_reason=finish,
        )
        self._tree[candidate.index] = candidate
        return candidate

    def _finish(self, written: Written, draft: Candidate) -> FinishReason | None:
        """Why the candidate ends here, noting a budget that cut it; None: it can go on."""
        match written.ended_by:
            case "eos" | "stop":
                return "stop"
            case "separator":
                parent_text = self._tree[draft.parent].text if draft.parent is not None else ""
                # A policy that says nothing would say nothing for ever.
                return "stop" if written.prefix.text == parent_text else None
            case "length":
                cut = self._cuts[written.number - self._first]
                # Short of what it was allowed, the model's context was full.
                finish = cut.reason if written.tokens >= cut.tokens else "length"
                if finish == "budget":
                    self._accounts.stopped_by = "budget.tokens"
                return finish
            case "deadline":
                self._accounts.stopped_by = "budget.seconds"
                return "budget"


def derive_seed(seed: int, round_: int, place: int) -> int:
    """A seed of its own for each continuation of a search, below 2^63."""
    digest = hashlib.sha256(f"{seed}/{round_}/{place}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _cut(
    sampling: Sampling, parent: Candidate | None, share: int | None, at_most: int | None
) -> _Cut:
    """The least of a candidate's own limit, its share of the budget and `at_most`."""
    left = sampling.max_tokens - (parent.tokens if parent else 0)
    cut = _Cut(left, "length")
    if share is not None and share < cut.tokens:
        cut = _Cut(share, "budget")
    # Of equals: what others leave of their shares may pay for more.
    if at_most is not None and at_most < cut.tokens + (cut.reason == "budget"):
        cut = _Cut(at_most, None)
    assert cut.tokens >= 1, "nobody asks for a candidate that may write nothing"
    return cut
