"""A follower 100,000 log entries behind catches up from the leader's log, while writes go on."""

from __future__ import annotations

from benchmarks.processes import PATIENCE, Child
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints
from benchmarks.suite.behind import come_back
from benchmarks.suite.benchmark import Benchmark


def measure(settings: Settings) -> Measured:
    entries = settings.pick(100_000, 1_000)
    behind = 0

    def fall_behind(clients: list[Child]) -> None:
        nonlocal behind
        # From both nodes that are left: each has only so many commands under way at a time.
        jobs = [
            client.submit("advance", entries=entries, threads=16, seconds=settings.pick(100.0, 3.0))
            for client in clients
        ]
        behind = max(job.result(PATIENCE) for job in jobs)

    # The log is kept longer than by default, or the follower would get a snapshot (see `snapshot`); and writes are
    # not gathered, or getting so many log entries together would take minutes.
    options = {"log_retain": 2 * entries, "max_command_bytes": 1}
    with settings.cluster(options=options) as cluster:
        figures, load = come_back(cluster, fall_behind, threads=4, seconds=settings.pick(8.0, 0.5))
    figures |= {"writes per s meanwhile": load["per s"], "worst write ms": load["max ms"]}
    yield Row("replidict", {"nodes": 3}, {"log entries behind": float(behind), **figures})
    yield from complaints("replidict", load)
    yield Note(
        f"Options(log_retain={2 * entries}, max_command_bytes=1), so that each write is a log entry of its own and all "
        "are kept; 4 threads write on the leader meanwhile"
    )


BENCHMARK = Benchmark("catchup", "A follower far behind catches up from the log", measure)
