"""How a vLLM server that writes rollouts gets the policy's new weights.

    POST /pause?mode=wait         what it is writing ends; nothing new begins
    POST /collective_rpc          its workers' reload_weights, from a folder that both sides see
    POST /reset_prefix_cache      keys and values of the old weights are forgotten
    POST /update_weight_version   a name for what it has now, which /weight_info tells
    POST /resume
    POST /weight_checker          the names of its tensors, once

These are routes of vLLM's development mode (`vllm/entrypoints/rl/online/api_router.py` and
`vllm/entrypoints/serve/dev/` of 0.32). Its transfer without a disk (`/init_weight_transfer_engine`)
is by NCCL or CUDA IPC: both want the server on GPUs, and the second wants it to unpickle what it is
sent. A folder in memory (`/dev/shm`) is as good where both sides are one machine.
"""

import hashlib
import shutil
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError

from prm.errors import InvalidInput, RungError, Unavailable
from search.generators.breaker import Breaker
from search.generators.openai_client import OpenAIClient
from training.models import TrainedLM
from training.untied import untie

# vLLM says nothing while it drains, loads weights, or keeps a request in its queue.
ANSWER_S = 600.0
# Between two pieces of a text: others may be read or written in between.
SILENCE_S = 120.0


class RolloutServer(OpenAIClient):
    """vLLM in its development mode. `aclose` last, or use as an async context."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """See `OpenAIClient`. Raises InvalidInput for what is no URL."""
        super().__init__(
            url,
            api_key=api_key,
            timeout_s=ANSWER_S,
            silence_s=SILENCE_S,
            # One caller, which has a patience of its own.
            breaker=Breaker(after=sys.maxsize),
        )
        self.label = f"the vLLM server at {self.address}"

    async def weight_version(self) -> str:
        """The name of the weights that it has; of those that it began with, vLLM's own."""
        return (await self.call("GET", "/weight_info", None, _WeightInfo)).weight_version

    async def load_weights(self, folder: Path, version: str) -> None:
        """Have it write with the weights of `folder` from now on, known as `version`.

        Raises InvalidInput where it cannot, and Unavailable where it did not; it may then have any
        weights, and does not say `version`.
        """
        await self._tell("/pause?mode=wait")
        try:
            await self._name_weights("loading")
            await self._reload(folder.resolve())
            cleared = await self.call("POST", "/reset_prefix_cache", None, _Success)
            if not cleared.success:
                raise Unavailable(f"{self.label} did not clear its prefix cache")
            await self._name_weights(version)
        finally:
            await self._tell("/resume")

    async def separates_head(self) -> bool:
        """Whether its output layer is a tensor of its own, and not the word embeddings again.

        Raises InvalidInput where it is not and could not be renewed: see `training.untied`.
        """
        told = await self.call("POST", "/weight_checker", {"action": "checksum"}, _Checksums)
        if any(name.endswith("lm_head.weight") for name in told.checksums):
            return True
        # A matrix that was packed for oneDNN leaves an empty tensor behind.
        if hashlib.sha256().hexdigest() in told.checksums.values():
            raise InvalidInput(
                f"rollouts.server: {self.label} runs on a CPU, where vLLM keeps the output layer "
                "that it began with if that is tied to the word embeddings; start it on an untied "
                "copy: python -m training.untied POLICY FOLDER",
                param="rollouts.server",
            )
        return False

    def refusal(self, status: int, message: str) -> RungError:
        """See `ModelServer.refusal`. A route that is not there: it takes no weights."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return InvalidInput(
                f"rollouts.server.key_variable: {self.label} wants another key than that of this "
                f"environment variable (status {status})",
                param="rollouts.server.key_variable",
            )
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED) and (
            "model" not in message
        ):
            return InvalidInput(
                f"rollouts.server: {self.label} takes no new weights; start vLLM 0.32 or newer "
                "with VLLM_SERVER_DEV_MODE=1 in its environment, where only this run can reach it",
                param="rollouts.server",
            )
        return super().refusal(status, message)

    async def _reload(self, folder: Path) -> None:
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            await self._tell("/collective_rpc", call)
        except Unavailable as error:
            # Raises Unavailable where it is away, which may pass; one that answers has refused.
            await self.weight_version()
            raise InvalidInput(
                f"rollouts.server: {self.label} could not load the weights in {folder}, and has "
                "none now: start it again, where it sees that folder under the same name, on a "
                "model of the policy's shape; its log says more",
                param="rollouts.server",
            ) from error

    async def _name_weights(self, version: str) -> None:
        await self._tell("/update_weight_version", {"new_version": version})

    async def _tell(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        async with self.response("POST", path, body) as response:
            await self.body(response)


class WeightsOnDisk:
    """Sends a policy's weights by way of `folder`, where one step's lie at a time; `close` last."""

    name = "disk"

    def __init__(self, folder: Path, policy: TrainedLM) -> None:
        self.folder = folder
        self._policy = policy
        self._separates_head = False

    async def meet(self, server: RolloutServer) -> None:
        """Find out what `server` wants to be sent. Raises InvalidInput for one that will not do."""
        await server.weight_version()
        if self._policy.model.config.tie_word_embeddings:
            self._separates_head = await server.separates_head()

    async def send(self, server: RolloutServer, version: str) -> None:
        """The weights as they are now, to `server`.

        Raises InvalidInput where they cannot be written or read, and Unavailable where it is away.
        """
        target = self.folder / version
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            target.mkdir(parents=True)
            self._policy.save(target)
            if self._separates_head:
                untie(target)
        except (OSError, SafetensorError) as error:
            self.close()
            raise InvalidInput(
                f"the weights for {server.label} could not be written to {self.folder}: {error}; "
                "make room there, or set rollouts.server.weights_folder",
                param="rollouts.server.weights_folder",
            ) from error
        await server.load_weights(target, version)

    def close(self) -> None:
        """The server has read what it was sent; nothing is left behind."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _WeightInfo(BaseModel):
    weight_version: str


class _Checksums(BaseModel):
    checksums: Mapping[str, str]


class _Success(BaseModel):
    success: bool
