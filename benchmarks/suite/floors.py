"""The floor: what the machine itself needs for the steps of a durable, replicated write."""

from __future__ import annotations

from benchmarks import floor
from benchmarks.replicated_floor import replicated
from benchmarks.results import Row
from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark


def measure(settings: Settings) -> Measured:
    seconds = settings.pick(1.5, 0.2)
    yield Row("fdatasync", {"what": "512 bytes in place"}, floor.fdatasync(settings.directory, seconds))
    for rows in (1, 100):
        figures = floor.sqlite_commit(settings.directory, seconds, rows)
        yield Row("SQLite", {"what": f"commit of {rows} row{'s' * (rows > 1)}, WAL and FULL"}, figures)
    for disk in (True, False):
        what = f"a write, three processes, {'a SQLite commit on each' if disk else 'no disk'}"
        yield Row("replicated, nothing else", {"what": what}, replicated(settings.directory, seconds, disk=disk))
    yield Row("loopback", {"what": "TCP round trip of 100 bytes"}, floor.loopback(seconds))
    yield Row("clock", {"what": "the measuring loop itself"}, floor.clock(seconds / 5))


BENCHMARK = Benchmark("floor", "The floor: disk, SQLite and loopback of this machine", measure)
