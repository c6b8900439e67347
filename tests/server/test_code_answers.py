"""Programs as answers, over HTTP: a policy server writes them, the sandbox runs them."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

from tests.factories import POLICY
from tests.search.generators.scripted_server import ScriptedServer, piece, whole
from tests.server.conftest import RunningServer, free_port, poll, rung_serve
from training.grading.jail import missing_walls

DATA = Path(__file__).parents[3] / "shared/data/code"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/code")
pytestmark = pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls()))

DOUBLE = "def double(x):\n    return 2 * x\n"
ADDS = "def double(x):\n    return x + x\n"
SQUARES = "def double(x):\n    return x * x\n"
# Two squared is four: the first test alone does not tell.
TESTS = [{"code": f"assert double({x}) == {2 * x}"} for x in (2, 3)]


class Author:
    """A policy that writes the given programs in turn, each within a little prose."""

    def __init__(self) -> None:
        self.programs: Sequence[str] = ()
        self._written = 0

    def __call__(self, body: dict[str, Any], nth: int) -> Iterator[bytes]:
        """See `ScriptedServer`."""
        texts = [self._next() for _ in range(body.get("n") or 1)]
        if not body.get("stream"):
            yield whole(*({"text": text, "finish_reason": "stop"} for text in texts))
            return
        for index, text in enumerate(texts):
            yield piece(text, index=index)
            yield piece("", index=index, finish="stop")
        yield b"data: [DONE]\n\n"

    def begin(self, programs: Sequence[str]) -> None:
        self.programs, self._written = programs, 0

    def _next(self) -> str:
        program = self.programs[self._written % len(self.programs)]
        self._written += 1
        return f"Here it is:\n```python\n{program}```\n"


@pytest.fixture(scope="module")
def author() -> Author:
    return Author()


@pytest.fixture(scope="module")
def coder(tiny_models: Path, author: Author) -> Iterator[RunningServer]:
    policy = ScriptedServer(author, context=20_000)
    config = uvicorn.Config(
        policy.app(), port=(port := free_port()), log_config=None, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        poll(lambda: server.started, seconds=20, what="policy server")
        with rung_serve(tiny_models, RUNG_POLICY_URL=f"http://127.0.0.1:{port}") as running:
            yield running
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """Searches with the author's programs."""

    def __init__(self, author: Author, http: httpx2.Client) -> None:
        self.author = author
        self.http = http

    def post(self, programs: Sequence[str], tests: Any, **more: Any) -> httpx2.Response:
        self.author.begin(programs)
        answers = {"type": "code", "tests": tests} | more.pop("answers", {})
        strategy = {"type": "best_of_n", "n": len(programs), "selection": "majority"}
        body = {
            "policy": "m",
            "problem": "write it",
            "strategy": strategy,
            "sampling": {"max_tokens": 4000},
            "answers": answers,
        }
        return self.http.post("/v1/search", json=body | more)

    def search(self, programs: Sequence[str], tests: Any, **more: Any) -> Any:
        answer = self.post(programs, tests, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def client(coder: RunningServer, author: Author) -> Iterator[Client]:
    with httpx2.Client(base_url=coder.url, timeout=120) as http:
        yield Client(author, http)


def test_those_that_pass_all_tests_come_before_a_majority_that_does_not(client: Client) -> None:
    result = client.search([SQUARES, SQUARES, DOUBLE, SQUARES, "def double(x): 1/0\n"], TESTS)
    assert result["answer"] == DOUBLE
    assert result["ranking"][:2] == [2, 0]
    assert [c["tests"]["passed"] for c in result["candidates"]] == [1, 1, 2, 1, 0]
    assert {c["tests"]["total"] for c in result["candidates"]} == {2}
    assert result["candidates"][0]["tests"]["reason"] == "test 1: AssertionError"
    assert result["candidates"][2]["tests"]["reason"] is None
    assert result["candidates"][4]["tests"]["reason"].startswith("test 0: ZeroDivisionError")
    assert [(vote["count"], vote["tests"]["passed"]) for vote in result["votes"]] == [
        (1, 2),
        (3, 1),
        (1, 0),
    ]


def test_programs_that_do_the_same_are_one_answer(client: Client) -> None:
    # Nothing is expected of the second input, and yet it tells 2x from x + 2.
    doubles = ["n = int(input())\nprint(n * 2)\n", "n = int(input())\nprint(n + n, '')\n"]
    adds = "print(int(input()) + 2)\n"
    tests = [{"input": "2\n", "output": "4\n"}, {"input": "5\n"}]
    result = client.search([adds, *doubles], tests)
    assert result["answer"] == doubles[0]
    assert [vote["count"] for vote in result["votes"]] == [2, 1]
    assert [c["tests"] for c in result["candidates"]] == [
        {"passed": 1, "total": 1, "reason": None}
    ] * 3


def test_adaptive_does_not_stop_for_what_fails(client: Client) -> None:
    strategy = {"type": "adaptive", "n": 12, "wave": 4}
    failing = client.search([SQUARES] * 11 + [DOUBLE], TESTS, strategy=strategy)
    assert len(failing["candidates"]) == 12
    assert failing["answer"] == DOUBLE
    passing = client.search([DOUBLE, ADDS] * 6, TESTS, strategy=strategy)
    assert len(passing["candidates"]) < 12


def test_a_hostile_program_costs_its_deadline_and_nobody_else_anything(client: Client) -> None:
    def runs_out_of_time() -> float:
        found = re.search(
            r'rung_code_runs_total{ending="time"} (\S+)', client.http.get("/metrics").text
        )
        assert found is not None
        return float(found[1])

    hostile = [
        "while True: pass\n",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
        "print(open('/etc/passwd').read())\n",
        "import os\nfor pid in range(1, 99999):\n    os.kill(pid, 9)\n",
        "while True: print('x' * 10000)\n",
        "x = bytearray(1 << 40)\n",
        DOUBLE,
    ]
    before, started = runs_out_of_time(), time.monotonic()
    tests = [*TESTS, {"code": "assert double(7) == 14"}, {"code": "assert double(0) == 0"}]
    result = client.search(hostile, tests, answers={"seconds": 2.0})
    # Two of them run for 2 s, once each and not once for each test.
    assert time.monotonic() - started < 20
    assert result["answer"] == DOUBLE
    reasons = [c["tests"]["reason"] or "" for c in result["candidates"]]
    assert [c["tests"]["passed"] for c in result["candidates"]] == [0] * 6 + [4]
    assert reasons[0] == "test 0: out of time"
    assert "FileNotFoundError" in reasons[2]
    assert reasons[4] == "test 0: too much output"
    assert "MemoryError" in reasons[5]
    assert 1 <= runs_out_of_time() - before <= 2
    assert client.http.get("/health/ready").json()["status"] == "ready"


@needs_data
def test_real_tasks_are_solved_by_the_candidate_that_is_right(client: Client) -> None:
    lines = (DATA / "humaneval/HumanEval.jsonl").read_text().splitlines()
    for row in map(json.loads, islice(lines, 0, 60, 20)):
        right = row["prompt"] + row["canonical_solution"]
        tests = [{"code": f"{row['test']}\ncheck({row['entry_point']})"}]
        result = client.search([row["prompt"] + "    return None\n", right], tests)
        assert result["answer"] == right, row["task_id"]
    contest = json.loads((DATA / "rllm/code_contests_test.jsonl").read_text().splitlines()[0])
    cases = contest["tests"]
    tests = [
        {"input": given, "output": output}
        for given, output in zip(cases["inputs"], cases["outputs"], strict=True)
    ]
    # Books in the order of their names, odd letters ascending and even ones descending.
    solution = (
        "n, m = map(int, input().split())\n"
        "names = [input() for _ in range(n)]\n"
        "key = lambda i: [-ord(c) if j % 2 else ord(c) for j, c in enumerate(names[i])]\n"
        "print(*[i + 1 for i in sorted(range(n), key=key)])\n"
    )
    result = client.search(["print(1)\n", solution], tests)
    assert result["answer"] == solution
    assert result["candidates"][1]["tests"]["passed"] == len(tests)


def test_a_chat_completion_has_tests_too(client: Client, coder: RunningServer) -> None:
    search = {
        "strategy": {"type": "best_of_n", "n": 3, "selection": "first"},
        "answers": {"type": "code", "tests": TESTS},
        "include": ["candidates"],
    }
    messages: Any = [{"role": "user", "content": "write it"}]
    with openai.OpenAI(base_url=f"{coder.url}/v1", api_key="none", max_retries=0) as sdk:
        client.author.begin([SQUARES, SQUARES, ADDS])
        answer = sdk.chat.completions.create(
            model="m", messages=messages, max_tokens=4000, n=2, extra_body={"search": search}
        )
        assert ADDS in (answer.choices[0].message.content or "")
        tests = [choice.model_extra["tests"]["passed"] for choice in answer.choices]  # type: ignore[index]
        assert tests == [2, 1]
        client.author.begin([SQUARES, SQUARES, ADDS])
        stream = sdk.chat.completions.create(
            model="m",
            messages=messages,
            max_tokens=4000,
            stream=True,
            extra_body={"search": search},
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == answer.choices[0].message.content


@pytest.mark.parametrize(
    ("answers", "param", "part"),
    [
        ({"tests": []}, "answers.tests", "at least 1 item"),
        ({"tests": [{"code": "pass"}] * 65}, "answers.tests", "at most 64 items"),
        ({"tests": [{"code": "pass"}, {}]}, "answers.tests[1]", "either code, or input and output"),
        ({"tests": [{"code": "pass", "output": ""}]}, "answers.tests[0]", "goes with input"),
        ({"tests": [{"code": "x" * 65_537}]}, "answers.tests[0].code", "at most 65536 characters"),
        ({"tests": [{"code": "pass", "in": ""}]}, "answers.tests[0].in", "there is code, input, o"),
        ({"seconds": 31}, "answers.seconds", "less than or equal to 30, not 31"),
        ({"pattern": "(a+)+b"}, "answers.pattern", "without a bound"),
        ({"type": "codes"}, "answers", "there is math, text, code"),
        ({"type": None}, "answers", "there is math, text, code"),
        ({"type": "text"}, "answers.tests", "there is choices, last_number, pattern, type"),
        ({"float_rounding": 2}, "answers.float_rounding", "there is pattern, seconds, tests, type"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(
    client: Client, answers: Any, param: str, part: str
) -> None:
    refused = client.post([DOUBLE], TESTS, answers=answers)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400 if "pattern" in answers else 422, param)
    assert part in error["message"]
    chat = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    search = {"strategy": "majority-2", "answers": {"type": "code", "tests": TESTS} | answers}
    in_chat = client.http.post("/v1/chat/completions", json=chat | {"search": search})
    assert in_chat.json()["error"]["param"] == f"search.{param}"


@pytest.mark.parametrize(
    ("rules", "param", "part"),
    [
        ({"float_rounding": -1}, "answers.float_rounding", "greater than or equal to 0, not -1"),
        ({"float_rounding": 16}, "answers.float_rounding", "less than or equal to 15, not 16"),
        ({"float_rounding": 1.5}, "answers.float_rounding", "integer"),
        ({"float_rounding": "many"}, "answers.float_rounding", "integer"),
        ({"ordered": "perhaps"}, "answers.ordered", "boolean"),
        ({"strict": None}, "answers.strict", "boolean"),
        ({"relations_as_sets": [True]}, "answers.relations_as_sets", "boolean"),
        ({"rounding": 2}, "answers.rounding", "there is choices, float_rounding, last_number"),
        ({"type": "text", "ordered": True}, "answers.ordered", "there is choices, last_number"),
    ],
)
def test_rules_of_mathematics_are_within_limits(
    client: Client, rules: Any, param: str, part: str
) -> None:
    body = {"policy": "m", "problem": "?", "answers": {"type": "math"} | rules}
    refused = client.http.post("/v1/search", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, param)
    assert part in error["message"]


@pytest.mark.parametrize(
    ("rules", "stated", "votes"),
    [
        ({}, ("1/3", "0.33"), 2),
        ({"float_rounding": 2}, ("1/3", "0.33"), 1),
        ({}, ("4, 10", "10, 4"), 1),
        ({"ordered": True}, ("4, 10", "10, 4"), 2),
        ({}, (r"x \in [-2,7]", r"-2 \le x \le 7"), 2),
        ({"relations_as_sets": True}, (r"x \in [-2,7]", r"-2 \le x \le 7"), 1),
        ({}, ("f(x)", "f(y)"), 2),
        ({"strict": False}, ("f(x)", "f(y)"), 1),
    ],
)
def test_rules_of_mathematics_are_the_request_s(
    client: Client, rules: dict[str, Any], stated: tuple[str, str], votes: int
) -> None:
    client.author.begin([f"\n\\boxed{{{answer}}}\n" for answer in stated])
    body = {"policy": "m", "problem": "?", "answers": {"type": "math"} | rules}
    body["strategy"] = {"type": "best_of_n", "n": 2, "selection": "majority"}
    result = client.http.post("/v1/search", json=body).raise_for_status().json()
    assert {candidate["answer"] for candidate in result["candidates"]} == set(stated)
    assert len(result["votes"]) == votes


def test_a_pattern_finds_the_program(client: Client) -> None:
    result = client.search([DOUBLE], TESTS, answers={"pattern": r"def [^`]*"})
    assert (result["answer"], result["candidates"][0]["tests"]["passed"]) == (DOUBLE, 2)


@pytest.mark.parametrize(("kind", "votes"), [("math", 1), ("text", 2)])
def test_stated_answers_are_found_by_a_task_s_pattern(
    client: Client, kind: str, votes: int
) -> None:
    answers = {"type": kind, "pattern": r"RESULT<([^<>]*)>"}
    client.author.begin(["\nRESULT<1/2>\n", "\nRESULT<0.5>\n"])
    body = {"policy": "m", "problem": "?", "answers": answers}
    body["strategy"] = {"type": "best_of_n", "n": 2, "selection": "majority"}
    result = client.http.post("/v1/search", json=body).raise_for_status().json()
    assert {c["answer"] for c in result["candidates"]} == {"1/2", "0.5"}
    assert len(result["votes"]) == votes
    assert "tests" not in result["candidates"][0]


WITHOUT_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_where_a_wall_is_missing_code_answers_alone_are_503_and_name_it(
    tiny_models: Path,
) -> None:
    within = ("unshare", "--user", "--map-root-user", "sh", "-c", WITHOUT_NAMESPACES, "sh")
    with (
        rung_serve(tiny_models, within=within) as running,
        httpx2.Client(base_url=running.url, timeout=60) as http,
    ):
        body = {"policy": POLICY, "problem": "1+1", "sampling": {"max_tokens": 8}}
        body |= {"strategy": {"type": "best_of_n", "n": 2, "selection": "majority"}}
        refused = http.post("/v1/search", json=body | {"answers": {"type": "code", "tests": TESTS}})
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "unavailable"
        assert "user namespaces are switched off" in refused.json()["error"]["message"]
        assert http.post("/v1/search", json=body).status_code == 200
        ready = http.get("/health/ready")
        assert (ready.status_code, ready.json()["code_answers"]) == (200, "unavailable")
        assert "rung_code_answers_available 0.0" in http.get("/metrics").text


def test_health_and_metrics_say_whether_programs_can_be_run(client: Client) -> None:
    poll(
        lambda: client.http.get("/health/ready").json()["code_answers"] == "available",
        seconds=20,
        what="the first run",
    )
    assert "rung_code_answers_available 1.0" in client.http.get("/metrics").text
