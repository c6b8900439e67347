"""One optimiser for every algorithm: AdamW, linear warm-up, cosine to zero, clipped gradients."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.data import Batch

Loss = Callable[[Batch], Tensor]
OnStep = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """`lr` is the peak, reached after `warmup` (a share of all steps)."""

    lr: float
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


def fit(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    loss_of: Loss,
    settings: OptimizerSettings,
    *,
    num_steps: int,
    on_step: OnStep,
) -> None:
    """Minimise `loss_of` over the batches, one step each; `on_step` hears the step and its loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step / num_steps, settings.warmup)
        loss = loss_of(batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(step + 1, loss.item())
    model.train(False)


def schedule(progress: float, warmup: float) -> float:
    """Share of the peak rate after `progress` (0 to 1) of the steps.

    >>> [schedule(p, 0.1) for p in (0.05, 0.1, 1.0)]
    [0.5, 1.0, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
