"""The table of strategies: one file and one line each."""

from typing import Annotated

from pydantic import Field

from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN

Strategy = Annotated[BestOfN | Beam, Field(discriminator="type")]
