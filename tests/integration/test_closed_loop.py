"""The closed loop as one story: damage is refused, feedback is learnt, a swap loses nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.closed_loop.answers import Sizes, write_answers
from benchmarks.closed_loop.story import Told, tell
from prm.registry import read_pointer, read_version
from server.settings import BUNDLED_MODELS
from tests.server.conftest import rung_serve

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("story")
    root = Path(shutil.copytree(BUNDLED_MODELS, folder / "models"))
    answers = write_answers(root / "rung-arith-policy" / "1", Sizes(test_problems=60))
    assert len(answers.feedback) == 2000
    story = tell(root, folder / "runs", answers)
    pointer = read_pointer(root, "rung-arith-prm")
    assert (pointer.live, pointer.previous) == (story.live, ("1",))
    manifest = read_version(root / "rung-arith-prm" / story.live).manifest
    assert manifest.training["base"] == "rung-arith-prm@1"
    return story


@pytest.mark.slow
def test_what_was_trained_on_flipped_labels_is_refused(told: Told) -> None:
    assert told.refusal.startswith("first_error_f1 0.")
    assert "worse by more than the margin" in told.refusal


@pytest.mark.slow
def test_feedback_makes_a_version_that_is_not_worse(told: Told) -> None:
    assert told.live != told.refused
    for name, report in told.figures.items():
        assert report.live is not None
        assert report.new is not None
        assert report.difference is not None
        print(f"{name}: {report.live.figure} → {report.new.figure}")
        # The gate looked at other problems, a fifth of the feedback's, and at AUROC; sixty problems
        # tell these to 0.04, and the order of a job's answers is drawn anew each time.
        assert report.difference.value > -0.1
        assert report.new.figure.value > 0.6
    assert set(told.figures) == {"first-error F1", "best of 16"}


@pytest.mark.slow
def test_clients_that_never_pause_lose_nothing_and_get_what_the_named_version_says(
    told: Told,
) -> None:
    assert told.load.failures == []
    assert list(told.load.versions) == ["1", told.live]
    assert told.load.versions["1"] > 50
    assert told.gap < 1e-3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_commands_of_the_readme_give_feedback(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```sh\n(rung serve --retrain-every.*?)```", README.read_text(), re.S)
    _, write, send, _ = shown.splitlines()
    assert "--problems 2000 " in write
    write = write.replace("--problems 2000 ", "--problems 20 ").replace("python", sys.executable, 1)
    models = shutil.copytree(BUNDLED_MODELS, tmp_path / "models")
    with rung_serve(models) as server:
        send = send.replace("http://localhost:8080", server.url)
        both = f"{write} >&2 && {send}".replace("build/", f"{tmp_path}/")
        done = subprocess.run(
            ["bash", "-c", both], capture_output=True, text=True, timeout=120, check=True
        )
    told = json.loads(done.stdout)["data"]
    assert len(told) == 20
    assert {label["correct"] for label in told} == {True, False}
