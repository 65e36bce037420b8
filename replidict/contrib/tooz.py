"""A driver for tooz, OpenStack's library for coordination: `get_coordinator("replidict:///DIRECTORY", member_id)`.

Rules kept here:

1. Each coordinator has a `ReplicatedDict` of its own; all that are on a machine share one node.
2. A member of a group is a key with the coordinator's lease. It goes when the coordinator stops or its process dies.
3. What reads includes all that has been answered before, to any coordinator.
4. Locks and leaders are locks of the cluster.
"""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import tooz
from tooz import coordination, locking, utils
from tooz.coordination import Characteristics, CoordAsyncResult, CoordinatorResult
from typing_extensions import override

from replidict import (
    EncodingError,
    Lease,
    LeaseLost,
    Lock,
    LockLost,
    LockTimeout,
    OutcomeUnknown,
    ReadTimeout,
    ReplicatedDict,
    ReplidictError,
    Transaction,
)

GROUPS, MEMBERS, LOCKS, LEADERS = "tooz/groups/", "tooz/members/", "tooz/locks/", "tooz/leaders/"
"""What keys and locks begin with."""

TTL = 10.0
"""Seconds, if the URL says nothing else."""

Answer = TypeVar("Answer")
Capabilities = dict[str, Any]


class ReplidictDriver(coordination.CoordinationDriverCachedRunWatchers):
    """A coordinator. The URL has a directory of this machine, and the arguments of `ReplicatedDict` as a query.

    `replidict:///var/lib/service/coordination?address=10.0.0.1:7000&peers=10.0.0.2:7000,10.0.0.3:7000`. Arguments that
    are no texts, `tls=` for instance, are given to `get_coordinator`. `timeout` is what it is for other drivers: the
    seconds after which a member or the holder of a lock is gone whose process has died.
    """

    CHARACTERISTICS = (
        Characteristics.NON_TIMEOUT_BASED,
        Characteristics.DISTRIBUTED_ACROSS_THREADS,
        Characteristics.DISTRIBUTED_ACROSS_PROCESSES,
        Characteristics.DISTRIBUTED_ACROSS_HOSTS,
        Characteristics.LINEARIZABLE,
    )

    def __init__(self, member_id: bytes, parsed_url: Any, options: dict[str, Any]) -> None:
        super().__init__(_bytes(member_id), parsed_url, options)
        arguments = utils.collapse(options)
        self._ttl = float(arguments.pop("timeout", TTL))
        if isinstance(arguments.get("peers"), str):
            arguments["peers"] = [each for each in arguments["peers"].split(",") if each]
        for name in ("voter", "insecure"):
            if isinstance(arguments.get(name), str):
                arguments[name] = arguments[name].lower() == "true"
        self._host, self._path, self._arguments = parsed_url.netloc, parsed_url.path, arguments
        self._leading: dict[bytes, Lock] = {}
        self._acquired: set[Lock] = set()
        """Kept here, because a lock that nobody refers to is given back."""
        self._joined: dict[bytes, Capabilities | None] = {}

    # -- its life -----------------------------------------------------------------------------------------------------

    @override
    def _start(self) -> None:
        if self._host:
            raise coordination.ToozConnectionError(
                f"replidict://{self._host}: a node is reached by a directory of this machine: replidict:///DIRECTORY"
            )
        with _translated():
            self._d: ReplicatedDict[str, Any] = ReplicatedDict(self._path, **{"share": True, **self._arguments})
            try:
                self._lease: Lease = self._d.lease(self._ttl)
            except BaseException:
                self._d.close()
                raise

    @override
    def stop(self) -> None:
        """Stop. Its members go with its lease: to leave each group would take a timeout each without a majority."""
        self._joined_groups.clear()
        super().stop()

    @override
    def _stop(self) -> None:
        self._leading.clear()
        self._acquired.clear()
        self._joined.clear()
        self._d.close()  # and with it all its locks and leases

    @override
    def heartbeat(self) -> float:
        """See that the members of this coordinator are there. The node's own thread keeps them alive meanwhile.

        If the lease was lost, for want of a majority for instance, it joins its groups anew. Returns the seconds until
        the next time.
        """
        with _translated():
            try:
                self._lease.check()
            except LeaseLost:
                self._lease = self._d.lease(self._ttl)
                for group_id, capabilities in list(self._joined.items()):
                    self._d.set(_members(group_id, self._member_id), capabilities, lease=self._lease)
        return self._ttl

    # -- groups -------------------------------------------------------------------------------------------------------

    @override
    def create_group(self, group_id: bytes) -> CoordAsyncResult[None]:
        def create() -> None:
            if not self._d.add(_group(group_id), None):
                raise coordination.GroupAlreadyExist(group_id)

        return _answer(create)

    @override
    def get_groups(self) -> CoordAsyncResult[list[bytes]]:
        return _answer(lambda: self._ids(GROUPS))

    @override
    def delete_group(self, group_id: bytes) -> CoordAsyncResult[None]:
        def delete(t: Transaction[str, Any]) -> None:
            if _group(group_id) not in t:
                raise coordination.GroupNotCreated(group_id)
            if t.scan(_members(group_id), limit=1):
                raise coordination.GroupNotEmpty(group_id)
            del t[_group(group_id)]

        return _answer(lambda: self._decide(delete))

    @override
    def join_group(self, group_id: bytes, capabilities: Capabilities | None = None) -> CoordAsyncResult[None]:
        key = _members(group_id, self._member_id)

        def join(t: Transaction[str, Any]) -> None:
            if _group(group_id) not in t:
                raise coordination.GroupNotCreated(group_id)
            if key in t:
                raise coordination.MemberAlreadyExist(group_id, self._member_id)
            t.set(key, capabilities, lease=self._lease)

        def joined() -> None:
            self._decide(join)
            self._joined_groups.add(_bytes(group_id))
            self._joined[_bytes(group_id)] = capabilities

        return _answer(joined)

    @override
    def leave_group(self, group_id: bytes) -> CoordAsyncResult[None]:
        def leave() -> None:
            self._joined.pop(_bytes(group_id), None)
            if not self._d.delete(_members(group_id, self._member_id)):
                raise coordination.MemberNotJoined(group_id, self._member_id)
            self._joined_groups.discard(_bytes(group_id))

        return _answer(leave)

    @override
    def update_capabilities(self, group_id: bytes, capabilities: Capabilities) -> CoordAsyncResult[None]:
        key = _members(group_id, self._member_id)

        def write(t: Transaction[str, Any]) -> None:
            if key not in t:
                raise coordination.MemberNotJoined(group_id, self._member_id)
            t.set(key, capabilities, lease=self._lease)

        def written() -> None:
            self._decide(write)
            self._joined[_bytes(group_id)] = capabilities

        return _answer(written)

    @override
    def get_members(self, group_id: bytes) -> CoordAsyncResult[set[bytes]]:
        def members() -> set[bytes]:
            self._must_exist(group_id)
            return set(self._ids(_members(group_id)))

        return _answer(members)

    @override
    def get_members_with_capabilities(self, group_id: bytes) -> CoordAsyncResult[dict[bytes, Capabilities | None]]:
        def members() -> dict[bytes, Capabilities | None]:
            self._must_exist(group_id)
            prefix = _members(group_id)
            return {_id(key, prefix): capabilities for key, capabilities in self._d.scan(prefix)}

        return _answer(members)

    @override
    def get_member_capabilities(self, group_id: bytes, member_id: bytes) -> CoordAsyncResult[Capabilities | None]:
        return _answer(lambda: self._capabilities_of(group_id, member_id))

    @override
    def get_member_info(self, group_id: bytes, member_id: bytes) -> CoordAsyncResult[dict[str, Any]]:
        return _answer(lambda: {"capabilities": self._capabilities_of(group_id, member_id)})

    def _decide(self, write: Callable[[Transaction[str, Any]], None]) -> None:
        self._d.barrier()  # rule 3
        self._d.transact(write)

    def _capabilities_of(self, group_id: bytes, member_id: bytes) -> Capabilities | None:
        self._d.barrier()  # rule 3
        key = _members(group_id, member_id)
        if key not in self._d:
            raise coordination.MemberNotJoined(group_id, member_id)
        found: Capabilities | None = self._d[key]
        return found

    def _must_exist(self, group_id: bytes) -> None:
        self._d.barrier()  # rule 3
        if _group(group_id) not in self._d:
            raise coordination.GroupNotCreated(group_id)

    def _ids(self, prefix: str) -> list[bytes]:
        self._d.barrier()  # rule 3
        return [_id(key, prefix) for key, _ in self._d.scan(prefix)]

    # -- leaders and locks --------------------------------------------------------------------------------------------

    @override
    def run_watchers(self, timeout: float | None = None) -> list[Any]:
        found = super().run_watchers(timeout)
        self.run_elect_coordinator()
        return found

    @override
    def run_elect_coordinator(self) -> None:
        for group_id in list(self._hooks_elected_leader):
            if not self._leads(group_id):
                with _translated():
                    lock = self._d.lock(_leader(group_id), ttl=self._ttl, info=_text(self._member_id))
                    if not lock.acquire(blocking=False):
                        continue
                self._leading[group_id] = lock
                event = coordination.LeaderElected(group_id, self._member_id)
                self._hooks_elected_leader[group_id].run(event)

    def _leads(self, group_id: bytes) -> bool:
        """Whether this coordinator still leads; if not, it stands again."""
        lock = self._leading.get(group_id)
        if lock is None or lock.held is None:
            return False
        try:
            lock.held.check()
        except LockLost:
            self._leading.pop(group_id, None)
            return False
        return True

    @override
    def stand_down_group_leader(self, group_id: bytes) -> bool:
        lock = self._leading.pop(group_id, None)
        return lock is not None and _released(lock)

    @override
    def get_leader(self, group_id: bytes) -> CoordAsyncResult[bytes]:
        def leader() -> Any:  # None if there is none, as with tooz's own drivers
            self._d.barrier()  # rule 3
            found = self._d.leader(_leader(group_id))
            return None if found is None else unquote_to_bytes(found.info)

        return _answer(leader)

    @override
    def get_lock(self, name: bytes) -> ReplidictLock:
        return ReplidictLock(self._d, name, self._ttl, self._acquired)


