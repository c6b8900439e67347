"""What the tests of policy servers that fail share."""

from collections.abc import Iterator

import pytest
import stamina


@pytest.fixture
def quick_tries() -> Iterator[None]:
    """Three tries at most, and no waits between them."""
    with stamina.set_testing(True, attempts=3, cap=True):
        yield
