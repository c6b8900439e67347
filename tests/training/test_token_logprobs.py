"""Log-probabilities with gradients: the engine's forward, autograd's gradients."""

import pytest
import torch
from torch import Tensor

from prm.engine import logprobs
from prm.engine.logprobs import target_logprobs
from training.token_logprobs import token_entropies, token_logprobs


def plain(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The definition."""
    logits = hidden.float() @ head.float().T
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("tile", [(256, 4096), (3, 7), (4, 50)])
def test_values_and_gradients_are_those_of_the_whole_softmax(
    tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(logprobs.TILES, "cpu", tile)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 16, generator=generator, requires_grad=True)
    head = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (11,), generator=generator)
    weights = torch.randn(11, generator=generator)
    found, gradients = [], []
    for function in (token_logprobs, plain):
        values = function(hidden, head, targets)
        found.append(values)
        gradients.append(torch.autograd.grad((values * weights).sum(), (hidden, head)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


def test_the_forward_is_the_engines_to_the_last_bit() -> None:
    hidden, head = torch.randn(300, 32), torch.randn(5000, 32)
    targets = torch.randint(0, 5000, (300,))
    found = token_logprobs(hidden.requires_grad_(), head, targets)
    assert torch.equal(found.detach(), target_logprobs(hidden.detach(), head, targets))


def test_a_frozen_head_gets_no_gradient_and_bfloat16_keeps_its_type() -> None:
    hidden = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(20, 8)
    values = token_logprobs(hidden, head, torch.arange(5))
    torch.autograd.backward(values.sum())
    assert values.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    assert head.grad is None


def test_entropies_and_their_gradients_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.token_logprobs.ENTROPY_ENTRIES", 60)
    hidden = torch.randn(9, 8, requires_grad=True)
    head = torch.randn(20, 8, requires_grad=True)
    found = token_entropies(hidden, head)
    wanted = torch.distributions.Categorical(logits=hidden @ head.T).entropy()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), (hidden, head)),
        torch.autograd.grad(wanted.sum(), (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