class ReplidictLock(locking.Lock):
    """A lock of the cluster, exclusive or shared, first come, first served."""

    def __init__(self, d: ReplicatedDict[str, Any], name: bytes, ttl: float, acquired: set[Lock]) -> None:
        super().__init__(name)
        self._d, self._ttl, self._acquired = d, ttl, acquired
        self._in_cluster = LOCKS + _text(name)
        self._held: deque[Lock] = deque()  # one for each time that it was acquired; whoever takes it out releases it

    @override
    def acquire(self, blocking: bool | float = True, shared: bool = False, timeout: float | None = None) -> bool:
        if timeout is None and not isinstance(blocking, bool):
            timeout = blocking
        lock = self._d.lock(self._in_cluster, ttl=self._ttl, shared=shared)
        with _translated():
            if not (lock.acquire(True, -1 if timeout is None else timeout) if blocking else lock.acquire(False)):
                return False
        self._acquired.add(lock)
        self._held.append(lock)
        return True

    @override
    def release(self) -> bool:
        try:
            lock = self._held.pop()
        except IndexError:
            return False
        self._acquired.discard(lock)
        return _released(lock)

    @override
    def is_still_owner(self) -> bool:
        try:
            held = self._held[-1].held
            if held is None:
                return False
            held.check()
        except (IndexError, LockLost):
            return False
        return True

    @override
    def break_(self) -> bool:
        with _translated():
            self._d.barrier()  # rule 3
            tokens = [each.token for each in self._d.locks() if each.name == self._in_cluster]
            broken = [self._d.break_lock(self._in_cluster, token=token) for token in tokens]
        return any(broken)


