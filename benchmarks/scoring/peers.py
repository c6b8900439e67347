"""The other sides: transformers' padded forward, and vLLM's `prompt_logprobs`.

Nothing of ours is imported but what needs the standard library alone: vLLM has its own environment.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import resident_bytes
from benchmarks.scoring.child import Spec, TakeTurn, Task
from benchmarks.scoring.measure import batches_of, measured
from benchmarks.scoring.shapes import Shape
from benchmarks.scoring.workloads import Batch, Item

# As many tokens, padding among them, as one of our forwards has.
TOKEN_BUDGET = 2048


def load(spec: Spec) -> TakeTurn:
    """`transformers`, `transformers-sorted` or `vllm`."""
    return _vllm(spec) if spec.kind == "vllm" else _transformers(spec)


def _transformers(spec: Spec) -> TakeTurn:
    """One padded forward per batch, log-softmax in float32 of all positions.

    Items go in as they come, or sorted by length for as little padding as can be.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(spec.threads)
    folder = Path(spec.folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, spec.dtype))
    model.eval()
    # Weights that are mapped from the file count once they are read.
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    base_bytes = resident_bytes()
    is_sorted = spec.kind.endswith("-sorted")

    @torch.inference_mode()
    def forward(items: Sequence[Item]) -> list[list[float]]:
        longest = max(len(item.ids) for item in items)
        ids = torch.tensor([item.ids + (0,) * (longest - len(item.ids)) for item in items])
        lengths = torch.tensor([len(item.ids) for item in items])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logprobs = logits.float().log_softmax(-1)
        found = logprobs[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2).tolist()
        return [
            row[item.first - 1 : len(item.ids) - 1] for row, item in zip(found, items, strict=True)
        ]

    def score(batch: Batch) -> Sequence[Sequence[float]]:
        order = list(range(len(batch)))
        if is_sorted:
            order.sort(key=lambda place: len(batch[place].ids))
        values: dict[int, list[float]] = {}
        for places in _padded_batches(batch, order):
            values.update(zip(places, forward([batch[place] for place in places]), strict=True))
        return [values[place] for place in range(len(batch))]

    def take_turn(task: Task) -> Mapping[str, Any]:
        return measured(batches_of(Shape.of(folder), task), score, base_bytes=base_bytes)

    return take_turn


def _padded_batches(batch: Batch, order: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours in this order, as many as the budget holds when padded to the longest."""
    places: list[int] = []
    longest = 0
    for place in order:
        longest = max(longest, len(batch[place].ids))
        if places and (len(places) + 1) * longest > TOKEN_BUDGET:
            yield places
            places, longest = [], len(batch[place].ids)
        places.append(place)
    yield places


def _vllm(spec: Spec) -> TakeTurn:
    """`LLM.generate` of one token with `prompt_logprobs`, all items at once.

    Its prefix cache is on. With `prompt_logprobs` no prefix is read from it, by design: it has keys
    and values, and a log-prob needs hidden states. `flat_logprobs` is its fastest form of answer.
    """
    from vllm import LLM, SamplingParams

    folder = Path(spec.folder)
    shape = Shape.of(folder)
    engine = LLM(
        str(folder),
        dtype=spec.dtype,
        skip_tokenizer_init=True,
        max_model_len=shape.max_position_embeddings,
        max_num_batched_tokens=TOKEN_BUDGET,
        max_num_seqs=256,
        enable_prefix_caching=True,
        enforce_eager=spec.is_eager,
    )
    params = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, flat_logprobs=True
    )
    # Of this process, which has no weights: its engine process is not looked at.
    base_bytes = resident_bytes()
    outputs: list[Any] = []

    def generate(batch: Batch) -> Sequence[Sequence[float]]:
        prompts = [{"prompt_token_ids": list(item.ids)} for item in batch]
        outputs[:] = engine.generate(prompts, params, use_tqdm=False)
        return [
            # A first token has no log-prob and no entry; `logprobs` is flat over the others.
            output.prompt_logprobs.logprobs[item.first - len(item.ids) :]
            for output, item in zip(outputs, batch, strict=True)
        ]

    def take_turn(task: Task) -> Mapping[str, Any]:
        result = measured(batches_of(shape, task), generate, base_bytes=base_bytes)
        del result["peak_bytes"]
        return result

    return take_turn
