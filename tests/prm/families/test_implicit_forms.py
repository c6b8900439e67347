"""The forms of an implicit PRM against literal computations: the script's, and the definitions."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, ModelFolderError
from prm.families import rlhflow
from prm.families.implicit import SPEC, ImplicitRecipe, step_values, token_rewards
from prm.families.reading import read_as_written, read_joined
from prm.families.rlhflow import RlhflowRecipe
from prm.manifest import ModelRef, ModelVersion
from prm.scorer import Scorer
from prm.steps import join_steps
from prm.types import Message, Step, Trajectory
from tests.layouts import (
    LLAMA_CONTROL,
    LLAMA_TEMPLATE,
    QWEN_CONTROL,
    QWEN_TEMPLATE,
    byte_level_layout,
    save_layout,
)
from tests.published import publish_policy, publish_prm, random_lm, score_items, scorer_of

pytestmark = pytest.mark.anyio

BETA = 0.05
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's ducks lay 16 eggs.", ["Find the radius.", "r = |3| = 3.\n\nSo $r=3$", "∴ 26"]),
    ("1+1", ["2"]),
    ("?", ["a", "b", "c.", " d ", "e\n", "f"]),
    ("naïve → 7", ["Step 1: one", "Step 1: again", "three" * 30]),
)

Published = tuple[ModelVersion, ModelVersion]


def stage(layout: str, seed: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        if layout == "qwen":
            tokenizer = byte_level_layout(QWEN_CONTROL)
            save_layout(tokenizer, folder, template=QWEN_TEMPLATE, eos="<|im_end|>")
        else:
            bos = "<|begin_of_text|>"
            tokenizer = byte_level_layout(LLAMA_CONTROL, bos=bos)
            save_layout(tokenizer, folder, template=LLAMA_TEMPLATE, bos=bos, eos="<|eot_id|>")
        kind = "qwen2" if layout == "qwen" else "llama"
        random_lm(kind, vocab=tokenizer.get_vocab_size(), seed=seed).save_pretrained(folder)

    return write


def publish(root: Path, layout: str, **settings: Any) -> Published:
    """A PRM and its reference; the reference is not pinned when `reference` is None."""
    reference = publish_policy(root, "ref", stage(layout, 1))
    pinned = ModelRef(name="ref", version="1", weights_sha256=reference.weights_sha256)
    recipe = ImplicitRecipe.model_validate({"beta": BETA, "reference": pinned} | settings)
    return publish_prm(root, "prm", SPEC.name, recipe, stage(layout, 2)), reference


def literal_logprobs(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """log p(ids[t + 1] | ids[: t + 1]) at index t."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch = torch.tensor([ids])
    with torch.no_grad():
        table = model(batch).logits[:, :-1].log_softmax(-1)
    row: torch.Tensor = table.gather(2, batch[:, 1:, None])[0, :, 0]
    return row


