"""The policy server's container: its script with a real vLLM, its own health check, its key."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.docker.files import DOCKER, ROOT, compose, environment, with_defaults
from tests.server.conftest import free_port, poll

PYTHON = Path(os.environ.get("RUNG_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))


@pytest.mark.vllm
@pytest.mark.slow
def test_the_service_serves_the_bundled_policy_to_who_has_its_key(
    secret_files: Path, tmp_path: Path
) -> None:
    if not PYTHON.is_file():
        pytest.skip(f"no vLLM: {PYTHON} does not exist; set RUNG_VLLM to the Python that has it")
    service = compose()["services"]["policy-cpu"]
    told = {name: with_defaults(value) for name, value in service["environment"].items()}
    inherited = {"PATH": f"{PYTHON.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    variables = {
        **inherited,
        **environment("Dockerfile", "base"),
        **inherited,
        **environment("Dockerfile", "policy-cpu"),
        **told,
        "POLICY_MODEL": told["POLICY_MODEL"].replace("/models", str(ROOT / "models")),
        "POLICY_API_KEY_FILE": str(secret_files / "policy_api_key"),
        "POLICY_HOST": "127.0.0.1",
        "POLICY_PORT": (port := str(free_port())),
    }
    url = f"http://127.0.0.1:{port}"
    check = [sys.executable, "-I", str(DOCKER / "healthcheck.py"), f"{url}/health"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            # What is compiled is vLLM's affair, and takes a minute.
            ["/bin/sh", str(DOCKER / "policy.sh"), *service["command"], "--enforce-eager"],
            env=variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            poll(
                lambda: process.poll() is not None or subprocess.run(check).returncode == 0,
                seconds=480,
                what="vLLM",
            )
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert httpx2.get(f"{url}/v1/models").status_code == 401
            key = (secret_files / "policy_api_key").read_text().strip()
            headers = {"Authorization": f"Bearer {key}"}
            listed = httpx2.get(f"{url}/v1/models", headers=headers).raise_for_status().json()
            assert [model["id"] for model in listed["data"]] == [told["POLICY_NAME"]]
            request = {"model": told["POLICY_NAME"], "prompt": "1+1", "max_tokens": 4}
            made = httpx2.post(f"{url}/v1/completions", json=request, headers=headers, timeout=60)
            assert made.raise_for_status().json()["usage"]["completion_tokens"] >= 1
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
