"""The engine process: messages in, messages out, one forward at a time.

    python -m prm.engine.worker --socket PATH --device cpu FOLDER [FOLDER …]

One thread reads frames from the socket, the main thread computes. Each turn of the main loop takes
what has arrived, runs one scoring batch and one decoding step, so neither kind of work starves the
other: a short score waits for one token of a long generation, never for the whole of it.
"""

import argparse
import ctypes
import logging
import math
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prm.chat import ChatTokenizer
from prm.engine.batcher import QueuedRead, ReadQueue
from prm.engine.golden import check_golden
from prm.engine.messages import (
    FRAME_HEADER,
    CancelRequest,
    ErrorReply,
    ReadReply,
    ReadRequest,
    Ready,
    Refused,
    Reply,
    Request,
    SampleReply,
    SampleRequest,
    parse_request,
    reply_frame,
)
from prm.engine.model import CausalLM
from prm.engine.reader import read_now
from prm.engine.sampler import Draft, Sampler, SamplingParams
from prm.errors import ModelFolderError
from prm.families.base import ReadOutput
from prm.manifest import ModelVersion, PolicyManifest
from prm.registry import read_version

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
NOT_FINITE = "the model computed a log-prob that is no finite number; its weights are unusable here"


@dataclass(slots=True, kw_only=True)
class PendingReads:
    """A scoring request with some of its outputs still missing."""

    outputs: list[ReadOutput | None]
    missing: int
    arrived_s: float = field(default_factory=time.perf_counter)
    queue_ms: float | None = None
    inference_ms: float = 0.0


