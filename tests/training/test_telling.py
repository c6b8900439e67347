"""What events tell of a batch, against numbers worked out by hand or by brute force."""

import math
import random

import pytest
import torch

from prm.aggregation import predicted_error
from tests.training.vectors import flags
from training.evaluate import harmonic_mean
from training.held_out import first_error_f1
from training.telling import reference_kl


def test_the_kl_of_tokens_and_of_responses() -> None:
    ours = torch.tensor([[-1.0, -2.0, 9.0], [-3.0, 9.0, 9.0]])
    theirs = torch.tensor([[-1.5, -1.0, 0.0], [-3.0, 0.0, 0.0]])
    told = reference_kl(ours, theirs, flags([[1, 1, 0], [1, 0, 0]]))
    k3 = (math.exp(-0.5) + 0.5 - 1) + (math.exp(1) - 1 - 1)
    assert told == pytest.approx(
        {
            "reference_kl_k1": -0.5 / 3,
            "reference_kl_k1_response": -0.5 / 2,
            "reference_kl_k3": k3 / 3,
            "reference_kl_k3_response": k3 / 2,
        }
    )


def brute_force(
    scores: list[list[list[float]]], labels: list[list[int | None]], threshold: float
) -> float:
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for group, own in zip(scores, labels, strict=True):
        for steps, label in zip(group, own, strict=True):
            hits[label is None].append(predicted_error(steps, threshold) == label)
    wrong, right = (sum(h) / len(h) if h else 0.0 for h in (hits[False], hits[True]))
    return harmonic_mean(wrong, right)


def test_first_errors_are_found_as_by_trying_every_threshold() -> None:
    rng = random.Random(0)
    for _ in range(30):
        counts = [rng.randrange(1, 4) for _ in range(6)]
        scores = [
            [[round(rng.random(), 1) for _ in range(rng.randrange(1, 5))] for _ in range(count)]
            for count in counts
        ]
        labels = [[rng.choice([None, *range(len(steps))]) for steps in group] for group in scores]
        tried = sorted({value for group in scores[:3] for steps in group for value in steps})
        best = max(tried, key=lambda c: brute_force(scores[:3], labels[:3], c))
        assert first_error_f1(scores, labels) == pytest.approx(
            brute_force(scores[3:], labels[3:], best)
        )
