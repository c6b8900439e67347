"""A short form of `make chaos`, in every CI run."""

from pathlib import Path

import pytest

from tests.integration.chaos import run_chaos


@pytest.mark.slow
@pytest.mark.redis
def test_nothing_that_was_accepted_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    # How soon it is back is measured by `make chaos`, with nothing else on the machine.
    account = run_chaos(
        tmp_path, seconds=40, seed=1, between_s=(1.5, 4.0), jobs=2, recovers_within_s=90
    )
    assert account.faults == ()
    assert sum(account.kills.values()) >= 8
    assert account.feedback
    assert account.jobs.get("succeeded")
