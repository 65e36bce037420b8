"""A live cluster under load, and a million frames and handshakes that nobody should believe.

    python -m tests.fuzz_wire --frames 1000000 --mode secret --seed 7

Three nodes, each a process, of a cluster founded by four: no majority without all three of them, so whatever disturbs
one is felt. All three write without a pause. Meanwhile come

    strangers   random bytes, mutated hellos and proofs, lies about lengths, TLS, HTTP, pickles, and (in TLS mode)
                callers with no certificate, with another authority's, or with a good one and a mutated handshake
    the rogue   the fourth founder: it proves itself, says things that a member which lags might say, and then one
                frame that is no message, or is none of this session
    clients      programs that are no members: they prove themselves, ask what does no harm, and get an answer to each
                ask; then they ask what is no request, ask too much, or hang up in the midst of it

A member that lies in well-formed messages (a term that never was, entries that it does not hold) is out of scope: Raft
trusts its members, and nodes their clients. A mutated frame that happens to be such a lie, or to ask for a change, is
therefore not sent, but counted (`withheld`).

Exit status 1 if a frame was accepted, a node ended or logged an error, a leader or term changed, a connection among
the three was lost, a write failed or took an election timeout (more than it took a bystander to write to the same
disk), memory grew, or a connection was not closed.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import trustme

from replidict import Options, ReplicatedDict
from replidict.errors import ReplidictError
from replidict.machine import commands as cmd
from replidict.machine.codec import encode, encode_key
from replidict.protocol import client_messages, log_entry, peer_messages
from replidict.release import THIS
from replidict.security import TLS, Mode, Security, security_for, split_address
from replidict.transport.framing import TlsPipe, WireError, frame
from replidict.transport.handshake import MAGIC, OPENED, PING, VERSION, Hello, NodeIdentity, Proof, Refused, WireSession
from tests.clusters import free_addresses, host_of
from tests.wire_support import MODES, SECRET, Certificates

CLOSE_WITHIN = 60.0  # seconds until a node has closed a connection that it should close
ANSWERS_WITHIN = 0.5  # seconds that a caller waits for an answer to what the node may well take for half a handshake
RSS_GROWTH = 8 * 2**20  # bytes of noise: what the allocator keeps
SOURCES = [f"127.0.0.{number}" for number in range(2, 18)]  # where strangers call from
IP_BIND_ADDRESS_NO_PORT = 24
VOLLEY = 8  # strangers at a time, on each node


@dataclass(frozen=True)
class Target:
    """A cluster to attack, and all that is known about it."""

    mode: Mode
    cluster_id: str
    live: list[str]
    absent: str
    """The fourth founder: greater than all others, so that it calls them."""
    absent_id: str
    folder: Path
    """Of the certificates."""

    def credentials(self) -> dict[str, Any]:
        """What every node is given."""
        if self.mode == "tls":
            pem = self.folder / "good.pem"
            return {"tls": TLS(cert=pem, key=pem, ca=self.folder / "ca.pem")}
        return {"secret": SECRET} if self.mode == "secret" else {"insecure": False}

    def security(self) -> Security:
        """What the rogue is given."""
        given = self.credentials()
        return security_for(self.absent, given.get("tls"), given.get("secret"), False)


@dataclass
class Tally:
    """What was sent, and what came of it."""

    frames: int = 0
    connections: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    """Strangers that got a proof or a ping; must stay empty."""
    not_closed: list[str] = field(default_factory=list)
    well_formed: int = 0
    """Messages that the rogue may say; the nodes should have heard these and no others."""
    withheld: int = 0

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.frames += other.frames
        self.connections += other.connections
        self.kinds += other.kinds
        self.accepted += other.accepted
        self.not_closed += other.not_closed
        self.well_formed += other.well_formed
        self.withheld += other.withheld


# -- what they say ----------------------------------------------------------------------------------------------------

_WORDS = [
    b"\x00", b"\x01", b"\xff", b"\x80", b"\xc0", b"\xc1", b"\xc4\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\x9f", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7),
    b"\xcb\x7f\xf8" + bytes(6),
    b"\x91" * 40, b"\xa3\xff\xfe\xfd", b"\x90", b"\xde\xff\xff",
]  # fmt: skip


def mutate(rng: random.Random, data: bytes) -> bytes:
    """The same, with a few small things wrong."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 1, 2, 4, 16)))
        match rng.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:end]
            case 2:
                del out[at:]
            case 3:
                out[at:at] = out[at:end]
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
            case 5:
                out[at : at + 1] = rng.choice(_WORDS)
            case _:
                out[at:end] = rng.randbytes(end - at)
    return bytes(out)


NO_ADDRESSES = ["garbage", "", "a:0", "a:99999", "[::1", "x" * 300, "a b:1", "0.0.0.0:1"]


NO_SUCCESSORS = [("no id", "a:1", "2026-01-01"), ("0" * 32, "", "2026-01-01"), ("0" * 32, "a:1", "never"),
                 ("0" * 32, "a:1", "2026-01-01"), ("0" * 32, "a:1", "2026-01-01\n01:01")]  # fmt: skip
"""What a founder says of itself; the last two may be, and are an error in the log of a cluster that has a leader."""


