"""Serves the watches of a node's clients, from one thread.

Rules kept here:

1. A client that reads nothing holds up no other: at most one change waits for it, and no more is read for it.
2. A watch ends with its client's connection; a lost connection is noticed within a second.
3. A change may be larger than a frame: it is sent in parts, and only the last one is marked as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from replidict.errors import HistoryLost, ReplidictError
from replidict.logging_thread import Logger
from replidict.machine.changes import KeyChange
from replidict.machine.codec import Codec, FaithfulCodec, decode_key, encode
from replidict.machine.equality import place
from replidict.machine.stored_values import value_of
from replidict.monotonic_clock import clock
from replidict.node.history import Cursor
from replidict.node.node import Node
from replidict.node.waiters import Interest
from replidict.own_threads import OWN_THREADS, OwnThread
from replidict.protocol.client_messages import Answer, Event, Events, Failed, Watch
from replidict.transport.clients import Clients

logger = Logger(__name__)

PART_BYTES = 256 * 1024
AT_ONCE = 64
"""Changes that are sent to one client before it is another one's turn."""

LOOK_SECONDS = 1.0
"""Between two looks at who is gone, and how far the others are."""

FULL_PAUSE = 0.05
"""Seconds before a client that has not taken the last parts is offered the next."""


@dataclass(eq=False)
class _Stream:
    """The watch of one client. Parts that wait to be sent are already framed."""

    client: int
    request: Watch
    cursor: Cursor | None = None
    parts: list[bytes] = field(default_factory=list)
    queued: bool = False
    told: int = -1


class WatchStreams:
    """The watches of one node's clients. `begin` is for the node's thread, `close` and `join` for any."""

    def __init__(self, node: Node, clients: Clients, codec: Codec) -> None:
        self._node, self._clients = node, clients
        self._codec = codec
        self._queue: SimpleQueue[_Stream | None] = SimpleQueue()
        self._streams: set[_Stream] = set()
        self._thread: OwnThread | None = None
        self._full: set[_Stream] = set()  # they have not taken the last parts
        self._closed = False

    def begin(self, client: int, request: Watch) -> None:
        """A client wants to watch."""
        if self._closed:
            return
        if self._thread is None:
            name = f"{OWN_THREADS}{self._node.engine.address} watches"
            thread = OwnThread(self._run, name)
            try:
                thread.start()
            except RuntimeError:
                failed = self._frame(
                    Failed(request.id, "ReplidictError", "this node can't start another thread: try again")
                )
                self._clients.answer(client, request.id, failed, True)
                return
            self._thread = thread
        self._queue.put(_Stream(client, request))

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the end, after `close`."""
        if self._thread is not None:
            self._thread.join()

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        look_at = clock() + LOOK_SECONDS
        while not self._closed:
            patience = max(look_at - clock(), 0.0)
            try:
                stream = self._queue.get(timeout=min(patience, FULL_PAUSE) if self._full else patience)
            except Empty:
                full, self._full = self._full, set()
                for each in full:
                    self._attend(each)
            else:
                if stream is not None:
                    stream.queued = False
                    self._attend(stream)
            if clock() >= look_at:
                look_at = clock() + LOOK_SECONDS
                for each in list(self._streams):
                    self._attend(each)
                    self._tell_progress(each)
        for each in list(self._streams):
            self._end(each)

    def _attend(self, stream: _Stream) -> None:
        try:
            if stream.cursor is None:
                stream.cursor = self._open(stream)
                self._streams.add(stream)
                stream.parts = [self._part(stream, stream.cursor.revision)]
            if not self._clients.waits(stream.client, stream.request.id):
                self._end(stream)
                return
            self._read(stream, stream.cursor)
        except (ReplidictError, ValueError) as error:
            numbers = [error.oldest, error.current] if isinstance(error, HistoryLost) else []
            name = type(error).__name__ if isinstance(error, HistoryLost | ValueError) else "ReplidictError"
            self._fail(stream, Failed(stream.request.id, name, str(error), numbers))
        except Exception:
            logger.exception("%s: could not go on with what a client watches", self._node.engine.address)
            self._fail(
                stream, Failed(stream.request.id, "ReplidictError", "an internal error of this node: see its log")
            )

    def _fail(self, stream: _Stream, failed: Failed) -> None:
        self._answer(stream, [self._frame(failed)], last=True)
        self._end(stream)

    def _open(self, stream: _Stream) -> Cursor:
        request, history = stream.request, self._node.history
        key = None if request.key is None else frozenset((place(request.key),))
        if key is not None and request.prefix is not None:
            raise ValueError("watch a key or a prefix, not both")
        after = history.newest if request.after is None else request.after
        return Cursor(history, Interest(key, request.prefix), lambda: self._woken(stream), after)

    def _woken(self, stream: _Stream) -> None:
        """By the node's thread, mostly."""
        if not stream.queued:
            stream.queued = True
            self._queue.put(stream)

    def _read(self, stream: _Stream, cursor: Cursor) -> None:
        """Send what there is, as far as the client takes it."""
        for _ in range(AT_ONCE):
            if not stream.parts:
                found = cursor.read()
                if found is None:
                    return
                stream.parts = [self._frame(part) for part in self._parts(stream, found.revision, found.changes)]
                stream.told = found.revision
                cursor.passed(found)
            if not self._answer(stream, stream.parts, last=False):
                return
        self._woken(stream)

    def _answer(self, stream: _Stream, parts: list[bytes], *, last: bool) -> bool:
        """Hand parts out and take them off the list; whether all of them went."""

        def hand_out() -> str:
            said = "sent"
            while parts and said == "sent":
                said = self._clients.answer(stream.client, stream.request.id, parts[0], last)
                if said == "sent":
                    del parts[0]
            return said

        try:
            said = self._node.call(hand_out).result()
        except ReplidictError:  # the node has stopped
            said = "gone"
        if said == "full":
            self._full.add(stream)
        elif said == "gone":
            self._end(stream)
        return said == "sent"

    def _parts(self, stream: _Stream, revision: int, changes: Sequence[KeyChange]) -> Iterator[Events]:
        some: list[Event] = []
        size = 0
        for _, kind, _, key, value, previous in changes:
            event = Event(kind, key, self._bytes(key, value), self._bytes(key, previous))
            length = len(key) + len(event.value or b"") + len(event.previous or b"")
            if some and size + length > PART_BYTES:
                yield Events(stream.request.id, revision, False, some)
                some, size = [], 0
            some.append(event)
            size += length
        yield Events(stream.request.id, revision, True, some)

    def _bytes(self, key: bytes, data: bytes | None) -> bytes | None:
        if data is None or isinstance(self._codec, FaithfulCodec):
            return data
        return value_of(lambda stored: encode(self._codec.decode(stored)), decode_key(key), data)  # type: ignore[no-any-return]

    def _tell_progress(self, stream: _Stream) -> None:
        """So that a client which goes on elsewhere does not ask for what was of no interest."""
        cursor = stream.cursor
        if cursor is not None and not stream.parts and not cursor.closed and cursor.revision > stream.told:
            stream.parts = [self._part(stream, cursor.revision)]
            self._answer(stream, stream.parts, last=False)

    def _part(self, stream: _Stream, revision: int) -> bytes:
        stream.told = revision
        return self._frame(Events(stream.request.id, revision, True, []))

    def _frame(self, answer: Answer) -> bytes:
        return self._clients.frame(answer)

    def _end(self, stream: _Stream) -> None:
        self._streams.discard(stream)
        if stream.cursor is not None:
            stream.cursor.close()
