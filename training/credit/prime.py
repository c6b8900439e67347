"""PRIME's credit: an implicit PRM that learns from the same rollouts, and rewards their tokens."""

from jaxtyping import Float
from torch import Tensor

from training.algorithms.prime import prime_advantages
from training.credit.base import Signal, frozen_logprobs
from training.credit.implicit import ImplicitTeacher
from training.learner import Learner
from training.models import TrainedLM
from training.rollout_batch import RolloutBatch
from training.settings import ImplicitPrm, Prime
from training.weighting import token_weights


class PrimeCredit:
    """See `Credit`."""

    def __init__(self, settings: Prime, prm: Learner, reference: TrainedLM | None) -> None:
        self.prm = prm
        self._settings = settings
        self._reference = reference
        loss = ImplicitPrm(loss=settings.prm_loss, beta=settings.beta)
        self._teacher = ImplicitTeacher(loss, prm, reference)

    def assign(self, batch: RolloutBatch, old_logprobs: Float[Tensor, "rows time"]) -> Signal:
        """See `Credit.assign`. "after" scores with the PRM as it was before this batch."""
        settings, micro = self._settings, self.prm.settings.micro_tokens
        frozen = None
        if self._reference is not None:
            frozen = frozen_logprobs(self._reference, batch, micro)
        divisor = frozen if settings.reference == "frozen" else old_logprobs
        assert divisor is not None
        if settings.update == "never":
            taught = self._teacher.read(batch, divisor)
        else:
            taught = self._teacher.teach(batch, divisor)
        scores = taught.logprobs
        if settings.update == "before":
            scores = frozen_logprobs(self.prm.model, batch, micro)
        log_ratio = (scores - divisor).masked_fill(~batch.mask, 0.0)
        return Signal(
            advantages=prime_advantages(
                log_ratio, batch.rewards, batch.mask, batch.group, settings
            ),
            weights=token_weights(batch.mask, batch.group, settings.normaliser),
            token_rewards=taught.logprobs - divisor,
            reference_logprobs=frozen,
            metrics=taught.metrics,
        )
