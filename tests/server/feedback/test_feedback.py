"""Feedback over HTTP: on what was served, once, within bounds, by two servers on one folder."""

import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from server.cli import app
from server.key_file import KeyFile
from tests.factories import POLICY, PRM, PROBLEM, STEPS
from tests.server.conftest import RunningServer, poll, rung_serve

PER_DAY = 300


@dataclass(frozen=True)
class Pair:
    """Two servers with one folder of runs, and a client of the first for each key."""

    runs: Path
    first: RunningServer
    second: RunningServer
    keys: dict[str, str]

    def client(self, key: str, *, second: bool = False) -> httpx2.Client:
        url = (self.second if second else self.first).url
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        return httpx2.Client(base_url=url, headers=headers, timeout=60, verify=False)


@pytest.fixture(scope="module")
def pair(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("feedback")
    file = KeyFile(home / "keys.json")
    keys = {
        "ann": file.create("ann", ["score", "search"]),
        "ben": file.create("ben", ["search"]),
        "eve": file.create("eve", ["score"]),
        "busy": file.create("busy", ["score"]),
        "trainer": file.create("trainer", ["train"]),
    }
    settings = {
        "RUNG_RUNS": str(home / "runs"),
        "RUNG_KEYS_FILE": str(home / "keys.json"),
        "RUNG_FEEDBACK_PER_KEY_DAY": str(PER_DAY),
        "RUNG_WORKER": "false",
    }
    with (
        rung_serve(tiny_models, log=home / "1.log", **settings) as first,
        rung_serve(tiny_models, log=home / "2.log", **settings) as second,
    ):
        yield Pair(home / "runs", first, second, keys)
    for log in ("1.log", "2.log"):
        assert "Traceback" not in (home / log).read_text()


@pytest.fixture
def ann(pair: Pair) -> Iterator[httpx2.Client]:
    with pair.client("ann") as client:
        yield client


@pytest.fixture
def trainer(pair: Pair) -> Iterator[httpx2.Client]:
    with pair.client("trainer") as client:
        yield client


def say(client: httpx2.Client, body: Any, **headers: str) -> httpx2.Response:
    return client.post("/v1/feedback", json=body, headers=headers)


def taken(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def scored(client: httpx2.Client, steps: Sequence[str] = STEPS, number: int = 1) -> dict[str, Any]:
    items = [{"problem": f"{PROBLEM} #{n}", "steps": steps} for n in range(number)]
    answer = client.post("/v1/prm/score", json={"model": PRM, "items": items})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def kept(trainer: httpx2.Client, label_id: str) -> dict[str, Any]:
    for label in trainer.get("/v1/feedback", params={"limit": 100}).json()["data"]:
        if label["id"] == label_id:
            return dict(label)
    raise AssertionError(f"no {label_id}")


def test_a_scored_item_is_named_by_its_id_and_index(
    ann: httpx2.Client, trainer: httpx2.Client
) -> None:
    score = scored(ann, number=3)
    told = taken(say(ann, {"score_id": score["id"], "index": 2, "correct": False}))
    assert re.fullmatch("fb-[0-9a-f]{32}", told["id"])
    assert told == {"id": told["id"], "object": "feedback", "accepted": True, "correct": False}
    label = kept(trainer, told["id"])
    assert label["messages"] == [{"role": "user", "content": f"{PROBLEM} #2"}]
    assert (label["model"], label["model_version"], label["source"]) == (PRM, "1", "score")
    assert (tuple(label["steps"]), label["response"]) == (STEPS, "\n".join(STEPS))
    item = score["data"][2]
    assert label["score"] == pytest.approx(item["score"])
    assert label["prm_correct"] == (item["first_error"] is None)
    beyond = say(ann, {"score_id": score["id"], "index": 3, "correct": False})
    assert beyond.status_code == 400
    assert "has 3, counted from 0" in beyond.json()["error"]["message"]


def test_a_search_and_every_choice_of_a_chat_can_be_named_also_of_a_stream(
    ann: httpx2.Client, trainer: httpx2.Client
) -> None:
    search = ann.post(
        "/v1/search",
        json={"policy": POLICY, "prm": PRM, "problem": PROBLEM, "sampling": {"max_tokens": 12}},
    ).json()
    told = taken(say(ann, {"search_id": search["id"], "correct": True}))
    assert kept(trainer, told["id"])["response"] == search["text"]
    chat = {
        "model": f"best-of-4/{POLICY}",
        "messages": [{"role": "user", "content": PROBLEM}],
        "max_tokens": 12,
        "n": 3,
    }
    answer = ann.post("/v1/chat/completions", json=chat).json()
    for choice in answer["choices"]:
        body = {"search_id": answer["id"], "index": choice["index"], "correct": False}
        label = kept(trainer, taken(say(ann, body))["id"])
        assert (label["response"], label["source"]) == (choice["message"]["content"], "chat")
    lines = ann.post("/v1/chat/completions", json=chat | {"stream": True, "n": 1}).text.split("\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    label = kept(trainer, taken(say(ann, {"search_id": chunks[0]["id"], "correct": True}))["id"])
    assert label["response"] == text


def test_a_reranked_document_can_be_named(ann: httpx2.Client, trainer: httpx2.Client) -> None:
    body = {"model": PRM, "query": PROBLEM, "documents": ["7*2=14", "14-5=9"]}
    told = ann.post("/v1/rerank", json=body).json()
    label = taken(say(ann, {"score_id": told["id"], "index": 1, "correct": True}))
    assert kept(trainer, label["id"])["response"] == "14-5=9"


@pytest.mark.parametrize(
    ("response", "answer", "correct"),
    [
        ("3+4=7\nAnswer: 1/2", "0.5", True),
        ("3+4=7\nAnswer: 9", "8", False),
        ("so it is", "9", None),
    ],
)
def test_the_right_answer_decides_where_nobody_says(
    ann: httpx2.Client, response: str, answer: str, correct: bool | None
) -> None:
    body = {"problem": PROBLEM, "response": response, "correct": None, "answer": answer}
    told = taken(say(ann, body))
    assert told["correct"] is correct
    assert ("note" in told) == (correct is None)


def test_a_repeated_request_is_taken_once_by_either_server(
    pair: Pair, ann: httpx2.Client, trainer: httpx2.Client
) -> None:
    body = {"problem": "once?", "response": "Answer: 1", "correct": True}
    key = {"Idempotency-Key": "a-key"}
    ready = threading.Barrier(8)

    def send(number: int) -> httpx2.Response:
        with pair.client("ann", second=number % 2 == 1) as client:
            ready.wait()
            return say(client, body, **key)

    with ThreadPoolExecutor(8) as threads:
        answers = [taken(answer) for answer in threads.map(send, range(8))]
    assert len({answer["id"] for answer in answers}) == 1
    reordered = dict(reversed(body.items()))
    assert taken(say(ann, reordered, **key))["id"] == answers[0]["id"]
    labels = trainer.get("/v1/feedback", params={"limit": 100}).json()["data"]
    assert sum(label["messages"][0]["content"] == "once?" for label in labels) == 1
    other = say(ann, body | {"correct": False}, **key)
    assert other.status_code == 409
    assert other.json()["error"]["param"] == "Idempotency-Key"
    with pair.client("eve") as eve:
        assert taken(say(eve, body, **key))["id"] != answers[0]["id"]


def test_what_one_server_has_served_the_other_one_knows(pair: Pair, ann: httpx2.Client) -> None:
    score = scored(ann)
    body = {"score_id": score["id"], "correct": True}
    with pair.client("ann", second=True) as other:
        poll(lambda: say(other, body).status_code == 202, seconds=10, what="the id at the other")


def test_a_batch_is_taken_whole_or_not_at_all(ann: httpx2.Client, trainer: httpx2.Client) -> None:
    good = [{"problem": f"b{n}", "response": "Answer: 1", "correct": True} for n in range(3)]
    told = taken(say(ann, {"items": good}))
    assert [each["accepted"] for each in told["data"]] == [True] * 3
    newest = trainer.get("/v1/feedback", params={"limit": 3}).json()
    assert [each["id"] for each in newest["data"]] == [e["id"] for e in reversed(told["data"])]
    bad = say(ann, {"items": [*good, {"search_id": "search-unknown", "correct": True}]})
    assert bad.status_code == 404
    assert bad.json()["error"]["param"] == "items[3].search_id"
    assert trainer.get("/v1/feedback", params={"limit": 3}).json() == newest


def test_pages_go_back_in_time_and_by_model(ann: httpx2.Client, trainer: httpx2.Client) -> None:
    items = [{"problem": f"p{n}", "response": "Answer: 1", "correct": True} for n in range(5)]
    made = [each["id"] for each in taken(say(ann, {"items": items}))["data"]]
    first = trainer.get("/v1/feedback", params={"limit": 2, "model": PRM}).json()
    then = trainer.get("/v1/feedback", params={"limit": 3, "after": first["last_id"]}).json()
    assert [each["id"] for each in first["data"] + then["data"]] == made[::-1]
    assert first["has_more"]
    assert trainer.get("/v1/feedback", params={"model": "other"}).json()["data"] == []
    assert trainer.get("/v1/feedback", params={"after": "fb-no"}).status_code == 404


BAD = [
    ({}, 422, "name one response"),
    ({"correct": True}, 422, "name one response"),
    ({"search_id": "search-1", "score_id": "prm-1", "correct": True}, 422, "name one response"),
    ({"search_id": "search-1"}, 422, "correct, or the right answer"),
    ({"search_id": "search-1", "correct": 1}, 422, "valid boolean"),
    ({"search_id": "search-1", "correct": "yes"}, 422, "valid boolean"),
    ({"search_id": "../../etc/passwd", "correct": True}, 404, "kept for 24 hours"),
    ({"search_id": "prm-" + "0" * 32, "correct": True}, 404, "kept for 24 hours"),
    ({"score_id": "'; DROP TABLE labels; --", "correct": True}, 404, "kept for 24 hours"),
    ({"search_id": "x" * 101, "correct": True}, 422, "100"),
    ({"search_id": "\0", "correct": True}, 422, "NUL"),
    ({"problem": "p", "correct": True}, 422, "go together"),
    ({"problem": "p", "response": "r", "index": 0, "correct": True}, 422, "leave it out"),
    ({"problem": "p", "response": " \n ", "correct": True}, 400, "white space"),
    ({"problem": "p", "response": "1 " * 5000, "correct": True}, 400, "response"),
    ({"problem": "p", "response": "r", "correct": True, "model": "no"}, 404, "no PRM named 'no'"),
    ({"problem": "p", "response": "r", "correct": True, "model": POLICY}, 404, "no PRM named"),
    ({"problem": "p", "response": "r", "answer": "9" * 5000}, 422, "4096"),
    ({"problem": "p", "response": "r", "correct": True, "metadata": {"k": 1}}, 422, "string"),
    ({"problem": "p", "response": "r", "correct": True, "extra": 1}, 422, "no such field"),
    ({"items": []}, 422, "at least 1"),
    ({"items": [{"search_id": "search-1", "correct": True}], "correct": True}, 422, "each of them"),
    ({"items": [{"correct": 2}]}, 422, "items[0].correct"),
    ({"items": [{"problem": "p", "response": "r", "correct": True}] * 513}, 400, "at most 512"),
    ([], 400, "JSON object"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD)
def test_bad_feedback_is_refused_with_the_remedy(
    ann: httpx2.Client, body: Any, status: int, message: str
) -> None:
    answer = say(ann, body)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("key", ["", "x" * 256, "with space"])
def test_an_idempotency_key_is_a_short_word(ann: httpx2.Client, key: str) -> None:
    body = {"problem": "p", "response": "Answer: 1", "correct": True}
    answer = say(ann, body, **{"Idempotency-Key": key})
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.json()["error"]["param"]


def test_who_may_score_or_search_may_label_and_who_may_train_may_read(pair: Pair) -> None:
    body = {"problem": "p", "response": "Answer: 1", "correct": True}
    expected = {"ann": (202, 403), "ben": (202, 403), "eve": (202, 403), "trainer": (403, 200)}
    for name, (may_label, may_read) in expected.items():
        with pair.client(name) as client:
            assert say(client, body).status_code == may_label, name
            for path in ("/v1/feedback", "/v1/feedback/report"):
                assert client.get(path).status_code == may_read, name


def test_a_key_has_its_day_and_no_more_whichever_server_it_asks(pair: Pair) -> None:
    item = {"problem": "p", "response": "Answer: 1", "correct": True}
    with pair.client("busy") as client, pair.client("busy", second=True) as other:
        taken(say(client, {"items": [item] * (PER_DAY - 1)}))
        assert say(other, {"items": [item] * 2}).status_code == 429
        taken(say(other, item))
        over = say(client, item)
    assert over.status_code == 429
    assert f"given {PER_DAY} of the {PER_DAY}" in over.json()["error"]["message"]
    assert 0 < int(over.headers["Retry-After"]) <= 86_400


def test_the_report_names_who_contradicts_the_others(pair: Pair, trainer: httpx2.Client) -> None:
    for name, correct in (("ann", True), ("ben", True), ("eve", False)):
        items = [
            {"problem": f"r{n}", "response": f"Answer: {n}", "correct": correct} for n in range(20)
        ]
        with pair.client(name) as client:
            taken(say(client, {"items": items}))
    report = trainer.get("/v1/feedback/report", params={"model": PRM}).json()
    named = {record.id: record.name for record in KeyFile(pair.runs.parent / "keys.json").list()}
    keys = {named[key["key_id"]]: key for key in report["keys"]}
    assert keys["eve"]["contradictions"] >= 20
    assert keys["eve"]["trust"] == 0
    assert keys["eve"]["share"] == 0
    assert keys["ann"]["trust"] == 1
    assert max(key["share"] for key in keys.values()) <= 0.5 + 1e-9
    assert report["num_disputed"] >= 20
    said = report["disputed"][0]
    assert said["correct"] is True
    assert {named[each["key_id"]]: each["correct"] for each in said["labels"]} == {
        "ann": True,
        "ben": True,
        "eve": False,
    }


def test_the_command_line_prints_the_same_report_from_server_and_from_disk(
    pair: Pair, ann: httpx2.Client, trainer: httpx2.Client, tiny_models: Path
) -> None:
    taken(say(ann, {"problem": "cli", "response": "Answer: 1", "correct": True}))
    told = trainer.get("/v1/feedback/report").json()
    command = ["feedback", "report", "--json"]
    asked = CliRunner().invoke(
        app, [*command, "--url", pair.first.url, "--api-key", pair.keys["trainer"]]
    )
    read = CliRunner().invoke(
        app, [*command, "--models", str(tiny_models)], env={"RUNG_RUNS": str(pair.runs)}
    )
    assert [json.loads(each.stdout) for each in (asked, read)] == [told, told]
    table = CliRunner().invoke(
        app, [*command[:2], "--models", str(tiny_models)], env={"RUNG_RUNS": str(pair.runs)}
    )
    assert f"{PRM}: {told['labels']} labels of {told['responses']} responses" in table.stdout


def test_metrics_count_what_was_taken_and_refused(pair: Pair, ann: httpx2.Client) -> None:
    def metric(name: str) -> float:
        text = ann.get("/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = metric('rung_feedback_total{correct="true"}')
    unknown = metric('rung_feedback_refused_total{reason="unknown_id"}')
    taken(say(ann, {"problem": "m", "response": "Answer: 1", "correct": True}))
    say(ann, {"search_id": "search-no", "correct": True})
    assert metric('rung_feedback_total{correct="true"}') == before + 1
    assert metric('rung_feedback_refused_total{reason="unknown_id"}') == unknown + 1
    pending = f'rung_feedback_pending{{model="{PRM}"}}'
    poll(lambda: metric(pending) >= 1, seconds=10, what="labels that wait")


def test_a_sample_of_what_was_scored_lies_in_the_runs(pair: Pair, ann: httpx2.Client) -> None:
    score = scored(ann, ("one of a kind=1",))
    folder = pair.runs / "recent"

    def lines() -> list[dict[str, Any]]:
        return [json.loads(x) for f in folder.glob("*.jsonl") for x in f.read_text().splitlines()]

    poll(
        lambda: any(line["steps"] == ["one of a kind=1"] for line in lines()),
        seconds=20,
        what="the sample",
    )
    (line,) = (line for line in lines() if line["steps"] == ["one of a kind=1"])
    assert line["prm"] == f"{PRM}@1"
    assert math.isclose(line["score"], score["data"][0]["score"], rel_tol=1e-6)


def test_everything_accepted_survives_a_kill(pair: Pair, trainer: httpx2.Client) -> None:
    """The last test: it kills the second server."""
    accepted: list[str] = []

    def send(number: int) -> None:
        body = {"problem": f"k{number}", "response": "Answer: 1", "correct": True}
        with pair.client("eve", second=True) as client:
            while True:
                try:
                    told = say(client, body)
                except httpx2.TransportError:
                    return
                accepted.append(taken(told)["id"])

    with ThreadPoolExecutor(4) as threads:
        sending = [threads.submit(send, number) for number in range(4)]
        poll(lambda: len(accepted) > 40, seconds=20, what="labels")
        pair.second.process.kill()
        for each in sending:
            each.result()
    found: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = trainer.get("/v1/feedback", params={"limit": 100, **after}).json()
        found += [
            label["id"] for label in page["data"] if label["messages"][0]["content"].startswith("k")
        ]
    assert set(accepted) <= set(found)
    # At most the one that each was waiting for.
    assert len(found) - len(accepted) <= 4
