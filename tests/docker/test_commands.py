"""Every command that an image or a service runs, run here without an engine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.docker.conftest import RUNG, Container, of_service
from tests.docker.files import DOCKER, DOCKERFILES, compose, environment, last
from tests.factories import publish_tiny_models
from tests.server.conftest import free_port, poll

HEALTHCHECK = [sys.executable, "-I", str(DOCKER / "healthcheck.py")]


def test_the_health_check_passes_on_a_ready_server(container: Container) -> None:
    assert subprocess.run(HEALTHCHECK, env=container.environment).returncode == 0
    named = [*HEALTHCHECK, f"{container.url}/health/live"]
    assert subprocess.run(named, env={"RUNG_PORT": "1"}).returncode == 0


@pytest.mark.parametrize("url", ["{}/v1/models", "{}/nope", "http://127.0.0.1:1/health", "no URL"])
def test_the_health_check_fails_on_everything_else(url: str, container: Container) -> None:
    done = subprocess.run([*HEALTHCHECK, url.format(container.url)], capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_health_check_asks_no_proxy(container: Container) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    assert subprocess.run(HEALTHCHECK, env=container.environment | proxies).returncode == 0


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_without_keys_refuses_to_be_reached_by_all(name: str, tmp_path: Path) -> None:
    told = environment(name, "rung") | {"RUNG_KEYS_FILE": str(tmp_path / "keys.json")}
    command = last(name, "ENTRYPOINT", "rung").words[3:] + last(name, "CMD", "rung").words
    done = subprocess.run(
        [str(RUNG), *command],
        env={"PATH": os.environ["PATH"], "HOME": "/tmp"} | told,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "without API keys would let anyone in" in done.stderr


@pytest.fixture(scope="module")
def valkey(
    secret_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The service `valkey` by its own script; Redis stands in where there is no Valkey."""
    programs = tmp_path_factory.mktemp("programs")
    for program in ("server", "cli"):
        found = shutil.which(f"valkey-{program}") or shutil.which(f"redis-{program}")
        if found is None:
            assert os.environ.get("RUNG_REDIS") != "required", "no redis-server is installed"
            pytest.skip(f"neither valkey-{program} nor redis-{program} is installed")
        (programs / f"valkey-{program}").symlink_to(found)
    told = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "VALKEY_PORT": str(free_port()),
        "VALKEY_PASSWORD_FILE": str(secret_files / "valkey_password"),
        "VALKEY_DATA": str(tmp_path_factory.mktemp("data")),
        "VALKEY_RUN": str(tmp_path_factory.mktemp("run")),
        **compose()["services"]["valkey"]["environment"],
    }
    script, check = DOCKER / "valkey.sh", ["/bin/sh", str(DOCKER / "valkey-healthy.sh")]
    process = subprocess.Popen(
        ["/bin/sh", str(script)], env=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        poll(
            lambda: subprocess.run(check, env=told, capture_output=True).returncode == 0,
            seconds=20,
            what="valkey",
        )
        yield told
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.redis
def test_valkey_asks_for_its_password_and_keeps_what_it_has(
    valkey: dict[str, str], secret_files: Path, tmp_path: Path
) -> None:
    password = (secret_files / "valkey_password").read_text().strip()
    with Redis(port=int(valkey["VALKEY_PORT"]), password=password) as redis:
        told = redis.config_get("*")
        assert isinstance(told, dict)
    assert told["appendonly"] == "yes"
    assert told["maxmemory-policy"] == "noeviction"
    assert int(told["maxmemory"]) == 192 << 20
    (tmp_path / "wrong").write_text("wrong")
    check = ["/bin/sh", str(DOCKER / "valkey-healthy.sh")]
    wrong = valkey | {"VALKEY_PASSWORD_FILE": str(tmp_path / "wrong")}
    assert subprocess.run(check, env=wrong, capture_output=True).returncode != 0


@pytest.mark.redis
def test_no_argument_of_valkey_tells_its_password(
    valkey: dict[str, str], secret_files: Path
) -> None:
    password = (secret_files / "valkey_password").read_text().strip()
    with Redis(port=int(valkey["VALKEY_PORT"]), password=password) as redis:
        process = redis.info("server")["process_id"]
    assert password.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.mark.redis
def test_a_worker_starts_as_its_service_does_and_ends_when_told(
    valkey: dict[str, str], secret_files: Path, tmp_path: Path
) -> None:
    publish_tiny_models(tmp_path / "models")
    told = of_service("worker", secret_files, tmp_path)
    url = (secret_files / "redis_url").read_text().strip()
    here = url.replace("valkey:6379", f"127.0.0.1:{valkey['VALKEY_PORT']}")
    (tmp_path / "redis_url").write_text(here)
    told["RUNG_REDIS_URL_FILE"] = str(tmp_path / "redis_url")
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("RUNG_")}
    log = tmp_path / "log"
    command = [str(RUNG), *compose()["services"]["worker"]["command"]]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, env=inherited | told, stderr=stderr)
        try:
            # With the password that it was given; others are not let in, and not listed.
            with Redis.from_url((tmp_path / "redis_url").read_text()) as redis:
                poll(
                    lambda: process.poll() is not None or len(redis.client_list()) > 1,
                    seconds=30,
                    what=f"worker; {log.read_text()}",
                )
            assert process.poll() is None, log.read_text()
            process.terminate()
            assert process.wait(timeout=30) in (0, -15), log.read_text()
        finally:
            process.kill()
            process.wait()


def test_the_policy_script_serves_the_folder_by_vllm_with_the_key_of_a_file(
    tmp_path: Path,
) -> None:
    # A Python that prints what it was started with; `make test-vllm` starts vLLM itself by it.
    show = '#!/bin/sh\necho "$VLLM_API_KEY" "$@"\n'
    (tmp_path / "python").write_text(show)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "key").write_text("k-1\n")
    told = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "POLICY_MODEL": "/models/a/1",
        "POLICY_NAME": "a",
        "POLICY_API_KEY_FILE": str(tmp_path / "key"),
    }
    script = ["/bin/sh", str(DOCKER / "policy.sh"), "--max-num-batched-tokens=32768"]
    done = subprocess.run(script, env=told, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [
        *("k-1", "-m", "vllm.entrypoints.openai.api_server", "--host", "0.0.0.0", "--port", "8000"),
        *("--model", "/models/a/1", "--served-model-name", "a", "--max-num-batched-tokens=32768"),
    ]
    del told["POLICY_NAME"]
    missing = subprocess.run(script, env=told, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "the name to serve it under" in missing.stderr