def samples(rng: random.Random) -> list[peer_messages.Message]:
    """One message of each kind, as a member that is far behind (term 0) might say it."""
    entries = [log_entry.Entry(index, 0, rng.randbytes(rng.randrange(40))) for index in range(1, rng.randrange(1, 5))]
    number = rng.getrandbits(rng.choice((1, 8, 40)))
    return [
        peer_messages.RequestVote(number, number, 0, rng.random() < 0.5),
        peer_messages.VoteReply(0, True, rng.random() < 0.5, number),
        peer_messages.AppendEntries(0, 0, 0, number, entries, number, rng.random(), rng.random()),
        peer_messages.AppendReply(0, rng.random() < 0.5, number, number, rng.random()),
        peer_messages.TimeoutNow(number),
        peer_messages.SnapshotPiece(0, number, 0, "1-1-ab", number + 50, rng.randbytes(32), number, rng.randbytes(50)),
        peer_messages.SnapshotReply(0, "1-1-ab", number, True, number),
        peer_messages.Propose(number, b"\xc1" + rng.randbytes(rng.randrange(60))),
        peer_messages.ProposeRefused(0, "127.0.0.1:1"),
        peer_messages.ConfirmLeader(0, number),
        peer_messages.LeaderConfirmed(0, number),
        peer_messages.ReadIndexRequest(number, number),
        peer_messages.ReadIndexReply(number, number, number),
        peer_messages.CommitTo(number, number),
        peer_messages.MembersAre(number, 0, ["127.0.0.1:1"], [], {}, []),
        peer_messages.ChangeRequest(number, number, peer_messages.AddMember(rng.choice(NO_ADDRESSES), True, None)),
        peer_messages.ChangeReply(number, number, "done", "because"),
        peer_messages.MembersRequest(number, number),
        peer_messages.MembersReply(number, number, {"127.0.0.1:1": (number, rng.random())}),
    ]


def is_address(text: str) -> bool:
    """Is it one that peers could call?"""
    try:
        split_address(text)
        return True
    except ReplidictError:
        return False


def may_be_said(message: peer_messages.Message) -> bool:
    """Might an honest member that lags say this, whatever the others know? (Their terms are above 0.)"""
    match message:
        case peer_messages.RequestVote():
            return not message.transfer  # others may always be asked; that a leader asked for it would be a lie
        case peer_messages.Propose():
            command = message.command
            return not cmd.may_be_proposed(command)
        case (
            peer_messages.TimeoutNow()
            | peer_messages.ReadIndexRequest()
            | peer_messages.ReadIndexReply()
            | peer_messages.CommitTo()
        ):
            return True  # not a leader's, or about nothing that was asked
        case peer_messages.ChangeReply() | peer_messages.MembersRequest() | peer_messages.MembersReply():
            return True
        case peer_messages.MembersAre():
            return message.index == 0  # what all know; of a later one the rogue would have to know
        case peer_messages.ChangeRequest():
            return isinstance(message.change, peer_messages.AddMember) and not is_address(message.change.address)
        case _:
            return message.term == 0


def decoded(body: bytes) -> peer_messages.Message | None:
    """The message that these bytes are, if they are one."""
    try:
        message: peer_messages.Message = peer_messages.decode(body)
        return message
    except (ValueError, RecursionError, OverflowError):
        return None


class Forge:
    """Makes what strangers say: bytes, and how many frames these are (up to the one that can't be believed)."""

    def __init__(self, rng: random.Random, target: Target) -> None:
        self._rng, self._target = rng, target
        self._pickle = zlib.compress(pickle.dumps(["status"]))
        self._makers: list[tuple[str, Callable[[str], tuple[bytes, int]]]] = [
            ("random bytes", self._random),
            ("random frame", self._random_frame),
            ("lie about a length", self._length),
            ("mutated hello", self._mutated_hello),
            ("altered hello", self._altered_hello),
            ("hello, mutated proof", self._bad_proof),
            ("hello, random frame", self._then_random),
            ("other first frame", self._other_first),
            ("another protocol", self._other_protocol),
        ]

    def make(self, called: str) -> tuple[str, bytes, int]:
        """Something for the node at this address."""
        kind, maker = self._rng.choice(self._makers)
        return (kind, *maker(called))

    def hello(self, called: str) -> Hello:
        """Right in everything but the identity, which is of no member."""
        target, rng = self._target, self._rng
        callers = [address for address in (*target.live, target.absent) if address > called]
        return Hello(
            MAGIC, VERSION, target.mode, target.cluster_id, rng.randbytes(16).hex(), rng.choice(callers),
            rng.randbytes(32),
        )  # fmt: skip

    def _random(self, called: str) -> tuple[bytes, int]:
        return self._rng.randbytes(self._rng.choice((1, 3, 5, 20, 300, 3000))), 1

    def _random_frame(self, called: str) -> tuple[bytes, int]:
        return frame(self._rng.randbytes(self._rng.choice((1, 2, 16, 100, 4096)))), 1

    def _length(self, called: str) -> tuple[bytes, int]:
        length = self._rng.choice((0, 4097, 2**16, 2**24 - 1, 2**31, 2**32 - 1, self._rng.getrandbits(32)))
        return length.to_bytes(4, "big") + self._rng.randbytes(self._rng.randrange(200)), 1

    def _mutated_hello(self, called: str) -> tuple[bytes, int]:
        body = mutate(self._rng, peer_messages.encode(self.hello(called)))
        return (frame(body) if self._rng.random() < 0.8 else mutate(self._rng, frame(body))), 1

    def _altered_hello(self, called: str) -> tuple[bytes, int]:
        rng, target = self._rng, self._target
        # In plain mode somebody at another address is believed, and told that it is no member.
        elsewhere = "[::1" if target.mode == "plain" else "[::1]:1"
        changes: list[dict[str, Any]] = [
            {"version": rng.choice((0, 2, -1, 2**63, rng.getrandbits(31)))},
            {"magic": rng.choice(("", "replidicT", "x" * 300))},
            {"mode": rng.choice([*(mode for mode in MODES if mode != target.mode), "none", ""])},
            {"cluster_id": rng.choice(("", rng.randbytes(16).hex(), "é" * 100))},
            {
                "address": rng.choice(
                    (called, "", "127.0.0.1", elsewhere, "\n\0", "x" * 300, "a:99999", min(target.live))
                )
            },
            {"nonce": rng.randbytes(rng.choice((0, 31, 33, 64)))},
        ]
        hello = msgspec.structs.replace(self.hello(called), **rng.choice(changes))
        return frame(peer_messages.encode(hello)) + frame(peer_messages.encode(Proof(b""))), 1

    def _bad_proof(self, called: str) -> tuple[bytes, int]:
        rng = self._rng
        proof = peer_messages.encode(Proof(rng.choice((b"", rng.randbytes(32), bytes(32)))))
        if rng.random() < 0.5:
            proof = mutate(rng, proof)
        return frame(peer_messages.encode(self.hello(called))) + frame(proof) + frame(PING), 2

    def _then_random(self, called: str) -> tuple[bytes, int]:
        rng = self._rng
        body = rng.choice(
            (rng.randbytes(rng.randrange(1, 60)), peer_messages.encode(rng.choice(samples(rng))), PING, b"\x01")
        )
        return frame(peer_messages.encode(self.hello(called))) + frame(body), 2

    def _other_first(self, called: str) -> tuple[bytes, int]:
        rng = self._rng
        body = rng.choice([
            peer_messages.encode(Proof(rng.randbytes(32))),
            peer_messages.encode(Refused("secret", "\x1b[2J" + "x" * rng.randrange(400))),
            peer_messages.encode(rng.choice(samples(rng))),
            PING,
        ])  # fmt: skip
        return frame(body), 1

    def _other_protocol(self, called: str) -> tuple[bytes, int]:
        rng = self._rng
        record = bytes.fromhex("16030100ce010000ca0303") + rng.randbytes(200)
        return rng.choice([
            struct.pack("i", len(self._pickle)) + self._pickle,
            b"GET /" + rng.randbytes(5).hex().encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            record,
            mutate(rng, record),
            b"\x15\x03\x01\x00\x02\x02\x30",
            b"SSH-2.0-OpenSSH_9.6\r\n",
        ]), 1  # fmt: skip


