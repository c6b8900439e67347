"""Every metric and label that an alert or a panel asks for is one that a real server exposes."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from prm.registry import Registry
from server.services import Services
from server.settings import Settings
from tests.docker.conftest import Container
from tests.docker.files import DOCKER, load_yaml, panels, rules
from tests.docker.promql import grouping, selectors
from tests.factories import POLICY, PRM

# Labels that Prometheus adds to whatever it reads.
OF_PROMETHEUS = {"job", "instance"}
# They take a range, and only a range.
OF_RANGES = re.compile(r"\b(rate|increase|delta)\(")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and what it says."""
    for rule in rules():
        yield f"rules.yml: {rule['alert']}", rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield f"rung.json: {panel['title']}", target["expr"]
    board = json.loads((DOCKER / "grafana" / "dashboards" / "rung.json").read_text("utf-8"))
    for variable in board["templating"]["list"]:
        yield f"rung.json: ${variable['name']}", variable["definition"]


@pytest.fixture(scope="module")
def exposed(container: Container, tiny_models: Path) -> dict[str, set[str]]:
    """Labels by the name of a series, after a request of each kind."""
    with httpx2.Client(base_url=container.url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {container.api_key}"
        item = {"problem": "1+1", "steps": ["1+1=2"]}
        client.post("/v1/prm/score", json={"model": PRM, "items": [item]}).raise_for_status()
        search = {
            "problem": "1+1",
            "policy": POLICY,
            "prm": PRM,
            "strategy": {"type": "best_of_n", "n": 2},
            "sampling": {"max_tokens": 4},
        }
        client.post("/v1/search", json=search).raise_for_status()
        client.headers["Authorization"] = f"Bearer {container.metrics_key}"
        text = client.get("/metrics").raise_for_status().text
    found: dict[str, set[str]] = {"up": set()}
    # A server with a policy server has more.
    with_policy = Settings(models=tiny_models, policy_url="http://127.0.0.1:1")
    more = Services(with_policy, Registry.open(tiny_models)).telemetry.registry
    text += generate_latest(more).decode()
    for family in text_string_to_metric_families(text):
        for name in _series_of(family):
            found.setdefault(name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _series_of(family: Metric) -> list[str]:
    return [family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_what_is_asked_for_is_exposed(
    where: str, expression: str, exposed: dict[str, set[str]]
) -> None:
    # label_values(SERIES, LABEL) names a label like a series.
    asked = [s for s in selectors(expression) if s.metric not in OF_PROMETHEUS]
    assert asked, f"{where} asks for nothing"
    for selector in asked:
        assert selector.metric in exposed, f"{where}: nobody exposes {selector.metric}"
        labels = exposed[selector.metric] | OF_PROMETHEUS
        # A series that nothing has happened to yet shows no labels.
        if exposed[selector.metric]:
            assert selector.labels <= labels, f"{where}: {selector.labels - labels}"
    with_labels = [exposed[s.metric] for s in asked if exposed[s.metric]]
    if len(with_labels) == len(asked):
        grouped = grouping(expression) - OF_PROMETHEUS
        assert grouped <= set().union(*with_labels), f"{where}: nobody has {grouped}"


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_counters_are_asked_for_their_rates(where: str, expression: str) -> None:
    if expression.startswith("label_values"):
        return
    counted = len(OF_RANGES.findall(expression))
    asked = selectors(expression)
    assert sum(s.has_range for s in asked) == counted, where
    for selector in asked:
        if selector.metric.endswith(("_total", "_bucket", "_sum", "_count")):
            assert selector.has_range, f"{where}: {selector.metric} only ever grows"
    if "histogram_quantile" in expression:
        assert "le" in grouping(expression), f"{where}: quantiles need le"


@pytest.mark.parametrize(
    "expression",
    ["sum(rate(a[5m])", "sum by (le) rate(a[5m]))", "a{b='c'}", "rtae(a[5m])", "a / ", "a[5m"],
)
def test_a_slip_of_the_pen_is_seen(expression: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        selectors(expression)


def test_prometheus_reads_with_its_own_key(container: Container) -> None:
    metrics = f"{container.url}/metrics"
    assert httpx2.get(metrics).status_code == 401
    key = {"Authorization": f"Bearer {container.metrics_key}"}
    assert httpx2.get(metrics, headers=key).status_code == 200
    assert httpx2.post(f"{container.url}/v1/search", headers=key, json={}).status_code == 403


def test_prometheus_configuration_names_what_compose_mounts() -> None:
    configuration = load_yaml(DOCKER / "prometheus" / "prometheus.yml")
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    assert set(jobs) == {"rung", "policy", "prometheus"}
    assert jobs["rung"]["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    assert all((DOCKER / "prometheus" / name).is_file() for name in configuration["rule_files"])


def test_alerts_say_what_happened_and_how_bad_it_is() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert {"summary", "description"} == set(rule["annotations"]), rule["alert"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_promtool_takes_the_rules() -> None:
    subprocess.run(
        ["promtool", "check", "rules", str(DOCKER / "prometheus" / "rules.yml")], check=True
    )
