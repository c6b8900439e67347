"""What is scored: token ids drawn with a seed, the same for every contestant, new in every round.

New ids mean that nobody gains from what a cache kept of the round before.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scoring.shapes import Shape

# Ids below this stand for themselves in every model here; the bundled one's control tokens do not.
BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; the defaults are what the targets are about."""

    solutions: int = 256
    candidates: int = 64
    beams: int = 16
    depth: int = 12
    requests: int = 200
    clients: int = 64
    client_requests: int = 384


QUICK = Sizes(
    solutions=12, candidates=8, beams=4, depth=3, requests=20, clients=8, client_requests=24
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One sequence; the log-probs of its tokens from `first` on are wanted."""

    ids: tuple[int, ...]
    first: int


# Items that are scored together; what comes next is known only when their scores are.
Batch = list[Item]


def flat(shape: Shape, sizes: Sizes, seed: int) -> list[Batch]:
    """Unrelated solutions of 40 to 400 tokens, all of each scored."""
    draw = _Draw(shape, seed)
    return [[Item(ids=draw.ids(40, 400), first=1) for _ in range(sizes.solutions)]]


def best_of(shape: Shape, sizes: Sizes, seed: int) -> list[Batch]:
    """Candidates of one long problem, which is at least half of each. Responses are scored."""
    draw = _Draw(shape, seed)
    half = shape.max_position_embeddings // 2
    problem = draw.ids(half, half)
    items = [
        Item(ids=problem + draw.ids(half // 4, half - 8), first=half)
        for _ in range(sizes.candidates)
    ]
    return [items]


def beam(shape: Shape, sizes: Sizes, seed: int) -> list[Batch]:
    """A beam search: each round, every beam gets one more step and is scored from the first one.

    A beam continues one of the survivors of the round before, a quarter of all (each kept by four).
    A twelfth round's beam is 7/8 of the context long.
    """
    draw = _Draw(shape, seed)
    unit = shape.max_position_embeddings // 16
    problem = draw.ids(2 * unit, 2 * unit)
    beams = [problem] * sizes.beams
    batches: list[Batch] = []
    for _ in range(sizes.depth):
        survivors = draw.choose(beams, max(1, sizes.beams // 4))
        beams = [
            survivors[i % len(survivors)] + draw.ids(3 * unit // 4, unit)
            for i in range(sizes.beams)
        ]
        batches.append([Item(ids=ids, first=len(problem)) for ids in beams])
    return batches


WORKLOADS = {"flat": flat, "flat-implicit": flat, "best-of-64": best_of, "beam": beam}


class _Draw:
    """Seeded draws of ids that a shape has rows for."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._random = random.Random(seed)
        is_bytes = shape.vocab_size < 2 * BYTES
        self._largest = BYTES - 1 if is_bytes else shape.vocab_size - 1

    def ids(self, least: int, most: int) -> tuple[int, ...]:
        length = self._random.randint(least, most)
        return tuple(self._random.randint(0, self._largest) for _ in range(length))

    def choose(self, items: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
        return self._random.sample(list(items), count)
