"""The command line, as a user types it."""

import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.checkpoints import checkpoint
from tests.factories import POLICY, PRM, PROBLEM, STEPS
from tests.server.commands import rung, rung_process
from tests.server.conftest import RunningServer, rung_serve


@pytest.fixture
def items(tmp_path: Path) -> Path:
    file = tmp_path / "items.jsonl"
    item = {"id": "a", "problem": PROBLEM, "steps": list(STEPS)}
    raw = {"problem": PROBLEM, "response": "\n".join(STEPS)}
    file.write_text("\n".join([json.dumps(item), "", json.dumps(raw)] + [json.dumps(item)] * 70))
    return file


@pytest.mark.parametrize("command", [[], ["serve"], ["score"], ["search"], ["eval", "calibrate"]])
def test_help_comes_within_half_a_second(command: list[str]) -> None:
    took = []
    for _ in range(3):
        # Of a core: what it takes on the clock is for others on this machine to say, too.
        before = os.times()
        done = rung_process(*command, "--help")
        after = os.times()
        took.append(
            after.children_user + after.children_system
            - before.children_user - before.children_system
        )  # fmt: skip
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert 0 < min(took) < 0.5


def test_scores_by_a_server_and_by_an_engine_of_its_own_are_the_same(
    items: Path, server: RunningServer, tiny_models: Path
) -> None:
    there = rung("score", str(items), "--url", server.url, "--json")
    here = rung_process("score", str(items), "--models", str(tiny_models), "--json")
    assert there.returncode == here.returncode == 0, here.stderr
    lines = [json.loads(line) for line in there.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(72))
    assert (lines[0]["id"], len(lines[0]["steps"])) == ("a", len(STEPS))
    own = [json.loads(line) for line in here.stdout.splitlines()]
    for ours, theirs in zip(own, lines, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)


def test_scores_for_people_show_every_step(items: Path, server: RunningServer) -> None:
    done = rung_process("score", str(items), "--url", server.url)
    assert done.returncode == 0
    assert "item a: score" in done.stdout
    assert "items scored by tiny-prm: 72" in done.stdout
    assert all(step in done.stdout for step in STEPS)


def test_score_reads_standard_input(server: RunningServer) -> None:
    line = json.dumps({"problem": "1", "steps": ["x"]})
    done = rung_process("score", "-", "--url", server.url, "--json", stdin=line)
    assert json.loads(done.stdout)["index"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not JSON"),
        ("\n[1]", "line 2: not a JSON object"),
        ("", "holds no item"),
        ('{"problem": "1"}', "give either steps or response"),
        ('{"problem": "1", "steps": ["  "]}', "only white space"),
    ],
)
def test_a_bad_file_names_what_is_wrong(
    tmp_path: Path, server: RunningServer, content: str, message: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    done = rung("score", str(file), "--url", server.url)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_search_prints_the_answer_and_what_it_cost(server: RunningServer) -> None:
    options = ["--problem", PROBLEM, "--url", server.url, "--n=4", "--max-tokens=20", "--seed=1"]
    people = rung_process("search", *options)
    assert people.returncode == 0
    assert "best_of_n:" in people.stdout
    assert "tokens written" in people.stdout
    machine: dict[str, Any] = json.loads(rung("search", *options, "--json").stdout)
    assert (machine["policy"], machine["prm"], machine["sampling"]["seed"]) == (POLICY, PRM, 1)
    beam = rung("search", *options, "--json", "--strategy=beam", "--width=2")
    assert json.loads(beam.stdout)["strategy"]["type"] == "beam"


def test_search_takes_the_request_s_answers(server: RunningServer, tmp_path: Path) -> None:
    options = ["--problem", PROBLEM, "--url", server.url, "--n=2", "--max-tokens=9", "--json"]
    options += ["--seed=1"]  # bytes at random may be white space of some kind at their edges
    whole = json.dumps({"type": "text", "pattern": r"(?s)(.+)"})
    file = tmp_path / "answers.json"
    file.write_text(whole)
    for answers in (whole, f"@{file}"):
        done = rung("search", *options, "--answers", answers)
        assert done.returncode == 0, done.stderr
        for candidate in json.loads(done.stdout)["candidates"]:
            assert candidate["answer"] == candidate["text"].strip()
    assert rung("search", *options, "--answers=text").returncode == 0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("maths", "answers: no such type; there is math, text, code"),
        ('{"type": "math", "float_rounding": 99}', "answers.float_rounding: Input should be less"),
        ('{"type": "code"}', "answers.tests"),
        ("{", "--answers: not JSON"),
        ("@/nonexistent", "--answers @/nonexistent: cannot be read"),
        ("@{tmp}", "not a JSON object"),
    ],
)
def test_answers_that_make_no_sense_are_named(
    server: RunningServer, tmp_path: Path, answers: str, message: str
) -> None:
    (tmp_path / "list.json").write_text("[]")
    answers = answers.replace("{tmp}", str(tmp_path / "list.json"))
    done = rung("search", "--problem=1+1", "--url", server.url, "--answers", answers)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_search_with_an_engine_of_its_own(tiny_models: Path) -> None:
    done = rung(
        "search", "--problem=1+1", f"--models={tiny_models}", "--n=2", "--max-tokens=9", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["candidates"]) == 2