# -- strangers --------------------------------------------------------------------------------------------------------


def call(address: str, source: str | None = None) -> socket.socket:
    """A connection to a node, from this source."""
    host, port = address.rsplit(":", 1)
    sock = socket.socket()
    sock.settimeout(CLOSE_WITHIN)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if source is not None:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
    sock.connect((host, int(port)))
    return sock


def hang_up(sock: socket.socket) -> None:
    """Close, and leave no port in TIME_WAIT."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def said_until_closed(sock: socket.socket) -> bytes | None:
    """All that the node still says until it closes; None if it does not."""
    said = bytearray()
    try:
        while data := sock.recv(65536):
            said += data
    except TimeoutError:
        return None
    except OSError:
        pass
    return bytes(said)


def accepts(said: bytes) -> bool:
    """Is there anything in a node's answer that it says only to whom it accepts?"""
    while len(said) >= 4:
        length = int.from_bytes(said[:4], "big")
        body, said = said[4 : 4 + length], said[4 + length :]
        try:
            refusal_or_hello = isinstance(msgspec.msgpack.decode(body, type=Hello | Proof | Refused), Hello | Refused)
        except (ValueError, RecursionError):
            return True  # sealed, perhaps
        if not refusal_or_hello:
            return True
    return False


def as_strangers(forge: Forge, rng: random.Random, target: Target, tally: Tally) -> None:
    """One volley of strangers on every node."""
    under_way = []
    for _ in range(VOLLEY):
        for address in target.live:
            kind, data, frames = forge.make(address)
            sock = call(address, rng.choice(SOURCES))
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # closed already
            under_way.append((sock, kind, data))
            tally.frames += frames
            tally.connections += 1
            tally.kinds[kind] += frames
    for sock, kind, data in under_way:
        said = said_until_closed(sock)
        hang_up(sock)
        if said is None:
            tally.not_closed.append(f"{kind}: {data[:200].hex()}")
        elif target.mode != "tls" and accepts(said):
            tally.accepted.append(f"{kind}: {data[:200].hex()} -> {said.hex()}")


class TlsStrangers:
    """Callers that speak TLS: without a certificate, with another authority's, or with a good one and bad manners."""

    def __init__(self, target: Target) -> None:
        import ssl

        def context() -> ssl.SSLContext:
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            made.check_hostname = False
            made.load_verify_locations(cafile=target.folder / "ca.pem")
            return made

        bare, foreign = context(), context()
        trustme.CA().issue_cert("127.0.0.1").configure_cert(foreign)
        good = target.security().client
        assert good is not None
        self._contexts = {"TLS, no certificate": bare, "TLS, another authority": foreign}
        self._good = good

    def attack(self, forge: Forge, rng: random.Random, address: str, tally: Tally) -> None:
        """One of them."""
        kind = rng.choice(
            [*self._contexts, "TLS, bad handshake within", "TLS, bad handshake within", "TLS, mutated record"]
        )
        pipe = TlsPipe(self._contexts.get(kind, self._good), server=False)
        maker = rng.choice((forge._mutated_hello, forge._bad_proof, forge._then_random, forge._random_frame))
        data, frames = maker(address)
        sock = call(address, rng.choice(SOURCES))
        plain = b""
        sock.settimeout(ANSWERS_WITHIN)
        try:
            pipe.decrypt(b"")
            hello = pipe.encrypt(b"")
            sock.sendall(mutate(rng, hello) if kind == "TLS, mutated record" and rng.random() < 0.5 else hello)
            while not pipe.up and (received := sock.recv(65536)):
                plain += pipe.decrypt(received)
                if pipe.up:
                    record = pipe.encrypt(data)
                    sock.sendall(mutate(rng, record) if kind == "TLS, mutated record" else record)
                else:
                    sock.sendall(pipe.encrypt(b""))
            sock.shutdown(socket.SHUT_WR)
        except (WireError, OSError):
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        sock.settimeout(CLOSE_WITHIN)
        said = said_until_closed(sock)
        hang_up(sock)
        try:
            plain += pipe.decrypt(said or b"")
        except WireError:
            pass
        tally.frames += frames
        tally.connections += 1
        tally.kinds[kind] += frames
        if said is None:
            tally.not_closed.append(f"{kind}: {data[:200].hex()}")
        elif accepts(plain):
            tally.accepted.append(f"{kind}: {data[:200].hex()} -> {plain.hex()}")


