"""A collector for `prometheus_client`: the figures of a node that runs in your own process.

They have the names that `GET /metrics` of `replidict serve` has, which takes them from here. Labels take few values: no
key is ever in one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

from prometheus_client import registry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from typing_extensions import override

from replidict import ReplicatedDict, Status, __version__

ROLES = get_args(get_type_hints(Status)["role"])
GAUGES = {
    "term": "Raft term",
    "commit_index": "Last log entry known to be on a majority's disks",
    "applied_index": "Last log entry that this node's copy includes",
    "revision": "Changes that this node's copy includes",
    "keys": "Keys in the dict",
    "leases": "Leases that have not ended",
    "locks": "Who holds a lock or a permit of a semaphore",
    "log_entries": "Log entries kept on disk",
    "log_bytes": "Bytes of the log entries kept on disk",
    "feature_level": "Feature level of the cluster, as far as this node knows",
    "watchers": "Open watches",
    "digest_index": "Last log entry at which the digest of this node's state was made",
    "differing": "Members whose state is known to differ from this node's, while no majority says who is right",
}


class Collector(registry.Collector):
    """What `status()` says of a dict's node, at the moment it is asked for.

    Args:
        d: The dict. Two dicts of a process need a registry each.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> registry = CollectorRegistry()
        >>> registry.register(Collector(d))
        >>> d["greeting"] = "hello"
        >>> registry.get_sample_value("replidict_keys")
        1
    """

    def __init__(self, d: ReplicatedDict[Any, Any]) -> None:
        self._dict = d

    @override
    def collect(self) -> Iterable[Metric]:
        status = self._dict.status()
        for name, meaning in GAUGES.items():
            yield GaugeMetricFamily(f"replidict_{name}", meaning, value=getattr(status, name))
        yield CounterMetricFamily(
            "replidict_scrub_passes", "How often this node read its whole file in the background", status.scrub_passes
        )
        yield CounterMetricFamily(
            "replidict_scrub_bytes", "Bytes that this node read of its file in the background", status.scrub_bytes
        )
        yield GaugeMetricFamily("replidict_lock_waiters", "Requests that wait for a lock or a permit", status.waiting)
        yield CounterMetricFamily("replidict_expired", "Keys and leases that this node saw expire", status.expired)
        yield GaugeMetricFamily("replidict_has_leader", "Whether this node knows a leader", status.leader is not None)
        yield GaugeMetricFamily("replidict_peers", "Other members", len(status.peers))
        yield GaugeMetricFamily("replidict_peers_connected", "Other members it is connected to", len(status.connected))
        role = GaugeMetricFamily("replidict_role", "1 for the role of this node, 0 for the others", labels=["role"])
        for each in ROLES:
            role.add_metric([each], each == status.role)
        yield role
        about = {
            "version": __version__,
            "address": status.address or "",
            "node_id": status.node_id,
            "cluster_id": status.cluster_id,
        }
        yield InfoMetricFamily("replidict_node", "Which node this is", value=about)
