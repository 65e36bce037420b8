"""The session of a connection: handshake, then messages. A state machine: bytes in, bytes out, no sockets.

Rules this module keeps:

1. Until the handshake is done the longest frame is 4 KiB; afterwards it is `max_frame_bytes`.
2. Nothing reaches the caller before both sides have accepted each other; whatever is wrong raises `WireError` and
   nothing else, and after that the session yields nothing more.
3. `admit` and `farewell` are called for an authenticated peer only.
4. In secret mode every body after the proofs ends in a tag over its place in its direction of this very session.
5. Fields of `Hello` are only added at the end; its first two stay as they are forever, so that every version can
   tell every other that they differ.
6. A client (see `client_messages`) is a caller without an address and a node id. It proves itself as every caller
   does, but is no member: its certificate may be for any name, it need not know the cluster id, and what it says is a
   `Request` or nothing. A client that is let in can read, write and administer the dict.
7. An authenticated caller that is not (or no longer) a member is told `farewell`, so that it learns why. Only its first
   message is heard, which may say that this side is the one that does not know the members any more.

The handshake, the same in all modes (a proof is empty in plain mode, and in TLS mode, where the certificates prove):

    the side that calls (initiator)                  the side that is called (acceptor)
    CALLING    Hello ------------------------------> AWAIT_HELLO   checks version, mode, cluster, address, name
    AWAIT_HELLO checks the same <------------- Hello
               Proof ------------------------------> AWAIT_PROOF   checks the proof, then admit or farewell
    AWAIT_PROOF checks the proof, admit <----- Proof
    OPEN       ping -------------------------------> AWAIT_PING    the first sealed frame
               messages both ways                    OPEN

Either side may answer `Refused`, with the reason, and close. Only the ping tells the acceptor that it was accepted as
well: a connection is open on both sides or reaches the engine of neither.

The secret (stretched, see `Security.stretch`; by a client, for the acceptor's cluster id) is never sent. `transcript`
is the SHA-256 of both hellos, each with a fresh nonce; HKDF (RFC 5869, salt = transcript) gives the keys of the proofs
(HMAC-SHA256 of it) and of the tags (BLAKE2b, RFC 7693, 16 bytes over counter and body), one for each direction.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal, NoReturn

import msgspec

from replidict.errors import ReplidictError
from replidict.protocol.client_messages import Answer, Request, decode_answer, decode_request
from replidict.protocol.peer_messages import Message, decode, encode
from replidict.release import FIRST, THIS, Release
from replidict.security import Security, split_address
from replidict.transport.framing import TAG_BYTES, FrameReader, Seal, TlsPipe, WireError, frame, hkdf

MAGIC = "replidict"
VERSION = 1
HANDSHAKE_MAX_BYTES = 4096
FIRST_WORDS_MAX_BYTES = 64 * 1024
NONCE_BYTES = 32
PING, CLOSE = b"\x00", b"\x01"  # one byte can't be a message: those are msgpack arrays

_REFUSALS = frozenset({"mode", "version", "cluster", "address", "name", "secret", "identity", "member", "crossed"})
"""What a session refuses the other side for."""

# What msgspec raises for bytes that are no message: ValueError covers its own errors and broken UTF-8.
_UNDECODABLE = (ValueError, RecursionError, OverflowError)


@dataclass(frozen=True)
class NodeIdentity:
    """A node's identity: its cluster, its disk (`node_id` is created with the store) and its address.

    Of a client, `node_id` and `address` are empty, and `cluster_id` too if it will take any. `may_hold_lease`: whether
    it may read under a lease when it leads (thesis 6.4.1).
    """

    cluster_id: str
    node_id: str
    address: str
    may_hold_lease: bool = True


_Text = Annotated[str, msgspec.Meta(max_length=300)]
_Bytes = Annotated[bytes, msgspec.Meta(max_length=64)]


class Preamble(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The part of `Hello` that all versions share."""

    magic: _Text
    version: int


class Hello(Preamble, frozen=True, tag=1):
    """The first frame of each side: who it is, and a nonce."""

    mode: Literal["plain", "secret", "tls"]
    cluster_id: _Text
    node_id: _Text
    address: _Text
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    level: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = FIRST.level
    version_name: Annotated[str, msgspec.Meta(max_length=40)] = FIRST.version
    may_hold_lease: bool = True

    @property
    def release(self) -> Release:
        """Which release the sender says it has."""
        return Release(self.level, printable(self.version_name))


