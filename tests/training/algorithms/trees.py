"""Policies over short strings of the moves 0 and 1, small enough to enumerate."""

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from tests.training.vectors import doubles

Logits = Mapping[str, Sequence[float]]
LEAVES = tuple("".join(moves) for moves in product("01", repeat=3))
STATES = ("root", "0", "1", "00", "01", "10", "11")


def state_of(prefix: str) -> str:
    """The key of a state, which the empty prefix has, too."""
    return prefix or "root"


def table_of(values: Logits) -> Tensor:
    """[state, move], in the order of STATES."""
    return doubles([values[state] for state in STATES])


def token_values(table: Tensor) -> Tensor:
    """[leaf, time]: a table's entry at each move of each leaf."""
    rows = [[STATES.index(state_of(leaf[:t])) for t in range(3)] for leaf in LEAVES]
    moves = [[int(move) for move in leaf] for leaf in LEAVES]
    return table[torch.tensor(rows), torch.tensor(moves)]


def token_logprobs(logits: Tensor) -> Tensor:
    """[leaf, time]: log-probs of each leaf's moves."""
    return token_values(logits.log_softmax(1))
