"""What Grafana is given: a data source, a dashboard whose panels can be read and do not overlap."""

import itertools
from typing import Any

from tests.docker.files import DOCKER, compose, load_yaml, panels

PROVISIONING = DOCKER / "grafana" / "provisioning"
# Of Grafana's list of units, those that are used here.
UNITS = {"none", "short", "s", "percentunit", "reqps"}


def _drawn() -> list[dict[str, Any]]:
    return [panel for panel in panels() if panel["type"] != "row"]


def test_every_panel_says_what_it_shows_in_which_unit() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert len({panel["title"] for panel in panels()}) == len(panels())
    for panel in _drawn():
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references, panel["title"]
        assert len(set(references)) == len(references), panel["title"]


def test_no_panel_lies_on_another() -> None:
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels()], 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above, (one, other)


def test_panels_ask_the_data_source_that_is_provisioned() -> None:
    (source,) = load_yaml(PROVISIONING / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose()["services"]
    for panel in _drawn():
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_the_dashboards_lie_where_grafana_looks() -> None:
    (provider,) = load_yaml(PROVISIONING / "dashboards" / "rung.yaml")["providers"]
    mounted = dict(v.split(":")[:2][::-1] for v in compose()["services"]["grafana"]["volumes"])
    assert (DOCKER / mounted[provider["options"]["path"]] / "rung.json").is_file()
    assert (DOCKER / mounted["/etc/grafana/provisioning"]) == PROVISIONING
