"""The training benchmark: that both train the same, that its checks can fail, and that it runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contestant import ROOT
from benchmarks.training.models import model_folder
from benchmarks.training.ours import Prompts, job_of
from benchmarks.training.play import ROWS, Settings, setup_of
from benchmarks.training.report import check_lines, checks, figure_lines
from benchmarks.training.tasks import reward_of, summed
from prm.chat import ChatTokenizer
from training.settings import Grpo

TRL = ROOT / ".venv-trl/bin/python"


def settings(root: Path, **changes: Any) -> Settings:
    known: dict[str, Any] = {"rows": ROWS, "models": ["tiny"], "rounds": 2, "threads": 1}
    return Settings(**known | {"trl": TRL, "root": root} | changes)


def turn(**changes: Any) -> dict[str, Any]:
    told = {"seconds": 3.0, "seconds_rollouts": 1.0, "seconds_credit": 0.01, "tokens": 900.0}
    more = {"rollouts": 30.0, "entropy": 0.1, "grad_norm": 1.0, "steps": 2, "peak_bytes": 10**9}
    return told | more | changes


def verdicts(row: str, **entrants: dict[str, Any]) -> dict[str, str]:
    """The last column of the checks, by what is checked."""
    answers = {(row, "tiny"): {name: [each] for name, each in entrants.items()}}
    return {line[2] + line[5]: line[6] for line in check_lines(answers)}


def test_every_step_has_prompts_of_its_own_and_there_are_enough(tmp_path: Path) -> None:
    setup = setup_of(settings(tmp_path, rounds=3), "grpo", "tiny")
    texts = setup.read_prompts()
    # A step to warm up, and one for each round.
    assert len(texts) == len(set(texts)) == 4 * setup.problems
    drawn = [Prompts(texts, setup.problems).draw(step, 0) for step in (1, 2, 3, 4)]
    assert [problem.text for some in drawn for problem in some] == texts


def test_our_job_is_what_the_other_side_is_told(tmp_path: Path) -> None:
    setup = setup_of(settings(tmp_path), "grpo", "tiny")
    job = job_of(setup)
    assert isinstance(job.algorithm, Grpo)
    # loss_type "dapo", scale_rewards "group", beta 0, epsilon 0.2; one step per batch of rollouts.
    assert (job.algorithm.normaliser, job.algorithm.scale) == ("token_batch", "unbiased")
    assert (job.algorithm.kl_coefficient, job.algorithm.clip_low) == (0.0, 0.2)
    assert (job.optimizer.minibatches, job.optimizer.betas) == (1, (0.9, 0.95))
    assert (job.optimizer.weight_decay, job.optimizer.max_grad_norm) == (0.0, 1.0)
    assert job.rollouts.problems * job.rollouts.per_problem == setup.rollouts
    assert setup.rollouts % setup.micro_rollouts == 0


def test_a_random_model_can_write_any_of_its_tokens_as_text(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(model_folder("tiny", tmp_path))
    assert tokenizer.decode([51, 43, 2000, 52]) == "3+w20004"
    assert tokenizer.encode_response("3+4 w2000").ids == tuple(b"3+4 w2000")


def test_equal_texts_of_a_group_have_rewards_of_their_own() -> None:
    rewards = [reward_of("Answer: 4", sample, 1000) for sample in range(8)]
    assert len(set(rewards)) == 8
    assert all(0 <= reward <= 1 for reward in rewards)
    assert {reward_of(str(text), 0, 2) for text in range(20)} == {0.0, 1.0}


def test_what_adds_up_is_added_and_the_rest_averaged() -> None:
    steps = [{"seconds": 1.0, "entropy": 2.0}, {"seconds": 2.0, "entropy": 4.0}]
    assert summed(steps, peak_bytes=7) == {
        "steps": 2, "seconds": 3.0, "entropy": 3.0, "peak_bytes": 7
    }  # fmt: skip


def test_three_times_the_tokens_and_no_more_memory_are_asked() -> None:
    said = verdicts("grpo", rung=turn(), trl=turn(seconds=9.0))
    assert said["tokens/s over trl's≥ 3"] == "met"
    assert said["peak memory over trl's≤ 1"] == "met"
    assert verdicts("grpo", rung=turn(), trl=turn(seconds=8.9))["tokens/s over trl's≥ 3"] == (
        "NOT MET"
    )
    greedy = verdicts("grpo", rung=turn(peak_bytes=2 * 10**9), trl=turn())
    assert greedy["peak memory over trl's≤ 1"] == "NOT MET"


def test_who_wrote_less_did_not_do_the_same_work() -> None:
    said = verdicts("grpo", rung=turn(tokens=600.0), trl=turn(seconds=9.0))
    assert said["tokens a response over trl's≥ 0.95"] == "NOT MET"
    assert verdicts("grpo", rung=turn()) == {}


def test_shares_of_a_step_are_bounded() -> None:
    assert set(verdicts("lambda_grpo", rung=turn()).values()) == {"met"}
    assert set(verdicts("lambda_grpo", rung=turn(seconds_credit=0.04)).values()) == {"NOT MET"}
    assert set(verdicts("prime", rung=turn(seconds_credit=1.1)).values()) == {"met"}
    assert set(verdicts("prime", rung=turn(seconds_credit=1.3)).values()) == {"NOT MET"}


def test_figures_are_those_of_a_step() -> None:
    answers = {("grpo", "tiny"): {"rung": [turn()]}}
    ((*names, rate, _, seconds, rollouts, tokens, peak),) = figure_lines(answers)
    assert names == ["grpo", "tiny", "rung"]
    assert (rate, seconds, rollouts, tokens, peak) == ("300", "1.5", "0.5", "30.0", "1,000")
    assert checks(answers) == []


@pytest.mark.slow
def test_all_of_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.training", "--quick", "--markdown"]
    options = [f"--json={out}", f"--log={tmp_path / 'log'}"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text(errors="replace")
    result = json.loads(out.read_text())
    rows = {row["row"]: row for row in result["rows"]}
    assert list(rows) == list(ROWS)
    assert list(rows["grpo"]["turns"]) == (["rung", "trl"] if TRL.exists() else ["rung"])
    assert ("left out" in done.stdout) is not TRL.exists()
    for row in rows.values():
        for name, turns in row["turns"].items():
            assert f"| {row['row']} | tiny | {name} | " in done.stdout
            assert all(told["tokens"] > 0 and told["seconds"] > 0 for told in turns)
