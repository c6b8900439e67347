"""`POST /v1/chat/completions` through the official OpenAI client, against a real server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from search.budget import EFFORTS
from server.short_forms import WORDS
from tests.factories import POLICY, PRM, PROBLEM, TINY, publish_tiny_models
from tests.server.conftest import RunningServer, rung_serve

MESSAGES: Any = [{"role": "user", "content": PROBLEM}]
BEAM = {"type": "beam", "n": 4, "width": 2, "max_rounds": 5}
SEARCH_OF_BEAM = {"policy": POLICY, "prm": PRM, "problem": PROBLEM, "strategy": BEAM}
# Nothing is fitted for these models that "calibrated" could go by.
SHORT_FORMS = [
    f"{word}-4" if "n" in form.fields else word
    for word, form in WORDS.items()
    if word != "calibrated"
]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    """A completion with a seed, so that it can be had again."""
    body: dict[str, Any] = {"model": POLICY, "messages": MESSAGES, "seed": 7, "max_tokens": 40}
    return client.chat.completions.create(**(body | {"temperature": 1.0} | changes))


def searched(http: httpx2.Client, **changes: Any) -> Any:
    """The same over `/v1/search`."""
    sampling = {"seed": 7, "max_tokens": 40, "temperature": 1.0}
    body = {"policy": POLICY, "prm": PRM, "problem": PROBLEM, "sampling": sampling}
    response = http.post("/v1/search", json=body | changes)
    assert response.status_code == 200, response.text
    return response.json()


def tokens_of(nodes: list[dict[str, Any]], indices: list[int]) -> int:
    """Tokens in the texts of these nodes, a shared beginning counted once."""
    by_index = {node["index"]: node for node in nodes}
    paths = set()
    for index in indices:
        node: dict[str, Any] | None = by_index[index]
        while node is not None:
            paths.add(node["index"])
            node = by_index.get(node["parent"])
    return sum(
        by_index[i]["tokens"] - by_index.get(by_index[i]["parent"], {"tokens": 0})["tokens"]
        for i in paths
    )


def test_without_a_strategy_it_is_a_plain_sample(
    client: openai.OpenAI, http: httpx2.Client
) -> None:
    completion = ask(client)
    (choice,) = completion.choices
    plain = searched(http, prm=None, strategy={"type": "best_of_n", "n": 1, "selection": "first"})
    assert choice.message.role == "assistant"
    assert choice.message.content == plain["text"]
    assert choice.finish_reason == {"stop": "stop"}.get(
        plain["candidates"][0]["finish_reason"], "length"
    )
    usage = completion.usage
    assert usage.completion_tokens == plain["usage"]["generated_tokens"]
    assert usage.prompt_tokens == len(PROBLEM) + 3
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.rejected_prediction_tokens == 0
    assert completion.system_fingerprint == f"{POLICY}@1"
    assert completion.search["prm"] is None


def test_a_selection_that_was_never_fitted_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="rung eval rerank"):
        ask(client, model=f"calibrated-4/{POLICY}")


@pytest.mark.parametrize("form", SHORT_FORMS)
def test_a_prefix_runs_the_same_search(
    client: openai.OpenAI, http: httpx2.Client, form: str
) -> None:
    completion = ask(client, model=f"{form}/{POLICY}")
    search = completion.search
    same = searched(http, prm=search["prm"], strategy=search["strategy"])
    assert completion.choices[0].message.content == same["text"]
    assert completion.choices[0].score == search["score"] == same["score"]
    assert search["votes"] == same["votes"]
    assert search["stopped_by"] == same["stopped_by"]
    usage = completion.usage
    assert usage.search["generated_tokens"] == usage.completion_tokens
    rejected = usage.completion_tokens_details.rejected_prediction_tokens
    assert rejected == usage.search["discarded_tokens"] == same["usage"]["discarded_tokens"]
    assert "candidates" not in search
    assert "tree" not in search


def test_the_body_comes_before_the_header_and_that_before_the_prefix(
    client: openai.OpenAI,
) -> None:
    prefixed = f"majority-2/{POLICY}"
    for_header = {"X-Rung-Strategy": "beam-4x2"}
    for_body = {"search": {"strategy": "best-of-3"}}
    by_prefix = ask(client, model=prefixed)
    by_header = ask(client, model=prefixed, extra_headers=for_header)
    by_body = ask(client, model=prefixed, extra_headers=for_header, extra_body=for_body)
    found = [(c.search["strategy"]["type"], c.search["strategy"]["n"])
             for c in (by_prefix, by_header, by_body)]  # fmt: skip
    assert found == [("best_of_n", 2), ("beam", 4), ("best_of_n", 3)]
    # What the body leaves open is still the header's.
    only_prm = {"search": {"prm": PRM, "budget": {"tokens": 50}}}
    mixed = ask(client, model=prefixed, extra_headers=for_header, extra_body=only_prm)
    assert mixed.search["strategy"]["type"] == "beam"
    assert mixed.usage.completion_tokens <= 50


def test_a_strategy_is_an_object_in_body_or_header(client: openai.OpenAI) -> None:
    by_body = ask(client, extra_body={"search": {"strategy": BEAM, "prm": f"{PRM}@1"}})
    by_header = ask(client, extra_headers={"X-Rung-Strategy": json.dumps(BEAM)})
    for completion in (by_body, by_header):
        assert completion.search["strategy"].items() >= BEAM.items()
        assert completion.search["prm_version"] == "1"
    assert by_body.choices[0].message.content == by_header.choices[0].message.content


@pytest.mark.parametrize("strategy", [{"type": "best_of_n", "n": 6}, BEAM])
def test_n_answers_are_returned_best_first_and_paid_for_exactly(
    client: openai.OpenAI, strategy: dict[str, Any]
) -> None:
    include = ["candidates", "tree"]
    completion = ask(client, n=3, extra_body={"search": {"strategy": strategy, "include": include}})
    search = completion.search
    texts = {c["index"]: c["text"] for c in search["candidates"]}
    returned = search["ranking"][: len(completion.choices)]
    assert 2 <= len(completion.choices) <= 3
    assert [c.message.content for c in completion.choices] == [texts[i] for i in returned]
    scores = [c.score for c in completion.choices]
    assert scores == sorted(scores, reverse=True)
    usage = completion.usage
    rejected = usage.completion_tokens_details.rejected_prediction_tokens
    assert usage.completion_tokens - rejected == tokens_of(search["tree"], returned)
    assert rejected < usage.search["discarded_tokens"]


def test_n_without_a_strategy_is_that_many_samples(client: openai.OpenAI) -> None:
    completion = ask(client, n=3)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in completion.choices}) == 3
    assert completion.usage.completion_tokens_details.rejected_prediction_tokens == 0


def test_more_answers_than_candidates_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"3 answers.* 2 candidates") as caught:
        ask(client, model=f"best-of-2/{POLICY}", n=3)
    assert caught.value.param == "n"


def test_content_in_parts_and_answers_sent_back_are_read(client: openai.OpenAI) -> None:
    first = ask(client).choices[0].message
    # A tiny model writes bytes that are no text; what matters is that its message's fields pass.
    echoed = first.model_dump() | {"content": "Answer: 9"}
    chat = [{"role": "developer", "content": "Be brief."}, *MESSAGES, echoed, *MESSAGES]
    whole = ask(client, messages=chat)
    in_parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *chat[1:]]
    assert ask(client, messages=in_parts).choices == whole.choices
    assert whole.usage.prompt_tokens > 2 * len(PROBLEM)


@pytest.mark.slow
def test_a_thousand_messages_are_read(tmp_path: Path) -> None:
    long = replace(TINY, max_position_embeddings=8192)
    chat = [{"role": ("user", "assistant")[i % 2], "content": "9"} for i in range(1000)]
    with (
        rung_serve(publish_tiny_models(tmp_path, size=long)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        completion = ask(client, model=f"beam-4x2/{POLICY}", messages=chat)
        assert completion.usage.prompt_tokens >= 3000
        assert completion.choices[0].message.content
        with pytest.raises(openai.UnprocessableEntityError, match="at most 4096 items"):
            ask(client, messages=chat * 5)


def test_stop_strings_are_texts_and_end_an_answer(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content
    at = next(i for i, c in enumerate(text) if i >= 3 and c != "�")
    for stop in (text[at], [".*", text[at]]):
        (choice,) = ask(client, stop=stop).choices
        assert choice.message.content == text[: text.index(text[at])]
        assert choice.finish_reason == "stop"
    assert ask(client, stop=[".*", "(", "["]).choices[0].message.content == text


def test_max_completion_tokens_ends_an_answer_by_length(client: openai.OpenAI) -> None:
    completion = ask(client, max_tokens=openai.omit, max_completion_tokens=3)
    assert completion.usage.completion_tokens == 3
    assert completion.choices[0].finish_reason == "length"


def test_effort_is_a_budget(client: openai.OpenAI) -> None:
    wide: dict[str, Any] = {"model": f"majority-64/{POLICY}", "max_tokens": 100}
    completion = ask(client, **wide, reasoning_effort="low")
    assert completion.search["stopped_by"] == "budget.tokens"
    assert completion.usage.completion_tokens <= (EFFORTS["low"].tokens or 0)
    freely = ask(client, **wide, reasoning_effort="high")
    assert freely.search["stopped_by"] == "finished"


def test_what_asks_for_nothing_passes(client: openai.OpenAI) -> None:
    defaults: dict[str, Any] = {
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "logprobs": False,
        "parallel_tool_calls": True,
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "tool_choice": None,
        "tools": None,
    }
    accepted = {"metadata": {"run": "7"}, "user": "somebody"}
    assert ask(client, **defaults, **accepted).choices == ask(client).choices


TOOL = {"type": "function", "function": {"name": "add"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
REFUSED: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], str, str]] = {
    "tools": ({"tools": [TOOL]}, openai.BadRequestError, "tools", "not supported"),
    "logprobs": ({"logprobs": True}, openai.BadRequestError, "logprobs", "not supported"),
    "a format": (
        {"response_format": {"type": "json_object"}},
        openai.BadRequestError,
        "response_format",
        "not supported",
    ),
    "a penalty": (
        {"presence_penalty": 0.5},
        openai.BadRequestError,
        "presence_penalty",
        "not supported",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        openai.BadRequestError,
        "messages[0].content[0]",
        "image_url",
    ),
    "a tool's turn": (
        {"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "1", "content": "9"}]},
        openai.BadRequestError,
        "messages[1].tool_call_id",
        "not supported",
    ),
    "a call of a tool": (
        {"messages": [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [TOOL]}]},
        openai.BadRequestError,
        "messages[1].tool_calls",
        "not supported",
    ),
    "no model": ({"model": "nope"}, openai.NotFoundError, "model", POLICY),
    "no strategy": ({"model": f"beem-4x2/{POLICY}"}, openai.NotFoundError, "model", "beam-NxWIDTH"),
    "no model behind a strategy": (
        {"model": "best-of-4/nope"},
        openai.NotFoundError,
        "model",
        POLICY,
    ),
    "a PRM as policy": ({"model": PRM}, openai.NotFoundError, "model", POLICY),
    "numbers that do not fit": (
        {"model": f"beam-6x4/{POLICY}"},
        openai.BadRequestError,
        "model",
        "4 must divide n 6",
    ),
    "none of it": ({"model": f"best-of-0/{POLICY}"}, openai.BadRequestError, "model", "n: "),
    "a header that is no form": (
        {"extra_headers": {"X-Rung-Strategy": "best of 4"}},
        openai.BadRequestError,
        "X-Rung-Strategy",
        "best-of-N",
    ),
    "a header that is no JSON": (
        {"extra_headers": {"X-Rung-Strategy": "{type: beam}"}},
        openai.BadRequestError,
        "X-Rung-Strategy",
        "not valid JSON",
    ),
    "a header's strategy": (
        {"extra_headers": {"X-Rung-Strategy": '{"type": "magic"}'}},
        openai.BadRequestError,
        "X-Rung-Strategy",
        "best_of_n",
    ),
    "a body's strategy": (
        {"extra_body": {"search": {"strategy": {"type": "magic"}}}},
        openai.UnprocessableEntityError,
        "search.strategy",
        "best_of_n",
    ),
    "a body's form": (
        {"extra_body": {"search": {"strategy": "magic-4"}}},
        openai.UnprocessableEntityError,
        "search.strategy",
        "best-of-N",
    ),
    "a body's number": (
        {"extra_body": {"search": {"strategy": {"type": "beam", "n": 0}}}},
        openai.UnprocessableEntityError,
        "search.strategy.n",
        "greater than or equal to 1",
    ),
    "no PRM of that name": (
        {"extra_body": {"search": {"strategy": "best-of-4", "prm": "nope"}}},
        openai.NotFoundError,
        "search.prm",
        PRM,
    ),
    "a budget below n": (
        {"extra_body": {"search": {"strategy": "majority-4", "budget": {"tokens": 3}}}},
        openai.BadRequestError,
        "search.budget.tokens",
        "4 candidates",
    ),
    "two limits": (
        {"max_tokens": 4, "max_completion_tokens": 5},
        openai.UnprocessableEntityError,
        "",
        "send just one",
    ),
    "an effort": (
        {"reasoning_effort": "max"},
        openai.UnprocessableEntityError,
        "reasoning_effort",
        "'low', 'medium' or 'high'",
    ),
    "no messages": ({"messages": []}, openai.UnprocessableEntityError, "messages", "at least 1"),
    "an unknown field": (
        {"extra_body": {"serach": {}}},
        openai.UnprocessableEntityError,
        "serach",
        "no such field",
    ),
    "a chat that is too long": (
        {"messages": [{"role": "user", "content": "x" * 300}]},
        openai.BadRequestError,
        "messages",
        "303 tokens",
    ),
    "1,000 messages in a small context": (
        {"messages": MESSAGES * 1000},
        openai.BadRequestError,
        "messages",
        "at most 256",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_served_is_refused_by_name(
    client: openai.OpenAI, case: str, stream: bool
) -> None:
    changes, kind, param, hint = REFUSED[case]
    with pytest.raises(kind) as caught:
        ask(client, stream=stream, **changes)
    assert (caught.value.param or "") == param
    assert hint in str(caught.value)
