"""`POST /v1/prm/score`: the contract, field by field, on a real server."""

from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import httpx2
import pytest

from tests.factories import PRM, PROBLEM, STEPS

ITEM = {"id": "a", "problem": PROBLEM, "steps": list(STEPS)}


def score(http: httpx2.Client, **body: Any) -> Any:
    response = http.post("/v1/prm/score", json={"model": PRM, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_answer_has_the_contracts_fields(http: httpx2.Client) -> None:
    answer = score(http, items=[ITEM], include=["raw", "tokens"])
    assert answer["object"] == "prm.score"
    assert answer["id"].startswith("prm-")
    assert (answer["model"], answer["model_version"], answer["family"]) == (PRM, "1", "implicit")
    (item,) = answer["data"]
    assert (item["index"], item["id"]) == (0, "a")
    assert [step["text"] for step in item["steps"]] == list(STEPS)
    response = "\n".join(STEPS)
    for step in item["steps"]:
        assert response[step["char_start"] : step["char_end"]] == step["text"]
        assert 0 <= step["score"] <= 1
    assert set(item["aggregates"]) == {"min", "last", "mean", "product", "max", "sum"}
    assert item["score"] == item["aggregates"]["min"]
    wrong = [step["index"] for step in item["steps"] if step["score"] < 0.5]
    assert item["first_error"] == (wrong[0] if wrong else None)
    prompt = len(f"<{PROBLEM}<<{response}")  # three control tokens, one token per byte
    usage = answer["usage"]
    assert set(usage) == {"prompt_tokens", "cached_tokens", "scored_tokens", "total_tokens"}
    assert usage["prompt_tokens"] == usage["total_tokens"] == prompt
    # What other tests had scored by this server is known already.
    assert usage["cached_tokens"] + usage["scored_tokens"] == 2 * prompt
    assert set(answer["timing_ms"]) == {"queue", "encode", "inference", "total"}


def test_token_rewards_add_up_to_the_raw_step_scores(http: httpx2.Client) -> None:
    (item,) = score(http, items=[ITEM], include=["raw", "tokens"])["data"]
    tokens = item["tokens"]
    assert len(tokens["ids"]) == len(tokens["rewards"]) == len(tokens["char_offsets"])
    ends = [step["char_end"] for step in item["steps"]]
    for step, start, end in zip(item["steps"], [0, *ends], ends, strict=False):
        inside = [
            reward
            for reward, (at, _) in zip(tokens["rewards"], tokens["char_offsets"], strict=True)
            if start <= at < end
        ]
        assert step["raw"] == pytest.approx(sum(inside), abs=1e-6)


def test_cumulative_values_add_up_the_raw_ones(http: httpx2.Client) -> None:
    (item,) = score(http, items=[ITEM], include=["raw", "cumulative"])["data"]
    raws = [step["raw"] for step in item["steps"]]
    assert [step["cumulative"] for step in item["steps"]] == pytest.approx(
        list(accumulate(raws)), abs=1e-6
    )
    (item,) = score(http, items=[ITEM])["data"]
    assert "cumulative" not in item["steps"][0]


def test_published_boundaries_are_another_way_of_reading(http: httpx2.Client) -> None:
    exact = score(http, items=[ITEM], include=["raw", "tokens"])
    published = score(http, items=[ITEM], include=["raw", "tokens"], reference_compat=True)
    assert exact["recipe"] == "implicit/1"
    assert published["recipe"] == "implicit/1+reference_compat"
    ours, theirs = exact["data"][0], published["data"][0]
    # One token of the prompt before, steps joined by a blank line, the end of turn behind.
    response = "\n\n".join(STEPS)
    assert len(theirs["tokens"]["ids"]) == 1 + len(response) + 1
    assert sum(theirs["tokens"]["rewards"]) == pytest.approx(
        sum(step["raw"] for step in theirs["steps"]), abs=1e-6
    )
    assert theirs["steps"][0]["raw"] != pytest.approx(ours["steps"][0]["raw"], abs=1e-4)
    spans = [(step["char_start"], step["char_end"]) for step in ours["steps"]]
    assert spans == [(step["char_start"], step["char_end"]) for step in theirs["steps"]]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"include": ["calibrated"]}, "include"),
        ({"aggregation": "fitted"}, "aggregation"),
        ({"policy": "x"}, "policy"),
    ],
)
def test_there_is_no_calibration_of_published_boundaries(
    http: httpx2.Client, asked: dict[str, Any], field: str
) -> None:
    body = {"model": PRM, "items": [ITEM], "reference_compat": True, **asked}
    response = http.post("/v1/prm/score", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert "exact step boundaries" in response.json()["error"]["message"]


def test_golden_scores_come_over_http(http: httpx2.Client, tiny_models: Any) -> None:
    from prm.registry import load_version

    (golden,) = load_version(tiny_models / PRM / "1").manifest.golden
    (item,) = score(http, items=[ITEM], include=["raw"])["data"]
    assert [step["raw"] for step in item["steps"]] == pytest.approx(golden.raw, abs=1e-4)


def test_a_score_is_the_same_alone_in_a_batch_and_among_other_requests(
    http: httpx2.Client,
) -> None:
    def raw(items: list[dict[str, Any]]) -> list[float]:
        return [
            step["raw"]
            for item in score(http, items=items, include=["raw"])["data"]
            if item["id"] == "a"
            for step in item["steps"]
        ]

    alone = raw([ITEM])
    others = [{"problem": "1+" * n + "1", "steps": ["x" * (n + 1)] * 3} for n in range(20)]
    assert raw([*others, ITEM, *others]) == pytest.approx(alone, abs=1e-4)
    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(lambda n: raw([*others[:n], ITEM]), [*range(16)] * 3):
            assert found == pytest.approx(alone, abs=1e-4)


def test_raw_text_is_cut_and_offsets_index_it(http: httpx2.Client) -> None:
    text = "3+4=7\n\n7*2=14\nAnswer: 14\n"
    (item,) = score(http, items=[{"problem": PROBLEM, "response": text}])["data"]
    assert [step["text"] for step in item["steps"]] == ["3+4=7", "7*2=14", "Answer: 14"]
    for step in item["steps"]:
        assert text[step["char_start"] : step["char_end"]] == step["text"]


def test_a_delimiter_of_the_callers(http: httpx2.Client) -> None:
    (item,) = score(
        http,
        items=[{"problem": PROBLEM, "response": "a; b; c"}],
        segmentation={"mode": "delimiter", "delimiter": "; "},
    )["data"]
    assert [step["text"] for step in item["steps"]] == ["a", "b", "c"]


SEGMENTATIONS: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "auto, no separator": ({}, "3+4=7 ", ["3+4=7 "]),
    "newline": ({"mode": "newline"}, "a\r\n\\[\n1\n\\]", ["a", "\\[\n1\n\\]"]),
    "numbered": ({"mode": "numbered"}, "1. a\n2. b", ["1. a", "2. b"]),
    "code": ({"mode": "code"}, "a\n```\nb\n\nc\n```\nd", ["a", "```\nb\n\nc\n```", "d"]),
    "thinking": ({"mode": "thinking"}, "<think>a\n\nb</think>c", ["a", "b", "c"]),
    "regex": ({"mode": "regex", "pattern": "\\n(?=S)"}, "a\nb\nS", ["a\nb", "S"]),
}


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_every_way_of_cutting(http: httpx2.Client, name: str) -> None:
    segmentation, text, expected = SEGMENTATIONS[name]
    (item,) = score(
        http, items=[{"problem": PROBLEM, "response": text}], segmentation=segmentation
    )["data"]
    assert [step["text"] for step in item["steps"]] == expected
    for step in item["steps"]:
        assert text[step["char_start"] : step["char_end"]] == step["text"]


@pytest.mark.parametrize("name", ["min", "last", "mean", "product", "max", "sum"])
def test_the_callers_aggregation_becomes_the_score(http: httpx2.Client, name: str) -> None:
    (item,) = score(http, items=[ITEM], aggregation=name)["data"]
    assert item["score"] == item["aggregates"][name]


def test_messages_say_the_same_as_a_problem(http: httpx2.Client) -> None:
    chat = {"messages": [{"role": "user", "content": PROBLEM}], "steps": list(STEPS)}
    by_problem, by_messages = score(http, items=[ITEM, chat])["data"]
    assert by_problem["steps"] == by_messages["steps"]


def test_a_version_can_be_named(http: httpx2.Client) -> None:
    assert score(http, model=f"{PRM}@1", items=[ITEM])["model_version"] == "1"


def test_items_keep_their_order_and_ids(http: httpx2.Client) -> None:
    items = [{"id": str(n), "problem": "1", "steps": ["x" * (n % 7 + 1)]} for n in range(100)]
    data = score(http, items=items)["data"]
    assert [(item["index"], item["id"]) for item in data] == [(n, str(n)) for n in range(100)]
