"""A model, its optimizer and its schedule: gradients of any number of parts, then one step."""

import math
from collections.abc import Iterable
from typing import Generic

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypeVar

from prm.errors import RungError
from training.heads import TrainedHead
from training.models import TrainedLM
from training.spec import Optimizer


class Diverged(RungError):
    """A loss or a gradient is no number. The weights are those before the step.

    >>> str(Diverged("policy", 12, "the loss is nan"))
    'policy, optimizer step 12: the loss is nan'
    """

    def __init__(self, who: str, step: int, what: str) -> None:
        super().__init__(f"{who}, optimizer step {step}: {what}")


# What is not said is a language model.
M = TypeVar("M", bound=TrainedLM | TrainedHead, default=TrainedLM)


class Learner(Generic[M]):
    """Trains `model`. `total` is how many optimizer steps there will be, for the schedule."""

    def __init__(self, who: str, model: M, settings: Optimizer, total: int) -> None:
        self.model = model
        self.settings = settings
        self.steps = 0
        self._who = who
        self._total = total
        self._weights = model.parameters
        own = set(map(id, self._weights))
        self.weights = {n: w for n, w in model.model.named_parameters() if id(w) in own}
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
            total += loss.item()
            torch.autograd.backward(loss)
        ranks = self.model.ranks
        # Behind the last backward, so that ranks find the same and none waits for one that stopped.
        total = ranks.sum(torch.tensor(total, dtype=torch.float64)).item()
        self._finite(total, "loss")
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self.settings.max_grad_norm)
        gradient = self._finite(ranks.full(norm).item(), "gradient's norm")
        lr = self.settings.lr * rate(self.settings, self.steps, self._total)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return {"loss": total, "grad_norm": gradient, "lr": lr}

    def moments(self) -> dict[str, Tensor]:
        """AdamW's own tensors as `weight.name`. With `weights` and `steps`, all that a resumed run
        needs; to be written into where it goes on."""
        found = dict[str, Tensor]()
        for name, weight in self.weights.items():
            state = self._optimizer.state[weight]
            if not state:
                # What AdamW makes in its first step.
                state["step"] = torch.zeros((), device=weight.device)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            found |= {f"{name}.{kind}": tensor for kind, tensor in state.items()}
        return found

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
