"""Listings, health, metrics, keys: what those who run a server rely on."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.auth import Keys
from server.key_file import KeyFile
from tests.factories import POLICY, PRM
from tests.server.conftest import HTTP, rung_serve

SCORE = {"model": PRM, "items": [{"problem": "1+1", "steps": ["1+1=2"]}]}


def test_models_are_listed_in_openais_shape(http: httpx2.Client) -> None:
    listing = http.get("/v1/models").json()
    assert listing["object"] == "list"
    assert {(m["id"], m["kind"], m["object"]) for m in listing["data"]} == {
        (POLICY, "policy", "model"),
        (PRM, "prm", "model"),
    }


def test_one_model_can_be_asked_for(http: httpx2.Client) -> None:
    assert http.get(f"/v1/models/{PRM}").json()["kind"] == "prm"
    missing = http.get("/v1/models/nope")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_prms_are_listed_with_their_versions(http: httpx2.Client) -> None:
    (prm,) = http.get("/v1/prm/models").json()["data"]
    assert (prm["id"], prm["family"], prm["live"]) == (PRM, "implicit", "1")
    assert [(v["id"], v["state"]) for v in prm["versions"]] == [("1", "live")]
    assert http.get(f"/v1/prm/models/{PRM}").json() == prm
    assert http.get("/v1/prm/models/nope").status_code == 404


def test_health_and_docs_answer(http: httpx2.Client) -> None:
    assert http.get("/health/live").json() == {"status": "alive"}
    ready = http.get("/health/ready").json()
    assert (ready["status"], ready["device"], ready["dtype"]) == ("ready", "cpu", "float32")
    assert "swagger" in http.get("/docs").text.lower()
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/prm/score", "/v1/search", "/v1/models", "/v1/prm/models"} <= set(paths)
    described = paths["/v1/prm/score"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "422", "429", "503"} <= set(described)
    assert described["422"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorBody")


def test_every_answer_has_a_request_id(http: httpx2.Client) -> None:
    ids = {http.get("/health/live").headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2


def test_metrics_count_requests_tokens_and_steps_by_version(http: httpx2.Client) -> None:
    def read() -> defaultdict[tuple[str, ...], float]:
        totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for family in text_string_to_metric_families(http.get("/metrics").text):
            for s in family.samples:
                keys = ("model", "version", "kind", "handler")
                totals[(s.name, *(s.labels.get(key, "") for key in keys))] += s.value
        return totals

    before = read()
    http.post("/v1/prm/score", json=SCORE).raise_for_status()
    after = read()

    def grown(*key: str) -> float:
        return after[key] - before[key]

    assert grown("rung_scored_steps_total", PRM, "1", "", "") == 1
    assert grown("rung_tokens_total", PRM, "1", "prompt", "") == 11
    tokens = [grown("rung_tokens_total", PRM, "1", kind, "") for kind in ("scored", "cached")]
    assert sum(tokens) == 22
    assert grown("rung_queue_seconds_count", PRM, "1", "", "") == 1
    assert grown("rung_request_seconds_count", PRM, "1", "score", "") == 1
    assert grown("http_requests_total", "", "", "", "/v1/prm/score") == 1
    assert grown("http_request_duration_seconds_count", "", "", "", "/v1/prm/score") == 1
    assert after["rung_engine_ready", "", "", "", ""] == 1


def test_keys_are_asked_for_where_there_are_keys(tiny_models: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    scorer = keys.create("scorer", ["score"])
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert scorer not in (tmp_path / "keys.json").read_text()
    with rung_serve(
        tiny_models, RUNG_API_KEYS="first, second", RUNG_KEYS_FILE=str(tmp_path / "keys.json")
    ) as server:

        def post(path: str, key: str | None) -> httpx2.Response:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return HTTP.post(f"{server.url}{path}", json=SCORE, headers=headers)

        assert post("/v1/prm/score", "first").status_code == 200
        assert post("/v1/prm/score", "second").status_code == 200
        assert post("/v1/prm/score", scorer).status_code == 200
        refused = post("/v1/prm/score", None)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        wrong = post("/v1/prm/score", "third")
        assert wrong.status_code == 401
        assert "third" not in wrong.text
        search = {"policy": POLICY, "problem": "1"}
        forbidden = HTTP.post(
            f"{server.url}/v1/search", json=search, headers={"Authorization": f"Bearer {scorer}"}
        )
        assert forbidden.status_code == 403
        assert HTTP.get(f"{server.url}/metrics").status_code == 401
        assert HTTP.get(f"{server.url}/health/live").status_code == 200
        # Revoked keys stop working in a running server.
        (record,) = keys.list()
        assert keys.revoke(record.id)
        assert post("/v1/prm/score", scorer).status_code == 401


def test_the_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    keys = Keys([], file, is_loopback=True)
    assert not keys.are_required
    assert Keys([], file, is_loopback=False).are_required
    key = file.create("a", ["search"])
    record = keys.find(key)
    assert record is not None
    assert record.allows("search")
    assert not record.allows("admin")
    (tmp_path / "keys.json").write_text("[{")
    assert keys.find(key) is not None


def test_revoking_the_last_key_locks_the_server(tiny_models: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.create("only", ["score"])
    with rung_serve(tiny_models, RUNG_KEYS_FILE=str(tmp_path / "keys.json")) as server:

        def status() -> int:
            headers = {"Authorization": f"Bearer {key}"}
            answer = HTTP.get(f"{server.url}/v1/models", headers=headers)
            return answer.status_code

        assert status() == 200
        assert file.revoke(file.list()[0].id)
        assert status() == 401
        (tmp_path / "keys.json").unlink()
        assert status() == 401


def serve(models: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "serve", f"--models={models}", *options],
        env=os.environ | {"RUNG_KEYS_FILE": "/nonexistent"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_an_open_address_without_keys_is_refused(tiny_models: Path, host: str) -> None:
    done = serve(tiny_models, f"--host={host}")
    assert done.returncode == 2
    assert "without API keys" in done.stderr


def test_a_bad_folder_ends_serve_with_2_and_the_files_name(
    tiny_models: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    weights = root / PRM / "1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    done = serve(root)
    assert done.returncode == 2
    assert f"{weights}: its SHA-256 is" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_template_that_is_missing_ends_serve_with_2(tiny_models: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    folder = root / POLICY / "1"
    (folder / "chat_template.jinja").unlink()
    content = json.loads((folder / "manifest.json").read_text())
    del content["files"]["chat_template.jinja"]
    (folder / "manifest.json").write_text(json.dumps(content))
    done = serve(root)
    assert done.returncode == 2
    assert "chat_template.jinja: no chat template" in done.stderr
    assert "Traceback" not in done.stderr


def test_golden_scores_that_do_not_come_out_end_serve_with_2(
    tiny_models: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    manifest = root / PRM / "1" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["golden"][0]["raw"][0] += 1
    manifest.write_text(json.dumps(content))
    done = serve(root, "--port=0")
    assert done.returncode == 2
    assert f"{manifest}: golden score 0, number 0" in done.stderr
