"""What every call of a policy server has: a deadline, a chat that fits, errors that name it."""

import asyncio

from prm.errors import InvalidInput, Unavailable
from search.generator import GenerateParams

# Times that a text is taken up again after its answer broke off.
RESUMPTIONS = 2
# Events of a request beyond one per token, before a server that never ends is left.
SPARE_EVENTS = 1000


def deadline_of(params: GenerateParams) -> float | None:
    """The event loop's time at which a call must be over; None is never."""
    if params.seconds is None:
        return None
    return asyncio.get_running_loop().time() + params.seconds


def check_length(policy: str, length: int, limit: int) -> None:
    """Raises InvalidInput when a chat leaves the policy no room to write."""
    if length >= limit:
        raise InvalidInput(
            f"the problem is {length} tokens long, and {policy} reads and writes at most {limit} "
            "together; shorten it",
            param="problem",
        )


def of_policy(name: str, error: Unavailable) -> Unavailable:
    """The error, saying whose policy it is that cannot write now."""
    return Unavailable(f"policy {name!r}: {error}", retry_after_s=error.retry_after_s)
