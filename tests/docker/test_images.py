"""The Dockerfiles: pinned bases, sources that exist, another user than root, pinned versions."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from server.settings import Settings
from tests.docker.files import DOCKER, DOCKERFILES, ROOT, compose, dockerfile, environment, last

UID = "10001"
# Stages that are run: by compose, and by whoever builds without naming one.
RUN = [("Dockerfile", "rung"), ("Dockerfile", "policy-cpu"), ("Dockerfile.gpu", "rung")]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_bases_are_pinned(name: str) -> None:
    stages = {i.stage for i in dockerfile(name)} - {""}
    arguments = dict(
        i.arguments.split("=") for i in dockerfile(name) if i.name == "ARG" and not i.stage
    )
    for instruction in dockerfile(name):
        if instruction.name == "FROM":
            base = instruction.words[0]
            if base.startswith("${"):
                assert re.search(r":\d+\.\d+\.\d+-", arguments[base[2:-1]]), base
            else:
                assert base in stages, base


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(name: str) -> None:
    kept = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    stages = {i.stage for i in dockerfile(name)}
    for instruction in dockerfile(name):
        if instruction.name != "COPY":
            continue
        words = [w for w in instruction.words if not w.startswith("--")]
        origin = re.search(r"--from=(\S+)", instruction.arguments)
        if origin:
            assert origin[1] in stages
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


def test_everything_that_is_not_ignored_is_copied() -> None:
    copied = {
        word
        for name in DOCKERFILES
        for i in dockerfile(name)
        if i.name == "COPY" and "--from" not in i.arguments
        for word in i.words[:-1]
    }
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert kept <= copied


@pytest.mark.parametrize(("name", "stage"), RUN)
def test_images_run_in_exec_form_as_another_user(name: str, stage: str) -> None:
    assert last(name, "USER", stage).arguments == f"{UID}:{UID}"
    entry = last(name, "ENTRYPOINT", stage)
    assert entry.arguments.startswith("[")
    # Process 1 that hands on signals and buries the dead.
    assert entry.words[:2] == ["tini", "--"]
    assert last(name, "CMD", stage).arguments.startswith("[")
    check = last(name, "HEALTHCHECK", stage).arguments
    assert 'CMD ["python", "-I", "/opt/rung/healthcheck.py"' in check


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dependencies_are_installed_before_sources_come(name: str) -> None:
    for instruction in dockerfile(name):
        if instruction.name == "COPY" and instruction.stage == "dependencies":
            assert not set(instruction.words) & {"server", "prm", "search", "training"}
    order = [i.arguments for i in dockerfile(name) if i.stage == "dependencies" and i.name == "RUN"]
    torch = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = next(line for line in torch if line.startswith("torch"))
    assert any(pinned in line for line in order), f"the Dockerfile does not install {pinned}"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_environment_is_of_settings_that_there_are(name: str) -> None:
    fields = {f"RUNG_{field.upper()}" for field in Settings.model_fields}
    files = {f"{field}_FILE" for field in fields}
    told = {variable for variable in environment(name, "rung") if variable.startswith("RUNG_")}
    assert told <= fields
    for service in ("server", "worker"):
        named = compose()["services"][service]["environment"]
        assert set(named) <= fields | files


def test_requirements_are_those_of_the_project_and_its_extras() -> None:
    done = subprocess.run(
        [sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml", "train", "lora"],
        check=True,
        capture_output=True,
        text=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["train"], *extras["lora"]]
    assert done.stdout.splitlines() == lines


def test_the_gpu_images_versions_are_the_tested_ones_but_for_cuda() -> None:
    ours, theirs = _pins(ROOT / "constraints.txt"), _pins(DOCKER / "constraints-gpu.txt")
    different = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    assert different <= {"triton", "apache-tvm-ffi"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"vllm=={theirs['vllm']}" in extras["optional-dependencies"]["vllm"]


def test_the_packages_of_the_wheel_are_those_that_are_copied() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packages = set(build["targets"]["wheel"]["packages"])
    for name in DOCKERFILES:
        copied = {i.words[0] for i in dockerfile(name) if (i.name, i.stage) == ("COPY", "wheel")}
        assert packages <= copied


def _pins(path: Path) -> dict[str, str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
