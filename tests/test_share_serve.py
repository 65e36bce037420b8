"""`replidict serve` as the process that runs the node for the workers beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from replidict import ReplicatedDict
from tests.clusters import free_addresses
from tests.serving import COMMAND, Serve, all_closed


def test_workers_beside_serve(tmp_path: Path) -> None:
    """A worker attaches to the node of `replidict serve`, is listed by `replidict status`, and waits for it while it is
    started again."""
    at, http = free_addresses(2)
    serve = Serve(tmp_path, "n1", "--addr", at, "--http", http, "--data", "d", "--bootstrap")
    with all_closed([serve]):
        serve.start()
        with ReplicatedDict[Any, Any](tmp_path / "d", share=True, timeout=60.0) as d:
            d["a"] = 1
            assert (d.status().sharing, d.status().address) == ("attached", at)
            told = [COMMAND, "status", "--node", at, "--json"]
            assert json.loads(subprocess.check_output(told))["attached"] == [os.getpid()]
            assert f"process {os.getpid()}" in subprocess.check_output(told[:-1], text=True)
            serve.end(signal.SIGKILL)
            future = d.submit("b", 2)
            serve.start()
            assert future.result() > 0
            assert (d.get("a", linearizable=True), d["b"]) == (1, 2)
