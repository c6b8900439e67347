"""The API process's side of an engine: requests in, replies out, and a new engine when one dies.

    STARTING → READY → (process ends) → STARTING → …        REFUSED: a model folder is bad, for good
                                                            CLOSED:  the server is going down

A request that was in a dead engine is sent once more to the next one; if that one dies too, it
fails with EngineDied. New requests are turned away (Unavailable) until the engine is ready again.
"""

import asyncio
import enum
import itertools
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from prm.engine.messages import (
    FRAME_HEADER,
    CancelRequest,
    ErrorReply,
    LoadReply,
    LoadRequest,
    ReadReply,
    ReadRequest,
    Ready,
    Refused,
    Reply,
    SampleReply,
    SampleRequest,
    UnloadRequest,
    parse_reply,
    request_frame,
)
from prm.engine.process import EngineOptions, EngineProcess, start_engine
from prm.errors import EngineDied, ModelFault, ModelFolderError, NoRoom, Unavailable
from prm.families.base import Read
from prm.registry.names import key_of

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
# An engine that lives shorter than this died of its start, and the next start waits a little.
SHORT_LIFE_S = 10.0
LONGEST_BACKOFF_S = 10.0


class EngineState(enum.Enum):
    """What the engine can do now."""

    STARTING = "starting"
    READY = "ready"
    REFUSED = "refused"
    CLOSED = "closed"


@dataclass(slots=True, kw_only=True, eq=False)
class _Pending:
    """A request without its last reply. `replies` carries replies, or the error that ends it."""

    request: ReadRequest | SampleRequest | LoadRequest
    attempts: int = 0
    replies: asyncio.Queue[ReadReply | SampleReply | LoadReply | Exception] = field(
        default_factory=asyncio.Queue
    )


