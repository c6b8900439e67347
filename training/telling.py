"""What a step's events tell of a batch beside its losses: drift from the reference, and the PRM."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from prm.chat import ChatTokenizer
from training.divergence import token_kl
from training.held_out import ResponseReader, by_step, first_error_f1
from training.rollout_batch import RolloutBatch
from training.settings.base import KLEstimator

_ESTIMATORS: tuple[KLEstimator, ...] = ("k1", "k3")


def reference_kl(
    logprobs: Float[Tensor, "rows time"],
    reference_logprobs: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
) -> dict[str, float]:
    """KL(π‖π_ref) from what was sampled: the mean of tokens, and of whole responses, in nats."""
    told = {}
    for estimator in _ESTIMATORS:
        total = float(token_kl(logprobs, reference_logprobs, mask, estimator).sum())
        told[f"reference_kl_{estimator}"] = total / max(1.0, float(mask.sum()))
        told[f"reference_kl_{estimator}_response"] = total / max(1, len(mask))
    return told


@dataclass(frozen=True, slots=True)
class PrmJudge:
    """Holds token rewards against the process labels of a task, where it has any."""

    reader: ResponseReader
    tokenizer: ChatTokenizer

    def numbers(
        self, batch: RolloutBatch, token_rewards: Float[Tensor, "rows time"] | None
    ) -> dict[str, float]:
        """How well a PRM's step rewards find the first errors of a batch; see `first_error_f1`."""
        find = self.reader.first_error
        if find is None or token_rewards is None:
            return {}
        scores: dict[int, list[list[float]]] = {}
        labels: dict[int, list[int | None]] = {}
        rows = zip(batch.rollouts, token_rewards, batch.group.tolist(), strict=True)
        for rollout, rewards, group in rows:
            steps = by_step(rollout, rewards, self.reader, self.tokenizer)
            scores.setdefault(group, []).append(steps)
            labels.setdefault(group, []).append(find(rollout.problem, rollout.text))
        return {"prm_first_error_f1": first_error_f1([*scores.values()], [*labels.values()])}