# -- the rogue --------------------------------------------------------------------------------------------------------


class Rogue:
    """A connection of the absent member, or of a client, to one node."""

    def __init__(
        self,
        target: Target,
        security: Security,
        key: bytes,
        address: str,
        node_id: str | None = None,
        client: bool = False,
    ) -> None:
        name, who = ("", "") if client else (target.absent, node_id or target.absent_id)
        self.session = WireSession(
            NodeIdentity(target.cluster_id, who, name), security, key, called=address,
            max_frame_bytes=Options().max_frame_bytes, may_call=lambda address: None,
            admit=lambda address, node_id: None,
        )  # fmt: skip
        self.sock = call(address)
        self.open = False

    def prove(self, last: bytes | None = None) -> None:
        """The handshake, ending in the ping, or in another body. Raises `WireError` or `OSError`."""
        self.session.start()
        while not self.open:
            for out in self.session.take_output():
                self.write(out)
            self.write(b"")
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("closed by the node")
            self.open = OPENED in list(self.session.receive(data))  # all of it, whatever comes first
        pings = self.session.take_output()
        if last is None:
            for out in pings:
                self.write(out)
        else:
            # The tag of the ping was counted already: the tag of this body is a wrong one in secret mode.
            self.say(last)

    def write(self, framed: bytes) -> None:
        """Send what was sealed."""
        out = self.session.encrypt(framed)
        if out:
            self.sock.sendall(out)

    def say(self, *bodies: bytes) -> None:
        """Send bodies, sealed, at once."""
        self.write(b"".join([self.session.seal(frame(body, self.session.tag_bytes)) for body in bodies]))

    def answers(self, wanted: int) -> int:
        """Wait for the answers to so many requests; how many there were."""
        ended = 0
        while ended < wanted and (data := self.sock.recv(65536)):
            for said in self.session.receive(data):
                ended += not isinstance(said, client_messages.Keys | client_messages.Piece)
        return ended

    def closed(self) -> bool:
        """Wait until the node closes it."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        said = said_until_closed(self.sock)
        hang_up(self.sock)
        return said is not None


class Rogues:
    """The absent member, over and over again."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target, self._rng = target, rng
        self._security = target.security()
        self._key = self._security.stretch(target.cluster_id)

    def connect(self, address: str, node_id: str | None = None) -> Rogue:
        """A new connection, not yet proven."""
        return Rogue(self._target, self._security, self._key, address, node_id)

    def introduce(self) -> None:
        """Come as an honest member once, so that every node knows the identity of the absent one."""
        for address in self._target.live:
            rogue = self.connect(address)
            rogue.prove()
            assert rogue.closed()

    def attack(self, address: str, tally: Tally) -> None:
        """One connection: proven, a few words that are allowed, and then one frame that closes it."""
        rng = self._rng
        rogue = self.connect(address)
        tally.connections += 1
        try:
            if rng.random() < 0.1:
                rogue.prove(last=rng.choice((b"\x05", self._no_message(tally), b"\x01" * 40)))
                tally.frames += 1
                tally.kinds["proven: no ping at the end"] += 1
            else:
                rogue.prove()
                rogue.say(*self._allowed(rng.randrange(80), tally))
                tally.frames += 1
                tally.kinds[self._forbidden(rogue, tally)] += 1
        except WireError as error:
            tally.not_closed.append(f"the rogue was refused: {error}")
        except OSError:
            pass  # the node closed it already
        if not rogue.closed():
            tally.not_closed.append("the rogue's connection")

    def _allowed(self, count: int, tally: Tally) -> list[bytes]:
        rng = self._rng
        bodies: list[bytes] = []
        while len(bodies) < count:
            said: peer_messages.Message | None = rng.choice(samples(rng))
            body = peer_messages.encode(said)
            if rng.random() < 0.7:
                body = mutate(rng, body)
                said = decoded(body)
            if said is None:
                continue
            if may_be_said(said):
                bodies.append(body)
            else:
                tally.withheld += 1
        tally.frames += count
        tally.well_formed += count
        tally.kinds["proven: allowed"] += count
        return bodies

    def _no_message(self, tally: Tally) -> bytes:
        rng = self._rng
        while True:
            match rng.randrange(4):
                case 0:
                    body = rng.randbytes(rng.choice((2, 3, 20, 200, 5000)))
                case 1:
                    body = rng.randbytes(1)
                    if body in (b"\x00", b"\x01"):  # a ping, a goodbye
                        continue
                    return body
                case _:
                    body = mutate(rng, peer_messages.encode(rng.choice(samples(rng))))
            if len(body) > 1:
                if decoded(body) is None:
                    return body
                tally.withheld += 1

    def _forbidden(self, rogue: Rogue, tally: Tally) -> str:
        rng, session, mode = self._rng, rogue.session, self._target.mode
        match rng.randrange(4):
            case 0 if mode != "plain":
                # A good frame, changed on the way.
                body = peer_messages.encode(peer_messages.TimeoutNow(0))
                sealed = bytearray(session.encrypt(session.seal(frame(body, session.tag_bytes))))
                start = 5 if mode == "tls" else 4  # the length stays as it was, or it would be another kind
                sealed[rng.randrange(start, len(sealed))] ^= 1 << rng.randrange(8)
                rogue.sock.sendall(sealed)
                return "proven: changed on the way"
            case 1 if mode == "secret":
                framed = session.seal(frame(peer_messages.encode(peer_messages.TimeoutNow(0)), session.tag_bytes))
                tally.frames += 1
                tally.well_formed += 1
                rogue.write(framed + framed)
                return "proven: repeated"
            case 2:
                length = rng.choice((0, Options().max_frame_bytes + 1, 2**32 - 1))
                rogue.write(length.to_bytes(4, "big") + rng.randbytes(30))
                return "proven: lie about a length"
            case _:
                rogue.say(self._no_message(tally))
                return "proven: no message"


