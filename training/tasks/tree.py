"""A binary tree with one good leaf behind a bad first move: λ-GRPO's synthetic task.

arXiv 2509.21154: four moves, L or R. One leaf is the target. All others behind its first `shared`
moves are bad, and everything else is fair: GRPO is drawn away from a prefix that is mostly bad and
leads to the best leaf. (The paper's n is `shared`, its r_neg `bad`.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

MOVES = "LR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The rewards of a tree's leaves.

    >>> tree = Tree(target="LLRL", shared=1, bad=-1.0)
    >>> tree.reward("LLRL"), tree.reward("LRLL"), tree.reward("RRRR")
    (1.0, -1.0, 0.7)
    """

    target: str = "LLRL"
    shared: int = 1
    bad: float = -1.0
    good: float = 1.0
    fair: float = 0.7

    def __post_init__(self) -> None:
        if not self.target or set(self.target) - set(MOVES):
            raise ValueError(f"target {self.target!r}: write the moves as L and R")
        if not 1 <= self.shared < len(self.target):
            raise ValueError(f"shared {self.shared}: 1 to {len(self.target) - 1} moves are shared")

    def reward(self, leaf: str) -> float:
        """What a leaf, written as its moves, is worth."""
        if leaf == self.target:
            return self.good
        is_behind = leaf[: self.shared] == self.target[: self.shared]
        return self.bad if is_behind else self.fair

    def leaves(self) -> Sequence[str]:
        """All leaves, from left to right."""
        return ["".join(moves) for moves in product(MOVES, repeat=len(self.target))]
