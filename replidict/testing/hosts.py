"""Finds the open node below a dict."""

from __future__ import annotations

from typing import Any

from replidict.api.replicated_dict import ReplicatedDict
from replidict.server.open_node import Host


def host_of(d: ReplicatedDict[Any, Any]) -> Host:
    """The open node below a dict that is not shared."""
    assert isinstance(d._host, Host)
    return d._host
