"""Old versions removed after a promotion, where the server is told to keep only so many."""

import logging
from collections.abc import Collection
from pathlib import Path

from prm.errors import RungError
from prm.registry import Pruned, prune
from prm.registry.retention import YOUNG_S
from server.jobs.store import JobStore

logger = logging.getLogger(__name__)


def prune_versions(
    root: Path,
    runs: Path,
    name: str,
    *,
    keep: int,
    older_than_s: float = YOUNG_S,
    held: Collection[str] = (),
    dry_run: bool = False,
) -> Pruned:
    """See `prm.registry.prune`; versions that a job which is not over needs are held, too."""
    held = {*held, *needed_by_jobs(runs)}
    return prune(root, name, keep=keep, older_than_s=older_than_s, held=held, dry_run=dry_run)


def prune_after_promotion(
    root: Path, runs: Path, name: str, *, keep: int, held: Collection[str]
) -> None:
    """The same, told in the log, whatever comes of it."""
    try:
        pruned = prune_versions(root, runs, name, keep=keep, held=held)
    except (RungError, OSError) as error:
        logger.warning("old versions of %s could not be removed: %s", name, error)
        return
    if pruned.removed:
        logger.info("removed old versions of %s: %s", name, ", ".join(pruned.removed))


def needed_by_jobs(runs: Path) -> set[str]:
    """The versions that training jobs begin from, and those that what they make is read with."""
    store = JobStore(runs)
    needed: set[str] = set()
    for job_id in store.ids():
        if not store.state(job_id).is_finished:
            record = store.record(job_id)
            needed.add(record.base)
            needed |= {
                key for made in record.publishes for key in (made.reference, made.like) if key
            }
    return needed
