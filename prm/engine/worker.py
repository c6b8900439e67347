"""The engine process: messages in, messages out, one forward at a time.

    python -m prm.engine.worker --socket PATH --device cpu … FOLDER [FOLDER …]

One thread reads frames from the socket, the main thread computes. Each turn of the main loop takes
what has arrived, runs one scoring forward per model and one decoding step, so neither kind of work
starves the other: a short score waits for one token of a long generation, never for all of it. A
third thread beats on a socket of its own, so that an engine that is stopped is noticed, and a new
version is loaded in a fourth, beside those that serve.
"""

import argparse
import ctypes
import logging
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from prm.engine.messages import (
    FRAME_HEADER,
    CancelRequest,
    ErrorReply,
    LoadReply,
    LoadRequest,
    ReadRequest,
    Ready,
    Refused,
    Reply,
    Request,
    SampleReply,
    SampleRequest,
    UnloadRequest,
    parse_request,
    reply_frame,
)
from prm.engine.process import BEAT_S
from prm.engine.residents import Device, Loaded, Residents
from prm.engine.sampler import Draft, SamplingParams
from prm.engine.scoring import ReadRequests
from prm.errors import ModelFolderError, NoRoom
from prm.manifest import ModelVersion
from prm.registry import read_version

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beside:
    """What came of loading versions while the others were served."""

    request: LoadRequest
    load_s: float
    result: Loaded | ModelFolderError | NoRoom


