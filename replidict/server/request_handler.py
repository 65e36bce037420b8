"""Executes the requests of a node's clients (see `client_messages`) in threads of its own, and answers them.

Rules kept here:

1. Nothing that a client asks is done in the node's thread but to tell the node's status; the answers leave there.
2. What may take long does not hold up what is quick: each kind of work has a pool of threads. Only answers in parts
   wait until the client has taken others, and these have pools of their own. What could not begin within its timeout is
   refused then.
3. Keys, values and addresses are checked as those of the program are, and stored as if it had given them.
4. Work for a client that is gone ends, what waits for a majority at the end of its timeout; so does all work when the
   node stops, and nothing is left of it.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from replidict import errors
from replidict.errors import NotCommitted, ReadTimeout, ReplidictError
from replidict.logging_thread import Logger
from replidict.machine.codec import Codec, FaithfulCodec, decode, decode_key, encode, encode_key
from replidict.machine.stored_values import value_of
from replidict.monotonic_clock import clock
from replidict.node.admin import Cluster
from replidict.node.blocking_calls import make_current
from replidict.node.call_arguments import encoded_key, ttl_of
from replidict.node.consistent_reads import keys_in_order
from replidict.node.held_leases import milliseconds
from replidict.node.online_backup import Backups, not_made
from replidict.node.raft_node import RaftNode
from replidict.node.steps import Steps, run
from replidict.options import Options
from replidict.protocol import client_messages
from replidict.protocol.client_messages import Answer, Request
from replidict.protocol.peer_messages import AddMember, RemoveMember
from replidict.release import Release
from replidict.security import member_of
from replidict.server.operations import PLAIN, Modifiers, Operations
from replidict.server.watch_streams import WatchStreams
from replidict.status import Status
from replidict.storage.directory import remove
from replidict.thread_pool import Workers
from replidict.transport.clients import Clients
from replidict.transport.handshake import printable

logger = Logger(__name__)

POOLS = {"waits": 16, "changes": 4, "looks": 4, "lists": 4, "copies": 2}
"""Threads for: what waits for a majority; changes of the members; what this node tells on its own; keys; backups."""

NO_THREAD = "this node can't start another thread: try again"
FULL_PAUSE = 0.05  # seconds before an answer is offered again to a client that has not taken the last ones
PIECE_BYTES = 256 * 1024
KEYS_BYTES = 64 * 1024

ASKED = "asked-"
"""How the name of a backup begins that is on its way to a client."""

_ID = re.compile("[0-9a-f]{32}")


class _GoneError(Exception):
    """The client is gone, so its request is no longer needed."""


class RequestHandler:
    """The request handler of one node. `hear` is for the node's thread, `close` and `join` for any."""

    def __init__(
        self,
        node: RaftNode,
        clients: Clients,
        cluster: Cluster,
        backups: Backups,
        codec: Codec,
        options: Options,
        directory: Path,
        status: Callable[[], Status],
    ) -> None:
        """`directory` is the node's own; `status` says how it stands."""
        self._node, self._clients, self._cluster, self._backups = node, clients, cluster, backups
        self._codec, self._options, self._directory, self._status = codec, options, directory, status
        self._operations: Operations[Any, Any] = Operations(node, codec, options)
        self._pools = {name: Workers(f"replidict {node.engine.address} {name}", most) for name, most in POOLS.items()}
        for left in directory.glob(f"{ASKED}*"):
            remove(left)  # of a process that was killed
        self._watches = WatchStreams(node, clients, codec)
        clients.on_request, clients.on_over = self.hear, self.over

    def hear(self, client: int, request: Request) -> None:
        """A client asks something."""
        if isinstance(request, client_messages.GetStatus):
            self._clients.answer(
                client,
                request.id,
                self._clients.frame(client_messages.StatusIs.of(request.id, self._status())),
                True,
            )
        elif isinstance(request, client_messages.Watch):
            self._watches.begin(client, request)
        elif not self._put(client, request, clock() + request.timeout):
            busy = client_messages.Failed(request.id, "ReplidictError", NO_THREAD)
            self._clients.answer(client, request.id, self._clients.frame(busy), True)

    def over(self, client: int, request: Request) -> None:
        """Refuse what has not begun: its time is over, or the client is gone."""
        if any(pool.withdraw((client, request.id)) for pool in self._pools.values()):
            self._clients.answer(client, request.id, self._clients.frame(self._too_late(request)), True)

    def _too_late(self, request: Request) -> client_messages.Failed:
        kind = NotCommitted if isinstance(request, client_messages.WRITES) else ReadTimeout
        why = f"{self._node.engine.address} was too busy to begin within {request.timeout:g} s"
        return client_messages.Failed(request.id, kind.__name__, why)

    def _put(self, client: int, request: Request, deadline: float) -> bool:
        return self._pools[_pool_of(request)].put((client, request.id), partial(self._serve, client, request, deadline))

    def close(self) -> None:
        """Begin nothing more. What is under way ends when the node has stopped."""
        self._watches.close()
        for pool in self._pools.values():
            pool.close()

    def join(self) -> None:
        """Wait for what is under way. The node must have stopped."""
        self._watches.join()
        for pool in self._pools.values():
            pool.join()

    # -- in a thread of a pool ----------------------------------------------------------------------------------------

    def _serve(self, client: int, request: Request, deadline: float) -> None:
        if deadline <= clock() and request.timeout:
            self._send(client, self._too_late(request))
            return
        try:
            with closing(self._answers(client, request, deadline)) as answers:
                for answer in answers:
                    if not self._send(client, answer):
                        return
        except _GoneError:
            pass
        except (ReplidictError, ValueError) as error:
            name = type(error).__name__
            known = name if hasattr(errors, name) or name == "ValueError" else "ReplidictError"
            self._send(client, client_messages.Failed(request.id, known, str(error)))
        except Exception:
            logger.exception("%s: could not do what a client asked", self._node.engine.address)
            self._send(
                client,
                client_messages.Failed(request.id, "ReplidictError", "an internal error of this node: see its log"),
            )

    def _send(self, client: int, answer: Answer) -> bool:
        """Hand out an answer, when the client has room for it. False if it is gone, or the node has stopped."""
        framed, last = self._clients.frame(answer), not isinstance(answer, client_messages.Keys | client_messages.Piece)
        while True:
            try:
                done = self._node.call_and_wait(lambda: self._clients.answer(client, answer.id, framed, last))
            except ReplidictError:
                return False
            if done != "full":
                return done == "sent"
            time.sleep(FULL_PAUSE)

    def _answers(self, client: int, request: Request, deadline: float) -> Generator[Answer]:
        """Yield the answers; the last one ends the request."""
        left = max(deadline - clock(), 0.0)
        match request:
            case client_messages.Get():
                yield self._get(request, left)
            case client_messages.Set():
                yield self._stored(request.id, self._operations.set(*_pair(request), PLAIN, left))
            case client_messages.Add():
                yield self._held(request.id, self._operations.add(*_pair(request), PLAIN, left))
            case client_messages.Replace():
                yield self._held(request.id, self._operations.replace(*_pair(request), request.revision, PLAIN, left))
            case client_messages.SetForAWhile():
                yield self._set_for_a_while(request, left)
            case client_messages.BreakLock():
                yield self._held(request.id, self._operations.break_lock(request.name, request.token, left))
            case client_messages.GetLocks():
                found = self._node.call(lambda: self._node.locks.infos(self._node.expiry.now())).result()
                yield client_messages.LocksAre(request.id, list(found))
            case client_messages.Delete():
                yield self._held(request.id, self._operations.delete(decode_key(request.key), left))
            case client_messages.Increment():
                yield self._increment(request, left)
            case client_messages.ListKeys() if request.linearizable:
                make_current(self._node, left)
                if not self._put(client, replace(request, linearizable=False), deadline):
                    raise ReplidictError(NO_THREAD)
            case client_messages.ListKeys():
                yield from self._keys(request)
            case client_messages.GetMembers():
                yield client_messages.MembersAre(request.id, list(self._cluster.members()))
            case client_messages.Backup():
                yield from self._backup(client, request)
            case (
                client_messages.AddPeer()
                | client_messages.RemovePeer()
                | client_messages.Transfer()
                | client_messages.Join()
            ):
                yield self._change(request, left)
            case client_messages.Supersede():
                yield self._hear_of_successor(request)

    # -- the dict -----------------------------------------------------------------------------------------------------

    def _get(self, request: client_messages.Get, left: float) -> Answer:
        key = decode_key(request.key)
        encoded_key(key, self._options)  # may it be a key?
        if request.linearizable:
            make_current(self._node, left)
        item = self._node.machine.find(key)
        if item is None:
            return client_messages.Value(request.id, None, 0)
        return client_messages.Value(request.id, self._plain(key, item.value), item.revision)

    def _set_for_a_while(self, request: client_messages.SetForAWhile, left: float) -> Answer:
        key, value = _pair(request)
        modifiers = Modifiers(milliseconds(ttl_of(request.ttl)))
        if request.if_absent:
            return self._held(request.id, self._operations.add(key, value, modifiers, left))
        if request.if_revision is not None:
            return self._held(request.id, self._operations.replace(key, value, request.if_revision, modifiers, left))
        return self._stored(request.id, self._operations.set(key, value, modifiers, left))

    def _stored(self, number: int, steps: Steps[int]) -> Answer:
        return client_messages.Stored(number, run(self._node, steps))

    def _held(self, number: int, steps: Steps[bool]) -> Answer:
        return client_messages.Held(number, run(self._node, steps))

    def _increment(self, request: client_messages.Increment, left: float) -> Answer:
        key, by, default = decode_key(request.key), decode(request.by), decode(request.default)
        try:
            total = run(self._node, self._operations.increment(key, by, default, left))
        except (TypeError, OverflowError) as error:
            if isinstance(error, ReplidictError):
                raise
            raise ReplidictError(str(error)) from error
        return client_messages.Sum(request.id, encode(total))

    def _plain(self, key: object, data: bytes) -> bytes:
        """A stored value, as clients read it."""
        if isinstance(self._codec, FaithfulCodec):
            return data
        return value_of(lambda stored: encode(self._codec.decode(stored)), key, data)  # type: ignore[no-any-return]

    def _keys(self, request: client_messages.ListKeys) -> Iterator[Answer]:
        after = None if request.after is None else decode_key(request.after)
        behind = after if type(after) is str else request.after
        texts, others = keys_in_order(self._node.machine, request.prefix, behind, request.limit)
        some: list[bytes] = []
        size = 0
        for key in chain(map(encode_key, texts), others):
            some.append(key)
            size += len(key)
            if size >= KEYS_BYTES:
                yield client_messages.Keys(request.id, some)
                some, size = [], 0
        if some:
            yield client_messages.Keys(request.id, some)
        yield client_messages.Done(request.id)

    # -- the cluster --------------------------------------------------------------------------------------------------

    def _change(
        self,
        request: client_messages.AddPeer | client_messages.RemovePeer | client_messages.Transfer | client_messages.Join,
        left: float,
    ) -> Answer:
        match request:
            case client_messages.AddPeer():
                self._cluster.change(AddMember(member_of(request.address), request.voter), left)
            case client_messages.RemovePeer():
                self._cluster.change(RemoveMember(member_of(request.address), request.force), left)
            case client_messages.Transfer():
                self._cluster.hand_over(None if request.to is None else member_of(request.to), left)
            case client_messages.Join():
                _check_id("node_id", request.node_id)
                address, release = member_of(request.address), Release(request.level, printable(request.version))
                if (too_old := self._node.feature_level.too_old(address, release)) is not None:
                    raise ReplidictError(too_old)
                said = self._cluster.admit(address, request.node_id, request.voter, left)
                members = said.configuration()
                return client_messages.Joined(
                    request.id, self._node.store.identity.cluster_id, said.index,
                    members.voters, members.learners, members.node_ids, members.readers,
                )  # fmt: skip
        return client_messages.Done(request.id)

    def _hear_of_successor(self, request: client_messages.Supersede) -> Answer:
        at = dt.datetime.fromisoformat(request.at).isoformat()  # which takes any character between date and time
        said = replace(request, address=member_of(request.address), founder=member_of(request.founder), at=at)
        _check_id("successor", said.successor)
        _check_id("node_id", said.node_id)
        self._node.call_and_wait(lambda: self._node.engine.superseded.hear(said))
        return client_messages.Done(request.id)

    # -- backups ------------------------------------------------------------------------------------------------------

    def _backup(self, client: int, request: client_messages.Backup) -> Iterator[Answer]:
        def look_up() -> None:
            if not self._clients.waits(client, request.id):
                raise _GoneError

        file = self._directory / f"{ASKED}{secrets.token_hex(4)}"
        try:
            total = self._backups.write(file, file, look_up).size
            with file.open("rb") as opened:
                while piece := opened.read(PIECE_BYTES):
                    yield client_messages.Piece(request.id, total, piece)
            yield client_messages.Done(request.id)
        except OSError as error:
            raise not_made(file, error) from error
        finally:
            remove(file)


def _pair(
    request: client_messages.Set | client_messages.Add | client_messages.Replace | client_messages.SetForAWhile,
) -> tuple[Hashable, Any]:
    return decode_key(request.key), decode(request.value)


def _check_id(name: str, given: str) -> None:
    if not _ID.fullmatch(given):
        raise ValueError(f"{name}={given!r}: must be 32 hexadecimal digits")


def _pool_of(request: Request) -> str:
    match request:
        case (
            client_messages.AddPeer()
            | client_messages.RemovePeer()
            | client_messages.Transfer()
            | client_messages.Join()
        ):
            return "changes"
        case client_messages.Backup():
            return "copies"
        case client_messages.GetMembers() | client_messages.Supersede() | client_messages.GetLocks():
            return "looks"
        case client_messages.Get() if not request.linearizable:
            return "looks"
        case client_messages.ListKeys() if not request.linearizable:
            return "lists"
    return "waits"
