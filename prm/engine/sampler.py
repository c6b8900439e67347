"""Sampling from a causal LM in batches that sequences join and leave at every step.

A sequence's randomness comes from its own seed, one uniform number per position turned into a
token by the inverse of the cumulative distribution. So a sample depends on its seed and prompt and
not on what else is in the batch (up to the last bits of the logits).
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tokenizers.decoders import DecodeStream
from torch import Tensor

from prm.chat import ChatTokenizer
from prm.engine.attention import NextTokens, WholeSequences
from prm.engine.messages import FinishReason
from prm.engine.model import CausalLM

# Below it the softmax overflows; vLLM draws the line at the same place.
GREEDY_BELOW = 1e-5
# Tokens of one block of a draw; see `_passed`.
BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends.

    `temperature` 0 takes the most likely token, `top_k` 0 considers all of them. A `stop` string
    ends the sequence where it appears and is cut off, a `keep_stop` string ends it and stays in the
    text. After `seconds` the sequence ends as it is; None is never. With `ignore_eos` the model's
    end of turn does not end it: for measurements.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    keep_stop: tuple[str, ...] = ()
    seconds: float | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one sequence became. `ids` are the sampled tokens, the end token among them."""

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """A sequence being written: sequence `number` of a `request`.

    The last `written` ids of the prompt are the response so far, which this goes on with.
    """

    prompt: Sequence[int]
    written: int = 0
    params: SamplingParams
    seed: int
    request: int = 0
    number: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    completion: Completion | None = None
    _random: np.random.Generator | None = None
    _stream: DecodeStream | None = None
    _text: str = ""
    _arrived_s: float = field(default_factory=time.perf_counter)

    def uniform(self) -> float:
        """The number in [0, 1) that decides the next token."""
        if self._random is None:
            self._random = np.random.Generator(np.random.Philox(self.seed))
        return float(self._random.random())

    def take(
        self, token: int, tokenizer: ChatTokenizer, *, ends_turn: bool, context_limit: int
    ) -> None:
        """Append a token; sets `completion` when it was the last one."""
        self.ids.append(token)
        if ends_turn and not self.params.ignore_eos:
            self._finish("eos", self._whole_text(tokenizer))
            return
        if self._stop_found(token, tokenizer):
            return
        if len(self.ids) == self.params.max_tokens:
            self._finish("length", self._whole_text(tokenizer))
        elif len(self.prompt) + len(self.ids) >= context_limit:
            self._finish("context", self._whole_text(tokenizer))

    def end_at_deadline(self, now_s: float, tokenizer: ChatTokenizer) -> None:
        """Sets `completion` to what is there when the draft's time is up."""
        seconds = self.params.seconds
        if seconds is not None and now_s - self._arrived_s >= seconds:
            self._finish("deadline", self._whole_text(tokenizer))

    def _stop_found(self, token: int, tokenizer: ChatTokenizer) -> bool:
        """Look for stop strings in what this token adds; the earliest one ends the draft."""
        stops = (*self.params.stop, *self.params.keep_stop)
        if not stops:
            return False
        if self._stream is None:
            self._stream = tokenizer.decode_stream(self._before)
        searched = max(0, len(self._text) - max(map(len, stops)))
        self._text += tokenizer.decode_next(self._stream, token)
        found = [(at, stop) for stop in stops if (at := self._text.find(stop, searched)) >= 0]
        if not found:
            return False
        at, stop = min(found)
        if stop in self.params.keep_stop and stop not in self.params.stop:
            self._finish("separator", self._text[: at + len(stop)])
        else:
            self._finish("stop", self._text[:at])
        return True

    @property
    def _before(self) -> Sequence[int]:
        """The response so far, that the new ids add to."""
        return self.prompt[len(self.prompt) - self.written :]

    def _whole_text(self, tokenizer: ChatTokenizer) -> str:
        return tokenizer.decode_after(self._before, self.ids)

    def _finish(self, reason: FinishReason, text: str) -> None:
        self.completion = Completion(ids=tuple(self.ids), text=text, finish_reason=reason)


