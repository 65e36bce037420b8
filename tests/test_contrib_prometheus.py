"""The collector for Prometheus: the figures of `GET /metrics`, of a node in one's own process."""

from __future__ import annotations

import doctest
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from replidict import ReplicatedDict
from replidict.contrib.prometheus import Collector
from replidict.http import asgi
from replidict.testing import Cluster

Dict = ReplicatedDict[str, Any]


def families(text: str) -> dict[str, tuple[str, str, list[tuple[dict[str, str], float]]]]:
    """What a page of figures says: kind, meaning, and samples with their labels, by name."""
    return {
        family.name: (family.type, family.documentation, [(sample.labels, sample.value) for sample in family.samples])
        for family in text_string_to_metric_families(text)
    }


def collected(d: Dict) -> dict[str, tuple[str, str, list[tuple[dict[str, str], float]]]]:
    registry = CollectorRegistry()
    registry.register(Collector(d))
    return families(generate_latest(registry).decode())


def test_the_figures_are_those_of_metrics(replidict_dict: Dict) -> None:
    """What an embedded node's program exports has the names, kinds, labels and values of `GET /metrics`."""
    replidict_dict.update(a=1, b=2)
    with replidict_dict.lock("x"):
        mine = collected(replidict_dict)
        with TestClient(asgi(replidict_dict), base_url="http://localhost") as client:
            served = families(client.get("/metrics").text)
    of_http = {name for name in served if name.startswith(("replidict_http_", "process_"))}
    changing = {"replidict_watchers"} | {name for name in mine if "digest" in name or "scrub" in name}
    assert set(mine) == set(served) - of_http
    assert {name for name in mine if mine[name][:2] != served[name][:2]} == set()
    assert {name for name in set(mine) - changing if mine[name] != served[name]} == set()
    assert mine["replidict_keys"][2] == [({}, 2.0)] and mine["replidict_locks"][2] == [({}, 1.0)]
    assert [labels["role"] for labels, value in mine["replidict_role"][2] if value] == ["leader"]


def test_nodes_are_told_apart(replidict_cluster: Cluster) -> None:
    """Each node has its address in its figures, one of them leads, and all know a leader."""
    pages = [collected(replidict_cluster[i]) for i in range(3)]
    (addresses,) = [{page["replidict_node_info"][2][0][0]["address"] for page in pages}]
    roles = [labels["role"] for page in pages for labels, value in page["replidict_role"][2] if value]
    assert len(addresses) == 3 and sorted(roles) == ["follower", "follower", "leader"]
    assert [page["replidict_has_leader"][2] for page in pages] == [[({}, 1.0)]] * 3


def test_a_closed_dict_is_told_as_stopped(replidict_dict: Dict) -> None:
    """A program that has closed its dict goes on exporting, and says that the node has stopped."""
    replidict_dict.close()
    page = collected(replidict_dict)
    assert [labels["role"] for labels, value in page["replidict_role"][2] if value] == ["stopped"]


def test_the_example_of_the_docstring(replidict_dict: Dict) -> None:
    """The example in the docstring of the collector does what it says."""
    names = {"d": replidict_dict, "Collector": Collector}
    (example,) = doctest.DocTestFinder(recurse=False).find(Collector, globs=names)
    assert doctest.DocTestRunner().run(example).failed == 0
