"""The table of strategies: one file and one line each."""

from typing import Annotated

from pydantic import Field

from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN
from search.strategies.dvts import Dvts
from search.strategies.lookahead import Lookahead
from search.strategies.particle_filter import ParticleFilter
from search.strategies.rebase import Rebase

Strategy = Annotated[
    BestOfN | Beam | Dvts | Lookahead | Rebase | ParticleFilter, Field(discriminator="type")
]