class Sampler:
    """Writes many drafts at once. Not thread-safe: one thread adds, steps and cancels.

    With `keeps_logprobs` every draft gets the model's own log-prob of each of its tokens.

    >>> sampler.add(draft)
    >>> while sampler.busy:
    ...     for done in sampler.step():
    ...         print(done.number, done.completion.text)
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: ChatTokenizer,
        *,
        max_batch: int = 64,
        keeps_logprobs: bool = False,
    ) -> None:
        self._model = model
        self.keeps_logprobs = keeps_logprobs
        self._tokenizer = tokenizer
        # A model may end its turn by any of several tokens, of which the tokenizer names one.
        self._eos_ids = model.eos_ids | {tokenizer.eos_id}
        self._cache = model.new_cache(max_batch)
        self._waiting: deque[Draft] = deque()
        self._running: list[Draft] = []
        self._last_ids: list[int] = []
        self._may_be_late = False

    @property
    def busy(self) -> bool:
        """Whether any draft is waiting or running."""
        return bool(self._waiting or self._running)

    def add(self, draft: Draft) -> None:
        """Queue a draft; it joins the batch as soon as a slot is free."""
        assert 0 < len(draft.prompt) < self._model.context_limit
        assert draft.params.max_tokens >= 1
        self._may_be_late |= draft.params.seconds is not None
        self._waiting.append(draft)

    def cancel(self, request: int) -> None:
        """Drop every draft of a request; it costs no further token."""
        self._waiting = deque(draft for draft in self._waiting if draft.request != request)
        self._keep([draft.request != request for draft in self._running])

    def step(self) -> list[Draft]:
        """One token for every running draft. Returns the drafts that are complete."""
        done = self._end_late() + (self._admit() if self._waiting else [])
        if self._running:
            lengths = [len(d.prompt) + len(d.ids) - 1 for d in self._running]
            self._cache.reserve(max(lengths) + 1)
            plan = NextTokens(self._cache, lengths, self._model.device)
            ids = torch.tensor(self._last_ids, device=self._model.device)
            logits = self._model.next_logits(self._model.hidden(ids, plan))
            done += self._take(self._running, logits)
        return done

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """Write one completion per prompt and wait for all of them."""
        drafts = [
            Draft(prompt=prompt, params=params, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        for draft in drafts:
            self.add(draft)
        while any(draft.completion is None for draft in drafts):
            self.step()
        return [draft.completion for draft in drafts if draft.completion is not None]

    def _end_late(self) -> list[Draft]:
        """Take out the drafts whose time is up."""
        if not self._may_be_late:
            return []
        now_s = time.perf_counter()
        for draft in (*self._running, *self._waiting):
            draft.end_at_deadline(now_s, self._tokenizer)
        late = [d for d in (*self._running, *self._waiting) if d.completion is not None]
        if late:
            self._waiting = deque(d for d in self._waiting if d.completion is None)
            self._keep([draft.completion is None for draft in self._running])
        return late

    def _admit(self) -> list[Draft]:
        """Move waiting drafts into free slots: one prefill, each distinct prompt read once."""
        first_slot = len(self._running)
        room = min(self._cache.slots - first_slot, len(self._waiting))
        if room == 0:
            return []
        joining = [self._waiting.popleft() for _ in range(room)]
        prompts: dict[tuple[int, ...], int] = {}
        rows = [prompts.setdefault(tuple(draft.prompt), len(prompts)) for draft in joining]
        lengths = [len(prompt) for prompt in prompts]
        self._cache.reserve(max(lengths))
        plan = WholeSequences(
            lengths, self._model.device, cache=self._cache, first_slot=first_slot, slots=rows
        )
        ids = torch.tensor([t for prompt in prompts for t in prompt], device=self._model.device)
        ends = torch.tensor(lengths, device=self._model.device).cumsum(0) - 1
        logits = self._model.next_logits(self._model.hidden(ids, plan)[ends])
        self._running += joining
        self._last_ids += [0] * len(joining)
        return self._take(joining, logits[torch.tensor(rows, device=self._model.device)])

    def _take(self, drafts: list[Draft], logits: Float[Tensor, "n vocab"]) -> list[Draft]:
        """Choose a token for the last `len(drafts)` running drafts; remove the finished ones."""
        tokens = choose_tokens(
            logits,
            temperature=[draft.params.temperature for draft in drafts],
            top_p=[draft.params.top_p for draft in drafts],
            top_k=[draft.params.top_k for draft in drafts],
            uniform=[draft.uniform() for draft in drafts],
        ).tolist()
        self._last_ids[-len(drafts) :] = tokens
        if self.keeps_logprobs:
            # Of the model itself, before temperature and top_p.
            chosen = torch.tensor(tokens, device=logits.device)[:, None]
            logprobs = torch.log_softmax(logits, -1).gather(1, chosen).squeeze(1).tolist()
            for draft, logprob in zip(drafts, logprobs, strict=True):
                draft.logprobs.append(logprob)
        for draft, token in zip(drafts, tokens, strict=True):
            draft.take(
                token,
                self._tokenizer,
                ends_turn=token in self._eos_ids,
                context_limit=self._model.context_limit,
            )
        done = [draft for draft in drafts if draft.completion is not None]
        if done:
            self._keep([draft.completion is None for draft in self._running])
        return done

    def _keep(self, keep: list[bool]) -> None:
        """Close the gaps: the last running draft moves into each slot that became free."""
        for slot in reversed(range(len(keep))):
            if keep[slot]:
                continue
            last = len(self._running) - 1
            if slot != last:
                moved = self._running[last]
                self._cache.move(last, slot, len(moved.prompt) + len(moved.ids))
                self._running[slot] = moved
                self._last_ids[slot] = self._last_ids[last]
            self._running.pop()
            self._last_ids.pop()


@torch.inference_mode()
def choose_tokens(
    logits: Float[Tensor, "n vocab"],
    *,
    temperature: Sequence[float],
    top_p: Sequence[float],
    top_k: Sequence[int] | None = None,
    uniform: Sequence[float],
) -> Int[Tensor, "n"]:
    """One token per row: the most likely at temperature 0, else where the CDF passes `uniform`.

    With `top_k` above 0, only so many of the most likely tokens take part; with `top_p` below 1,
    only the smallest set of most likely tokens among those whose share reaches it (Holtzman et al.,
    arXiv 1904.09751 §3.1; vLLM and transformers apply them in this order).
    """
    if max(temperature) < GREEDY_BELOW:
        return logits.argmax(-1)
    heat = logits.new_tensor([max(t, GREEDY_BELOW) for t in temperature])
    hot = logits if set(temperature) == {1.0} else logits / heat[:, None]
    probabilities = torch.softmax(hot, -1)
    most = [k if 0 < k < logits.shape[-1] else logits.shape[-1] for k in top_k or [0] * len(top_p)]
    if min(top_p) < 1.0 or min(most) < logits.shape[-1]:
        probabilities = probabilities * _likely(
            probabilities, logits.new_tensor(top_p), torch.tensor(most, device=logits.device)
        )
    drawn = _passed(probabilities, torch.tensor(uniform, dtype=torch.float64).to(logits.device))
    if min(temperature) >= GREEDY_BELOW:
        return drawn
    return torch.where(logits.new_tensor(temperature) >= GREEDY_BELOW, drawn, logits.argmax(-1))


def _passed(probabilities: Float[Tensor, "n vocab"], share: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The token at which the running sum passes this share of the whole sum, never one of weight 0.

    Float64: over 150,000 tokens a float32 running sum loses the unlikely ones. First the block is
    found and then the token in it: a third of what one running sum over 32,000 takes on a CPU.
    """
    count, size = probabilities.shape
    if size <= BLOCK:
        return _first_above(probabilities.double().cumsum(-1), share)
    padded = F.pad(probabilities, (0, -size % BLOCK)) if size % BLOCK else probabilities
    blocks = padded.view(count, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    block = _first_above(sums, share)
    row = torch.arange(count, device=block.device)
    end = sums[row, block]
    begin = torch.where(block > 0, sums[row, (block - 1).clamp_(min=0)], 0.0)
    within = (share * sums[:, -1] - begin) / (end - begin)
    return block * BLOCK + _first_above(blocks[row, block].double().cumsum(-1), within)


def _first_above(sums: Float[Tensor, "n places"], share: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The first place where a running sum is above this share of the last; `share` is kept below 1,
    which rounding may have made of it."""
    point = share.clamp(0.0, 1.0 - 2.0**-52)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, point, right=True).clamp_(max=sums.shape[1] - 1).squeeze(1)


def _likely(
    probabilities: Float[Tensor, "n vocab"], top_p: Float[Tensor, "n"], top_k: Int[Tensor, "n"]
) -> Bool[Tensor, "n vocab"]:
    """Which tokens take part, in the order of their ids: a row's draw must not depend on others."""
    ordered, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    size = probabilities.shape[-1]
    is_in = torch.arange(size, device=top_k.device) < top_k[:, None]
    kept = ordered * is_in
    # Of all tokens 1 and not their sum: rounding would move a row with what its neighbours ask.
    share = top_p * torch.where(top_k < size, kept.sum(-1), 1.0)
    is_in &= (kept.cumsum(-1) - kept < share[:, None]) | (top_p >= 1.0)[:, None]
    is_in[:, 0] = True  # the most likely one always, however small top_p is
    return torch.zeros_like(is_in).scatter(1, order, is_in)
