"""The compose files: known keys, things that exist, no more rights than are needed."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.docker.files import DOCKER, compose, with_defaults

# Of the compose specification, what is used here; a misspelt key is one that is not among these.
SECOND = r"^\d+(s|m|h)$"


class Closed(BaseModel):
    """Unknown keys fail."""

    model_config = ConfigDict(extra="forbid")


class Build(Closed):
    """How an image is built."""

    context: Literal[".."]
    dockerfile: str
    target: str


class HealthCheck(Closed):
    """A command in exec form and its times, or none."""

    test: list[str] | None = None
    interval: str | None = Field(None, pattern=SECOND)
    timeout: str | None = Field(None, pattern=SECOND)
    start_period: str | None = Field(None, pattern=SECOND)
    start_interval: str | None = Field(None, pattern=SECOND)
    retries: int | None = None
    disable: bool = False


class Depends(Closed):
    """What another service waits for."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Limits(Closed):
    """The most that a service gets."""

    cpus: str | int
    memory: str = Field(pattern=r"^(\$\{\w+:-)?\d+[mg]\}?$")
    pids: int


class Device(Closed):
    """A GPU."""

    driver: Literal["nvidia"]
    count: int
    capabilities: list[Literal["gpu"]]


class Reservations(Closed):
    """What is set aside."""

    devices: list[Device]


class Resources(Closed):
    """See compose's deploy.resources."""

    limits: Limits
    reservations: Reservations | None = None


class Deploy(Closed):
    """See compose's deploy."""

    resources: Resources


class Logging(Closed):
    """Where the log goes."""

    driver: str
    options: dict[str, str]


class Service(Closed):
    """A service of compose.yaml; the fields without a default stand in each of them."""

    image: str
    user: str = Field(pattern=r"^[1-9]\d*:\d+$")
    read_only: Literal[True]
    cap_drop: list[Literal["ALL"]] = Field(min_length=1)
    security_opt: list[str]
    restart: Literal["unless-stopped"]
    logging: Logging
    deploy: Deploy
    networks: list[str] | dict[str, dict[str, list[str]]]
    healthcheck: HealthCheck | None = None
    build: Build | None = None
    profiles: list[str] = []
    entrypoint: list[str] = []
    command: list[str] = []
    environment: dict[str, str] = {}
    secrets: list[str] = []
    volumes: list[str] = []
    tmpfs: list[str] = []
    shm_size: str | None = None
    ports: list[str] = []
    stop_grace_period: str | None = Field(None, pattern=SECOND)
    depends_on: dict[str, Depends] = {}


def services() -> dict[str, Service]:
    """All of compose.yaml."""
    found: dict[str, Any] = compose()["services"]
    return {name: Service.model_validate(service) for name, service in found.items()}


def test_every_service_is_confined_and_limited() -> None:
    assert set(services()) == {
        *("server", "worker", "valkey", "policy", "policy-cpu", "prometheus", "grafana")
    }
    for name, service in services().items():
        assert "no-new-privileges:true" in service.security_opt, name
        assert not any("unconfined" in option for option in service.security_opt), name


def test_every_service_tells_its_health_or_why_not() -> None:
    for name, service in services().items():
        check = service.healthcheck
        if name == "server":
            assert check is None, "the image's own check stands"
        elif name == "worker":
            assert check is not None
            assert check.disable, "it listens on no port"
        else:
            assert check is not None, name
            assert check.test is not None, name
            assert check.test[0] == "CMD", name


def test_what_services_name_is_declared() -> None:
    whole = compose()
    for name, service in services().items():
        assert set(service.secrets) <= set(whole["secrets"]), name
        assert set(service.networks) <= set(whole["networks"]), name
        for waited, how in service.depends_on.items():
            other = services()[waited]
            has_check = waited == "server" or (other.healthcheck and other.healthcheck.test)
            assert how.condition != "service_healthy" or has_check, (name, waited)
            assert not other.profiles, f"{name} would wait for {waited}, which may not be started"
        for volume in service.volumes:
            source = volume.split(":")[0]
            assert source in whole["volumes"] or (DOCKER / source).exists(), (name, volume)
        if service.build is not None:
            assert (DOCKER / service.build.context / service.build.dockerfile).is_file(), name
    used = {s for service in services().values() for s in service.secrets}
    assert used == set(whole["secrets"])


def test_images_of_others_are_pinned() -> None:
    for name, service in services().items():
        if service.build is None:
            assert re.search(r":v?\d+\.\d+\.\d+", service.image), name


def test_secrets_are_files_that_are_made_and_never_variables(secret_files: Path) -> None:
    for secret, source in compose()["secrets"].items():
        assert source == {"file": f"./secrets/{secret}"}
        # Made by `rung keys create`, since the server has to know it.
        if secret != "metrics_key":
            made = secret_files / secret
            assert len(made.read_text().strip()) >= 32, secret
            assert made.stat().st_mode & 0o777 == 0o644, secret
    assert secret_files.stat().st_mode & 0o777 == 0o700
    for name, service in services().items():
        for variable, value in service.environment.items():
            if re.search(r"(_KEYS?|PASSWORD|REDIS_URL)(_FILE|__FILE)?$", variable):
                assert value.startswith("/run/secrets/"), (name, variable)
                assert value.rpartition("/")[2] in service.secrets, (name, variable)


def test_secrets_are_made_once(secret_files: Path) -> None:
    before = {file.name: file.read_text() for file in secret_files.iterdir()}
    subprocess.run(["sh", str(DOCKER / "secrets.sh"), str(secret_files)], check=True)
    assert {file.name: file.read_text() for file in secret_files.iterdir()} == before
    assert before["valkey_password"].strip() in before["redis_url"]


def test_secrets_stay_out_of_git_and_out_of_images() -> None:
    ignored = (DOCKER.parent / ".gitignore").read_text().splitlines()
    assert {"/docker/secrets/", "/docker/.env"} <= set(ignored)
    kept = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    assert "*" in kept
    assert not any("secrets" in line for line in kept)


def test_only_loopback_is_published_by_default() -> None:
    for name, service in services().items():
        for port in service.ports:
            assert with_defaults(port).startswith("127.0.0.1:"), name
    assert services()["valkey"].networks == ["inside"]
    assert compose()["networks"]["inside"] == {"internal": True}


def test_every_variable_has_a_default_and_is_explained() -> None:
    explained = set(re.findall(r"^#?(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    used = set()
    for file in DOCKER.glob("compose*.yaml"):
        text = file.read_text()
        assert not re.findall(r"\$\{\w+\}|\$\w", text), f"{file.name}: a variable without default"
        used |= set(re.findall(r"\$\{(\w+):-", text))
    assert used == explained - {"COMPOSE_PROFILES"}


@pytest.mark.parametrize("name", ["compose.gpu.yaml", "compose.code.yaml"])
def test_what_is_laid_over_changes_services_that_there_are(name: str) -> None:
    changed = compose(name)["services"]
    assert set(changed) == {"server", "worker"}
    assert set(changed["server"]) <= {"image", "build", "tmpfs", "deploy", "security_opt"}
    for option in changed["server"].get("security_opt", []):
        kind, _, value = option.partition(":")
        assert kind == "apparmor" or (DOCKER / value).is_file()


def test_docker_itself_takes_the_files(tmp_path: Path) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("no docker client with compose")
    for more in ([], ["compose.gpu.yaml"], ["compose.code.yaml"]):
        files = [part for name in ["compose.yaml", *more] for part in ("-f", str(DOCKER / name))]
        done = subprocess.run(
            ["docker", "compose", *files, "--profile", "*", "config", "--quiet"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
