"""The search benchmark: that its tasks are what they say, its checks can fail, and it all runs."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contestant import ROOT
from benchmarks.processes import cpu_seconds, end_group
from benchmarks.search.ours import body_of
from benchmarks.search.play import CONCURRENCY, ROWS, entrants, task_of
from benchmarks.search.report import check_lines, checks, figure_lines
from benchmarks.search.servers import CONTEXT, sum_of
from benchmarks.search.tasks import Found, search_in_turn, told
from server.schemas.search import SearchRequest

VLLM = Path(os.environ.get("RUNG_VLLM", ROOT / ".venv-vllm/bin/python"))
ITS_HUB = ROOT / ".venv-its/bin/python"


def turn(**changes: Any) -> dict[str, Any]:
    """What a turn of two searches tells."""
    told = {"seconds": 4.0, "searches": 2, "texts": ["a", "b"], "continuations": 128.0}
    counts = {"tokens": 900.0, "scored_tokens": 90.0, "vllm_cpu_s": 3.0, "rung_cpu_s": 1.0}
    return told | counts | changes


def verdicts(row: str, **turns: dict[str, Any]) -> dict[str, str]:
    """The last column of the checks, by what is checked."""
    names = {name.replace("_", " "): [each] for name, each in turns.items()}
    return {line[1] + line[4]: line[5] for line in check_lines({row: names})}


@pytest.mark.parametrize("row", ROWS)
def test_everyone_in_a_row_has_the_same_searches_and_every_round_others(row: str) -> None:
    first, *others = [task_of(row, name, 1, is_quick=False) for name in entrants(row)]
    for other in others:
        assert (other.problems, other.seed, other.n) == (first.problems, first.seed, first.n)
    again = task_of(row, entrants(row)[0], 2, is_quick=False)
    assert not {*first.problems} & {*again.problems}
    assert first.seed != again.seed


def test_the_rows_are_as_large_as_their_targets_say() -> None:
    at_once, in_turn = (task_of("concurrent", n, 1, is_quick=False) for n in entrants("concurrent"))
    assert len(at_once.problems) == 16
    assert (at_once.strategy, at_once.n, at_once.width) == ("beam", 16, 4)
    assert (at_once.is_at_once, in_turn.is_at_once) == (True, False)
    assert task_of("best-of-64", "rung", 1, is_quick=False).n == 64
    assert task_of("beam-64", "rung", 1, is_quick=False).n == 64
    assert set(CONCURRENCY) == {*entrants("best-of-64")} - {"rung"}


@pytest.mark.parametrize("row", ROWS)
def test_what_we_ask_for_is_a_search_request(row: str) -> None:
    task = task_of(row, entrants(row)[0], 1, is_quick=False)
    asked = SearchRequest.model_validate(body_of(task, task.problems[0], 5))
    assert asked.strategy.type == task.strategy
    assert asked.sampling.seed == task.seed + 5
    assert asked.sampling.max_tokens < CONTEXT


def test_a_turn_tells_the_winners_in_the_order_of_the_problems() -> None:
    task = task_of("best-of-64", "rung", 1, is_quick=False)

    async def search(problem: str, place: int) -> str:
        await asyncio.sleep(0.001)
        return f"{place} {problem}"

    found = asyncio.run(search_in_turn(task, search))
    answer = told(found, 1.0)
    assert answer["texts"] == [f"{i} {problem}" for i, problem in enumerate(task.problems)]
    assert all(seconds >= 0.001 for seconds in answer["search_seconds"])
    assert isinstance(found[0], Found)


def test_a_third_of_the_time_and_the_same_texts_are_asked_of_searches_at_once() -> None:
    said = verdicts("concurrent", at_once=turn(seconds=1.0), one_by_one=turn(seconds=3.1))
    assert list(said.values()) == ["met", "met"]
    said = verdicts("concurrent", at_once=turn(seconds=1.1), one_by_one=turn(seconds=3.1))
    assert said["wall time of one by one≤ 0.333333"] == "NOT MET"
    other = turn(seconds=1.0, texts=["a", "c"])
    said = verdicts("concurrent", at_once=other, one_by_one=turn(seconds=3.1))
    assert said["searches that end in the same text≥ 1"] == "NOT MET"


def test_half_of_the_time_for_the_same_work_is_asked_beside_the_library() -> None:
    answers = {"best-of-64": {"rung": [turn(seconds=2.0)], "its_hub": [turn(seconds=4.0)]}}
    assert all(check.is_met for _, check in checks(answers))
    answers["best-of-64"]["rung"] = [turn(seconds=2.1)]
    assert [check.is_met for _, check in checks(answers)].count(False) == 1
    # Who wrote less is no faster.
    answers["best-of-64"]["rung"] = [turn(seconds=1.0, tokens=600.0)]
    assert [check.is_met for _, check in checks(answers)].count(False) == 1


def test_figures_are_those_of_one_search() -> None:
    ((row, name, seconds, *_, cpu_vllm, cpu_rung),) = figure_lines({"beam-64": {"rung": [turn()]}})
    assert (row, name, seconds, cpu_vllm, cpu_rung) == ("beam-64", "rung", "2", "1.5", "0.5")


def test_a_metric_is_summed_over_the_labels_that_were_not_named() -> None:
    lines = [
        'rung_tokens_total{kind="scored",model="a"} 3.0',
        'rung_tokens_total{kind="scored",model="b"} 4.0',
        'rung_tokens_total{kind="cached",model="a"} 50.0',
        'rung_tokens_total_created{kind="scored",model="a"} 1.7e+09',
    ]
    assert sum_of(lines, "rung_tokens_total") == 57
    assert sum_of(lines, 'rung_tokens_total{kind="scored"}') == 7
    assert sum_of(lines, 'rung_tokens_total{model="a",kind="scored"}') == 3
    assert sum_of(lines, "never") == 0


def test_cpu_time_is_that_of_the_process_and_all_below_it() -> None:
    burn = "while True: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline_s = time.monotonic() + 20
        while cpu_seconds(process.pid) < 0.3:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        end_group(process)


@pytest.mark.slow
@pytest.mark.vllm
def test_all_of_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.search", "--quick", "--markdown", "--vllm-eager"]
    options = [f"--json={out}", "--rounds=1", f"--log={tmp_path / 'log'}", f"--vllm={VLLM}"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["is_quick"]
    rows = {row["row"]: row for row in result["rows"]}
    assert ("left out" in done.stdout) is not ITS_HUB.exists()
    assert list(rows) == list(ROWS if ITS_HUB.exists() else ROWS[:1])
    for row in rows.values():
        for name, turns in row["turns"].items():
            assert f"| {row['row']} | {name} | " in done.stdout
            assert all(text.strip() for told in turns for text in told["texts"])
            assert all(row["per_search"][name][key]["median"] > 0 for key in ("tokens", "seconds"))