class Worker:
    """The models of one device and the requests in them."""

    def __init__(
        self, residents: Residents, connection: socket.socket, *, threads: int = 1
    ) -> None:
        self._residents = residents
        self._reads = ReadRequests(residents.readers)
        self._connection = connection
        self._threads = threads
        self._inbox: queue.SimpleQueue[Request | _Beside | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until the socket is closed."""
        threading.Thread(target=self._listen, daemon=True).start()
        while self._accept_arrived():
            for reply in self._reads.step():
                self._send(reply)
            # In a frame of its own: a name that went on standing for a model would keep its memory.
            self._decode()

    def _decode(self) -> None:
        for name, sampler in list(self._residents.samplers.items()):
            if sampler.busy:
                self._send_finished(name, sampler.step())

    def _listen(self) -> None:
        """Frames from the socket to the inbox; None when it is closed."""
        stream = self._connection.makefile("rb")
        try:
            while header := stream.read(FRAME_HEADER.size):
                (length,) = FRAME_HEADER.unpack(header)
                self._inbox.put(parse_request(stream.read(length)))
        finally:
            # Also when a frame makes no sense: better a restart than an engine that never answers.
            self._inbox.put(None)

    def _accept_arrived(self) -> bool:
        """Take every message that is there; wait for one when there is nothing else to do."""
        while True:
            samplers = self._residents.samplers.values()
            is_idle = not self._reads.busy and not any(s.busy for s in samplers)
            try:
                request = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if request is None:
                return False
            if isinstance(request, _Beside):
                self._adopt(request)
            else:
                self._accept(request)

    def _accept(self, request: Request) -> None:
        match request:
            case ReadRequest():
                for reply in self._reads.take(request):
                    self._send(reply)
            case SampleRequest():
                sampler = self._residents.samplers.get(request.model)
                if sampler is None:
                    message = f"no model {request.model!r} is loaded"
                    self._send(ErrorReply(id=request.id, message=message))
                    return
                for number, prompt, seed, max_tokens, written in zip(
                    request.numbers,
                    request.prompts,
                    request.seeds,
                    request.max_tokens,
                    request.written or (0,) * len(request.prompts),
                    strict=True,
                ):
                    params = SamplingParams(
                        temperature=request.temperature,
                        top_p=request.top_p,
                        top_k=request.top_k,
                        max_tokens=max_tokens,
                        stop=request.stop,
                        keep_stop=request.keep_stop,
                        seconds=request.seconds,
                    )
                    sampler.add(
                        Draft(
                            prompt=prompt,
                            written=written,
                            params=params,
                            seed=seed,
                            request=request.id,
                            number=number,
                        )
                    )
            case CancelRequest(id=number):
                self._reads.cancel(number)
                for sampler in self._residents.samplers.values():
                    sampler.cancel(number)
            case LoadRequest():
                self._load(request)
            case UnloadRequest(keys=keys):
                self._residents.drop(keys)
                self._reads.serve(self._residents.readers)

    def _load(self, request: LoadRequest) -> None:
        """Load in a thread, so that forwards go on; here, where models in use would change."""
        try:
            versions = [read_version(Path(folder)) for folder in request.folders]
        except ModelFolderError as error:
            self._adopt(_Beside(request=request, load_s=0.0, result=error))
            return
        if self._residents.must_wait(versions):
            self._adopt(self._loaded(request, versions))
            return

        def load_beside() -> None:
            # The number of threads is a thread's own.
            torch.set_num_threads(self._threads)
            self._inbox.put(self._loaded(request, versions))

        threading.Thread(target=load_beside, daemon=True).start()

    def _loaded(self, request: LoadRequest, versions: Sequence[ModelVersion]) -> "_Beside":
        started = time.perf_counter()
        result: Loaded | ModelFolderError | NoRoom
        try:
            if request.only_if_it_fits:
                self._residents.check_room(versions)
            result = self._residents.load(versions)
        except (ModelFolderError, NoRoom) as error:
            result = error
        return _Beside(request=request, load_s=time.perf_counter() - started, result=result)

    def _adopt(self, beside: "_Beside") -> None:
        refused, no_room = None, None
        match beside.result:
            case ModelFolderError() as error:
                refused = (str(error.path), error.reason)
            case NoRoom() as error:
                no_room = (error.needed_bytes, error.free_bytes)
            case Loaded() as loaded:
                self._residents.adopt(loaded)
                self._reads.serve(self._residents.readers)
        self._send(
            LoadReply(id=beside.request.id, load_s=beside.load_s, refused=refused, no_room=no_room)
        )

    def _send_finished(self, model: str, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            completion = draft.completion
            assert completion is not None
            if draft.logprobs:
                # Where the policy is a PRM's reference, this is the reference's pass.
                ids = (*draft.prompt, *completion.ids)
                self._residents.readers[model].deposit(ids, len(draft.prompt), draft.logprobs)
            self._send(
                SampleReply(
                    id=draft.request,
                    number=draft.number,
                    ids=completion.ids,
                    text=completion.text,
                    finish_reason=completion.finish_reason,
                )
            )

    def _send(self, reply: Reply) -> None:
        self._connection.sendall(reply_frame(reply))


def main() -> None:
    """Load, say Ready or Refused, serve."""
    arguments = _parse_arguments()
    # The parent ends us through the socket; a Ctrl-C in its terminal is not meant for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(arguments.threads)
    connection, pulse = _connect(arguments.socket), _connect(arguments.socket)
    started = time.perf_counter()
    residents = Residents(
        Device(
            device=arguments.device,
            dtype=None if arguments.dtype == "auto" else getattr(torch, arguments.dtype),
            max_batch=arguments.max_batch,
            cache_bytes=(arguments.cache_mb << 20) // max(1, len(arguments.folders)),
            token_budget=arguments.token_budget,
        )
    )
    try:
        residents.adopt(residents.load([read_version(folder) for folder in arguments.folders]))
    except ModelFolderError as error:
        connection.sendall(reply_frame(Refused(path=str(error.path), reason=error.reason)))
        sys.exit(2)
    some_model = residents.some_model
    connection.sendall(
        reply_frame(
            Ready(
                device=str(some_model.device) if some_model else arguments.device,
                dtype=str(some_model.dtype).removeprefix("torch.")
                if some_model
                else arguments.dtype,
                load_s=time.perf_counter() - started,
            )
        )
    )
    threading.Thread(target=_beat, args=(pulse,), daemon=True).start()
    Worker(residents, connection, threads=arguments.threads).run()


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    return connection


def _beat(pulse: socket.socket) -> None:
    """Give signs of life, also while the main thread is in a long forward: torch frees the GIL."""
    with suppress(OSError):  # the server has gone
        while True:
            pulse.sendall(b"\0")
            time.sleep(BEAT_S)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rung's engine process; started by the server.")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", required=True, choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--cache-mb", type=int, required=True)
    parser.add_argument("folders", nargs="*", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
