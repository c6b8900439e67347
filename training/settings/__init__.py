"""Every algorithm's settings, a union keyed by `type`. Nothing here imports torch."""

from typing import Annotated

from pydantic import Field

from training.settings.base import AccuracyFilter, AlgorithmSettings, PolicySettings
from training.settings.outcome import Grpo, LambdaGrpo, Rloo
from training.settings.prime import Prime
from training.settings.prl import Prl
from training.settings.repirl import Repirl
from training.settings.supervised import ImplicitPrm, Sft, StepBce

__all__ = [
    "AccuracyFilter",
    "Algorithm",
    "AlgorithmSettings",
    "Grpo",
    "ImplicitPrm",
    "LambdaGrpo",
    "PolicySettings",
    "Prime",
    "Prl",
    "Repirl",
    "Rloo",
    "Sft",
    "StepBce",
]

Algorithm = Annotated[
    Sft | ImplicitPrm | StepBce | Rloo | Grpo | LambdaGrpo | Prime | Prl | Repirl,
    Field(discriminator="type"),
]