# -- clients -----------------------------------------------------------------------------------------------------------


def asked(rng: random.Random, number: int, cluster_id: str) -> client_messages.Request:
    """A request that changes nothing, whoever of this cluster, which has a leader, it is put to; some can't be met."""
    node_id = f"{rng.getrandbits(128):032x}"
    successor = rng.choice(("no cluster", cluster_id)), node_id, f"h{number}:{1 + rng.randrange(65535)}"
    key = rng.choice((encode_key("0-1"), encode_key(("a", 1)), b"", rng.randbytes(rng.randrange(30))))
    made: list[client_messages.Request] = [
        client_messages.Get(number, rng.choice((0.0, 5.0)), key, rng.random() < 0.2),
        client_messages.Replace(
            number, 5.0, encode_key("0-1"), encode(rng.random()), 0
        ),  # nothing was written by revision 0
        client_messages.Set(number, 5.0, rng.randbytes(20), b"\xc1"),
        client_messages.Delete(number, 5.0, encode_key("never there")),
        client_messages.ListKeys(
            number, 5.0, rng.choice(("", "0", "é")), rng.choice((None, key)), rng.randrange(200), False
        ),
        client_messages.GetStatus(number, 5.0),
        client_messages.GetMembers(number, 5.0),
        client_messages.AddPeer(number, 0.0, rng.choice(NO_ADDRESSES), True),
        client_messages.RemovePeer(number, 0.0, rng.choice(NO_ADDRESSES), False),
        client_messages.Join(number, 0.0, rng.choice(NO_ADDRESSES), "no id", True, *THIS),
        client_messages.Supersede(
            number, 5.0, *successor, rng.choice((0, log_entry.NUMBER_MAX)), *rng.choice(NO_SUCCESSORS)
        ),
    ]
    return rng.choice(made)


def decoded_request(body: bytes) -> client_messages.Request | None:
    """The ask that these bytes are, if they are one."""
    try:
        request: client_messages.Request = client_messages.decode_request(body)
        return request
    except (ValueError, RecursionError, OverflowError):
        return None


class FuzzClients:
    """Clients of one node after the other."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target, self._rng = target, rng
        self._security = target.security()
        self._key = self._security.stretch(target.cluster_id)

    def attack(self, address: str, tally: Tally) -> None:
        """One of them: requests that are answered, then something else."""
        rng = self._rng
        client = Rogue(self._target, self._security, self._key, address, client=True)
        tally.connections += 1
        try:
            client.prove()
            count = rng.randrange(15)
            client.say(
                *[peer_messages.encode(asked(rng, number, self._target.cluster_id)) for number in range(1, count + 1)]
            )
            tally.frames += count
            tally.kinds["client: requests"] += count
            if rng.random() < 0.7 and client.answers(count) != count:
                tally.not_closed.append(f"a client was not answered {count} requests")
            tally.frames += 1
            tally.kinds[self._then(client, tally)] += 1
        except WireError as error:
            tally.not_closed.append(f"a client was refused: {error}")
        except OSError:
            pass  # the node closed it already
        if not client.closed():
            tally.not_closed.append("a client's connection")

    def _then(self, client: Rogue, tally: Tally) -> str:
        rng = self._rng
        match rng.randrange(4):
            case 0:
                client.say(
                    *[peer_messages.encode(client_messages.GetMembers(number, 1.0)) for number in range(100, 120)]
                )
                return "client: too many requests"
            case 1:
                said = [body for body in map(peer_messages.encode, samples(rng)) if decoded_request(body) is None]
                client.say(rng.choice(said))
                return "client: speaks as a member"
            case 2:
                client.write(rng.choice((0, 2**31, 2**32 - 1)).to_bytes(4, "big") + rng.randbytes(30))
                return "client: lie about a length"
        while True:
            body = rng.randbytes(rng.choice((2, 20, 200)))
            if rng.random() < 0.8:
                body = mutate(rng, peer_messages.encode(asked(rng, rng.choice((0, 1, 99)), self._target.cluster_id)))
            if len(body) > 1 and decoded_request(body) is None:
                client.say(body)
                return "client: no request"
            tally.withheld += 1


def work(target: Target, seed: int, frames: int, proven: bool, tell: Callable[[Tally], None]) -> None:
    """Send about so many frames; `proven` ones among them (by one worker at a time: it has one identity)."""
    rng = random.Random(seed)
    forge, rogues, clients = Forge(rng, target), Rogues(target, rng), FuzzClients(target, rng)
    tls = TlsStrangers(target) if target.mode == "tls" else None
    sent = 0
    while sent < frames:
        tally = Tally()
        as_strangers(forge, rng, target, tally)
        if tls is not None:
            tls.attack(forge, rng, rng.choice(target.live), tally)
        if proven:
            rogues.attack(rng.choice(target.live), tally)
        clients.attack(rng.choice(target.live), tally)
        sent += tally.frames
        tell(tally)


# -- the processes ----------------------------------------------------------------------------------------------------


class Load:
    """Threads that write at a constant rate, and how long their writes took."""

    PER_THREAD = 20.0  # writes a second

    def __init__(self, opened: ReplicatedDict[Any, Any], threads: int) -> None:
        self._dict = opened
        self._stop = threading.Event()
        self._mutex = threading.Lock()
        self.failures: list[str] = []
        self.count, self.longest = 0, 0.0
        self._buckets = [0] * 400  # of 5 % each, from 10 µs
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        due = time.monotonic()
        count = 0
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / self.PER_THREAD
            began = time.monotonic()
            count += 1
            try:
                self._dict[f"{number}-{count % 50}"] = count
            except Exception as error:  # noqa: BLE001 -- reported
                self.failures.append(f"{type(error).__name__}: {error}")
            took = time.monotonic() - began
            with self._mutex:
                self.count += 1
                self.longest = max(self.longest, took)
                self._buckets[min(399, max(0, int(math.log(took / 1e-5) / math.log(1.05))))] += 1

    def take(self) -> dict[str, Any]:
        """What was measured since the last time."""
        with self._mutex:
            count, longest, buckets = self.count, self.longest, self._buckets
            self.count, self.longest, self._buckets = 0, 0.0, [0] * 400
        return {"count": count, "longest": longest, "buckets": buckets, "failures": self.failures[:3]}

    def stop(self) -> None:
        """No more writes."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Bystander:
    """Writes to the same disk at the load's rate, and has nothing to do with the cluster: what this machine does to it,
    other work on it or the attackers' own, is none of the nodes' doing."""

    def __init__(self, folder: Path) -> None:
        self.longest = 0.0
        self._path = folder / "bystander"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._path.open("wb", buffering=0) as file:
            began = time.monotonic()
            while not self._stop.wait(0.02):
                for _ in range(2):  # a write of the cluster is on two disks in turn when a follower is slow
                    file.write(bytes(4096))
                    os.fsync(file.fileno())
                file.seek(0)
                self.longest = max(self.longest, time.monotonic() - began - 0.02)
                began = time.monotonic()

    def take(self) -> float:
        """The longest delay since the last time, in seconds."""
        longest, self.longest = self.longest, 0.0
        return longest

    def stop(self) -> None:
        """No more."""
        self._stop.set()
        self._thread.join()


