"""GET /metrics for Prometheus: request counts and times, and the numbers of `status()`.

Labels have few values: unknown routes and methods count as `other`, and no label ever holds a key.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, get_args, get_type_hints

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from replidict.api.replicated_dict import ReplicatedDict
from replidict.http.request_parameters import path_of
from replidict.http.status_page import FOLDER
from replidict.status import Status

METHODS = {"GET", "HEAD", "PUT", "DELETE", "POST"}
ROUTES = {
    "/", "/live", "/kv", "/transaction", "/watch", "/status", "/members", "/locks", "/healthz", "/readyz", "/metrics",
}  # fmt: skip
"""What is served, and `/kv/{key}` and `/page/{file}`."""
STREAMS = {"/watch", "/live"}
"""They go on as long as the client likes: how long that is tells nothing."""
OTHER = "other"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

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


class Metrics:
    """The metrics of one node, in a registry of their own."""

    def __init__(self, d: ReplicatedDict[Any, Any]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(d))
        ProcessCollector(registry=self._registry)
        labels = ["method", "route"]
        self._requests = Counter(
            "replidict_http_requests", "Requests answered", [*labels, "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "replidict_http_request_seconds",
            "From the head of a request to the end of its answer",
            labels,
            registry=self._registry,
            buckets=BUCKETS,
        )
        self._under_way = Gauge("replidict_http_requests_under_way", "Requests not answered", registry=self._registry)

    def page(self, accept: str) -> tuple[bytes, str]:
        """The figures in the format that suits this Accept header, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def measured(self, app: ASGIApp) -> ASGIApp:
        """Wrap an app so that its requests are counted."""

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 500

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            began = time.perf_counter()
            self._under_way.inc()
            try:
                await app(scope, receive, noting)
            finally:
                self._under_way.dec()
                method = scope["method"] if scope["method"] in METHODS else OTHER
                route = _route(path_of(scope))
                self._requests.labels(method, route, str(status)).inc()
                if route not in STREAMS:
                    self._seconds.labels(method, route).observe(time.perf_counter() - began)

        return counting


def _route(path: str) -> str:
    for folder, route in (("/kv/", "/kv/{key}"), (FOLDER, "/page/{file}")):
        if path.startswith(folder):
            return route
    return path if path in ROUTES else OTHER


class _Engine(Collector):
    """Collects the numbers of `status()` when they are requested."""

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
        waiters, expired = self._dict.waiting_and_expired()
        yield GaugeMetricFamily("replidict_lock_waiters", "Requests that wait for a lock or a permit", waiters)
        yield CounterMetricFamily("replidict_expired", "Keys and leases that this node saw expire", expired)
        yield GaugeMetricFamily("replidict_has_leader", "Whether this node knows a leader", status.leader is not None)
        yield GaugeMetricFamily("replidict_peers", "Other members", len(status.peers))
        yield GaugeMetricFamily("replidict_peers_connected", "Other members it is connected to", len(status.connected))
        role = GaugeMetricFamily("replidict_role", "1 for the role of this node, 0 for the others", labels=["role"])
        for each in ROLES:
            role.add_metric([each], each == status.role)
        yield role
        about = {
            "version": version("replidict"),
            "address": status.address or "",
            "node_id": status.node_id,
            "cluster_id": status.cluster_id,
        }
        yield InfoMetricFamily("replidict_node", "Which node this is", value=about)
