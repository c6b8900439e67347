"""Credit from outcome rewards alone: RLOO, GRPO, λ-GRPO, and PRL with its KL-to-go."""

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prm.chat import ChatTokenizer
from training.algorithms.grpo import grpo_advantages
from training.algorithms.lambda_grpo import lambda_weights
from training.algorithms.prl import (
    delimiter_ends,
    fixed_length_ends,
    kl_in_reward_advantages,
    prl_advantages,
    value_targets,
)
from training.algorithms.rloo import rloo_advantages
from training.credit.base import Signal, frozen_logprobs
from training.divergence import token_kl
from training.groups import group_means
from training.models import TrainedLM
from training.prefix_sets import prefix_sets
from training.rollout_batch import RolloutBatch
from training.settings import Grpo, LambdaGrpo, Prl, Rloo
from training.weighting import token_weights


class OutcomeCredit:
    """See `Credit`. `reference` is PRL's, read at the temperature that is sampled at."""

    prm = None

    def __init__(
        self,
        settings: Rloo | Grpo | LambdaGrpo | Prl,
        reference: TrainedLM | None,
        tokenizer: ChatTokenizer,
        micro_tokens: int,
        temperature: float,
    ) -> None:
        self._settings = settings
        self._reference = reference
        self._tokenizer = tokenizer
        self._micro_tokens = micro_tokens
        self._temperature = temperature

    def assign(self, batch: RolloutBatch, old_logprobs: Float[Tensor, "rows time"]) -> Signal:
        """See `Credit.assign`."""
        settings = self._settings
        weights = token_weights(batch.mask, batch.group, settings.normaliser)
        reference = None
        if isinstance(settings, Prl):
            assert self._reference is not None
            reference = frozen_logprobs(
                self._reference, batch, self._micro_tokens, temperature=self._temperature
            )
        metrics: dict[str, float] = {}
        match settings:
            case Rloo():
                advantages = rloo_advantages(batch.rewards, batch.mask, batch.group)
            case Grpo():
                advantages = grpo_advantages(batch.rewards, batch.mask, batch.group, settings)
            case LambdaGrpo():
                advantages = grpo_advantages(batch.rewards, batch.mask, batch.group, settings)
                sets = prefix_sets(batch.ids, batch.mask, batch.group)
                weights = lambda_weights(weights, sets)
                metrics = sets.diagnostics(batch.group)
            case Prl(kl_in="reward"):
                assert reference is not None
                kl = token_kl(old_logprobs, reference, batch.mask, settings.divergence).sum(1)
                of_rows = kl_in_reward_advantages(batch.rewards, kl, batch.group, settings)
                advantages = of_rows[:, None] * batch.mask
                metrics = _soft_values(batch, old_logprobs - reference, settings)
            case Prl():
                assert reference is not None
                metrics = _soft_values(batch, old_logprobs - reference, settings)
                ends = self._step_ends(batch, settings)
                advantages = prl_advantages(
                    batch.rewards, old_logprobs, reference, batch.mask, batch.group, settings,
                    step_ends=ends,
                )  # fmt: skip
        return Signal(
            advantages=advantages,
            weights=weights,
            reference_logprobs=reference,
            metrics=metrics,
        )

    def _step_ends(self, batch: RolloutBatch, settings: Prl) -> Bool[Tensor, "rows time"] | None:
        if settings.step_tokens is not None:
            return fixed_length_ends(batch.mask, settings.step_tokens)
        if settings.step_delimiter is None:
            return None
        ids = self._ids_with(settings.step_delimiter)
        return delimiter_ends(batch.ids, batch.mask, torch.tensor(ids, device=batch.ids.device))

    @cache  # noqa: B019 (one credit lives as long as its run)
    def _ids_with(self, delimiter: str) -> list[int]:
        """Every id whose text ends a step, also where a tokenizer fuses it with what is before."""
        ids = range(self._tokenizer.largest_id + 1)
        return [number for number in ids if delimiter in self._tokenizer.decode((number,))]


def _soft_values(
    batch: RolloutBatch, log_ratio: Float[Tensor, "rows time"], settings: Prl
) -> dict[str, float]:
    """How far the soft values of a problem, one from each response, lie apart: their deviation.

    At the optimum of PRL's objective all responses of a problem give the same (Theorem 3.3).
    """
    ends = batch.mask.sum(1, keepdim=True) - 1
    ratio = log_ratio.masked_fill(~batch.mask, 0.0)
    starts, rewards = torch.full_like(ends, -1), batch.rewards[:, None]
    values = value_targets(ratio, rewards, starts, ends, eta=settings.eta)[:, 0]
    apart = values - group_means(values, batch.group)[batch.group]
    return {"soft_value_deviation": float(apart.square().mean().sqrt())}
