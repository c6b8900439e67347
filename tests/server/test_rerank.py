"""`/rerank` in its three places: through Cohere's client, and as Jina's and vLLM's read it."""

from collections.abc import Iterator
from typing import Any

import cohere
import httpx2
import pytest
from cohere.core.api_error import ApiError

from tests.factories import PRM, PROBLEM
from tests.server.conftest import RunningServer

DOCUMENTS = ["3+4=7\n7*2=14\n14-5=9\nAnswer: 9", "3+4=8\nAnswer: 11", "Answer: 5", "3+4=7"]
BODY: dict[str, Any] = {"model": PRM, "query": PROBLEM, "documents": DOCUMENTS}


@pytest.fixture
def client(server: RunningServer) -> Iterator[cohere.ClientV2]:
    with httpx_of(server) as http:
        yield cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=http)


def httpx_of(server: RunningServer) -> Any:
    """The kind of client that Cohere's takes, to be closed after the test."""
    import httpx

    return httpx.Client(timeout=60)


@pytest.fixture
def scores(http: httpx2.Client) -> list[float]:
    """What the PRM says of each document, by `/v1/prm/score`."""
    items = [{"problem": PROBLEM, "response": text} for text in DOCUMENTS]
    response = http.post("/v1/prm/score", json={"model": PRM, "items": items})
    return [item["score"] for item in response.json()["data"]]


def test_coheres_client_gets_the_prms_ranking(client: cohere.ClientV2, scores: list[float]) -> None:
    answer = client.rerank(model=PRM, query=PROBLEM, documents=DOCUMENTS)
    best = sorted(range(4), key=lambda index: -scores[index])
    assert [result.index for result in answer.results] == best
    found = [result.relevance_score for result in answer.results]
    assert found == pytest.approx([scores[index] for index in best], abs=1e-5)
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1


def test_coheres_first_client_gets_the_texts(server: RunningServer) -> None:
    with httpx_of(server) as http:
        client = cohere.Client(api_key="none", base_url=server.url, httpx_client=http)
        answer = client.rerank(
            model=PRM,
            query=PROBLEM,
            documents=[{"text": text} for text in DOCUMENTS],
            top_n=2,
            return_documents=True,
        )
    assert len(answer.results) == 2
    for result in answer.results:
        assert result.document is not None
        assert result.document.text == DOCUMENTS[result.index]


def test_coheres_client_is_told_which_document_is_too_long(client: cohere.ClientV2) -> None:
    with pytest.raises(ApiError) as caught:
        client.rerank(model=PRM, query=PROBLEM, documents=["Answer: 9", "x" * 300])
    assert caught.value.status_code == 400
    error = caught.value.body["error"]
    assert error["param"] == "documents[1]"
    assert "321 tokens" in error["message"]
    assert "at most 256" in error["message"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_every_place_answers_in_the_shape_of_vllm_and_jina(http: httpx2.Client, path: str) -> None:
    parts = [{"content": [{"type": "text", "text": text}]} for text in DOCUMENTS]
    answer = http.post(path, json=BODY | {"documents": parts, "top_n": 3}).json()
    assert answer["model"] == PRM
    assert answer["model_version"] == "1"
    assert answer["id"].startswith("rerank-")
    assert answer["usage"]["total_tokens"] >= answer["usage"]["prompt_tokens"] > 0
    assert len(answer["results"]) == 3
    found = [result["relevance_score"] for result in answer["results"]]
    assert found == sorted(found, reverse=True)
    for result in answer["results"]:
        text = DOCUMENTS[result["index"]]
        assert result["document"] == {"text": text, "multi_modal": None}


def test_the_texts_are_left_out_on_request(http: httpx2.Client) -> None:
    answer = http.post("/v1/rerank", json=BODY | {"return_documents": False}).json()
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])


@pytest.mark.parametrize("top_n", [None, 0, 4, 100])
def test_every_document_is_ranked_unless_fewer_are_asked_for(
    http: httpx2.Client, top_n: int | None
) -> None:
    answer = http.post("/rerank", json=BODY | {"top_n": top_n}).json()
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3]


def test_equal_documents_stay_in_order(http: httpx2.Client) -> None:
    answer = http.post("/rerank", json=BODY | {"documents": ["3+4=7"] * 5}).json()
    assert [result["index"] for result in answer["results"]] == [0, 1, 2, 3, 4]
    assert len({result["relevance_score"] for result in answer["results"]}) == 1


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no model": ({"model": "nope"}, 404, "model", PRM),
    "no documents": ({"documents": []}, 422, "documents", "at least 1"),
    "too many": ({"documents": ["a"] * 513}, 400, "documents", "at most 512"),
    "blank": ({"documents": ["a", " \n"]}, 400, "documents[1]", "no step"),
    "no text": ({"documents": ["a", {"title": "b"}]}, 422, "documents[1]", '{"text"'),
    "an image": (
        {"documents": [{"content": [{"type": "image_url", "image_url": {}}]}]},
        422,
        "documents[0]",
        '{"text"',
    ),
    "control token in the query": ({"query": "a<|end|>"}, 400, "query", "<|end|>"),
    "a cut": ({"max_tokens_per_doc": 8}, 400, "max_tokens_per_doc", "not supported"),
    "vLLM's cut": ({"truncate_prompt_tokens": 8}, 400, "truncate_prompt_tokens", "not supported"),
    "negative top_n": ({"top_n": -1}, 422, "top_n", "greater than"),
    "unknown field": ({"topn": 1}, 422, "topn", "no such field"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_ranked_is_refused_by_name(http: httpx2.Client, case: str) -> None:
    changes, status, param, hint = REFUSED[case]
    response = http.post("/v1/rerank", json=BODY | changes)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert hint in error["message"]
    assert "items[" not in error["message"]


def test_defaults_of_other_clients_pass(http: httpx2.Client) -> None:
    defaults = {"truncate_prompt_tokens": None, "priority": 0, "max_chunks_per_doc": None}
    answer = http.post("/v2/rerank", json=BODY | defaults)
    assert answer.status_code == 200, answer.text
