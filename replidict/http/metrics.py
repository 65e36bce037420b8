"""What Prometheus may ask for: figures of the requests, and those of the node that `contrib.prometheus` collects.

Labels have few values: unknown routes and methods count as `other`, and no label ever holds a key.
"""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replidict.api.replicated_dict import ReplicatedDict
from replidict.contrib.prometheus import Collector
from replidict.http.request_parameters import path_of
from replidict.http.status_page import FOLDER

METHODS = {"GET", "HEAD", "PUT", "DELETE", "POST"}
ROUTES = {
    "/", "/live", "/kv", "/transaction", "/watch", "/status", "/members", "/locks", "/healthz", "/readyz", "/metrics",
}  # fmt: skip
"""What is served, and `/kv/{key}` and `/page/{file}`."""
STREAMS = {"/watch", "/live"}
"""They go on as long as the client likes: how long that is tells nothing."""
OTHER = "other"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one node, in a registry of their own."""

    def __init__(self, d: ReplicatedDict[Any, Any]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(Collector(d))
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
