"""A model, its optimizer and its schedule: gradients of any number of parts, then one step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prm.errors import RungError
from training.models import TrainedLM
from training.spec import Optimizer


class Diverged(RungError):
    """A loss or a gradient is no number. The weights are those before the step.

    >>> str(Diverged("policy", 12, "the loss is nan"))
    'policy, optimizer step 12: the loss is nan'
    """

    def __init__(self, who: str, step: int, what: str) -> None:
        super().__init__(f"{who}, optimizer step {step}: {what}")


class Learner:
    """Trains `model`. `total` is how many optimizer steps there will be, for the schedule."""

    def __init__(self, who: str, model: TrainedLM, settings: Optimizer, total: int) -> None:
        self.model = model
        self.settings = settings
        self.steps = 0
        self._who = who
        self._total = total
        self._weights = model.parameters
        self._optimizer = torch.optim.AdamW(
            self._weights,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def step(self, losses: Iterable[Float[Tensor, ""]]) -> dict[str, float]:
        """Add up the gradients of these losses, each freed before the next is made, and step.

        Raises Diverged, and changes no weight, where a loss or the gradient is not finite.
        """
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for loss in losses:
            total += self._finite(loss.item(), "loss")
            torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self.settings.max_grad_norm)
        gradient = self._finite(norm.item(), "gradient's norm")
        lr = self.settings.lr * rate(self.settings, self.steps, self._total)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return {"loss": total, "grad_norm": gradient, "lr": lr}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs: weights, moments and the number of steps."""
        return {
            "model": self.model.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.model.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def _finite(self, value: float, what: str) -> float:
        if not math.isfinite(value):
            self._optimizer.zero_grad(set_to_none=True)
            raise Diverged(
                self._who,
                self.steps + 1,
                f"the {what} is {value}; lower its lr ({self.settings.lr:g}), or go on from the "
                "last checkpoint with another seed",
            )
        return value


def rate(settings: Optimizer, step: int, total: int) -> float:
    """The share of `lr` for optimizer step `step` (from 0) of `total`.

    >>> cosine = Optimizer(lr=1, schedule="cosine", warmup=0.2)
    >>> [round(rate(cosine, step, 10), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    warm = round(settings.warmup * total)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
