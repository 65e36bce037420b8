"""replidict as a system under test."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from typing_extensions import override

from benchmarks.store import Change, Value
from replidict import TLS, Lock, Options, ReplicatedDict, Transaction
from replidict.api.sharing import let_attach


class Replidict:
    """One node, in this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._installed = _Installations()
        tls = config.get("tls")
        self.dict: ReplicatedDict[str, Value] = ReplicatedDict(
            config["path"],
            address=config.get("address"),
            peers=config.get("peers", ()),
            join=config.get("join"),
            secret=config.get("secret"),
            tls=TLS(cert=tls[0], key=tls[1], ca=tls[2]) if tls else None,
            share=config.get("share", False),
            options=Options(**config.get("options", {})),
        )
        if config.get("lets_attach"):
            let_attach(self.dict)
        # Bound once: a call more would be seen in the figures of `get`.
        self.set = self.try_set = self.dict.set
        self.get = self.dict.get
        self.update = self.dict.update
        self.submit = self.dict.submit

    def strong_get(self, key: str) -> object:
        return self.dict.get(key, linearizable=True)

    def follow(self, key: str) -> Iterator[bytes]:
        """The values that are set under a key from now on; the first is empty, and says that it has begun."""
        with self.dict.watch(key) as watch:
            yield b""
            for change in watch:
                yield from (event.value for event in change.events if isinstance(event.value, bytes))

    def transact(self, keys: Sequence[str], change: Change) -> int:
        """Change numbers in a transaction; how often its body ran."""
        attempts = 0

        def body(t: Transaction[str, Value]) -> None:
            nonlocal attempts
            attempts += 1
            for key, number in zip(keys, change([int(t.get(key, b"0")) for key in keys]), strict=True):
                t[key] = b"%d" % number

        self.dict.transact(body)
        return attempts

    def lock(self, name: str) -> Lock:
        """A lock, which is not acquired yet."""
        return self.dict.lock(name)

    def barrier(self) -> None:
        self.dict.barrier(timeout=120)

    def status(self) -> dict[str, Any]:
        status = self.dict.status()
        votes = status.role in ("leader", "follower", "candidate")
        return {**asdict(status), "votes": votes, "snapshots_installed": self._installed.count}


class _Installations(logging.Handler):
    """Counts the snapshots that this node installs, by what it logs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        logger = logging.getLogger("replidict")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if "installed the snapshot" in record.msg:
            self.count += 1