def _released(lock: Lock) -> bool:
    with _translated():
        try:
            lock.release()
        except (LockLost, RuntimeError):
            return False
        return True


# -- names and errors --------------------------------------------------------------------------------------------------


def _bytes(name: bytes | str) -> bytes:
    return name.encode() if isinstance(name, str) else name


def _text(name: bytes | str) -> str:
    """The name of a group, a member or a lock as a part of a key, in which nothing but letters has a meaning."""
    return quote(_bytes(name), safe="")


def _group(group_id: bytes | str) -> str:
    return GROUPS + _text(group_id)


def _members(group_id: bytes | str, member_id: bytes | str = b"") -> str:
    return f"{MEMBERS}{_text(group_id)}/{_text(member_id)}"


def _leader(group_id: bytes | str) -> str:
    return LEADERS + _text(group_id)


def _id(key: str, prefix: str) -> bytes:
    return unquote_to_bytes(key.removeprefix(prefix))


def _answer(call: Callable[[], Answer]) -> CoordAsyncResult[Answer]:
    """What a call gives or raises, as tooz wants it. It is made at once: the next one may build on it."""
    future = concurrent.futures.Future[Answer]()
    try:
        with _translated():
            future.set_result(call())
    except Exception as error:  # noqa: BLE001 -- raised by whoever asks for the answer
        future.set_exception(error)
    return CoordinatorResult(future)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the errors of a dict as those of tooz."""
    try:
        yield
    except EncodingError as error:
        raise coordination.SerializationError(str(error)) from error
    except (LockTimeout, OutcomeUnknown, ReadTimeout) as error:
        raise coordination.OperationTimedOut(str(error)) from error
    except LockLost:
        raise
    except ReplidictError as error:
        raise coordination.ToozConnectionError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise tooz.ToozError(str(error)) from error