def test_errors_end_with_a_line_and_a_code(server: RunningServer) -> None:
    bad = rung_process("search", "--problem=1", "--url", server.url, "--n=0")
    assert bad.returncode == 2
    assert "strategy.n" in bad.stderr
    nobody = rung_process("search", "--problem=1", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1
    assert "no answer from http://127.0.0.1:9" in nobody.stderr
    assert rung("score", "/nonexistent", "--url", server.url).returncode == 2
    assert rung("nonsense").returncode == 2


def test_an_error_names_the_line_of_the_file_wherever_its_batch_began(
    tmp_path: Path, server: RunningServer, tiny_models: Path
) -> None:
    good = json.dumps({"problem": "1", "steps": ["2"]})
    file = tmp_path / "items.jsonl"
    there, here = ["--url", server.url], ["--models", str(tiny_models)]
    for bad, message, where in (
        ({"problem": "1"}, "steps or", there),
        ({"problem": "1", "steps": [" "]}, "whi", there),
        ({"problem": "1", "steps": [" "]}, "whi", here),
    ):
        file.write_text("\n".join([*[good] * 70, "", json.dumps(bad)]))
        done = rung("score", str(file), *where, "--json")
        assert done.returncode == 2
        assert f"{file}, line 72: " in done.stderr
        assert message in done.stderr
        assert len(done.stdout.splitlines()) == 64


def test_a_file_is_scored_whatever_one_request_takes(items: Path, tiny_models: Path) -> None:
    done = rung("score", str(items), f"--models={tiny_models}", "--json", RUNG_MAX_ITEMS="7")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == list(range(72))


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://[::1", "ftp://x", "http://x:99999"])
def test_an_address_that_is_none_is_told(items: Path, url: str) -> None:
    done = rung("score", str(items), "--url", url)
    assert done.returncode == 2
    assert "is no server's address" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_kind_of_server_is_told(items: Path, server: RunningServer) -> None:
    done = rung("score", str(items), "--url", f"{server.url}/docs")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_a_checkpoint_is_refused_in_words_and_with_codes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "hub", "qwen")
    options = ["--name=new", f"--models={tmp_path / 'models'}"]
    wrong = rung("models", "import", str(folder), *options, "--family=skywork")
    assert wrong.returncode == 2
    assert "import it with --family qwen\n" in wrong.stderr
    for bad, message in (
        (["--set", "marker"], "--set 'marker' is not KEY=VALUE"),
        (["--set", "colour=red"], "no setting 'colour'"),
        (["--policy", "--family=qwen"], "a policy has no family"),
        (["--policy"], "is more than a language model. This is a qwen-math-prm/1 checkpoint"),
        (["--name=../x"], "--name '../x': up to 64 letters"),
        (["--threshold=2"], "--threshold"),
        (["--golden=/nonexistent"], "cannot be read"),
    ):
        done = rung("models", "import", str(folder), *options, *bad)
        assert done.returncode == 2, bad
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    full = rung("models", "import", str(folder), "--name=new", "--models=/proc/models")
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_what_is_imported_is_served_and_scores_as_it_was_published(tmp_path: Path) -> None:
    models = tmp_path / "models"
    golden = {}
    for family, name in (("qwen", "marker-prm"), ("rlhflow", "chat-prm")):
        folder = checkpoint(tmp_path / "hub", family)
        done = rung(
            "models", "import", str(folder), f"--name={name}", f"--models={models}", "--json"
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["family"], told["published"]) == (family, str(models / name / "1"))
        golden[name] = told["golden"]
    listed = rung("models", "list", f"--models={models}", COLUMNS="120")
    assert "qwen-math-prm/1" in listed.stdout
    assert "rlhflow-deepseek/1" in listed.stdout
    with rung_serve(models) as running:
        for name, items in golden.items():
            body = {
                "model": name,
                "items": [{"messages": i["messages"], "steps": i["steps"]} for i in items],
                "include": ["raw"],
            }
            answer = httpx2.post(f"{running.url}/v1/prm/score", json=body, timeout=60).json()
            for item, published in zip(answer["data"], items, strict=True):
                raws = [step["raw"] for step in item["steps"]]
                assert raws == pytest.approx(published["raw"], abs=1e-3)


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    key = rung("keys", "create", "--name=ci", RUNG_KEYS_FILE=file).stdout.strip()
    assert key.startswith("rung-")
    listed = json.loads(rung("keys", "list", "--json", RUNG_KEYS_FILE=file).stdout)
    assert listed["name"] == "ci"
    assert listed["scopes"] == ["score", "search"]
    assert key not in json.dumps(listed)
    assert rung("keys", "revoke", listed["id"], RUNG_KEYS_FILE=file).returncode == 0
    assert rung("keys", "list", RUNG_KEYS_FILE=file).stdout == ""
    assert rung("keys", "revoke", "nope", RUNG_KEYS_FILE=file).returncode == 1
    bad = rung("keys", "create", "--name=x", "--scope=fly", RUNG_KEYS_FILE=file)
    assert bad.returncode == 2


def test_models_are_verified_and_listed(tiny_models: Path, tmp_path: Path) -> None:
    done = rung("models", "list", "--models", str(tiny_models), "--json")
    names = [json.loads(line)["name"] for line in done.stdout.splitlines()]
    assert names == [POLICY, PRM]
    assert rung("models", "list", "--models", str(tmp_path)).returncode == 2