class EngineClient:
    """One supervised engine process. Use from one event loop; `start` first, `close` last."""

    def __init__(self, folders: Sequence[Path], options: EngineOptions) -> None:
        self.state = EngineState.STARTING
        self.refusal: ModelFolderError | None = None
        self.ready: Ready | None = None
        self.restarts = 0
        # By key, what a new engine is started with: `load` and `unload` change it.
        self._folders = {key_of(folder): folder for folder in folders}
        self._options = options
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._changed = asyncio.Event()
        self._engine: EngineProcess | None = None
        self._socket_folder: Path | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._on_refusal: Callable[[ModelFolderError], None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._engine.process.pid if self._engine else None

    @property
    def in_flight(self) -> int:
        """Requests without their last reply."""
        return len(self._pending)

    def start(self, on_refusal: Callable[[ModelFolderError], None] | None = None) -> None:
        """Begin to start the engine; returns at once.

        `on_refusal` is called when the engine will not load its models, now or after a restart.
        """
        self._on_refusal = on_refusal
        # mkdtemp makes a folder that only this user can enter: nobody else can connect.
        self._socket_folder = Path(tempfile.mkdtemp(prefix="rung-engine-"))
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        self._supervisor.add_done_callback(self._supervision_ended)

    async def wait_settled(self) -> None:
        """Wait until the engine is no longer starting. Raises ModelFolderError when refused."""
        while self.state is EngineState.STARTING:
            self._changed.clear()
            await self._changed.wait()
        if self.refusal is not None:
            raise self.refusal

    async def close(self) -> None:
        """End the engine; every waiting request fails with Unavailable."""
        self._set_state(EngineState.CLOSED)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._fail_all(Unavailable("the server is shutting down"))
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    async def read(self, reads: Sequence[Read]) -> ReadReply:
        """One output per read. Raises Unavailable, EngineDied, ModelFault."""
        assert reads, "nothing to read"
        request = ReadRequest(id=next(self._ids), reads=tuple(reads))
        pending = self._submit(request)
        try:
            reply = await pending.replies.get()
            if isinstance(reply, Exception):
                raise reply
            assert isinstance(reply, ReadReply)
            return reply
        finally:
            self._forget(pending)

    async def sample(self, request: SampleRequest) -> AsyncGenerator[SampleReply]:
        """Completions as they end. Closing the iterator early stops the others.

        The request's `id` is assigned here. Raises Unavailable, EngineDied.
        """
        pending = self._submit(replace(request, id=next(self._ids)))
        try:
            for _ in request.numbers:
                reply = await pending.replies.get()
                if isinstance(reply, Exception):
                    raise reply
                assert isinstance(reply, SampleReply)
                yield reply
        finally:
            self._forget(pending)

    async def load(self, folders: Sequence[Path], *, only_if_it_fits: bool = False) -> float:
        """Load verified versions beside those that serve, golden scores checked; in seconds.

        Raises ModelFolderError for one that is refused, NoRoom where they have to fit and do not,
        Unavailable; nothing has changed then.
        """
        request = LoadRequest(
            id=next(self._ids),
            folders=tuple(map(str, folders)),
            only_if_it_fits=only_if_it_fits,
        )
        pending = self._submit(request)
        try:
            reply = await pending.replies.get()
        finally:
            self._pending.pop(request.id, None)
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, LoadReply)
        if reply.refused is not None:
            path, reason = reply.refused
            raise ModelFolderError(Path(path), reason)
        if reply.no_room is not None:
            raise NoRoom(*reply.no_room)
        return reply.load_s

    def unload(self, keys: Sequence[str]) -> None:
        """Forget versions that nobody asks for any more, now and after a restart."""
        for key in keys:
            self._folders.pop(key, None)
        if self._engine is not None and self.state is EngineState.READY:
            self._engine.writer.write(request_frame(UnloadRequest(keys=tuple(keys))))

    def _submit(self, request: ReadRequest | SampleRequest | LoadRequest) -> _Pending:
        if self.state is not EngineState.READY:
            raise Unavailable(f"the engine is {self.state.value}; try again shortly")
        pending = _Pending(request=request)
        self._pending[request.id] = pending
        self._send(pending)
        return pending

    def _send(self, pending: _Pending) -> None:
        assert self._engine is not None
        pending.attempts += 1
        self._engine.writer.write(request_frame(pending.request))

    def _forget(self, pending: _Pending) -> None:
        """The caller is done with it; if the engine is not, tell it to stop."""
        number = pending.request.id
        if self._pending.pop(number, None) and self._engine and self.state is EngineState.READY:
            self._engine.writer.write(request_frame(CancelRequest(id=number)))

    async def _supervise(self) -> None:
        """Keep an engine running until closed or refused."""
        assert self._socket_folder is not None
        short_lives = 0
        while True:
            started = time.monotonic()
            try:
                self._engine = await start_engine(
                    list(self._folders.values()), self._options, self._socket_folder / "socket"
                )
            except OSError as error:
                # No memory or no process to be had just now: that may pass.
                logger.warning("the engine process could not be started: %s", error)
            if self._engine is not None:
                try:
                    await self._serve(self._engine)
                finally:
                    await self._engine.end()
                    self._engine = None
            if self.state is EngineState.REFUSED:
                return
            self._set_state(EngineState.STARTING)
            self.restarts += 1
            self._drop_twice_tried()
            short_lives = short_lives + 1 if time.monotonic() - started < SHORT_LIFE_S else 0
            if short_lives > MAX_ATTEMPTS:
                # Nobody waits for an engine that keeps dying.
                self._fail_all(EngineDied("the engine keeps dying; see the server's log"))
            logger.warning("the engine process ended; starting another (%d so far)", self.restarts)
            await asyncio.sleep(min(LONGEST_BACKOFF_S, 0.1 * 2**short_lives) if short_lives else 0)

    def _supervision_ended(self, task: asyncio.Task[None]) -> None:
        """Without a supervisor nobody would answer: fail what waits, and say so loudly."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("the engine's supervisor failed", exc_info=error)
            self._set_state(EngineState.CLOSED)
            self._fail_all(Unavailable("the engine cannot be run; see the server's log"))

    async def _serve(self, engine: EngineProcess) -> None:
        """Hand out replies until the engine's socket closes, or it must be killed for silence."""
        watch = asyncio.create_task(engine.kill_when_silent(self._options.silence_s))
        try:
            while True:
                header = await engine.reader.readexactly(FRAME_HEADER.size)
                (length,) = FRAME_HEADER.unpack(header)
                self._deliver(parse_reply(await engine.reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except ValidationError as error:
            logger.error("the engine sent a frame that makes no sense: %s", error.title)
        finally:
            watch.cancel()

    def _deliver(self, reply: Reply) -> None:
        match reply:
            case Ready():
                self.ready = reply
                self._set_state(EngineState.READY)
                logger.info(
                    "engine ready on %s in %s after %.1f s", reply.device, reply.dtype, reply.load_s
                )
                for pending in self._pending.values():
                    self._send(pending)
            case Refused(path=path, reason=reason):
                self.refusal = ModelFolderError(Path(path), reason)
                self._set_state(EngineState.REFUSED)
                self._fail_all(Unavailable("the engine refused its models; see the server's log"))
                if self._on_refusal is not None:
                    self._on_refusal(self.refusal)
            case ErrorReply(id=number, message=message, read=read):
                if number in self._pending:
                    error = Unavailable(message) if read is None else ModelFault(message, read=read)
                    self._pending.pop(number).replies.put_nowait(error)
            case LoadReply(id=number):
                if number in self._pending:
                    pending = self._pending.pop(number)
                    if reply.refused is None and reply.no_room is None:
                        self._remember(pending.request)
                    pending.replies.put_nowait(reply)
            case ReadReply(id=number):
                if number in self._pending:
                    self._pending.pop(number).replies.put_nowait(reply)
            case SampleReply(id=number):
                if number in self._pending:
                    self._deliver_sample(self._pending[number], reply)

    def _deliver_sample(self, pending: _Pending, reply: SampleReply) -> None:
        """Hand out one completion, and leave only the others to be asked for again."""
        assert isinstance(pending.request, SampleRequest)
        pending.replies.put_nowait(reply)
        pending.request = _without(pending.request, reply.number)
        if not pending.request.numbers:
            del self._pending[pending.request.id]

    def _remember(self, request: ReadRequest | SampleRequest | LoadRequest) -> None:
        assert isinstance(request, LoadRequest)
        for folder in map(Path, request.folders):
            self._folders[key_of(folder)] = folder

    def _drop_twice_tried(self) -> None:
        for number, pending in list(self._pending.items()):
            if pending.attempts >= MAX_ATTEMPTS:
                pending.replies.put_nowait(
                    EngineDied("the engine died twice under this request; try again later")
                )
                del self._pending[number]

    def _fail_all(self, error: Unavailable) -> None:
        for pending in self._pending.values():
            pending.replies.put_nowait(error)
        self._pending.clear()

    def _set_state(self, state: EngineState) -> None:
        if self.state is not EngineState.CLOSED:
            self.state = state
        self._changed.set()


def _without(request: SampleRequest, number: int) -> SampleRequest:
    place = request.numbers.index(number)
    return replace(
        request,
        numbers=request.numbers[:place] + request.numbers[place + 1 :],
        prompts=request.prompts[:place] + request.prompts[place + 1 :],
        seeds=request.seeds[:place] + request.seeds[place + 1 :],
        max_tokens=request.max_tokens[:place] + request.max_tokens[place + 1 :],
    )
