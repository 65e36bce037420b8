"""Runs one node and its HTTP server as a process.

Rules kept here:

1. SIGTERM and SIGINT end it in order: it takes no new requests, finishes those under way, hands over leadership, and
   closes everything.
2. When the node stops by itself (its disk failed, or it was removed), the process ends in the same order, with the
   node's error: a supervisor watches processes.
3. A service manager is told that the process is ready when HTTP answers. It does not wait for a leader: a node that is
   started before the others has none yet, and must not be ended for that.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replidict.api.replicated_dict import ReplicatedDict
from replidict.api.sharing import let_attach
from replidict.errors import ReplidictError
from replidict.http.app import asgi
from replidict.http.server import HttpServer, check_protected, listening, token_of
from replidict.http.service_manager import tell
from replidict.options import Options

logger = logging.getLogger(__name__)

HAND_OVER_SECONDS = 5.0
LOOK_SECONDS = 0.25
"""Between two looks at whether the node still runs."""


def run(name: str, directory: Path, http: str, token_file: Path | None, node: Mapping[str, Any]) -> None:
    """Open the node in this directory, and serve it until a signal comes. `node` is what `ReplicatedDict` takes.

    Raises what opening it raises, `ReplidictError` when HTTP can't be served, and what made the node stop by itself.
    """
    options = Options()
    with listening(http) as bound:
        token = token_of(token_file)
        check_protected(bound, token)
        with ReplicatedDict[Any, Any](directory, options=options, **node) as d:
            _share(name, d)
            host, port = bound.getsockname()[:2]
            server = HttpServer(asgi(d, token=token), bound, options)
            _serve(name, d, server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _share(name: str, d: ReplicatedDict[Any, Any]) -> None:
    try:
        let_attach(d)
    except ReplidictError as error:  # a file system without sockets: all else works
        logger.warning("%s: no other process of this machine can use this node: %s", name, error)


def _serve(name: str, d: ReplicatedDict[Any, Any], server: HttpServer, at: str) -> None:
    def stop(_number: int, _frame: object) -> None:
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.start()
    serves = f"HTTP on http://{at}, the other nodes on {d.status().address}"
    logger.info("%s: %s", name, serves)
    tell("READY=1", f"STATUS={serves}")
    while not server.is_stopping:
        server.ended_within(LOOK_SECONDS)
        if _has_stopped(d):
            server.stop()
    tell("STOPPING=1", "STATUS=Finishing what is under way")
    server.wait()
    if _has_stopped(d):
        d.barrier(timeout=0)  # raises why
    status = d.status()
    if status.is_leader and status.peers:
        try:
            d.transfer_leadership(timeout=HAND_OVER_SECONDS)
            logger.info("%s: %s leads now", name, d.status().leader)
        except ReplidictError as error:
            logger.warning("%s: could not hand over leadership: %s", name, error)
    logger.info("%s: stopped", name)


def _has_stopped(d: ReplicatedDict[Any, Any]) -> bool:
    return d.status().role in ("stopped", "removed")
