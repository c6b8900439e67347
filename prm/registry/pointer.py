"""Which version answers for a name: `live.json`, and how it changes.

    {"live": "3", "previous": ["2", "1"], "canary": {"version": "4", "fraction": 0.1},
     "shadow": null}

`previous` holds what was live before, the latest first: what `rollback` goes back to. Every change
is made under a lock and lands by a rename, so that of two processes that change one pointer at the
same time both are done, one after the other, and a reader sees one state or the next.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prm.errors import Conflict, InvalidInput, ModelFolderError, UnknownModel
from prm.files import read_json, replace_durably
from prm.manifest import NAME_PATTERN
from prm.registry.names import LIVE, STABLE
from prm.registry.verdicts import Verdict, read_verdict, write_verdict

LOCK = ".live.lock"
MOST_PREVIOUS = 10

VersionId = Annotated[str, Field(pattern=NAME_PATTERN)]


class Trial(BaseModel):
    """A version that is tried on a share of the callers."""

    model_config = ConfigDict(frozen=True)

    version: VersionId
    fraction: float = Field(gt=0, le=1)


class Pointer(BaseModel):
    """What answers for a name.

    A canary answers its callers; a shadow scores beside the live version, and nobody sees it.
    """

    model_config = ConfigDict(frozen=True)

    live: VersionId
    previous: tuple[VersionId, ...] = ()
    canary: Trial | None = None
    shadow: Trial | None = None

    @property
    def served(self) -> tuple[str, ...]:
        """The versions that read requests, the live one first."""
        trials = (trial.version for trial in (self.canary, self.shadow) if trial is not None)
        return tuple(dict.fromkeys((self.live, *trials)))

    def state_of(self, version: str) -> Literal["live", "canary", "shadow", "available"]:
        """What a version does under this pointer."""
        if version == self.live:
            return "live"
        if self.canary is not None and version == self.canary.version:
            return "canary"
        if self.shadow is not None and version == self.shadow.version:
            return "shadow"
        return "available"

    def with_live(self, version: str) -> "Pointer":
        """This version live, the one before it first among the previous; its trials end."""
        if version == self.live:
            return self
        kept = (self.live, *(old for old in self.previous if old not in (version, self.live)))
        return self._now(version, kept[:MOST_PREVIOUS])

    def _now(self, live: str, previous: tuple[str, ...]) -> "Pointer":
        return self.without(live).model_copy(update={"live": live, "previous": previous})

    def without(self, version: str) -> "Pointer":
        """This version on trial no more."""
        kept = {
            kind: None if trial and trial.version == version else trial
            for kind, trial in (("canary", self.canary), ("shadow", self.shadow))
        }
        return self.model_copy(update=kept)


def read_pointer(root: Path, name: str) -> Pointer:
    """What answers for a name. Raises ModelFolderError when nothing does, or the file is broken."""
    path = root / name / LIVE
    try:
        return Pointer.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelFolderError(path, f"field {field}: {first['msg']}") from error


def promote(root: Path, name: str, version: str, *, over: str | None = None) -> Pointer:
    """Make a published version live.

    Raises UnknownModel for a name or version that is not there, Conflict for one that the gate has
    rejected, and where another one than `over`, which it was held against, is live by now.
    """
    with changing(root, name) as before:
        check_may_serve(root, name, version)
        if over is not None and before is not None and before.live not in (over, version):
            raise Conflict(
                f"{name}@{version} was compared with {over}, and {before.live} is live by now",
                param="version",
            )
        return _write(root, name, before.with_live(version) if before else Pointer(live=version))


def rollback(root: Path, name: str) -> Pointer:
    """Back to the version that was live before; the one that is live now is `available` again.

    Raises UnknownModel, and Conflict when there is none.
    """
    with changing(root, name) as before:
        if before is None:
            raise UnknownModel(f"no model named {name!r}", param="name")
        there = [old for old in before.previous if (root / name / old / STABLE).is_file()]
        if not there:
            raise Conflict(f"{name} has no previous version to go back to", param="name")
        rest = before.previous[before.previous.index(there[0]) + 1 :]
        return _write(root, name, before._now(there[0], rest))


Kind = Literal["canary", "shadow"]


def try_out(
    root: Path, name: str, kind: Kind, version: str | None, fraction: float = 0.0
) -> Pointer:
    """Let a version answer this share of the callers, or score beside; None ends that.

    Raises UnknownModel, Conflict for a version that is rejected or live already, InvalidInput for a
    share that is none.
    """
    with changing(root, name) as before:
        if before is None:
            raise UnknownModel(f"no model named {name!r}", param="name")
        if version is None:
            return _write(root, name, before.model_copy(update={kind: None}))
        most = "below 1, for all of them promote it" if kind == "canary" else "at most 1"
        if not 0 < fraction <= 1 or (kind == "canary" and fraction == 1):
            raise InvalidInput(
                f"fraction is {fraction:g}; a {kind} takes a share of the callers above 0 and "
                f"{most}",
                param="fraction",
            )
        check_may_serve(root, name, version)
        if version == before.live:
            raise Conflict(f"{name}@{version} is live already", param="version")
        trial = Trial(version=version, fraction=fraction)
        return _write(root, name, before.model_copy(update={kind: trial}))


def reject(root: Path, name: str, verdict: Verdict) -> Pointer:
    """Keep a verdict against a version, and end its trials. Raises UnknownModel."""
    with changing(root, name) as before:
        if before is None:
            raise UnknownModel(f"no model named {name!r}", param="name")
        write_verdict(root, name, verdict)
        return _write(root, name, before.without(verdict.version))


@contextmanager
def changing(root: Path, name: str) -> Iterator[Pointer | None]:
    """Hold the name's lock; yields what answers for it now. Raises UnknownModel.

    A name is looked up among the folders that are there: a caller's is never joined to a path.
    """
    if name not in _names(root):
        raise UnknownModel(f"no model named {name!r}", param="name")
    with FileLock(root / name / LOCK, timeout=30):
        yield read_pointer(root, name) if (root / name / LIVE).exists() else None


def _names(root: Path) -> set[str]:
    return {folder.name for folder in root.iterdir() if folder.is_dir()}


def published(root: Path, name: str) -> list[str]:
    """The versions of a name, the oldest first. Raises UnknownModel."""
    if name not in _names(root):
        raise UnknownModel(f"no model named {name!r}", param="name")
    written = {}
    for folder in (root / name).iterdir():
        with suppress(OSError):  # none, or removed at this moment
            written[folder.name] = (folder / STABLE).stat().st_mtime_ns
    return sorted(written, key=lambda version: (written[version], version))


def check_may_serve(root: Path, name: str, version: str) -> None:
    """Raises UnknownModel for what is not there, Conflict for what its gate has rejected."""
    versions = published(root, name)
    if version not in versions:
        known = ", ".join(versions) or "none"
        raise UnknownModel(f"{name} has no version {version!r}; it has {known}", param="version")
    verdict = read_verdict(root, name, version)
    if verdict is not None and not verdict.passed:
        raise Conflict(
            f"{name}@{version} was rejected by its gate: {verdict.reason}; a version that serves "
            "must have passed",
            param="version",
        )


def _write(root: Path, name: str, pointer: Pointer) -> Pointer:
    for left in (root / name).glob(f".{LIVE}.*"):  # by one who was killed: we hold the lock
        left.unlink(missing_ok=True)
    replace_durably(root / name / LIVE, pointer.model_dump_json() + "\n")
    return pointer
