"""etcd as a system under test: a client of one member, by gRPC. Its servers are started in `systems.py`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

from benchmarks import etcd_wire as wire
from benchmarks.store import Change, Value

PATIENCE = 10.0
IMPATIENCE = 1.0


def binary() -> str | None:
    return shutil.which("etcd") or shutil.which("etcd", path="/usr/bin:/usr/local/bin")


def missing() -> str | None:
    """Why etcd can't take part; None if it can."""
    if binary() is None:
        return "etcd is left out: no `etcd` on the PATH (Debian: apt-get install etcd-server)"
    if find_spec("grpc") is None:
        return "etcd is left out: grpcio is not installed (pip install --group bench)"
    return None


def version() -> str:
    path = binary()
    assert path is not None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0].rpartition(" ")[2]


def server_command(name: str, path: str, client: str, peer: str, cluster: dict[str, str]) -> list[str]:
    """A member at its defaults, but for limits that would get in the way of the larger benchmarks."""
    found = binary()
    assert found is not None
    return [
        found,
        *("--name", name, "--data-dir", path, "--initial-cluster-state", "new"),
        *("--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}"),
        *("--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}"),
        *("--initial-cluster", ",".join(f"{each}=http://{url}" for each, url in cluster.items())),
        *("--max-txn-ops", "10000", "--max-request-bytes", "33554432", "--quota-backend-bytes", "8589934592"),
        *("--logger", "zap", "--log-level", "error"),
    ]


class Etcd:
    """A client of one member."""

    def __init__(self, config: dict[str, Any]) -> None:
        grpc = import_module("grpc")
        self._unreachable: Any = grpc.RpcError
        # Not the default of 1 s, growing to 2 minutes: a member that starts again should be seen at once.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self._channel = grpc.insecure_channel(
            config["endpoint"],
            [*options, ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        # Without serializers, a method takes and returns bytes.
        self._put = self._channel.unary_unary("/etcdserverpb.KV/Put")
        self._range = self._channel.unary_unary("/etcdserverpb.KV/Range")
        self._txn = self._channel.unary_unary("/etcdserverpb.KV/Txn")
        self._watch = self._channel.stream_stream("/etcdserverpb.Watch/Watch")
        self._lease_grant = self._channel.unary_unary("/etcdserverpb.Lease/LeaseGrant")
        self._lock = self._channel.unary_unary("/v3lockpb.Lock/Lock")
        self._unlock = self._channel.unary_unary("/v3lockpb.Lock/Unlock")
        self._status = self._channel.unary_unary("/etcdserverpb.Maintenance/Status")

    def set(self, key: str, value: Value) -> None:
        self._put(wire.put_request(key.encode(), _bytes(value)), timeout=PATIENCE)

    def submit(self, key: str, value: Value) -> Any:
        return self._put.future(wire.put_request(key.encode(), _bytes(value)), timeout=PATIENCE)

    def try_set(self, key: str, value: Value) -> None:
        self._put(wire.put_request(key.encode(), _bytes(value)), timeout=IMPATIENCE)

    def get(self, key: str) -> object:
        return wire.value_of(self._range(wire.range_request(key.encode(), serializable=True), timeout=PATIENCE))

    def strong_get(self, key: str) -> object:
        return wire.value_of(self._range(wire.range_request(key.encode(), serializable=False), timeout=PATIENCE))

    def update(self, pairs: dict[str, Value]) -> None:
        puts = [wire.put_request(key.encode(), _bytes(value)) for key, value in pairs.items()]
        self._txn(wire.txn_request(puts), timeout=PATIENCE)

    def follow(self, key: str) -> Iterator[bytes]:
        """The values that are put under a key from now on; the first is empty, and says that it has begun."""
        requests: SimpleQueue[bytes | None] = SimpleQueue()
        requests.put(wire.watch_request(key.encode()))
        responses = self._watch(iter(requests.get, None))
        next(responses)
        yield b""
        try:
            for response in responses:
                yield from wire.watched_values(response)
        finally:
            responses.cancel()
            requests.put(None)

    def transact(self, keys: Sequence[str], change: Change) -> int:
        """Change numbers, by the retry loop that is usual: read, and write if nothing has changed; how often it ran."""
        names = [key.encode() for key in keys]
        reads = wire.read_request([wire.range_request(name, serializable=True) for name in names])
        attempts = 0
        while True:
            attempts += 1
            found = wire.read_values(self._txn(reads, timeout=PATIENCE))
            numbers = change([int(value or 0) for value, _ in found])
            puts = [wire.put_request(name, b"%d" % number) for name, number in zip(names, numbers, strict=True)]
            unchanged = zip(names, (revision for _, revision in found), strict=True)
            if wire.succeeded(self._txn(wire.txn_request(puts, unchanged), timeout=PATIENCE)):
                return attempts

    def lock(self, name: str) -> EtcdLock:
        """A lock, which is not acquired yet, on a lease of its own."""
        lease = wire.number_of(self._lease_grant(wire.lease_grant_request(600), timeout=PATIENCE), 2)
        return EtcdLock(self._lock, self._unlock, wire.lock_request(name.encode(), lease))

    def barrier(self) -> None:
        self.strong_get("barrier")

    def status(self) -> dict[str, Any]:
        try:
            member, leader, term = wire.member_and_leader(self._status(b"", timeout=IMPATIENCE))
        except self._unreachable:
            return {"is_leader": False, "leader": None}
        return {"is_leader": member == leader != 0, "leader": leader or None, "term": term}


class EtcdLock:
    """A lock as etcd's own service has it (`v3lock`)."""

    def __init__(self, lock: Any, unlock: Any, request: bytes) -> None:
        self._lock, self._unlock, self._request = lock, unlock, request
        self._key = b""

    def acquire(self) -> None:
        """Wait for it."""
        (self._key,) = wire.parts(self._lock(self._request, timeout=60), 2)

    def release(self) -> None:
        """Give it back."""
        self._unlock(wire.unlock_request(self._key), timeout=PATIENCE)


def _bytes(value: Value) -> bytes:
    return value.encode() if isinstance(value, str) else value