def script_values(
    prm: Path, reference: Path, problem: str, answer: Sequence[str], *, coef: float
) -> tuple[list[float], list[float]]:
    """`implicit_prm_data_collator` and `get_reward` of eval/prm_eval_utils.py, for one item.

    Returns the "accumulative" and the "single" rewards.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(prm)

    def chat(response: str) -> str:
        turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        assert isinstance(text, str)
        return text

    ids = tokenizer.encode(chat("\n\n".join(answer)), add_special_tokens=False)
    special = []
    for number in range(len(answer) + 1):
        text = chat("\n\n".join(answer[:number])).strip()
        for tail in ("<|start_header_id|>assistant<|end_header_id|>", "<|eot_id|>"):
            if number != len(answer) and text.endswith(tail):
                text = text[: -len(tail)]
        if number not in (0, len(answer)):
            text += "\n\n"
        special.append(len(tokenizer.encode(text, add_special_tokens=False)) - 2)
    label_mask = torch.tensor([0] * special[0] + [1] * (len(ids) - special[0]))
    ratio = literal_logprobs(prm, ids) - literal_logprobs(reference, ids)
    rewards = (coef * ratio * label_mask[1:]).cumsum(-1)
    accumulative = rewards.gather(-1, torch.tensor(special[1:]))
    single = accumulative - torch.cat([torch.zeros(1), accumulative[:-1]])
    return accumulative.tolist(), single.tolist()


@pytest.mark.parametrize("layout", ["qwen", "llama"])
@pytest.mark.parametrize("step_value", ["single", "accumulative"])
async def test_published_boundaries_give_the_scripts_numbers(
    tmp_path: Path, layout: str, step_value: str
) -> None:
    prefix = "Step {n}: "
    prm, reference = publish(tmp_path, layout, step_value=step_value, step_prefix=prefix)
    scorer = scorer_of(prm, reference).as_published()
    assert isinstance(scorer, Scorer)
    assert scorer.recipe.label == "implicit/1+reference_compat"
    for scored, (problem, steps) in zip(await score_items(scorer, ITEMS), ITEMS, strict=True):
        answer = [
            step if re.match(r"Step \d+:", step) else f"Step {k + 1}: {step}"
            for k, step in enumerate(steps)
        ]
        sums, singles = script_values(prm.folder, reference.folder, problem, answer, coef=BETA)
        raws = [step.raw for step in scored.step_scores]
        assert raws == pytest.approx(sums if step_value == "accumulative" else singles, abs=1e-4)
        assert [step.cumulative for step in scored.step_scores] == pytest.approx(sums, abs=1e-4)
        assert scored.tokens is not None
        assert sum(scored.tokens.rewards) == pytest.approx(sums[-1], abs=1e-4)


async def test_a_version_can_be_published_with_the_scripts_boundaries(tmp_path: Path) -> None:
    prm, reference = publish(tmp_path, "qwen", reference_compat=True)
    (scored,) = await score_items(scorer_of(prm, reference), ITEMS[:1])
    problem, steps = ITEMS[0]
    _, singles = script_values(prm.folder, reference.folder, problem, steps, coef=BETA)
    assert [step.raw for step in scored.step_scores] == pytest.approx(singles, abs=1e-4)


@pytest.mark.parametrize("layout", ["qwen", "llama"])
async def test_exact_boundaries_are_the_default_and_differ(tmp_path: Path, layout: str) -> None:
    prm, reference = publish(tmp_path, layout)
    scorer = scorer_of(prm, reference)
    assert scorer.recipe.label == "implicit/1"
    for scored, (problem, steps) in zip(await score_items(scorer, ITEMS), ITEMS, strict=True):
        expected = exact_values(prm, reference, problem, "\n\n".join(steps), steps)
        raws = [step.raw for step in scored.step_scores]
        assert raws == pytest.approx(expected, abs=1e-4)
        sums, singles = script_values(prm.folder, reference.folder, problem, steps, coef=BETA)
        assert raws[0] != pytest.approx(singles[0], abs=1e-4)
        assert scored.step_scores[-1].cumulative != pytest.approx(sums[-1], abs=1e-4)


def exact_values(
    prm: ModelVersion, reference: ModelVersion | None, problem: str, text: str, steps: Sequence[str]
) -> list[float]:
    """By the definition: a step's tokens are those that begin before its last character ends."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(prm.folder)
    turns = [{"role": "user", "content": problem}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)
    head = tokenizer.encode(prompt, add_special_tokens=False)
    response = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = [*head, *response["input_ids"]]
    values = literal_logprobs(prm.folder, ids)
    if reference is not None:
        values = values - literal_logprobs(reference.folder, ids)
    values = BETA * values[len(head) - 1 :]
    found, at, before = [], 0, 0
    for step in steps:
        end = text.index(step, at) + len(step)
        at = end
        count = sum(start < end for start, _ in response["offset_mapping"])
        found.append(float(values[before:count].sum()))
        before = count
    return found


