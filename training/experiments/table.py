"""Every experiment, one line each."""

from importlib import import_module

from prm.errors import InvalidInput
from training.experiments.base import Experiment

EXPERIMENTS: dict[str, str] = {
    "implicit_prm": "training.experiments.implicit_prm:ImplicitPrmExperiment",
    "prime": "training.experiments.prime:PrimeExperiment",
    "lambda_grpo": "training.experiments.lambda_grpo:LambdaGrpoExperiment",
    "prl": "training.experiments.prl:PrlExperiment",
    "repirl": "training.experiments.repirl:RepirlExperiment",
}


def experiment_named(name: str) -> Experiment:
    """The experiment of that name. Raises InvalidInput that names those there are."""
    if name not in EXPERIMENTS:
        raise InvalidInput(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    module, _, kind = EXPERIMENTS[name].partition(":")
    experiment: Experiment = getattr(import_module(module), kind)()
    return experiment
