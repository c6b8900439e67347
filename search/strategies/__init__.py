"""The table of strategies: one file and one line each."""

from typing import Annotated

from pydantic import Field

from search.strategies.adaptive import Adaptive
from search.strategies.auto import Auto
from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN
from search.strategies.dvts import Dvts
from search.strategies.lookahead import Lookahead
from search.strategies.mcts import Mcts
from search.strategies.particle_filter import ParticleFilter
from search.strategies.rebase import Rebase
from search.strategies.speculative_rejection import SpeculativeRejection

Strategy = Annotated[
    BestOfN
    | Beam
    | Dvts
    | Lookahead
    | Rebase
    | Mcts
    | ParticleFilter
    | SpeculativeRejection
    | Adaptive
    | Auto,
    Field(discriminator="type"),
]