class Worker:
    """The models of one device and the requests in them."""

    def __init__(
        self,
        models: dict[str, CausalLM],
        samplers: dict[str, Sampler],
        connection: socket.socket,
        *,
        token_budget: int,
    ) -> None:
        self._models = models
        self._samplers = samplers
        self._connection = connection
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._reads = ReadQueue(token_budget)
        self._pending: dict[int, PendingReads] = {}

    def run(self) -> None:
        """Serve until the socket is closed."""
        threading.Thread(target=self._listen, daemon=True).start()
        while self._accept_arrived():
            self._score_batch()
            for sampler in self._samplers.values():
                if sampler.busy:
                    self._send_finished(sampler.step())

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
            is_idle = not self._reads and not any(s.busy for s in self._samplers.values())
            try:
                request = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if request is None:
                return False
            self._accept(request)

    def _accept(self, request: Request) -> None:
        match request:
            case ReadRequest(id=number, reads=reads):
                self._pending[number] = PendingReads(
                    outputs=[None] * len(reads), missing=len(reads)
                )
                self._reads.extend(
                    QueuedRead(request=number, index=index, read=read)
                    for index, read in enumerate(reads)
                )
            case SampleRequest():
                for number, prompt, seed, max_tokens in zip(
                    request.numbers,
                    request.prompts,
                    request.seeds,
                    request.max_tokens,
                    strict=True,
                ):
                    params = SamplingParams(
                        temperature=request.temperature,
                        top_p=request.top_p,
                        max_tokens=max_tokens,
                        stop=request.stop,
                        keep_stop=request.keep_stop,
                        seconds=request.seconds,
                    )
                    self._samplers[request.model].add(
                        Draft(
                            prompt=prompt,
                            params=params,
                            seed=seed,
                            request=request.id,
                            number=number,
                        )
                    )
            case CancelRequest(id=number):
                self._reads.drop(number)
                self._pending.pop(number, None)
                for sampler in self._samplers.values():
                    sampler.cancel(number)

    def _score_batch(self) -> None:
        if batch := self._reads.next_batch():
            self._run_batch(batch)

    def _run_batch(self, batch: Sequence[QueuedRead]) -> None:
        started = time.perf_counter()
        model = self._models[batch[0].read.model]
        try:
            found = read_now({batch[0].read.model: model}, [entry.read for entry in batch])
        except (RuntimeError, IndexError) as error:
            self._fail_batch(batch, error)
            return
        took_ms = 1e3 * (time.perf_counter() - started)
        touched = {entry.request for entry in batch}
        for number in touched:
            pending = self._pending[number]
            pending.inference_ms += took_ms
            if pending.queue_ms is None:
                pending.queue_ms = 1e3 * (started - pending.arrived_s)
        for entry, row in zip(batch, found, strict=True):
            pending = self._pending[entry.request]
            pending.outputs[entry.index] = row
            pending.missing -= 1
        for number in touched:
            if self._pending[number].missing == 0:
                done = self._pending.pop(number)
                outputs = [output for output in done.outputs if output is not None]
                if not all(math.isfinite(value) for row in outputs for value in row.values):
                    self._send(ErrorReply(id=number, message=NOT_FINITE))
                    continue
                self._send(
                    ReadReply(
                        id=number,
                        outputs=tuple(outputs),
                        queue_ms=done.queue_ms or 0.0,
                        inference_ms=done.inference_ms,
                    )
                )

    def _fail_batch(self, batch: Sequence[QueuedRead], error: Exception) -> None:
        """Out of memory, or ids that the model has no rows for: tell whoever is concerned.

        In a batch of several requests it may be one alone that fails: they are tried one by one.
        """
        requests = list(dict.fromkeys(entry.request for entry in batch))
        if len(requests) > 1:
            for number in requests:
                self._run_batch([entry for entry in batch if entry.request == number])
            return
        logger.error("a scoring batch failed: %s", error)
        self._reads.drop(requests[0])
        self._pending.pop(requests[0])
        message = f"the model could not compute it ({type(error).__name__})"
        self._send(ErrorReply(id=requests[0], message=message))

    def _send_finished(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            completion = draft.completion
            assert completion is not None
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


def load_models(
    versions: Sequence[ModelVersion], *, device: str, dtype: torch.dtype | None, max_batch: int
) -> tuple[dict[str, CausalLM], dict[str, Sampler]]:
    """Load every version and check its golden scores. Raises ModelFolderError."""
    models = {version.key: _load(version, device, dtype) for version in versions}
    samplers = {}
    for version in versions:
        tokenizer = ChatTokenizer(version.folder)
        rows = models[version.key].head.shape[0]
        if tokenizer.largest_id >= rows:
            raise ModelFolderError(
                version.folder / "tokenizer.json",
                f"has ids up to {tokenizer.largest_id}, and the model only {rows} rows for them",
            )
        check_golden(version, tokenizer, models)
        if isinstance(version.manifest, PolicyManifest):
            samplers[version.key] = Sampler(models[version.key], tokenizer, max_batch=max_batch)
    return models, samplers


def _load(version: ModelVersion, device: str, dtype: torch.dtype | None) -> CausalLM:
    try:
        return CausalLM.load(version.folder, device=device, dtype=dtype)
    except ModelFolderError:
        raise
    # No such device, no memory for the weights, weights of another shape, an architecture that
    # transformers does not know: the next start would end the same way, so it is said.
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelFolderError(
            version.folder, f"cannot be loaded on {device}: {type(error).__name__}: {first_line}"
        ) from error


def main() -> None:
    """Load, say Ready or Refused, serve."""
    arguments = _parse_arguments()
    # The parent ends us through the socket; a Ctrl-C in its terminal is not meant for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(arguments.threads)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(arguments.socket)
    started = time.perf_counter()
    try:
        models, samplers = load_models(
            [read_version(folder) for folder in arguments.folders],
            device=arguments.device,
            dtype=None if arguments.dtype == "auto" else getattr(torch, arguments.dtype),
            max_batch=arguments.max_batch,
        )
    except ModelFolderError as error:
        connection.sendall(reply_frame(Refused(path=str(error.path), reason=error.reason)))
        sys.exit(2)
    some_model = next(iter(models.values()))
    connection.sendall(
        reply_frame(
            Ready(
                device=str(some_model.device),
                dtype=str(some_model.head.dtype).removeprefix("torch."),
                load_s=time.perf_counter() - started,
            )
        )
    )
    Worker(models, samplers, connection, token_budget=arguments.token_budget).run()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rung's engine process; started by the server.")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("folders", nargs="+", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
