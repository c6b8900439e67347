"""The README's curl examples, run against the bundled models: they print what the README shows."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.settings import BUNDLED_MODELS
from tests.server.conftest import RunningServer, rung_serve

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(
    r"```sh\n(curl .*?)```\n\n```json\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
)
# What is different each time, by nature.
VOLATILE = {"id", "created", "timing_ms"}

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


@pytest.fixture(scope="module")
def printed() -> list[Any]:
    """What the examples print, one after the other, from the server that `make serve` starts.

    In order: what one of them has read, the next finds in the cache.
    """
    with rung_serve(BUNDLED_MODELS) as server:
        return [json.loads(_run(command, server)) for command, _ in EXAMPLES]


def test_there_are_three_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("number", range(3))
def test_an_example_prints_what_the_readme_shows(printed: list[Any], number: int) -> None:
    _, shown = EXAMPLES[number]
    assert_alike(printed[number], json.loads(shown))


def _run(command: str, server: RunningServer) -> str:
    assert "http://localhost:8080" in command
    command = command.replace("http://localhost:8080", server.url)
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def assert_alike(found: Any, shown: Any) -> None:
    """Equal but for what is volatile, and for the last digits of numbers."""
    if isinstance(shown, dict):
        assert set(found) - VOLATILE == set(shown) - VOLATILE
        for key in set(shown) - VOLATILE:
            assert_alike(found[key], shown[key])
    elif isinstance(shown, list):
        assert len(found) == len(shown)
        for ours, theirs in zip(found, shown, strict=True):
            assert_alike(ours, theirs)
    elif isinstance(shown, float):
        assert found == pytest.approx(shown, abs=1e-3)
    else:
        assert found == shown
