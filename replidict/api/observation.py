"""What the status page reads of a node besides `status`, `members` and `locks`."""

from __future__ import annotations

import os
from typing import Any

from replidict.api.replicated_dict import ReplicatedDict
from replidict.node.activity import Recent
from replidict.options import Options


def recent_of(d: ReplicatedDict[Any, Any]) -> Recent:
    """Statistics of a node's last minutes. Never waits."""
    return d._host.node.activity.recent()


def disk_bytes_of(d: ReplicatedDict[Any, Any]) -> int:
    """Bytes of the files in the node's directory, its snapshots among them."""
    found = 0
    for folder, _, names in os.walk(d._host.path):
        for name in names:
            try:
                found += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                pass  # it is gone meanwhile
    return found


def options_of(d: ReplicatedDict[Any, Any]) -> Options:
    """The options that the dict was opened with."""
    return d._options
