"""Rollouts from a vLLM server that is given the policy's weights after every optimizer step.

    POST /v1/completions   a problem's ids → `n` responses: their ids, log-probs and ends

Ids go out and ids come back: what is trained on is what was sampled, and its text is decoded here.
The server's log-probs are of the same weights and still not the trainer's (another engine, its
precision, its batches), so the loop weighs each token by what separates the two
(`training.weighting.truncated_importance`).

**Which weights.** Each sending has a name of its own, which the server is asked for before and
after a step's rollouts. One that was started anew, or was given weights by somebody else, does not
know it: then the weights are sent again and the rollouts written again. So no rollout is ever
stamped with a step whose weights did not write it.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import stamina

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, Unavailable
from search.generators.openai_client import BrokenOff
from search.generators.openai_wire import Choice
from training.data import Example
from training.events import Events
from training.models import TrainedLM
from training.rollout_batch import Written
from training.spec import Rollouts
from training.types import Problem
from training.weight_updates import RolloutServer, WeightsOnDisk
from training.writers import prompts_of, seed_of

# Requests at once: vLLM has its own limit and queue, and each costs a connection.
MOST_REQUESTS = 256
# The longest pause between two attempts to reach a server that is away.
LONGEST_WAIT_S = 10.0
# Tokens between two events of a stream: each event is read here and written there.
STREAM_INTERVAL = 32

logger = logging.getLogger(__name__)


class VllmWriter:
    """Writes rollouts through a server. A context manager; not for use inside an event loop.

    Trouble with the server is tried again for `patience_s`, counted as `rollout_retries`; each
    sending of weights is counted as `weights_by_disk`, its time told as `seconds_weights`.
    """

    is_exact = False

    def __init__(
        self,
        policy: TrainedLM,
        tokenizer: ChatTokenizer,
        settings: Rollouts,
        server: RolloutServer,
        weights: WeightsOnDisk,
        events: Events,
        *,
        max_tokens: int,
    ) -> None:
        """`settings.server` says which model of `server` it is."""
        assert settings.server is not None
        self._tokenizer = tokenizer
        self._temperature = settings.temperature
        self._max_tokens = max_tokens
        self._patience_s = settings.server.patience_s
        self._retries: dict[str, Any] = {
            "on": Unavailable,
            "attempts": None,
            "timeout": self._patience_s,
            "wait_initial": 0.5,
            "wait_max": LONGEST_WAIT_S,
        }
        self._model = settings.server.model
        self._server = server
        self._weights = weights
        self._events = events
        self._limit = policy.engine.context_limit
        assert tokenizer.eos_id is not None
        self._eos_ids = policy.engine.eos_ids | {tokenizer.eos_id}
        # Nobody else's sending, and none of an earlier run of this job, has the same name.
        self._run = secrets.token_hex(4)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        """Find the model. Raises Unavailable, and InvalidInput for a server that will not do."""
        try:
            self._runner.run(self._connect())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections, and with them whatever is still being written."""
        self._runner.run(self._server.aclose())
        self._runner.close()
        self._weights.close()

    def write(
        self, problems: Sequence[Problem], *, seed: str, policy_step: int, per_problem: int
    ) -> list[list[Written]]:
        """See `Writer.write`; the same for the same seed up to the last bits of the logits.

        Raises InvalidInput for a problem that leaves no room to answer, and Unavailable when the
        server was away for too long.
        """
        prompts = prompts_of(self._tokenizer, problems, self._limit)
        seeds = [seed_of(seed, number, 0) >> 2 for number in range(len(problems))]
        asked = [
            _Asked(
                problem=problem,
                prompt=prompt,
                seed=each,
                count=per_problem,
                policy_step=policy_step,
            )
            for problem, prompt, each in zip(problems, prompts, seeds, strict=True)
        ]
        return self._runner.run(self._patiently(asked, policy_step))

    async def _connect(self) -> None:
        async for attempt in stamina.retry_context(**self._retries):
            with attempt:
                served = await self._server.models()
        name = self._model or next(iter(served), "")
        if name not in served or (self._model is None and len(served) > 1):
            raise InvalidInput(
                f"rollouts.server.model: {self._server.label} serves {', '.join(sorted(served))}; "
                "name one of them",
                param="rollouts.server.model",
            )
        if served[name].owned_by != "vllm":
            raise InvalidInput(
                f"rollouts.server.url: {self._server.label} is no vLLM, and only of vLLM is it "
                "known how to give it weights",
                param="rollouts.server.url",
            )
        await self._weights.meet(self._server)
        self._model = name
        self._limit = min(self._limit, served[name].max_model_len or self._limit)
        logger.warning(
            "rollouts come from %s; it gets new weights by way of a folder (%s), for which it is "
            "paused",
            self._server.label,
            self._weights.folder,
        )

    async def _patiently(self, asked: Sequence["_Asked"], policy_step: int) -> list[list[Written]]:
        version = f"{self._run}-step-{policy_step:08d}"
        try:
            async for attempt in stamina.retry_context(**self._retries):
                with attempt:
                    if attempt.num > 1:
                        self._events.count("rollout_retries")
                    await self._bring_up_to_date(version)
                    groups = await self._write_all(asked)
                    if await self._server.weight_version() != version:
                        raise Unavailable(
                            f"{self._server.label} lost its weights meanwhile: it was started "
                            "anew, or something else than this run gives it weights"
                        )
        except Unavailable as error:
            raise Unavailable(
                f"{error}; after {self._patience_s:g} s (rollouts.server.patience_s) the run ends: "
                "start the server again and go on with --resume"
            ) from error
        return groups

    async def _bring_up_to_date(self, version: str) -> None:
        if await self._server.weight_version() == version:
            return
        with self._events.phase("weights"):
            await self._weights.send(self._server, version)
        self._events.count(f"weights_by_{self._weights.name}")

    async def _write_all(self, asked: Sequence["_Asked"]) -> list[list[Written]]:
        places = asyncio.Semaphore(MOST_REQUESTS)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._write_group(one, places)) for one in asked]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _write_group(self, asked: "_Asked", places: asyncio.Semaphore) -> list[Written]:
        """All responses to one problem, by one request."""
        body = {
            "model": self._model,
            "prompt": asked.prompt,
            # vLLM seeds choice i with seed + i (`v1/engine/parallel_sampling.py`).
            "n": asked.count,
            "seed": asked.seed,
            "max_tokens": min(self._max_tokens, self._limit - len(asked.prompt)),
            "temperature": self._temperature,
            # A model's `generation_config.json` would add its own.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            # 0 more than the token's own; by id, since some tokens are no text of their own.
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
            "stream": True,
            "stream_interval": STREAM_INTERVAL,
        }
        drafts = [_Draft() for _ in range(asked.count)]
        async with places, aclosing(self._server.complete(body)) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    self._take(drafts, choice)
        if any(draft.ended_by is None for draft in drafts):
            raise BrokenOff(f"{self._server.label} ended its answer early")
        return [self._written(asked, draft) for draft in drafts]

    def _take(self, drafts: Sequence["_Draft"], choice: Choice) -> None:
        """Add a piece to its draft, which may be its last."""
        label = self._server.label
        if not 0 <= choice.index < len(drafts) or drafts[choice.index].ended_by is not None:
            raise Unavailable(f"{label} answers for a response {choice.index} that is none")
        ids = choice.token_ids or ()
        logprobs = choice.logprobs.token_logprobs if choice.logprobs is not None else ()
        if len(ids) != len(logprobs):
            raise Unavailable(f"{label} tells {len(ids)} tokens and {len(logprobs)} log-probs")
        draft = drafts[choice.index]
        draft.ids += ids
        draft.logprobs += logprobs
        draft.ended_by = choice.finish_reason

    def _written(self, asked: "_Asked", draft: "_Draft") -> Written:
        if draft.ended_by not in ("stop", "length"):
            raise Unavailable(f"{self._server.label} gave up a response ({draft.ended_by!r:.40})")
        is_cut = draft.ended_by == "length"
        if not is_cut and (not draft.ids or draft.ids[-1] not in self._eos_ids):
            raise InvalidInput(
                f"rollouts.server: {self._server.label} ended a response with the tokens "
                f"{draft.ids[-3:]}, and the policy's end tokens are {sorted(self._eos_ids)}; "
                "start it on the policy's own folder",
                param="rollouts.server",
            )
        return Written(
            problem=asked.problem,
            example=Example(ids=(*asked.prompt, *draft.ids), first=len(asked.prompt)),
            text=self._tokenizer.decode_after((), draft.ids),
            logprobs=tuple(draft.logprobs),
            policy_step=asked.policy_step,
            is_cut=is_cut,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """`count` responses to a problem, sampled with the seeds from `seed` on."""

    problem: Problem
    prompt: tuple[int, ...]
    seed: int
    count: int
    policy_step: int


@dataclass(slots=True)
class _Draft:
    """What has come of a response; `ended_by` is vLLM's `finish_reason` once it is whole."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended_by: str | None = None
