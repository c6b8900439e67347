"""Dashboards beside a run: real event files and projects, and failures that stop nothing."""

import json
import sqlite3
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from prm.errors import InvalidInput
from training.events import read_events
from training.run import EVENTS, run_job
from training.spec import TrainingJob
from training.trackers import Trackers
from training.tracking import Harmless, start_trackers

JOB = TrainingJob.model_validate(
    {
        "name": "pupil",
        "steps": 3,
        "policy": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
        },
        "data": {"type": "task", "task": {"type": "running_sum"}},
        "algorithm": {"type": "sft"},
        "rollouts": {"problems": 8},
        "optimizer": {"lr": 1e-3},
        "evaluation": False,
    }
)
needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="tensorboard is not installed: rung[trackers]"
)
needs_trackio = pytest.mark.skipif(
    find_spec("trackio") is None, reason="trackio is not installed: rung[trackers]"
)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard itself reads from event files: values by step, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder))
    found.Reload()
    return {
        name: {event.step: event.value for event in found.Scalars(name)}
        for name in found.Tags()["scalars"]
    }


@needs_tensorboard
def test_tensorboard_reads_the_numbers_of_the_events(tmp_path: Path) -> None:
    run_job(JOB, tmp_path / "run", trackers=Trackers(tensorboard=tmp_path / "board"))
    told = scalars(tmp_path / "board")
    events = read_events(tmp_path / "run" / EVENTS)
    assert {"step/loss", "step/tokens_per_s", "step/seconds_update"} <= told.keys()
    for name, values in told.items():
        wanted = {event["step"]: event[name.removeprefix("step/")] for event in events}
        assert values == pytest.approx(wanted)


@needs_tensorboard
def test_a_resumed_run_takes_back_what_lies_behind_its_checkpoint(tmp_path: Path) -> None:
    with ExitStack() as stack:
        trackers = Trackers(tensorboard=tmp_path)
        (first,) = start_trackers(trackers, JOB, stack, pytest.fail, after_step=None)
        for step in (1, 2, 3):
            first.write("step", step, {"loss": 10.0 * step, "nothing": float("nan")})
    with ExitStack() as stack:
        (second,) = start_trackers(trackers, JOB, stack, pytest.fail, after_step=1)
        second.write("step", 2, {"loss": 7.0})
    assert scalars(tmp_path) == {"step/loss": {1: 10.0, 2: 7.0}}


@needs_trackio
def test_trackio_holds_the_numbers_of_the_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    run_job(JOB, tmp_path / "run", trackers=Trackers(trackio="tests"))
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by step").fetchall()
    told = {step: json.loads(metrics) for step, metrics in rows}
    events = read_events(tmp_path / "run" / EVENTS)
    assert list(told) == [1, 2, 3]
    for event in events:
        assert told[event["step"]]["step/loss"] == pytest.approx(event["loss"])
    assert capsys.readouterr().out == ""


class Breaking:
    """A tracker that works for a while."""

    def __init__(self, working: int) -> None:
        self.working = working
        self.heard = 0

    def write(self, kind: str, step: int, numbers: object) -> None:
        self.heard += 1
        if self.heard > self.working:
            raise RuntimeError("the dashboard is gone")

    def close(self) -> None:
        raise AssertionError("never asked again")


def test_a_tracker_that_fails_is_told_once_and_asked_no_more() -> None:
    told: list[str] = []
    tracker = Breaking(working=2)
    harmless = Harmless("dashboard", lambda: tracker, told.append)
    for step in range(1, 6):
        harmless.write("step", step, {"loss": 1.0})
    harmless.close()
    assert tracker.heard == 3
    (line,) = told
    assert line.startswith("dashboard failed and hears no more of this run, which goes on")
    assert line.endswith("RuntimeError: the dashboard is gone")


def test_a_run_goes_on_where_a_tracker_cannot_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can write below a file; and without tensorboard there is nothing that could."""
    (tmp_path / "file").touch()
    run_job(JOB, tmp_path / "run", trackers=Trackers(tensorboard=tmp_path / "file"))
    assert len(read_events(tmp_path / "run" / EVENTS)) == 3
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "TensorBoard failed" in warnings[0]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_what_is_not_installed_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    board = name == "tensorboard"
    wanted = Trackers(tensorboard=tmp_path) if board else Trackers(trackio="sums")
    assert wanted.options == [f"--{name}={tmp_path if board else 'sums'}"]
    if find_spec(name) is not None:
        wanted.check()
        return
    with pytest.raises(InvalidInput, match=rf"--{name} needs {name}.*rung\[trackers\]"):
        wanted.check()


def test_a_run_without_trackers_needs_none_of_them() -> None:
    Trackers().check()
    assert Trackers().options == []
