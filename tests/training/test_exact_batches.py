"""Padding, the order of rows and the size of micro-batches change no gradient of any algorithm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.algorithms.grpo import grpo_advantages
from training.algorithms.implicit_prm import ce_losses, dpo_losses, pairs_of, token_rewards
from training.algorithms.irl_loss import IrlBatch, irl_loss
from training.algorithms.lambda_grpo import lambda_weights
from training.algorithms.prime import prime_advantages
from training.algorithms.prl import fixed_length_ends, prl_advantages
from training.algorithms.repirl import pools, repirl_advantages
from training.algorithms.rloo import rloo_advantages
from training.algorithms.sft import sft_loss
from training.algorithms.step_bce import prefix_logits, step_bce_losses
from training.checkpoints import ModelSize, new_model
from training.coupled import score_gradients
from training.data import Batch, Example, collate
from training.logprobs import response_logprobs
from training.losses import policy_loss
from training.prefix_sets import prefix_sets
from training.settings import Grpo, LambdaGrpo, PolicySettings, Prime, Prl, Repirl, Rloo, StepBce
from training.weighting import token_weights

SIZE = ModelSize(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
)
ROWS, GROUPS = 12, 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A batch of rollouts with all that any algorithm asks of it."""

    batch: Batch
    group: Tensor
    old: Tensor
    reference: Tensor
    prm: Tensor

    def __len__(self) -> int:
        return len(self.group)

    @property
    def mask(self) -> Tensor:
        return self.batch.is_target

    def take(self, rows: Tensor, *, columns: int = 0) -> "Rows":
        """Some rows, in this order, with more columns of padding."""

        def of(tensor: Tensor) -> Tensor:
            return torch.nn.functional.pad(tensor[rows], (0, columns))

        batch = Batch(
            ids=of(self.batch.ids),
            is_target=of(self.batch.is_target),
            labels=self.batch.labels[rows],
            reference_logprobs=self.batch.reference_logprobs[rows],
        )
        return Rows(
            batch=batch,
            group=self.group[rows],
            old=of(self.old),
            reference=of(self.reference),
            prm=of(self.prm),
        )


# What a whole batch makes of itself, and the loss of some of its rows given that.
Prepare = Callable[[Rows, PreTrainedModel], Any]
LossOf = Callable[[Rows, Any, Tensor, Tensor], Tensor]


