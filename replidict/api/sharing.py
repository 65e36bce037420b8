"""Lets other processes attach to a node that was opened without `share=True`."""

from __future__ import annotations

from typing import Any

from replidict.api.replicated_dict import ReplicatedDict
from replidict.server.open_node import Host


def let_attach(d: ReplicatedDict[Any, Any]) -> None:
    """Let processes that open the directory with `share=True` attach to this node. Raises `ReplidictError`."""
    if isinstance(d._host, Host):
        d._host.share()