class Proof(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """In secret mode, proof that the sender knows the secret; in any mode, acceptance of the other side's `Hello`."""

    mac: _Bytes


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Why the sender is about to close the connection."""

    code: _Text
    text: _Text


class State(Enum):
    """The state of a session; `CALLING` lasts only until `start` (in TLS mode, until TLS is established)."""

    CALLING = 0
    AWAIT_HELLO = 1
    AWAIT_PROOF = 2
    AWAIT_PING = 3
    OPEN = 4
    FAILED = 5


class Opened(Enum):
    """What a session yields once, before the first message: both sides have accepted each other."""

    OPENED = 0


OPENED = Opened.OPENED

_preamble: Callable[[bytearray], Preamble | Refused] = msgspec.msgpack.Decoder(Preamble | Refused).decode
_handshake: Callable[[bytearray], Hello | Proof | Refused] = msgspec.msgpack.Decoder(Hello | Proof | Refused).decode


class WireSession:
    """One connection from its first byte: handshake, then messages. `called` is the address that was dialled, if any.

    `key` comes from `Security.stretch` (a client that does not know the cluster has none). `may_call(address)` says why
    an address may not call this node, or None; `meet(address, release)` why a node of that release may not, or None;
    `admit(address, node_id)` why this very node may not, as a code and a text, or None: both are asked last, about a
    proven peer. `farewell()` gives the words for who may not call, if any.
    What it wants to say is taken with `take_output`; `encrypt` turns frames, in order, into what goes on the network.
    """

    def __init__(
        self,
        me: NodeIdentity,
        security: Security,
        key: bytes,
        *,
        called: str | None,
        max_frame_bytes: int,
        may_call: Callable[[str], str | None],
        admit: Callable[[str, str], tuple[str, str] | None],
        meet: Callable[[str, Release], str | None] = lambda address, release: None,
        farewell: Callable[[], Message | None] = lambda: None,
    ) -> None:
        self.state = State.AWAIT_HELLO if called is None else State.CALLING
        self.peer: Hello | None = None
        self.is_client = not me.address
        """Is one of the two sides a client?"""
        self.proven = False
        """Has the peer proved to be a node of this cluster?"""
        self.unwelcome: str | None = None
        """Why the caller may not call, who is told `farewell` once the session is open, and heard no more."""
        self.farewell: Message | None = None
        self.output: list[bytes] = []
        self.tag_bytes = TAG_BYTES if security.mode == "secret" else 0
        self._me, self._security, self._key, self._called = me, security, key, called
        self._may_call, self._admit, self._meet, self._bid_farewell = may_call, admit, meet, farewell
        self._decode: Callable[[bytearray], Message | Request | Answer] = decode
        self._max_frame_bytes = max_frame_bytes
        self._reader = FrameReader(HANDSHAKE_MAX_BYTES)
        who = me.cluster_id, me.node_id, me.address, secrets.token_bytes(NONCE_BYTES)
        hello = Hello(MAGIC, VERSION, security.mode, *who, *THIS, me.may_hold_lease)
        self._hello: bytes = encode(hello)
        self._proofs = (b"", b"")  # (ours, the one expected)
        self._tag_keys = (b"", b"")  # (ours, theirs)
        self._send: Seal | None = None
        self._receive: Seal | None = None
        self.heard = False
        """Has the peer said anything?"""
        context = security.server if called is None else security.client
        self.tls = TlsPipe(context, server=called is None) if context is not None else None
        """What encrypts, in mode "tls"."""

    def start(self) -> None:
        """Begin (only the side that called says something first)."""
        if self.tls is not None:
            if self._called is not None:
                self.tls.decrypt(b"")
        elif self._called is not None:
            self._say_hello()

    def receive(self, data: bytes | memoryview) -> Iterator[Message | Request | Answer | Opened]:
        """Take bytes from the network; yields `OPENED` once, then messages, or what a client asks or is answered.

        Raises `WireError` alone.
        """
        if self.state is State.FAILED or not data:
            return
        try:
            if not self.heard:
                self._sniff(data[0])
            if self.tls is not None:
                data = self.tls.decrypt(data)
                if self.state is State.CALLING and self.tls.up:
                    self._check_name(self._called or "")
                    self._say_hello()
            self._reader.feed(data)
            while (body := self._reader.next()) is not None:
                if self.state is not State.OPEN:
                    if self._advance(body):
                        yield OPENED
                    continue
                if self._receive is not None:
                    self._verify(body)
                if len(body) > 1:
                    yield self._message(body)
                elif body == CLOSE:
                    raise WireError("closed", "the peer closed it", by_peer=True)
                elif body != PING:
                    raise WireError("protocol", "an unknown control frame")
        except WireError:
            self.state = State.FAILED
            raise

    @property
    def held(self) -> int:
        """How many bytes are kept of a message that is still coming."""
        return self._reader.held

    def forget(self) -> None:
        """Discard buffered bytes; nothing more is read."""
        self._reader.forget()

    def take_output(self) -> list[bytes]:
        """The frames that the session itself wants sent, before anything sealed later."""
        taken, self.output = self.output, []
        return taken

    def seal(self, framed: bytes) -> bytes:
        """Return the bytes to send for a `frame`. In secret mode each tag counts, so every result must be sent, in
        order."""
        if self._send is None:
            return framed
        return framed + self._send.tag(memoryview(framed)[4:])

    def encrypt(self, data: bytes | memoryview) -> bytes | memoryview:
        """The bytes for the network; with nothing given, what TLS itself has to say."""
        return data if self.tls is None else self.tls.encrypt(data)

    def _sniff(self, first: int) -> None:
        """Tell from the first byte, which can't be anything else, whether the peer speaks TLS."""
        self.heard = True
        mine = self.tls is not None
        if first == 0 or 20 <= first <= 23:  # a handshake frame is short; 20 to 23 are the kinds of TLS records
            if mine == (first != 0):
                return
            if mine:
                self.tls = None  # so that the reason can be read at the other end
            self._refuse("mode", f"one side speaks TLS, and {self._me.address} is in mode {self._security.mode!r}: "
                         "give every node the same tls= or secret=")  # fmt: skip
        raise WireError("protocol", "the peer is not a replidict node: it speaks another protocol")

    def _advance(self, body: bytearray) -> bool:
        """One step of the handshake, as in the table above; True when it was the last one."""
        calling = self._called is not None
        if self.state is State.AWAIT_HELLO:
            self._check_hello(self._read_hello(body))
            self._derive(bytes(body))
            if calling:
                self._say_proof()
            else:
                self._say_hello()
            self.state = State.AWAIT_PROOF
            return False
        if self.state is State.AWAIT_PROOF:
            proof = self._read(body)
            if calling:
                self._seal_from_here()
            self._check_proof(proof)
            if not calling:
                self._say_proof()
                self._seal_from_here()
                self.state = State.AWAIT_PING
                return False
            self.output.append(self.seal(frame(PING, self.tag_bytes)))
        else:
            if self._receive is not None:
                self._verify(body)
            if body != PING:
                self._read(body)
                raise WireError("protocol", "the handshake did not end in a ping")
        self._reader.max_bytes = self._max_frame_bytes if self.farewell is None else FIRST_WORDS_MAX_BYTES
        self.state = State.OPEN
        return True

    def _say_hello(self) -> None:
        self.output.append(frame(self._hello))
        self.state = State.AWAIT_HELLO

    def _say_proof(self) -> None:
        self.output.append(frame(encode(Proof(self._proofs[0]))))

    def _read_hello(self, body: bytearray) -> Hello:
        try:
            first = _preamble(body)
        except _UNDECODABLE as error:
            raise WireError("protocol", "the peer is not a replidict node, or not of a release known here") from error
        if isinstance(first, Preamble) and first.magic == MAGIC and first.version != VERSION:
            self._refuse("version", f"{self._me.address} speaks version {VERSION} of the protocol, not "
                         f"{first.version}: bring all nodes to the same release")  # fmt: skip
        hello = self._read(body)
        if not isinstance(hello, Hello) or hello.magic != MAGIC:
            raise WireError("protocol", "the handshake did not begin with a hello")
        return hello

    def _read(self, body: bytearray) -> Hello | Proof:
        """A handshake frame; the peer's refusal raises."""
        try:
            said = _handshake(body)
        except _UNDECODABLE as error:
            raise WireError("protocol", "the peer sent something else than a handshake") from error
        if isinstance(said, Refused):
            code = said.code if said.code in _REFUSALS else "refused"  # no word of our own in somebody else's mouth
            raise WireError(code, printable(said.text), by_peer=True)
        return said

    def _check_hello(self, hello: Hello) -> None:
        """Check that this peer is acceptable, if it is who it claims to be."""
        me, it, calling = self._me, printable(hello.address) or "a client", self._called is not None
        if hello.mode != self._security.mode:
            self._refuse("mode", f"{me.address or 'this client'} is in mode {self._security.mode!r} and {it} in mode "
                         f"{hello.mode!r}: give every node the same tls= or secret=")  # fmt: skip
        caller, cluster_id = (me, hello.cluster_id) if calling else (hello, me.cluster_id)
        self.is_client = not caller.address
        if caller.cluster_id != cluster_id and (caller.cluster_id or not self.is_client):
            self._refuse("cluster", f"{it} belongs to another cluster than {me.address or 'this client'}: check "
                         "address= and peers= of both, and that neither runs on a copied directory")  # fmt: skip
        if hello.address == me.address:
            self._refuse("address", f"two nodes go by the address {it}: give each its own address=")
        if self.is_client:
            if not calling and hello.node_id:
                self._refuse("address", "a node needs an address, and a client has no node id")
            self._decode = decode_answer if calling else decode_request
        elif not calling:
            self._check_name(hello.address)
            self.unwelcome = self._may_call(hello.address)
        elif hello.address != self._called:
            self._refuse("address", f"who answers at {self._called} calls itself {it}: spell addresses the same on "
                         "every node, and check DNS")  # fmt: skip
        self.peer = hello

    def _check_name(self, address: str) -> None:
        """The address must be one, and in TLS mode the certificate must be for it."""
        try:
            host, _ = split_address(address)
        except ReplidictError as error:
            self._refuse("address", printable(str(error)))
        if self.tls is None:
            return
        try:
            named = self.tls.peer_is(host, self._security.names)
        except WireError as error:
            self._refuse(error.code, error.text)
        if not named:
            self._refuse("name", f"the certificate of {address} names neither {host} nor one of "
                         f"names={self._security.names}")  # fmt: skip

    def _check_proof(self, proof: Hello | Proof) -> None:
        """Check that the peer is who it claims to be, and is admitted."""
        if not isinstance(proof, Proof) or self.peer is None:
            raise WireError("protocol", "the peer sent something else than its proof")
        if not hmac.compare_digest(proof.mac, self._proofs[1]):
            one, other = (printable(address) or "a client" for address in (self._me.address, self.peer.address))
            self._refuse("secret", f"{one} and {other} were given different secrets: give every node the same secret=")
        if self.is_client:
            return
        self.proven = True
        if self.unwelcome is not None:
            self.farewell = self._bid_farewell()
            if self.farewell is None:
                self._refuse("member", self.unwelcome)
        elif (too_old := self._meet(self.peer.address, self.peer.release)) is not None:
            self._refuse("version", too_old)
        elif (refused := self._admit(self.peer.address, self.peer.node_id)) is not None:
            self._refuse(*refused)

    def _derive(self, theirs: bytes) -> None:
        """Secret mode: all keys of this session, from the shared key and both hellos."""
        if self._security.mode != "secret":
            return
        calling = self._called is not None
        hellos = (self._hello, theirs) if calling else (theirs, self._hello)
        key = self._key
        if self.is_client and calling and not key and self.peer is not None:
            key = self._security.stretch(self.peer.cluster_id)
        transcript = hashlib.sha256(b"".join(frame(hello) for hello in hellos)).digest()
        keys = [
            hkdf(key, transcript, b"replidict 1 " + use)
            for use in (b"initiator proof", b"acceptor proof", b"initiator tags", b"acceptor tags")
        ]
        initiator, acceptor = (hmac.digest(key, transcript, "sha256") for key in keys[:2])
        self._proofs = (initiator, acceptor) if calling else (acceptor, initiator)
        self._tag_keys = (keys[2], keys[3]) if calling else (keys[3], keys[2])

    def _seal_from_here(self) -> None:
        if self._security.mode == "secret":
            self._send, self._receive = (Seal(key) for key in self._tag_keys)

    def _verify(self, body: bytearray) -> None:
        """Cut off and check the tag of a body."""
        assert self._receive is not None
        tag = body[-TAG_BYTES:]
        del body[-TAG_BYTES:]
        if not hmac.compare_digest(tag, self._receive.tag(body)):
            raise WireError("tag", "a frame was forged, changed, repeated or lost on the way")

    def _message(self, body: bytearray) -> Message | Request | Answer:
        try:
            return self._decode(body)
        except _UNDECODABLE as error:
            raise WireError("protocol", f"a frame that is not a message: {printable(str(error))}") from error

    def _refuse(self, code: str, text: str) -> NoReturn:
        """Tell the peer why, and fail."""
        text = printable(text)
        room = self.tag_bytes if self._send is not None else 0
        self.output.append(self.seal(frame(encode(Refused(code, text)), room)))
        raise WireError(code, text)


def printable(text: str, most: int = 300) -> str:
    """Another node's text, made safe for one line of a log."""
    return "".join(char if char.isprintable() else "?" for char in text[:most])