def policy_case(
    settings: PolicySettings, advantages_of: Callable[[Rows], Tensor]
) -> tuple[Prepare, LossOf]:
    """An algorithm that updates the policy, with importance weights and a KL."""
    settings = settings.model_copy(update={"kl_coefficient": 0.1})

    def prepare(rows: Rows, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        weights = token_weights(rows.mask, rows.group, settings.normaliser)
        if isinstance(settings, LambdaGrpo):
            sets = prefix_sets(rows.batch.ids, rows.mask, rows.group)
            weights = lambda_weights(weights, sets)
        return advantages_of(rows), weights

    def loss_of(part: Rows, prepared: Any, places: Tensor, logprobs: Tensor) -> Tensor:
        advantages, weights = (whole[places] for whole in prepared)
        found = policy_loss(
            settings, logprobs, part.old, advantages, weights, part.mask,
            importance=torch.exp(0.1 * part.prm), reference_logprobs=part.reference,
        )  # fmt: skip
        return found.loss

    return prepare, loss_of


def coupled_case(loss_of_sums: Callable[[Tensor, Rows], Tensor]) -> tuple[Prepare, LossOf]:
    """A PRM's loss that couples rows, through one score per row."""

    def prepare(rows: Rows, model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            sums = (response_logprobs(model, rows.batch) - rows.reference).sum(1)
        return score_gradients(lambda scores: loss_of_sums(scores, rows), sums)[1]

    def loss_of(part: Rows, prepared: Any, places: Tensor, logprobs: Tensor) -> Tensor:
        gradients: Tensor = prepared
        return (gradients[places] * (logprobs - part.reference).sum(1)).sum()

    return prepare, loss_of


def sft_case() -> tuple[Prepare, LossOf]:
    def prepare(rows: Rows, model: PreTrainedModel) -> Tensor:
        return rows.mask.sum().float()

    def loss_of(part: Rows, prepared: Any, places: Tensor, logprobs: Tensor) -> Tensor:
        return sft_loss(logprobs, part.mask, total=prepared)

    return prepare, loss_of


def ce_case() -> tuple[Prepare, LossOf]:
    def prepare(rows: Rows, model: PreTrainedModel) -> int:
        return len(rows)

    def loss_of(part: Rows, prepared: Any, places: Tensor, logprobs: Tensor) -> Tensor:
        ratio = (logprobs - part.reference).sum(1)
        count: int = prepared
        return ce_losses(ratio, part.batch.labels, beta=0.3).sum() / count

    return prepare, loss_of


def step_case() -> tuple[Prepare, LossOf]:
    def prepare(rows: Rows, model: PreTrainedModel) -> Tensor:
        return fixed_length_ends(rows.mask, 2).sum()

    def loss_of(part: Rows, prepared: Any, places: Tensor, logprobs: Tensor) -> Tensor:
        settings = StepBce(read_out="log_ratio", beta=0.3)
        rewards = token_rewards(logprobs, part.reference, part.mask, beta=settings.beta)
        logits, is_step = prefix_logits(rewards, fixed_length_ends(part.mask, 2), 8)
        labels = part.batch.labels[:, None].expand(logits.shape)
        count: Tensor = prepared
        return step_bce_losses(logits, labels, is_step, settings).sum() / count

    return prepare, loss_of


def dpo_of_sums(sums: Tensor, rows: Rows) -> Tensor:
    pairs = pairs_of(rows.batch.labels.tolist(), rows.group.tolist())
    return dpo_losses(sums[pairs[:, 0]], sums[pairs[:, 1]], beta=0.3).mean()


def irl_of_sums(settings: Repirl) -> Callable[[Tensor, Rows], Tensor]:
    def loss(sums: Tensor, rows: Rows) -> Tensor:
        demonstrations = torch.zeros(len(rows)).bool()
        experts, failed = pools(rows.batch.labels, demonstrations, settings)
        batch = IrlBatch(
            group=rows.group,
            lengths=rows.mask.sum(1),
            is_expert=experts,
            is_failed=failed,
            logprobs=rows.old.sum(1),
            reference_logprobs=rows.reference.sum(1),
        )
        return irl_loss(sums, batch, settings).loss

    return loss


def outcome(settings: Grpo | LambdaGrpo) -> tuple[Prepare, LossOf]:
    return policy_case(
        settings, lambda r: grpo_advantages(r.batch.labels, r.mask, r.group, settings)
    )


def prime(settings: Prime) -> tuple[Prepare, LossOf]:
    return policy_case(
        settings,
        lambda r: prime_advantages(r.prm, r.batch.labels, r.mask, r.group, settings),
    )


def prl(settings: Prl) -> tuple[Prepare, LossOf]:
    return policy_case(
        settings,
        lambda r: prl_advantages(
            r.batch.labels, r.old, r.reference, r.mask, r.group, settings,
            step_ends=fixed_length_ends(r.mask, 2),
        ),
    )  # fmt: skip


def repirl(settings: Repirl) -> tuple[Prepare, LossOf]:
    return policy_case(
        settings,
        lambda r: repirl_advantages(r.prm, r.batch.labels, r.mask, r.group, settings),
    )


CASES: dict[str, tuple[Prepare, LossOf]] = {
    "sft": sft_case(),
    "implicit_prm ce": ce_case(),
    "implicit_prm dpo": coupled_case(dpo_of_sums),
    "step_bce": step_case(),
    "rloo": policy_case(Rloo(), lambda r: rloo_advantages(r.batch.labels, r.mask, r.group)),
    "grpo by token": outcome(Grpo()),
    "grpo by group": outcome(Grpo(normaliser="token_group", dual_clip=1.5)),
    "grpo by sequence": outcome(Grpo(normaliser="sequence")),
    "lambda_grpo": outcome(LambdaGrpo()),
    "prime": prime(Prime(process_discount=0.9)),
    "prime, official": prime(Prime(baseline="official_code")),
    "prime, grpo": prime(Prime(estimator="grpo")),
    "prime, value": prime(Prime(process_as="value")),
    "prl": prl(Prl(eta=5)),
    "prl by steps": prl(Prl(eta=5, anchor="step_start", step_tokens=2)),
    "repirl": repirl(Repirl()),
    "repirl, grpo": repirl(Repirl(estimator="grpo")),
    "repirl's prm": coupled_case(irl_of_sums(Repirl())),
    "repirl's prm, mle": coupled_case(irl_of_sums(Repirl(prm_loss="mle"))),
    "repirl's prm, pooled": coupled_case(irl_of_sums(Repirl(normalise="pooled"))),
    "repirl's prm, discriminator": coupled_case(irl_of_sums(Repirl(prm_loss="discriminator"))),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return new_model(SIZE, seed=0)


@pytest.fixture(scope="module")
def rows(model: PreTrainedModel) -> Rows:
    """Three problems of four responses each, one to eight tokens long, which share prefixes."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int, most: int = 3) -> list[int]:
        return torch.randint(1, most, (count,), generator=generator).tolist()

    examples = []
    for number in range(ROWS):
        prompt = [10 + number // 4, 11, 12 + number // 4]
        response = draw(int(torch.randint(1, 9, (1,), generator=generator)))
        examples.append(Example(ids=(*prompt, *response), first=3, label=float(number % 3 == 0)))
    batch = collate(examples)
    noise = 0.4 * torch.randn(3, *batch.ids.shape, generator=generator) * batch.is_target
    with torch.no_grad():
        logprobs = response_logprobs(model, batch)
    return Rows(
        batch=batch,
        group=torch.arange(GROUPS).repeat_interleave(ROWS // GROUPS),
        old=logprobs + noise[0],
        reference=logprobs + noise[1],
        prm=noise[2],
    )


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_whole_batch(
    name: str, model: PreTrainedModel, rows: Rows
) -> None:
    every = torch.arange(ROWS)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    whole = gradient_of(model, rows, [every], CASES[name])
    assert whole.norm() > 1e-4, "there is something to compare"
    for other, cuts in (
        (rows.take(every, columns=5), [every]),
        (rows.take(order), [every]),
        (rows, torch.split(every, 1)),
        (rows.take(order, columns=1), torch.split(every, 5)),
    ):
        found = gradient_of(model, other, cuts, CASES[name])
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)


def gradient_of(
    model: PreTrainedModel, rows: Rows, cuts: Sequence[Tensor], case: tuple[Prepare, LossOf]
) -> Tensor:
    """The gradient that micro-batches of these rows add up to."""
    prepare, loss_of = case
    prepared = prepare(rows, model)
    model.zero_grad()
    for places in cuts:
        part = rows.take(places)
        logprobs = response_logprobs(model, part.batch)
        torch.autograd.backward(loss_of(part, prepared, places, logprobs))
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found
