"""Problems with answers or tests out of files: loaded, filtered, mixed. No torch."""

from training.datasets.columns import Columns
from training.datasets.difficulty import Filtered, by_level, by_pass_rate, pass_rates
from training.datasets.loading import DatasetSettings, Loaded, load_problems
from training.datasets.mixing import MixPosition, Mixture, Source
from training.datasets.sources import LoadedMixture, SourceSettings, load_mixture

__all__ = [
    "Columns",
    "DatasetSettings",
    "Filtered",
    "Loaded",
    "LoadedMixture",
    "MixPosition",
    "Mixture",
    "Source",
    "SourceSettings",
    "by_level",
    "by_pass_rate",
    "load_mixture",
    "load_problems",
    "pass_rates",
]
