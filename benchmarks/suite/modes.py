"""What protection on the wire costs: `secret=` and `tls=` beside neither."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark

PLAIN = "replidict, plain"


def certificate(directory: Path) -> list[str]:
    """Paths of a certificate for the loopback address, its key, and its authority; as `TLS` wants them."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    paths = [directory / name for name in ("cert.pem", "key.pem", "ca.pem")]
    issued.cert_chain_pems[0].write_to_path(paths[0])
    issued.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    return [str(path) for path in paths]


def measure(settings: Settings) -> Measured:
    with TemporaryDirectory(prefix="certificates-", dir=settings.directory) as directory:
        modes: dict[str, dict[str, Any]] = {PLAIN: {}, "replidict, secret": {"secret": "a shared secret of the nodes"}}
        if find_spec("trustme") is not None:
            modes["replidict, tls"] = {"tls": certificate(Path(directory))}
        else:
            yield Note("tls is left out: trustme is not installed (pip install --group bench)")
        for name, config in modes.items():
            with settings.cluster(**config) as cluster:
                client = cluster.at("leader")
                client.call("writes", threads=1, seconds=0.2)
                for size in settings.pick(("100 B", "64 KiB"), ("100 B",)):
                    for threads in settings.pick((1, 64), (1,)):
                        found = client.call(
                            "writes",
                            threads=threads,
                            seconds=settings.pick(1.0, 0.2),
                            value_bytes=100 if size == "100 B" else 64 * 1024,
                        )
                        yield Row(name, {"operation": f"write {size}", "threads": threads}, latency(found))
                        yield from complaints(name, found)
                client.call("barrier")
                found = client.call("reads", threads=1, seconds=settings.pick(0.5, 0.2), kind="linearizable")
                yield Row(name, {"operation": "linearizable get", "threads": 1}, latency(found))


BENCHMARK = Benchmark(
    "modes",
    "Protection on the wire, on the leader of three nodes",
    measure,
    compare=("p50 ms", "per s"),
    against=(PLAIN,),
)
