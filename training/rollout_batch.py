"""Rollouts side by side, as algorithms and losses see them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.data import Example
from training.models import response_mask
from training.ranks import Ranks
from training.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One sampled response, as ids and as text, with the log-probs that it was sampled with.

    `policy_step` is how many optimizer steps the policy had behind it. A response that was cut off
    by its limit has no end token. `reward` is set when the response was graded, `weight` where its
    label is worth more or less than another's to a PRM.
    """

    problem: Problem
    example: Example
    text: str
    logprobs: tuple[float, ...]
    policy_step: int
    is_cut: bool
    reward: float = 0.0
    weight: float = 1.0


# The rollouts of one problem.
Group = Sequence[Written]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutBatch:
    """Column t of `ids`, `mask` and `sampler_logprobs` is a response's token t.

    `group[i]` numbers the problem of row i, `rewards` are outcome rewards in [0, 1], `weights` what
    each of them counts in a PRM's loss.
    """

    rollouts: tuple[Written, ...]
    ids: Int[Tensor, "rows time"]
    mask: Bool[Tensor, "rows time"]
    group: Int[Tensor, "rows"]
    rewards: Float[Tensor, "rows"]
    weights: Float[Tensor, "rows"]
    sampler_logprobs: Float[Tensor, "rows time"]

    @classmethod
    def of(cls, groups: Sequence[Group], device: torch.device | str = "cpu") -> "RolloutBatch":
        """The rollouts of these groups in their order; there is at least one."""
        rollouts = tuple(rollout for group in groups for rollout in group)
        examples = [rollout.example for rollout in rollouts]
        mask = response_mask(examples, device)
        tokens = torch.tensor([t for e in examples for t in e.ids[e.first :]], device=device)
        sampled = torch.tensor([value for r in rollouts for value in r.logprobs], device=device)
        numbers = [number for number, group in enumerate(groups) for _ in group]
        return cls(
            rollouts=rollouts,
            ids=tokens.new_zeros(mask.shape).masked_scatter(mask, tokens),
            mask=mask,
            group=torch.tensor(numbers, device=device),
            rewards=torch.tensor([rollout.reward for rollout in rollouts], device=device),
            weights=torch.tensor([rollout.weight for rollout in rollouts], device=device),
            sampler_logprobs=sampled.new_zeros(mask.shape).masked_scatter(mask, sampled),
        )

    @property
    def examples(self) -> list[Example]:
        """What is read of each row."""
        return [rollout.example for rollout in self.rollouts]


def own_pieces(
    ranks: Ranks, examples: Sequence[Example], rows: Sequence[int], most_tokens: int
) -> Iterator[Sequence[int]]:
    """This rank's rows, in pieces of about so many tokens.

    Every rank has the same number of pieces, since ranks gather weights together; one may be empty.
    """
    for piece in cut_by_tokens(examples, rows, most_tokens * ranks.count):
        yield ranks.share(piece)


def cut_by_tokens(
    examples: Sequence[Example], rows: Sequence[int], most_tokens: int
) -> Iterator[list[int]]:
    """These rows in pieces of at most so many tokens; a longer row is a piece.

    The longest come first, each with those of its prompt, which is read once in a piece.
    """
    prompts = {row: examples[row].ids[: examples[row].first] for row in rows}
    longest: dict[tuple[int, ...], int] = {}
    for row, prompt in prompts.items():
        longest[prompt] = max(longest.get(prompt, 0), len(examples[row].ids))
    order = sorted(
        rows, key=lambda row: (-longest[prompts[row]], prompts[row], -len(examples[row].ids), row)
    )
    piece: list[int] = []
    tokens = 0
    for row in order:
        example, is_new = examples[row], not piece or prompts[row] != prompts[piece[-1]]
        own = len(example.ids) - (0 if is_new else example.first)
        if piece and tokens + own > most_tokens:
            yield piece
            piece, tokens, own = [], 0, len(example.ids)
        piece.append(row)
        tokens += own
    if piece:
        yield piece
