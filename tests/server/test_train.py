"""`rung train`: a run as a process of its own, and wrong jobs refused before it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from training.environment import training_environment

JOB = """
name = "pupil"
steps = 2
[policy]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 32
[data]
type = "task"
task = {type = "running_sum"}
[algorithm]
type = "sft"
[rollouts]
problems = 8
[optimizer]
lr = 1e-3
[evaluation]
problems = 4
per_problem = 2
"""


def rung_train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "train", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_job_is_run_drawn_and_told(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    done = rung_train(tmp_path, "job.toml", "--json", "--plot=run.svg")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # and nothing else: the bar is on stderr
    assert told["models"] == {"policy": "runs/pupil/policy"}
    assert set(told["evaluation"]) == {"average", "pass", "majority"}
    assert (tmp_path / "runs/pupil/policy/model.safetensors").is_file()
    picture = (tmp_path / "run.svg").read_text()
    assert "average, held out" in picture
    assert "seconds of a step" in picture
    again = rung_train(tmp_path, "job.toml")
    assert again.returncode != 0
    assert "runs/pupil holds a run already" in again.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "problem"),
    [
        (JOB.replace("lr = 1e-3", "lr = 0"), (), "job.toml: optimizer.lr"),
        (JOB, ("--plot=run.doc",), "--plot"),
        pytest.param(
            JOB,
            ("--trackio=sums",),
            "--trackio needs trackio",
            marks=pytest.mark.skipif(find_spec("trackio") is not None, reason="it is installed"),
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line(
    text: str, arguments: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text(text)
    done = rung_train(tmp_path, "job.toml", *arguments)
    assert done.returncode == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_is_started_with_what_its_user_says_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = training_environment()
    assert (found["GOMP_SPINCOUNT"], found["OMP_WAIT_POLICY"]) == ("7", "passive")
    assert found["PATH"] == os.environ["PATH"]
