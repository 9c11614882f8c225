"""Prometheus scrapes the nodes, and the dashboard asks for nothing that nobody tells."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from kvstore.metrics.collector import Metrics, render
from kvstore.metrics.histogram import Histogram
from kvstore.metrics.rpc import RpcCounters
from kvstore.metrics.sources import HealthCounts, ServerStats, ShardStats, StoreStats
from kvstore.metrics.stalls import LoopStalls
from kvstore.transport.seam import Kind
from tests.unit.deploy import files

#: What Prometheus itself says of each target.
OF_PROMETHEUS = {"up"}


def collected() -> set[str]:
    """The names of all samples of a scrape."""
    rpc = RpcCounters(timed=True)
    rpc.of("/etcdserverpb.KV/Put", Kind.UNARY)
    stats = ServerStats(
        store=StoreStats(shards=[ShardStats("rest")]),
        alarms=["NOSPACE"],
        forwarded_total={"/etcdserverpb.KV/Put": 1},
    )
    loop = asyncio.new_event_loop()
    try:
        metrics = Metrics(lambda: stats, rpc, HealthCounts(), LoopStalls(loop), Histogram())
        text = render(metrics.freeze()).decode()
    finally:
        loop.close()
    return {s.name for family in text_string_to_metric_families(text) for s in family.samples}


def expressions() -> Iterator[str]:
    board = files.dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def names(expression: str) -> set[str]:
    """The metrics of a PromQL expression: what is left without labels, ranges and functions."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring) \([^)]*\)", " ", expression)
    bare = re.sub(r"label_values\((\w+), \w+\)", r"\1", bare)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", bare)
    return {word for word in words if word not in ("by", "sum", "max", "min", "avg")}


def test_names_are_found_in_expressions() -> None:
    rate = 'histogram_quantile(0.99, sum by (a, le) (rate(x_bucket{i=~"$i", b!="c"}[$__r])))'
    assert names(rate) == {"x_bucket"}
    assert names('max by (shard) (b{i="x"}) / sum (c:d) - e > 0') == {"b", "c:d", "e"}
    assert names("label_values(a_b, instance)") == {"a_b"}


def test_every_metric_of_the_dashboard_is_collected() -> None:
    asked = set().union(*map(names, expressions()))
    assert len(asked) > 30
    assert not asked - collected() - OF_PROMETHEUS


def test_panels_are_whole() -> None:
    board = files.dashboard()
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
    for expression in expressions():
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing)


def test_prometheus_scrapes_every_node() -> None:
    config = files.read_yaml(files.DEPLOY / "prometheus" / "prometheus.yml")
    assert set(config) == {"global", "scrape_configs"}
    (job,) = config["scrape_configs"]
    # The dashboard counts the nodes by it.
    assert job["job_name"] == "jotd"
    (static,) = job["static_configs"]
    nodes = [name for name in files.services() if name.startswith("jotd-")]
    assert static["targets"] == [f"{name}:2381" for name in nodes]


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    provisioning = files.DEPLOY / "grafana" / "provisioning"
    (source,) = files.read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    scraped = files.read_yaml(files.DEPLOY / "prometheus" / "prometheus.yml")["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]

    (provider,) = files.read_yaml(provisioning / "dashboards" / "jotd.yml")["providers"]
    grafana = files.services()["grafana"]
    mounted = {place: here for here, place, _ in (v.split(":") for v in grafana["volumes"])}
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted[home] == "./deploy/grafana/jotd.json"
    assert home.startswith(provider["options"]["path"] + "/")
    assert "/etc/grafana/provisioning" in mounted