class Watch(logging.Handler):
    """Counts what a node logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()
        self.first: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Count it, and keep the first ones."""
        recovery = "the old cluster lives" in record.getMessage() or "about recoveries" in record.getMessage()
        self.counts["recovery" if recovery else record.levelname] += 1
        if len(self.first) < 200:
            self.first.append(record.getMessage())


def heard_from(opened: ReplicatedDict[Any, Any], absent: str) -> tuple[Counter[str], Callable[[], None]]:
    """Counts, from now on, what the engine hears from a member: messages, and connections; and how to stop."""
    transport: Any = host_of(opened).node.engine.transport
    heard: Counter[str] = Counter()
    on_message, on_connected = transport._onMessageReceivedCallback, transport._onNodeConnectedCallback

    def message(node: Any, received: Any) -> None:
        heard["messages" if node.id == absent else "other messages"] += 1
        on_message(node, received)

    def connected(node: Any) -> None:
        heard["connections" if node.id == absent else "other connections"] += 1
        on_connected(node)

    def stop() -> None:
        transport.setOnMessageReceivedCallback(on_message)
        transport.setOnNodeConnectedCallback(on_connected)

    transport.setOnMessageReceivedCallback(message)
    transport.setOnNodeConnectedCallback(connected)
    return heard, stop


def run_node(path: Path, address: str, target: Target, threads: int, pipe: Connection) -> None:
    """A node and its load, in a process of its own: answers requests until there are none."""
    watch = Watch()
    logging.getLogger("replidict").addHandler(watch)
    logging.getLogger("replidict").propagate = False
    peers = [each for each in (*target.live, target.absent) if each != address]
    options = Options(log_retain=2000)
    with ReplicatedDict[Any, Any](
        path, address=address, peers=peers, options=options, **target.credentials()
    ) as opened:
        assert opened.wait_ready(60)
        heard, _ = heard_from(opened, target.absent)
        load = Load(opened, threads)
        try:
            while pipe.recv() == "stats":
                status = opened.status()
                pipe.send({
                    "term": status.term, "leader": status.leader, "role": status.role, "connected": status.connected,
                    "cluster_id": status.cluster_id, "log_bytes": status.log_bytes,
                    "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
                    "descriptors": len(os.listdir("/proc/self/fd")),
                    "heard": dict(heard), "logged": dict(watch.counts), "lines": watch.first, "load": load.take(),
                })  # fmt: skip
        finally:
            load.stop()


def run_worker(target: Target, seed: int, frames: int, proven: bool, nice: int, pipe: Connection) -> None:
    """A process full of strangers; tells what it did about once a second."""
    os.nice(nice)
    total = Tally()
    told = time.monotonic()

    def tell(tally: Tally) -> None:
        nonlocal total, told
        total.add(tally)
        if time.monotonic() - told > 1:
            pipe.send(total)
            total, told = Tally(), time.monotonic()

    work(target, seed, frames, proven, tell)
    pipe.send(total)
    pipe.send(None)


_spawn = multiprocessing.get_context("spawn")


