"""A server as its container runs it: the image's environment and command, secrets in files."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker.files import DOCKER, compose, environment, last, with_defaults
from tests.factories import publish_tiny_models
from tests.server.conftest import answers, free_port, poll

RUNG = Path(sys.executable).with_name("rung")


@dataclass(frozen=True, kw_only=True)
class Container:
    """A running server: its URL, its environment, an administrator's key and Prometheus' own."""

    url: str
    environment: dict[str, str]
    api_key: str
    metrics_key: str


@pytest.fixture(scope="session")
def secret_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that docker/secrets.sh makes."""
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run(["sh", str(DOCKER / "secrets.sh"), str(folder)], check=True)
    return folder


def of_service(service: str, secret_files: Path, folder: Path) -> dict[str, str]:
    """What a service finds in its environment, with the container's paths put under `folder`."""
    told = {
        name: with_defaults(str(value))
        for name, value in compose()["services"][service]["environment"].items()
    }
    found = environment("Dockerfile", "rung") | told
    places = {
        "/run/secrets": str(secret_files),
        "/models": str(folder / "models"),
        "/runs": str(folder / "runs"),
        "/keys": str(folder / "keys"),
    }
    for name, value in found.items():
        for place, path in places.items():
            if value == place or value.startswith(f"{place}/"):
                found[name] = path + value.removeprefix(place)
    return found


@pytest.fixture(scope="session")
def container(secret_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The service `server`, without a queue of its own: it is alone, as where there is no Redis."""
    folder = tmp_path_factory.mktemp("container")
    publish_tiny_models(folder / "models")
    told = of_service("server", secret_files, folder) | {"RUNG_PORT": str(free_port())}
    del told["RUNG_REDIS_URL_FILE"]
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("RUNG_")}
    variables = inherited | told | {"RUNG_THREADS": "1"}
    made = subprocess.run(
        [str(RUNG), "keys", "create", "--name", "prometheus", "--scope", "score"],
        env=variables,
        check=True,
        capture_output=True,
        text=True,
    )
    entry, arguments = (last("Dockerfile", name, "rung").words for name in ("ENTRYPOINT", "CMD"))
    command = [*entry, *arguments]
    assert command[:3] == ["tini", "--", "rung"]
    process = subprocess.Popen([str(RUNG), *command[3:]], env=variables, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{told['RUNG_PORT']}"
    try:
        poll(lambda: answers(f"{url}/health/ready"), seconds=60, what="ready")
        yield Container(
            url=url,
            environment=variables,
            api_key=(secret_files / "api_keys").read_text().strip(),
            metrics_key=made.stdout.strip(),
        )
        # What `docker stop` sends, through tini.
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
