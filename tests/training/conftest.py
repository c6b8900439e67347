"""Shapes in signatures are checked in tests and cost nothing in production."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

with install_import_hook(
    [
        "training.advantages",
        "training.algorithms",
        "training.coupled",
        "training.data",
        "training.divergence",
        "training.groups",
        "training.logprobs",
        "training.losses",
        "training.prefix_sets",
        "training.weighting",
    ],
    "beartype.beartype",
):
    import training.algorithms.grpo
    import training.algorithms.implicit_prm
    import training.algorithms.lambda_grpo
    import training.algorithms.prime
    import training.algorithms.prl
    import training.algorithms.repirl
    import training.algorithms.rloo
    import training.algorithms.sft
    import training.algorithms.step_bce
    import training.coupled
    import training.data
    import training.logprobs
    import training.losses  # noqa: F401

from tests.training.jobs import pupil_job, small_job
from training.run import run_job
from training.spec import TrainingJob


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `pupil_job`."""
    return run_job(pupil_job(), tmp_path_factory.mktemp("pupil") / "run").models["policy"]


@pytest.fixture
def job_of(policy: Path) -> Callable[..., TrainingJob]:
    """See `small_job`."""
    return partial(small_job, policy)
