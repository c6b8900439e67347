"""Removing old versions: never one that answers, may be gone back to, or is needed by another.

Decided under the locks of publishing and of the name's pointer, so that nobody promotes a version,
or publishes one that needs it, at that moment. What goes is renamed away first: a reader finds all
of a version or nothing.
"""

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prm.errors import ModelFolderError
from prm.files import sync_folder
from prm.registry.fit import references_of
from prm.registry.holding import changing_versions, holding_folder
from prm.registry.names import STABLE
from prm.registry.pointer import Pointer, changing, published
from prm.registry.version import read_version

# Somebody may be about to promote it, or to train from it.
YOUNG_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What is gone, and why the others stay: {"3": "live", "2": "previous", …}."""

    name: str
    removed: tuple[str, ...]
    kept: Mapping[str, str]


def prune(
    root: Path,
    name: str,
    *,
    keep: int,
    older_than_s: float = YOUNG_S,
    held: Collection[str] = (),
    dry_run: bool = False,
) -> Pruned:
    """Remove a name's versions but the `keep` newest and those that somebody needs.

    Needed are what the pointer serves, the `keep` latest that it can go back to (one at least), the
    references of any version of any name that stays, those in `held` (`name@version`), and those
    younger than `older_than_s`, which is never less than an hour. A gate's verdicts stay.
    Raises UnknownModel, and ModelFolderError where the pointer cannot be read.
    """
    published(root, name)  # a name that is not there gets no folder
    with holding_folder(root, name) as grave:
        with changing_versions(root), changing(root, name) as pointer:
            kept = _kept(root, name, pointer, keep, max(YOUNG_S, older_than_s), held)
            removed = tuple(v for v in published(root, name) if v not in kept)
            for version in () if dry_run else removed:
                (root / name / version).rename(grave / version)
        sync_folder(root / name)
    return Pruned(name=name, removed=removed, kept=kept)


def _kept(
    root: Path,
    name: str,
    pointer: Pointer | None,
    keep: int,
    older_than_s: float,
    held: Collection[str],
) -> dict[str, str]:
    """Why each version that stays does so, the oldest first."""
    versions = published(root, name)
    why = dict.fromkeys(versions[max(0, len(versions) - keep) :], "newest")
    now = time.time()
    for version in versions:
        if now - (root / name / version / STABLE).stat().st_mtime < older_than_s:
            why[version] = "young"
        if f"{name}@{version}" in held:
            why[version] = "in use"
    if pointer is not None:
        why |= dict.fromkeys(pointer.previous[: max(1, keep)], "previous")
        why |= {version: pointer.state_of(version) for version in pointer.served}
    pinned = _pinned(root)
    while needed := _needed(name, set(versions) - why.keys(), pinned):
        why |= dict.fromkeys(needed, "reference")
    return {version: why[version] for version in versions if version in why}


def _needed(name: str, doomed: Collection[str], pinned: Mapping[str, frozenset[str]]) -> set[str]:
    """Those of the doomed that a version which stays is read together with."""
    gone = {f"{name}@{version}" for version in doomed}
    wanted = {pin for key, pins in pinned.items() if key not in gone for pin in pins}
    return {version for version in doomed if f"{name}@{version}" in wanted}


def _pinned(root: Path) -> dict[str, frozenset[str]]:
    """The references of every version of every name."""
    pinned = {}
    for name in sorted(folder.name for folder in root.iterdir() if folder.is_dir()):
        for version in published(root, name):
            with suppress(ModelFolderError):  # what cannot be read cannot be served
                found = read_version(root / name / version)
                pinned[found.key] = frozenset(pin.key for pin in references_of(found))
    return pinned
