"""What is served at this moment, and who holds on to what.

A `Snapshot` never changes; a swap puts another in its place. A request takes a *lease* on the
versions that it needs and keeps them to its end, whatever is swapped meanwhile; a version that no
snapshot serves any more leaves the engine when its last lease is given back.

Where memory holds no two versions of a name, the name is *closed* for as long as one is put in the
other's place: leases run out, and new requests wait at `when_open`.
"""

import asyncio
import hashlib
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TypeGuard

from prm.errors import Unavailable, UnknownModel
from prm.manifest import ModelVersion
from prm.registry import Registry, Trial
from prm.scorer import StepScorer
from search.generators.local import LocalGenerator


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Versions that answer: `scorers` by the PRM version's key, `policies` by name."""

    registry: Registry
    scorers: Mapping[str, StepScorer]
    policies: Mapping[str, LocalGenerator]


class Lease(AbstractContextManager["Lease"]):
    """A hold on some versions. Released at its end, or when nobody has it any more.

    `registry` is the one that they were taken from.
    """

    def __init__(
        self,
        registry: Registry,
        keys: Iterable[str],
        give_back: Callable[[tuple[str, ...]], None],
    ) -> None:
        self.registry = registry
        self.keys = tuple(keys)
        self.release = weakref.finalize(self, give_back, self.keys)
        # At the end of the process nobody needs it back.
        self.release.atexit = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Serving:
    """The snapshot of now, and the leases on it and on those before it. For one event loop.

    `wait_s` is the longest that a request waits for a closed name.
    """

    def __init__(self, snapshot: Snapshot, *, wait_s: float = 30.0) -> None:
        self._snapshot = snapshot
        self._wait_s = wait_s
        self._held: Counter[str] = Counter()
        self._given_back = asyncio.Event()
        self._opened = asyncio.Event()
        # The names whose version is being exchanged in its place.
        self.closed: frozenset[str] = frozenset()
        # Entered by a request while it waits for one of them.
        self.while_waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        # Called when the last lease on a version that is served no more was given back.
        self.on_idle: Callable[[], None] = lambda: None

    @property
    def snapshot(self) -> Snapshot:
        """What answers now."""
        return self._snapshot

    @property
    def registry(self) -> Registry:
        """The versions that answer now."""
        return self._snapshot.registry

    async def when_open(self, *models: str | None) -> None:
        """Wait while one of these, `name` or `name@version`, is closed.

        What is leased without another `await` is not closed. Raises Unavailable after `wait_s`,
        Overloaded where too many wait.
        """
        names = {model.partition("@")[0] for model in models if model is not None}
        if names.isdisjoint(self.closed):
            return
        try:
            async with asyncio.timeout(self._wait_s):
                with self.while_waiting():
                    while not names.isdisjoint(self.closed):
                        await self._opened.wait()
        except TimeoutError as error:
            name = min(names & self.closed, default=min(names))
            raise Unavailable(
                f"{name} is being exchanged for another version, which takes longer than "
                f"{self._wait_s:g} s; try again shortly",
                retry_after_s=self._wait_s,
            ) from error

    @contextmanager
    def closing(self, names: Collection[str]) -> Iterator[None]:
        """Let no new request begin on these names. One exchange at a time."""
        assert not self.closed, "two exchanges at a time"
        self.closed = frozenset(names)
        self._opened.clear()
        try:
            yield
        finally:
            self.closed = frozenset()
            self._opened.set()

    async def when_given_back(self, keys: Collection[str]) -> None:
        """Wait until no request holds any of these versions."""
        while any(map(self.is_held, keys)):
            self._given_back.clear()
            await self._given_back.wait()

    def scorer(self, name: str, *, param: str, caller: str | None = None) -> StepScorer:
        """The scorer of `name@version`, or of what answers this caller for `name`.

        Raises UnknownModel about the field `param`.
        """
        key = name
        pointer = self.registry.pointers.get(name)
        if pointer is not None and is_tried_on(pointer.canary, caller):
            key = f"{name}@{pointer.canary.version}"
        version = self.registry.get(key)
        scorers = self._snapshot.scorers
        if version is None or version.key not in scorers:
            known = ", ".join(sorted({s.manifest.name for s in scorers.values()})) or "none"
            raise UnknownModel(
                f"no PRM named {name!r} is served here; there is {known}", param=param
            )
        return scorers[version.key]

    def shadow(self, version: ModelVersion, caller: str | None) -> StepScorer | None:
        """What scores beside this live version for this caller, if anything does."""
        name = version.manifest.name
        pointer = self.registry.pointers.get(name)
        if pointer is None or version.manifest.version != pointer.live:
            return None
        if not is_tried_on(pointer.shadow, caller):
            return None
        return self._snapshot.scorers.get(f"{name}@{pointer.shadow.version}")

    @property
    def policies(self) -> Mapping[str, LocalGenerator]:
        """The live policies of the engine, by name."""
        return self._snapshot.policies

    def lease(self, *versions: ModelVersion) -> Lease:
        """Hold these versions, and what they are read together with."""
        registry = self.registry
        keys = {v.key for v in versions}
        keys |= {reference.key for v in versions for reference in registry.references_of(v)}
        return self._lease(registry, keys)

    def renew(self, lease: Lease) -> Lease:
        """Another hold on what this one holds, for work that outlives its request."""
        return self._lease(lease.registry, lease.keys)

    def extended(self, lease: Lease, version: ModelVersion) -> Lease:
        """A hold on what this one holds and on this version, too; takes the place of this one."""
        longer = self._lease(lease.registry, {*lease.keys, version.key})
        lease.release()
        return longer

    def _lease(self, registry: Registry, keys: Iterable[str]) -> Lease:
        lease = Lease(registry, keys, self._give_back)
        self._held.update(lease.keys)
        return lease

    def swap(self, snapshot: Snapshot) -> None:
        """Serve this from now on; requests that are under way keep what they hold."""
        self._snapshot = snapshot

    def is_held(self, key: str) -> bool:
        """Whether a request that is under way needs this version."""
        return self._held[key] > 0

    @property
    def leases(self) -> Mapping[str, int]:
        """Requests under way by the version that they hold."""
        return {key: count for key, count in self._held.items() if count > 0}

    def _give_back(self, keys: tuple[str, ...]) -> None:
        self._held.subtract(keys)
        idle = [key for key in keys if self._held[key] <= 0]
        for key in idle:
            del self._held[key]
        self._given_back.set()
        if any(self.registry.get(key) is None for key in idle):
            self.on_idle()


def is_tried_on(trial: Trial | None, caller: str | None) -> TypeGuard[Trial]:
    """Whether a version is tried on this caller: on the same ones for as long as it lasts.

    It never is on a caller without a name.
    """
    if trial is None or caller is None:
        return False
    digest = hashlib.sha256(f"{trial.version}\0{caller}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < trial.fraction