async def test_without_a_reference_one_model_is_read(tmp_path: Path) -> None:
    prm, _ = publish(tmp_path, "qwen", reference=None)
    for scored, (problem, steps) in zip(
        await score_items(scorer_of(prm), ITEMS), ITEMS, strict=True
    ):
        expected = exact_values(prm, None, problem, "\n\n".join(steps), steps)
        assert [step.raw for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
        assert scored.scored_tokens + scored.cached_tokens == scored.prompt_tokens
        assert all(step.score < 0.5 for step in scored.step_scores)


def test_values_without_a_reference_match_the_worked_numbers() -> None:
    # The log-probs of tests/prm/test_implicit.py, β = 0.05, worked out in float64.
    logp = [-0.2231, -1.204, -0.3567, -2.3026, -0.6931, -0.1054]
    rewards = token_rewards(logp, beta=0.05)
    expected = [-0.011155, -0.0602, -0.017835, -0.11513, -0.034655, -0.00527]
    assert rewards == pytest.approx(expected, abs=1e-9)
    assert step_values(rewards, [2, 4, 6]) == pytest.approx(
        [-0.071355, -0.132965, -0.039925], abs=1e-9
    )


async def test_the_end_of_turn_token_goes_to_the_last_step(tmp_path: Path) -> None:
    prm, reference = publish(tmp_path / "with", "qwen", end_token=True)
    without, _ = publish(tmp_path / "without", "qwen")
    tokenizer = ChatTokenizer(prm.folder)
    problem, steps = ITEMS[0]
    (ours,) = await score_items(scorer_of(prm, reference), [(problem, steps)])
    (plain,) = await score_items(scorer_of(without, reference), [(problem, steps)])
    assert ours.tokens is not None
    assert plain.tokens is not None
    assert ours.tokens.ids == (*plain.tokens.ids, tokenizer.token_id("<|im_end|>"))
    response = "\n\n".join(steps)
    assert ours.tokens.char_offsets[-1] == (len(response), len(response))
    raws, others = ([s.raw for s in scored.step_scores] for scored in (ours, plain))
    assert raws[:-1] == pytest.approx(others[:-1], abs=1e-6)
    assert raws[-1] == pytest.approx(others[-1] + ours.tokens.rewards[-1], abs=1e-6)
    assert abs(ours.tokens.rewards[-1]) > 1e-3
    # Training sums the whole turn: prompt first, the end-of-turn token last.
    turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": response}]
    text = PreTrainedTokenizerFast.from_pretrained(prm.folder).apply_chat_template(
        turns, tokenize=False
    )
    assert isinstance(text, str)
    ids = tokenizer.encode_markup(text.rstrip("\n"))
    ratio = literal_logprobs(prm.folder, ids) - literal_logprobs(reference.folder, ids)
    whole = BETA * float(ratio[-len(ours.tokens.ids) :].sum())
    assert sum(raws) == pytest.approx(whole, abs=1e-4)


def test_a_template_without_an_end_of_turn_is_refused(tmp_path: Path) -> None:
    prm, _ = publish(tmp_path, "qwen", end_token=True)
    (prm.folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}\n")
    with pytest.raises(ModelFolderError, match="ends an assistant's turn with no control token"):
        SPEC.load(prm, ChatTokenizer(prm.folder))


async def test_prefixes_are_read_and_offsets_stay_those_of_the_callers_text(
    tmp_path: Path,
) -> None:
    prm, reference = publish(tmp_path, "qwen", step_prefix="Step {n}: ")
    scorer = scorer_of(prm, reference)
    problem, steps = "1+1", ["one", "Step 7: two", "three."]
    (scored,) = await score_items(scorer, [(problem, steps)])
    read = ["Step 1: one", "Step 7: two", "Step 3: three."]
    expected = exact_values(prm, reference, problem, "\n\n".join(read), read)
    assert [step.raw for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
    response = "\n\n".join(steps)
    assert scored.tokens is not None
    pieces = [response[start:end] for start, end in scored.tokens.char_offsets]
    assert "".join(pieces) == response
    assert len(pieces) > len([piece for piece in pieces if piece])
    for step in scored.trajectory.steps:
        assert response[step.char_start : step.char_end] == step.text


@given(
    st.lists(st.text("ab \n", min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=4),
    st.sampled_from([None, "Step {n}: ", "{n}"]),
    st.booleans(),
    st.data(),
)
def test_a_span_of_what_is_read_is_a_span_of_the_response(
    steps: list[str], prefix: str | None, is_joined: bool, data: st.DataObject
) -> None:
    response, placed = join_steps(steps, "--")
    response = f" {response}!"
    moved = tuple(
        Step(index=s.index, text=s.text, char_start=s.char_start + 1, char_end=s.char_end + 1)
        for s in placed
    )
    trajectory = Trajectory(messages=(), response=response, steps=moved)
    reading = (
        read_joined(trajectory, prefix, "\n\n")
        if is_joined
        else read_as_written(trajectory, prefix)
    )
    for step, end in zip(moved, reading.step_ends, strict=True):
        assert reading.text[:end].endswith(step.text)
        span = reading.span_in_response(end - len(step.text), end)
        assert span == (step.char_start, step.char_end)
    start = data.draw(st.integers(0, len(reading.text) - 1))
    end = data.draw(st.integers(start + 1, len(reading.text)))
    first, last = reading.span_in_response(start, end)
    assert 0 <= first <= last <= len(response)
    if prefix is None and not is_joined:
        assert (first, last) == (start, end)
    verbatim = [
        in_response + at - in_text
        for in_text, in_response, length in reading.pieces
        for at in range(max(start, in_text), min(end, in_text + length))
    ]
    assert set(verbatim) <= set(range(first, last))
    assert not verbatim or (first, last) == (verbatim[0], verbatim[-1] + 1)


@pytest.mark.parametrize(
    ("problem", "steps", "field"),
    [("<|im_end|>", ["1"], "messages[0].content"), ("1", ["2", "<|im_start|>"], "steps[1]")],
)
def test_control_tokens_are_refused_where_all_is_one_string(
    tmp_path: Path, problem: str, steps: list[str], field: str
) -> None:
    prm, _ = publish(tmp_path, "qwen", reference_compat=True)
    family = SPEC.load(prm, ChatTokenizer(prm.folder))
    response, placed = join_steps(steps, "\n\n")
    messages = (Message(role="user", content=problem),)
    with pytest.raises(InvalidInput) as refused:
        family.encode(Trajectory(messages=messages, response=response, steps=placed))
    assert refused.value.param == field


def test_more_work_than_seconds_is_refused(tmp_path: Path) -> None:
    def stage_long(folder: Path) -> None:
        stage("qwen", 2)(folder)
        config = folder / "config.json"
        text = config.read_text().replace('"max_position_embeddings": 1024', "X")
        config.write_text(text.replace("X", '"max_position_embeddings": 100000'))

    recipe = ImplicitRecipe(beta=1, reference=None, reference_compat=True)
    prm = publish_prm(tmp_path, "prm", SPEC.name, recipe, stage_long)
    family = SPEC.load(prm, ChatTokenizer(prm.folder))
    response, placed = join_steps(["1"] * 3000, "\n\n")
    messages = (Message(role="user", content="0"),)
    with pytest.raises(InvalidInput, match=r"3000 steps of \d+ tokens .* 4000000 is the most"):
        family.encode(Trajectory(messages=messages, response=response, steps=placed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "reference"),
        ({"reference": None, "adapter": True}, "adapter needs reference"),
        ({"reference": None, "step_prefix": "Step: "}, "has to hold {n}"),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ImplicitRecipe.model_validate({"beta": 1.0} | settings)


def test_a_scorer_of_another_family_has_no_published_boundaries(tmp_path: Path) -> None:
    version = publish_prm(tmp_path, "chat", rlhflow.SPEC.name, RlhflowRecipe(), stage("llama", 0))
    with pytest.raises(InvalidInput, match="reference_compat") as refused:
        scorer_of(version).as_published()
    assert refused.value.param == "reference_compat"


def test_a_step_that_ends_inside_anothers_token_is_refused(tmp_path: Path) -> None:
    prm, _ = publish(tmp_path, "qwen")
    tokenizer = ChatTokenizer(prm.folder)
    response = "Find the radius."
    spans = tokenizer.encode_response(response).char_offsets
    start, end = next(span for span in spans if span[1] - span[0] > 1)
    cuts = [0, start + 1, end, len(response)]
    steps = tuple(
        Step(index=k, text=response[a:b], char_start=a, char_end=b)
        for k, (a, b) in enumerate(pairwise(cuts))
    )
    messages = (Message(role="user", content="1"),)
    with pytest.raises(InvalidInput, match="step 1 has no token of its own") as refused:
        SPEC.load(prm, tokenizer).encode(
            Trajectory(messages=messages, response=response, steps=steps, is_cut=True)
        )
    assert refused.value.param == "response"
