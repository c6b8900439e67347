"""What was measured or fitted of a PRM and a policy, as a request finds it beside the version."""

import asyncio
import logging
from typing import TypeVar

from prm.errors import ModelFolderError
from prm.manifest import ModelVersion
from search.records import Record, load

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


async def recorded(kind: type[R], prm: ModelVersion, policy: str) -> R | None:
    """The record, read in a thread. A damaged one is logged, and is none: no caller mends it."""
    try:
        return await asyncio.to_thread(load, kind, prm, policy)
    except ModelFolderError as error:
        logger.error("%s; it is left out", error)
        return None
