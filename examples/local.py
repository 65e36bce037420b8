"""A cluster to try things on: three nodes in this process. Real ones are on three machines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from examples.demo import free_addresses
from replidict import ReplicatedDict

Dict = ReplicatedDict[Any, Any]


@contextmanager
def three_nodes() -> Iterator[list[Dict]]:
    """Three nodes of one dict, ready for use; closed, and their data removed, at the end."""
    logging.getLogger("replidict").setLevel(logging.ERROR)  # not every connection that waits for a node to start
    addresses = free_addresses(3)
    with TemporaryDirectory(prefix="replidict-") as directory, ExitStack() as stack:
        nodes = []
        for address in addresses:
            peers = [each for each in addresses if each != address]
            path = f"{directory}/{address}"
            nodes.append(stack.enter_context(ReplicatedDict[Any, Any](path, address=address, peers=peers)))
        for node in nodes:
            assert node.wait_ready(30)
        yield nodes