class Node:
    """The parent's side of a node."""

    def __init__(self, *arguments: Any) -> None:
        self.pipe, theirs = _spawn.Pipe()
        self.process = _spawn.Process(target=run_node, args=(*arguments, theirs))
        self.process.start()
        theirs.close()

    def request(self) -> None:
        """Ask for its figures; `answer` gives them."""
        self.pipe.send("stats")

    def answer(self) -> dict[str, Any]:
        """Its figures."""
        return self.pipe.recv()  # type: ignore[no-any-return]

    def end(self) -> int | None:
        """Have it close its dict and end; its exit status."""
        try:
            self.pipe.send("end")
        except OSError:
            pass
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        return self.process.exitcode


def figures(nodes: list[Node]) -> list[dict[str, Any]]:
    """What all nodes say of themselves, since they were last asked."""
    for node in nodes:
        node.request()
    return [node.answer() for node in nodes]


@dataclass
class Phase:
    """The load over some time."""

    name: str
    seconds: float = 0.0
    count: int = 0
    longest: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * 400)
    failures: list[str] = field(default_factory=list)

    def add(self, stats: list[dict[str, Any]], seconds: float) -> None:
        """Add what all nodes measured."""
        self.seconds += seconds
        for each in stats:
            load = each["load"]
            self.count += load["count"]
            self.longest = max(self.longest, load["longest"])
            self.buckets = [one + other for one, other in zip(self.buckets, load["buckets"], strict=True)]
            self.failures = (self.failures + load["failures"])[:5]

    def percentile(self, share: float) -> float:
        """In seconds."""
        left = share * self.count
        for number, count in enumerate(self.buckets):
            left -= count
            if left <= 0:
                return 1e-5 * 1.05 ** (number + 1)
        return self.longest

    def __str__(self) -> str:
        times = [self.percentile(share) * 1000 for share in (0.5, 0.99)]
        return (
            f"{self.name:>7}: {self.count / max(self.seconds, 1e-9):7.1f} writes/s over {self.seconds:5.0f} s, p50 "
            f"{times[0]:5.2f} ms, p99 {times[1]:6.2f} ms, longest {self.longest * 1000:6.1f} ms"
        )


def watch(
    nodes: list[Node], phase: Phase, until: Callable[[], bool], each: Callable[[list[dict[str, Any]]], None]
) -> None:
    """Measure until something holds, every few seconds."""
    last = time.monotonic()
    done = False
    while not done:
        done = until()
        stats = figures(nodes)
        now = time.monotonic()
        phase.add(stats, now - last)
        last = now
        each(stats)


def pause_of(seconds: float) -> Callable[[], bool]:
    """True when so many seconds are over; waits a second at a time."""
    end = time.monotonic() + seconds

    def over() -> bool:
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
        return time.monotonic() >= end

    return over


