"""docs/jobs.md is run as it stands, but for the server's address and its models' names."""

import re
from pathlib import Path

import pytest

from server.schemas.methods import RunIn
from tests.factories import POLICY, PRM
from tests.server.jobs.conftest import JobsServer

DOCS = Path(__file__).parents[3] / "docs/jobs.md"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_examples_run(
    jobs_server: JobsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    text = DOCS.read_text()
    for old, new in (
        ("http://127.0.0.1:8080", jobs_server.url),
        ("rung-arith-policy", POLICY),
        ("rung-arith-prm", PRM),
    ):
        text = text.replace(old, new)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
    client = names["client"]
    client.close()  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert re.search(r"^ftjob-\w{16} queued$", printed, re.MULTILINE)
    assert f"{POLICY}@sums-" in printed


def test_every_setting_beside_the_algorithms_own_is_described() -> None:
    text = DOCS.read_text()
    missing = [name for name in RunIn.model_fields if f"`{name}`" not in text]
    assert missing == []
