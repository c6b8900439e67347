"""Batched sampling: the right distribution, the right end, and no influence of one on another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.sampler import BLOCK, Completion, Draft, Sampler, SamplingParams, choose_tokens
from tests.factories import POLICY

PROMPT = (257, 49, 43, 49, 256, 258)


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / POLICY / "1"


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalLM:
    return CausalLM.load(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


@pytest.fixture
def sampler(model: CausalLM, tokenizer: ChatTokenizer) -> Sampler:
    return Sampler(model, tokenizer, max_batch=4)


def test_greedy_text_equals_transformers_generate(sampler: Sampler, folder: Path) -> None:
    reference: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [PROMPT, (257, 50, 256, 258), tuple(range(30, 90))]
    found = sampler.generate(prompts, SamplingParams(temperature=0, max_tokens=40), [0, 0, 0])
    for prompt, completion in zip(prompts, found, strict=True):
        ids = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
        )
        assert list(completion.ids) == ids[0, len(prompt) :].tolist()


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(sampler: Sampler) -> None:
    params = SamplingParams(max_tokens=30)
    # Eleven drafts in four slots: they join and leave at different steps.
    crowd = sampler.generate([PROMPT] * 11, params, list(range(11)))
    alone = [sampler.generate([PROMPT], params, [seed])[0] for seed in range(11)]
    assert crowd == alone
    assert len({completion.ids for completion in crowd}) > 1


def test_a_neighbours_top_p_changes_nothing(sampler: Sampler) -> None:
    plain = SamplingParams(max_tokens=20)
    alone = sampler.generate([PROMPT], plain, [5])[0]
    drafts = [
        Draft(prompt=PROMPT, params=params, seed=seed)
        for params, seed in ((plain, 5), (SamplingParams(max_tokens=20, top_p=0.5), 6))
    ]
    for draft in drafts:
        sampler.add(draft)
    while sampler.busy:
        sampler.step()
    assert drafts[0].completion == alone


@pytest.mark.parametrize(("heat", "top_p"), [(1.0, 1e-50), (1e-39, 1.0), (1e-300, 1.0)])
def test_extreme_settings_take_the_most_likely_token(heat: float, top_p: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    drawn = choose_tokens(logits, temperature=[heat], top_p=[top_p], uniform=[0.99])
    assert drawn.item() == 1


def test_long_sequences_outgrow_the_cache_without_a_trace(
    model: CausalLM, tokenizer: ChatTokenizer
) -> None:
    params = SamplingParams(max_tokens=240)
    prompts = [PROMPT, tuple(range(20, 120))]
    seeds = [3, 4]
    grown = Sampler(model, tokenizer).generate(prompts, params, seeds)
    roomy = Sampler(model, tokenizer)
    roomy._cache.reserve(256)
    assert roomy.generate(prompts, params, seeds) == grown


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = choose_tokens(logits, temperature=[1.0] * 20_000, top_p=[1.0] * 20_000, uniform=uniform)
    frequency = torch.bincount(drawn, minlength=4) / 20_000
    assert frequency.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.log(torch.tensor([[0.05, 0.3, 0.15, 0.5]])).expand(1000, 4)
    uniform = [place / 1000 for place in range(1000)]
    drawn = choose_tokens(logits, temperature=[1.0] * 1000, top_p=[0.7] * 1000, uniform=uniform)
    counts = torch.bincount(drawn, minlength=4).tolist()
    # 0.5 does not reach 0.7, 0.5 + 0.3 does: those two, in proportion 5 to 3.
    assert counts == pytest.approx([0, 375, 0, 625], abs=1)


def test_top_k_keeps_so_many_and_top_p_then_takes_its_share_of_them() -> None:
    logits = torch.log(torch.tensor([[0.05, 0.3, 0.15, 0.5]])).expand(1000, 4)
    uniform = [place / 1000 for place in range(1000)]
    drawn = choose_tokens(
        logits,
        temperature=[1.0] * 1000,
        top_p=[1.0] * 400 + [0.6] * 600,
        top_k=[2] * 400 + [3] * 600,
        uniform=[u / 0.4 for u in uniform[:400]] + [(u - 0.4) / 0.6 for u in uniform[400:]],
    )
    # Of the two likeliest 0.5 and 0.3 remain; of the three, 0.5/0.95 does not reach 0.6.
    assert torch.bincount(drawn[:400], minlength=4).tolist() == pytest.approx(
        [0, 150, 0, 250], abs=1
    )
    assert torch.bincount(drawn[400:], minlength=4).tolist() == pytest.approx(
        [0, 225, 0, 375], abs=1
    )


def test_a_neighbours_top_k_changes_nothing() -> None:
    logits = torch.randn((1, 50), generator=torch.Generator().manual_seed(1))
    for place in range(100):
        alone = choose_tokens(logits, temperature=[1.0], top_p=[1.0], uniform=[place / 100])
        beside = choose_tokens(
            logits.expand(2, 50),
            temperature=[1.0, 1.0],
            top_p=[1.0, 1.0],
            top_k=[0, 1],
            uniform=[place / 100, 0.99],
        )
        assert beside.tolist() == [alone.item(), logits.argmax().item()]


@given(st.floats(0, 1, exclude_max=True), st.floats(0.05, 1), st.floats(0.1, 5))
def test_a_drawn_token_is_never_impossible(uniform: float, top_p: float, heat: float) -> None:
    logits = torch.tensor([[float("-inf"), 1.0, 0.0, float("-inf")]])
    drawn = choose_tokens(logits, temperature=[heat], top_p=[top_p], uniform=[uniform])
    assert drawn.item() in (1, 2)


@pytest.mark.parametrize("size", [BLOCK + 1, 3 * BLOCK, 1000])
def test_a_large_vocabulary_is_drawn_from_as_one_running_sum_would(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = 6 * torch.randn((500, size), generator=generator)
    logits[:, ::3] = -torch.inf
    uniform = [0.0, 1 - 2**-53, *torch.rand(498, generator=generator, dtype=torch.float64).tolist()]
    ones = [1.0] * 500
    drawn = choose_tokens(logits, temperature=ones, top_p=ones, uniform=uniform)
    sums = logits.double().softmax(-1).cumsum(-1)
    wanted = torch.tensor(uniform).double()[:, None] * sums[:, -1:]
    low = torch.searchsorted(sums, wanted - 1e-6, right=True).squeeze(1)
    high = torch.searchsorted(sums, wanted + 1e-6, right=True).squeeze(1)
    assert ((low <= drawn) & (drawn <= high)).all()
    assert (low == high).float().mean() > 0.95, "else this says little"
    assert logits[torch.arange(500), drawn].isfinite().all(), "a token without weight was drawn"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 200))
def test_a_stop_string_ends_the_text(
    model: CausalLM, tokenizer: ChatTokenizer, seed: int, at: int
) -> None:
    sampler = Sampler(model, tokenizer)
    (free,) = sampler.generate([PROMPT], SamplingParams(max_tokens=60), [seed])
    if not free.text:
        return
    stop = free.text[at % len(free.text)]
    if stop == "\ufffd":  # half a character: what it becomes depends on the next byte
        return
    (cut,) = sampler.generate([PROMPT], SamplingParams(max_tokens=60, stop=(stop,)), [seed])
    (kept,) = sampler.generate([PROMPT], SamplingParams(max_tokens=60, keep_stop=(stop,)), [seed])
    assert (cut.finish_reason, kept.finish_reason) == ("stop", "separator")
    assert kept.text == cut.text + stop
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.ids == free.ids[: len(cut.ids)]


def test_length_and_context_end_a_text(sampler: Sampler) -> None:
    by_length = sampler.generate([PROMPT], SamplingParams(temperature=0, max_tokens=3), [0])[0]
    assert (len(by_length.ids), by_length.finish_reason) == (3, "length")
    almost_full = tuple(range(250))
    by_context = sampler.generate([almost_full], SamplingParams(max_tokens=100), [0])[0]
    assert by_context.finish_reason in ("context", "eos")
    assert len(by_context.ids) <= 6


def test_any_of_a_models_end_tokens_ends_a_turn(
    folder: Path, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "generation_config.json"
    listed = json.loads(path.read_text()) | {"eos_token_id": [*range(100)]}
    path.write_text(json.dumps(listed))
    sampler = Sampler(CausalLM.load(copy), tokenizer)
    found = sampler.generate([PROMPT] * 20, SamplingParams(max_tokens=60), list(range(20)))
    for completion in found:
        assert not set(completion.ids[:-1]) & {*range(100), 256}
    assert any(c.ids[-1] < 100 for c in found if c.finish_reason == "eos")


def test_the_end_of_a_turn_can_be_ignored(sampler: Sampler) -> None:
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    found = sampler.generate([PROMPT] * 8, params, list(range(8)))
    assert {(len(c.ids), c.finish_reason) for c in found} == {(60, "length")}


def test_a_deadline_returns_what_is_there(sampler: Sampler) -> None:
    found = sampler.generate(
        [PROMPT] * 9, SamplingParams(max_tokens=200, seconds=0.02), list(range(9))
    )
    assert "deadline" in {completion.finish_reason for completion in found}


def test_a_cancelled_request_leaves_the_others_as_they_were(sampler: Sampler) -> None:
    params = SamplingParams(max_tokens=40)
    expected = [sampler.generate([PROMPT], params, [seed])[0] for seed in range(3)]
    drafts = [
        Draft(prompt=PROMPT, params=params, seed=seed % 3, request=seed // 3, number=seed)
        for seed in range(9)
    ]
    for draft in drafts:
        sampler.add(draft)
    done: dict[int, Completion | None] = {}
    for turn in range(400):
        if turn == 3:
            sampler.cancel(1)
        for draft in sampler.step():
            done[draft.number] = draft.completion
    assert not sampler.busy
    assert [done[number] for number in (0, 1, 2)] == expected
    assert [done[number] for number in (6, 7, 8)] == expected
