"""What becomes of a node whose process gets no more memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replidict import ReplicatedDict

FILL = """
import logging, resource, sys
import replidict
logging.disable(logging.CRITICAL)
d = replidict.ReplicatedDict(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), -1))
n = 0
try:
    while True:
        d[n] = bytes([n % 256]) * 2_000_000
        n += 1
except (MemoryError, replidict.ReplidictError):
    pass
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(n)
d.close()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see how much memory there is")
@pytest.mark.parametrize("room", [24_000_000, 31_000_000, 38_000_000, 45_000_000])
def test_no_memory_left(tmp_path: Path, room: int) -> None:
    """A process that gets no more memory is told so, or its node stops: whatever it acknowledged is there afterwards,
    as it was written."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path), str(room)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    with ReplicatedDict[int, bytes](tmp_path) as d:
        assert all(d[n] == bytes([n % 256]) * 2_000_000 for n in range(count))
        assert len(d) - count in (0, 1)  # the last one may be applied without an answer
