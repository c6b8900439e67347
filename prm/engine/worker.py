"""The engine process: messages in, messages out, one forward at a time.

    python -m prm.engine.worker --socket PATH --device cpu … FOLDER [FOLDER …]

One thread reads frames from the socket, the main thread computes. Each turn of the main loop takes
what has arrived, runs one scoring forward per model and one decoding step, so neither kind of work
starves the other: a short score waits for one token of a long generation, never for all of it. A
third thread beats on a socket of its own, so that an engine that is stopped is noticed.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from prm.chat import ChatTokenizer
from prm.engine.golden import check_golden
from prm.engine.heads import load_model
from prm.engine.lora import BaseLM
from prm.engine.messages import (
    FRAME_HEADER,
    CancelRequest,
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
from prm.engine.model import CausalLM, EngineModel
from prm.engine.process import BEAT_S
from prm.engine.reader import Reader
from prm.engine.sampler import Draft, Sampler, SamplingParams
from prm.engine.scoring import ReadRequests
from prm.errors import ModelFolderError
from prm.families import FAMILIES
from prm.manifest import ModelVersion, PolicyManifest, PrmManifest
from prm.registry import adapter_base, read_version, references_of

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Worker:
    """The models of one device and the requests in them."""

    def __init__(
        self,
        readers: Mapping[str, Reader],
        samplers: Mapping[str, Sampler],
        connection: socket.socket,
    ) -> None:
        self._readers = readers
        self._reads = ReadRequests(readers)
        self._samplers = samplers
        self._connection = connection
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until the socket is closed."""
        threading.Thread(target=self._listen, daemon=True).start()
        while self._accept_arrived():
            for reply in self._reads.step():
                self._send(reply)
            for name, sampler in self._samplers.items():
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
            is_idle = not self._reads.busy and not any(s.busy for s in self._samplers.values())
            try:
                request = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if request is None:
                return False
            self._accept(request)

    def _accept(self, request: Request) -> None:
        match request:
            case ReadRequest():
                for reply in self._reads.take(request):
                    self._send(reply)
            case SampleRequest():
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
                    self._samplers[request.model].add(
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
                for sampler in self._samplers.values():
                    sampler.cancel(number)

    def _send_finished(self, model: str, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            completion = draft.completion
            assert completion is not None
            if draft.logprobs:
                # Where the policy is a PRM's reference, this is the reference's pass.
                ids = (*draft.prompt, *completion.ids)
                self._readers[model].deposit(ids, len(draft.prompt), draft.logprobs)
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
) -> tuple[dict[str, EngineModel], dict[str, Sampler]]:
    """Load every version and check its golden scores. Raises ModelFolderError."""
    models = load_all(versions, device, dtype)
    references = {pinned.key for version in versions for pinned in references_of(version)}
    samplers = {}
    for version in versions:
        tokenizer = ChatTokenizer(version.folder)
        check_golden(version, tokenizer, models)
        if _writes(version):
            policy = models[version.key]
            assert isinstance(policy, CausalLM)
            samplers[version.key] = Sampler(
                policy,
                tokenizer,
                max_batch=max_batch,
                keeps_logprobs=version.key in references,
            )
    return models, samplers


def _writes(version: ModelVersion) -> bool:
    """Policies write, and PRMs that verify in words."""
    manifest: PolicyManifest | PrmManifest = version.manifest
    return isinstance(manifest, PolicyManifest) or FAMILIES[manifest.family].writes


def load_all(
    versions: Sequence[ModelVersion], device: str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, EngineModel]:
    """The models of these versions by key; adapters share the weights of their bases.

    Raises ModelFolderError whatever keeps one from being loaded and fed.
    """
    bases = {version.key: adapter_base(version) for version in versions}
    shared = {base.key for base in bases.values() if base is not None}
    models: dict[str, EngineModel] = {}
    for version in sorted(versions, key=lambda version: bases[version.key] is not None):
        load: Callable[[], EngineModel]
        if (base := bases[version.key]) is not None:
            shared_base = models[base.key]
            assert isinstance(shared_base, BaseLM)
            load = partial(shared_base.attach, version.folder)
        elif version.key in shared:
            load = partial(BaseLM.load, version.folder, device=device, dtype=dtype)
        else:
            load = partial(load_model, version, device=device, dtype=dtype)
        models[version.key] = _load_or_refuse(version, load, device)
    return models


def _load_or_refuse(
    version: ModelVersion, load: Callable[[], EngineModel], device: str
) -> EngineModel:
    try:
        model = load()
    except ModelFolderError:
        raise
    # No such device, no memory for the weights, weights of another shape, an architecture that
    # transformers does not know: the next start would end the same way, so it is said.
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelFolderError(
            version.folder, f"cannot be loaded on {device}: {type(error).__name__}: {first_line}"
        ) from error
    if (largest := ChatTokenizer(version.folder).largest_id) >= model.num_ids:
        raise ModelFolderError(
            version.folder / "tokenizer.json",
            f"has ids up to {largest}, and the model only {model.num_ids} rows for them",
        )
    return model


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
    # None where vLLM servers do all the work.
    some_model = next(iter(models.values()), None)
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
    cache_bytes = (arguments.cache_mb << 20) // max(1, len(models))
    readers = {
        name: Reader(model, cache_bytes=cache_bytes, token_budget=arguments.token_budget)
        for name, model in models.items()
    }
    Worker(readers, samplers, connection).run()


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