class Campaign:
    """Some workers, and what they say they did."""

    def __init__(self, target: Target, frames: int, seed: int, workers: int, nice: int) -> None:
        self.tally = Tally()
        self.pipes: list[Connection] = []
        self._processes = []
        for number in range(workers):
            ours, theirs = _spawn.Pipe(duplex=False)
            process = _spawn.Process(
                target=run_worker, args=(target, seed * 100 + number, frames // workers, number == 0, nice, theirs)
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self._processes.append(process)

    def under_way(self, seconds: float = 2.0) -> bool:
        """Take up what they say for a while. Whether some of them still work."""
        end = time.monotonic() + seconds
        while self.pipes and (left := end - time.monotonic()) > 0:
            for pipe in multiprocessing.connection.wait(self.pipes, left):
                assert isinstance(pipe, Connection)
                try:
                    said = pipe.recv()
                except EOFError:
                    said = None
                    self.tally.not_closed.append("a worker ended early")
                if said is None:
                    self.pipes.remove(pipe)
                    pipe.close()
                else:
                    self.tally.add(said)
        return bool(self.pipes)

    def join(self) -> None:
        """Wait for the processes."""
        for process in self._processes:
            process.join()


def target_for(folder: Path, mode: Mode, addresses: list[str]) -> Target:
    """The three lesser addresses live, the greatest is absent."""
    *live, absent = sorted(addresses)
    certificates = Certificates(folder)
    return Target(mode, "", live, absent, "the rogue's own", certificates.folder)


def run(mode: Mode, frames: int, seed: int, workers: int, nice: int, writers: int, quiet: float) -> bool:
    """One campaign; prints the figures, returns whether nothing was violated."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        target = target_for(folder, mode, free_addresses(4))
        nodes = [Node(folder / f"n{number}", address, target, writers) for number, address in enumerate(target.live)]
        bystander = Bystander(folder)
        try:
            return _run(target, nodes, bystander, frames, seed, workers, nice, quiet)
        finally:
            bystander.stop()
            for node in nodes:
                node.end()


def _run(
    target: Target,
    nodes: list[Node],
    bystander: Bystander,
    frames: int,
    seed: int,
    workers: int,
    nice: int,
    quiet: float,
) -> bool:
    problems: list[str] = []
    first = figures(nodes)
    target = Target(target.mode, first[0]["cluster_id"], target.live, target.absent, target.absent_id, target.folder)
    Rogues(target, random.Random(seed)).introduce()
    history: list[list[dict[str, Any]]] = []
    before, warm, during, after = Phase("before"), Phase("warm-up"), Phase("during"), Phase("after")

    watch(nodes, Phase("settling"), pause_of(3), lambda stats: None)
    watch(nodes, before, pause_of(quiet), lambda stats: None)
    start = figures(nodes)

    bystander.take()
    heating = Campaign(target, max(frames // 20, 5000), seed + 1, workers, nice)
    watch(nodes, warm, lambda: not heating.under_way(), lambda stats: None)
    heating.join()
    warmed = figures(nodes)

    attack = Campaign(target, frames, seed, workers, nice)

    def sample(stats: list[dict[str, Any]]) -> None:
        history.append(stats)
        if len(history) % 15 == 0:
            grown = [f"{(now['rss'] - then['rss']) / 2**20:+.1f}" for then, now in zip(warmed, stats, strict=True)]
            print(f"  {attack.tally.frames:>9} frames, {during.seconds:4.0f} s, RSS {' '.join(grown)} MiB, "
                  f"longest write {during.longest * 1000:.0f} ms", file=sys.stderr, flush=True)  # fmt: skip

    watch(nodes, during, lambda: not attack.under_way(), sample)
    attack.join()
    delayed = bystander.take()
    watch(nodes, after, pause_of(quiet), lambda stats: None)
    end = figures(nodes)

    tally = Tally()
    tally.add(heating.tally)
    tally.add(attack.tally)
    attacked = (warm, during)
    seconds = sum(phase.seconds for phase in attacked)
    longest = max(phase.longest for phase in attacked)
    timeout = Options().election_timeout
    heard = sum(stats["heard"].get("messages", 0) for stats in end)
    for then, now, node in zip(start, end, nodes, strict=True):
        if not node.process.is_alive() or now["role"] == "stopped":
            problems.append(f"a node ended: {now['role']}")
        if (now["term"], now["leader"]) != (start[0]["term"], start[0]["leader"]):
            problems.append(f"an election: {then['term']}, {then['leader']} -> {now['term']}, {now['leader']}")
        if now["heard"].get("other connections", 0) != then["heard"].get("other connections", 0):
            problems.append("a connection among the three was lost")
        if now["logged"].get("ERROR", 0):
            problems.append(f"an error was logged: {now['lines']}")
        if not 0 < now["logged"].get("recovery", 0) <= 2 * ((seconds + after.seconds) / 60 + 2):
            problems.append(f"{now['logged'].get('recovery', 0)} lines were logged about a recovery that is none")
        # A source, under each name that it may give, has a line at the start of a minute and a count at its end.
        lines = 2 * len(SOURCES) * (1 + len(target.live)) * ((seconds + after.seconds) / 60 + 2)
        if now["logged"].get("WARNING", 0) > lines:
            problems.append(f"{now['logged']['WARNING']} lines were logged, at most {lines:.0f} were expected")
    last = history[-1] if history else end
    grown = [now["rss"] - then["rss"] for then, now in zip(warmed, last, strict=True)]
    if max(grown) > RSS_GROWTH:
        problems.append(f"memory grew by {max(grown) / 2**20:.1f} MiB")
    if tally.accepted:
        problems.append(f"{len(tally.accepted)} strangers were accepted: {tally.accepted[:3]}")
    # A damaged TLS record takes with it what arrived together with it.
    if heard > tally.well_formed or (heard < tally.well_formed and target.mode != "tls"):
        problems.append(f"the engines heard {heard} messages of the rogue, {tally.well_formed} were such")
    if tally.not_closed:
        problems.append(f"{len(tally.not_closed)} connections were not closed: {tally.not_closed[:3]}")
    problems += [
        f"writes failed ({each.name}): {each.failures}" for each in (before, *attacked, after) if each.failures
    ]
    if longest - delayed >= timeout:
        problems.append(
            f"a write took {longest:.3f} s, a bystander's {delayed:.3f} s; the election timeout is {timeout} s"
        )

    print(
        f"mode {target.mode}: {tally.frames} frames over {tally.connections} connections in {seconds:.0f} s "
        f"({tally.frames / seconds:.0f}/s; the attackers at nice {nice})"
    )
    print(
        f"  strangers accepted {len(tally.accepted)}; words of the rogue allowed {tally.well_formed}, heard {heard}; "
        f"well-formed lies withheld {tally.withheld}"
    )
    for kind, count in sorted(tally.kinds.items()):
        print(f"    {count:>9}  {kind}")
    for phase in (before, *attacked, after):
        print(f"  {phase}")
    for then, now, change in zip(warmed, end, grown, strict=True):
        print(
            f"  RSS {then['rss'] / 2**20:6.1f} MiB after warm-up, {change / 2**20:+5.1f} MiB then; term {then['term']} "
            f"-> {now['term']}; descriptors {then['descriptors']} -> {now['descriptors']}; logged {now['logged']}"
        )
    print(f"  longest write {longest:.3f} s, a bystander's {delayed:.3f} s; load average {os.getloadavg()[0]:.1f}")
    for problem in problems:
        print(f"  VIOLATION: {problem}")
    summary = {
        "mode": target.mode, "seed": seed, "frames": tally.frames, "connections": tally.connections,
        "seconds": round(seconds), "accepted": len(tally.accepted), "elections": end[0]["term"] - start[0]["term"],
        "rss_growth": grown, "longest_write": longest, "bystander": delayed,
        "rate_before": before.count / before.seconds,
        "rate_during": sum(phase.count for phase in attacked) / seconds, "violations": len(problems),
    }  # fmt: skip
    print(json.dumps(summary), flush=True)
    return not problems


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_wire", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--mode", choices=[*MODES, "all"], default="all")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--workers", type=int, default=2, help="processes that attack")
    parser.add_argument("--nice", type=int, default=10, help="of these; they share the processors with the nodes")
    parser.add_argument("--writers", type=int, default=3, help="threads in each node, each with 20 writes a second")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds of load alone, before and after")
    given = parser.parse_args()
    modes: list[Mode] = list(MODES) if given.mode == "all" else [given.mode]
    print(f"seed {given.seed}", flush=True)
    results = [
        run(mode, given.frames, given.seed, given.workers, given.nice, given.writers, given.quiet) for mode in modes
    ]  # fmt: skip
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
