"""Many processes publish, promote and prune one name at once, and some are killed: none is torn."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prm.errors import ModelFolderError
from prm.registry import load_version, publish, published, read_pointer
from tests.factories import PRM

# Publishes versions PREFIX-0, PREFIX-1, … of what is staged and promotes each, then says so.
PUBLISHER = """
import sys
from pathlib import Path
from prm.manifest import ManifestFile
from prm.registry import promote, publish
root, staged, prefix, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
text = (staged / "manifest.json").read_text()
manifest = ManifestFile.model_validate_json('{"manifest": ' + text + "}").manifest
for number in range(count):
    version = manifest.model_copy(update={"version": f"{prefix}-{number}"})
    publish(root, staged, version, live=False)
    promote(root, version.name, version.version)
    print(version.version, flush=True)
"""


@pytest.fixture
def root(tiny_models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_models, tmp_path / "models")


def publisher(root: Path, prefix: str, count: int) -> "subprocess.Popen[str]":
    staged = root / PRM / "1"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PUBLISHER, str(root), str(staged), prefix, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_all_that_publish_at_once_land_and_one_pointer_wins(root: Path) -> None:
    running = [publisher(root, prefix, 8) for prefix in "abc"]
    seen: set[str] = set()
    while any(process.poll() is None for process in running):
        for version in published(root, PRM):
            if version not in seen:
                load_version(root / PRM / version)
                seen.add(version)
        assert read_pointer(root, PRM).live in published(root, PRM)
    said = {line for process in running for line in process.communicate()[0].split()}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert said == {f"{prefix}-{number}" for prefix in "abc" for number in range(8)}
    assert set(published(root, PRM)) == said | {"1"}
    pointer = read_pointer(root, PRM)
    assert pointer.live.endswith("-7")
    assert len({pointer.live, *pointer.previous}) == 1 + len(pointer.previous)
    assert not list((root / PRM).glob(".publish-*"))


def test_a_killed_publisher_leaves_whole_versions_only_and_the_next_one_cleans_up(
    root: Path,
) -> None:
    draw = random.Random(0)
    said: set[str] = set()
    for attempt in range(4):
        process = publisher(root, f"k{attempt}", 1000)
        assert process.stdout is not None
        said |= {process.stdout.readline().strip() for _ in range(draw.randrange(1, 6))}
        process.send_signal(signal.SIGKILL)
        said |= {line for line in process.communicate()[0].split("\n")[:-1] if line}
        there = published(root, PRM)
        # What was told is there; what is there is whole, told or not.
        assert said <= set(there)
        for version in there:
            load_version(root / PRM / version)
        assert read_pointer(root, PRM).live in there
    # One that died with everything but its last rename done.
    left = shutil.copytree(root / PRM / "1", root / PRM / ".publish-left" / "version")
    assert ".publish-left" not in published(root, PRM)
    last = publisher(root, "last", 1)
    assert last.communicate()[0] == "last-0\n"
    assert not left.exists()
    assert {path.name for path in (root / PRM).glob(".*")} == {".live.lock"}


def test_a_version_is_not_published_without_its_reference(root: Path) -> None:
    shutil.rmtree(root / "tiny-policy")
    version = load_version(root / PRM / "1")
    with pytest.raises(ModelFolderError, match="its reference tiny-policy@1 is not published"):
        publish(root, version.folder, version.manifest.model_copy(update={"version": "2"}))
    assert published(root, PRM) == ["1"]
