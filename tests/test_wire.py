"""The handshake and the frames, two ends over a fake link: who gets in, and what can be done to the bytes between."""

from __future__ import annotations

import datetime
import random
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import msgspec
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replidict.protocol import client_messages, peer_messages
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import AppendEntries, Message, Propose, TimeoutNow
from replidict.release import Release
from replidict.security import TLS, Mode, Security, security_for
from replidict.transport import handshake
from replidict.transport.framing import TAG_BYTES, FrameReader, Seal, WireError, frame, hkdf
from replidict.transport.handshake import CLOSE, OPENED, PING, Hello, NodeIdentity, State, WireSession
from tests.wire_support import MODES, SECRET, Certificates

HIGH, LOW = "127.0.0.1:7002", "127.0.0.1:7001"  # the caller, and who is called
MAX_FRAME = 1 << 20
SAID: list[Message] = [
    TimeoutNow(3),
    AppendEntries(3, 1, 1, 1, [Entry(2, 3, b"x" * 300), Entry(3, 3, b"")]),
    Propose(3, bytes(range(256)) * 300),
    TimeoutNow(4),
]
slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@lru_cache
def stretched(secret: str, cluster: str) -> bytes:
    return security_for(LOW, None, secret, False).stretch(cluster)


class End:
    """One end of the link, and what it has heard."""

    def __init__(
        self,
        address: str,
        security: Security,
        *,
        called: str | None,
        cluster: str = "c1",
        may_call: Callable[[str], str | None] = lambda address: None,
        admit: Callable[[str, str], str | None] = lambda address, node_id: None,
        farewell: Callable[[], Message | None] = lambda: None,
        meet: Callable[[str, Release], str | None] = lambda address, release: None,
    ) -> None:
        key = stretched(security.secret.decode(), cluster) if security.mode == "secret" else b""
        self.admitted: list[tuple[str, str]] = []

        def asked(address: str, node_id: str) -> tuple[str, str] | None:
            self.admitted.append((address, node_id))
            reason = admit(address, node_id)
            return None if reason is None else ("identity", reason)

        self.session = WireSession(
            NodeIdentity(cluster, f"id of {address}", address), security, key,
            called=called, max_frame_bytes=MAX_FRAME, may_call=may_call, admit=asked, farewell=farewell,
            meet=meet,
        )  # fmt: skip
        self.opened = 0
        self.heard: list[Any] = []
        self.error: WireError | None = None
        self.sent = bytearray()  # all that it put on the link
        self.session.start()

    def take(self) -> bytes:
        """What it has for the link now."""
        out = b"".join(bytes(self.session.encrypt(framed)) for framed in self.session.take_output())
        out += self.session.encrypt(b"")
        self.sent += out
        return out

    def say(self, message: Any) -> bytes:
        framed = frame(peer_messages.encode(message), self.session.tag_bytes)
        out = bytes(self.session.encrypt(self.session.seal(framed)))
        self.sent += out
        return out

    def receive(self, data: bytes) -> None:
        """Never raises anything but WireError, and nothing at all after that."""
        try:
            for event in self.session.receive(data):
                if event is OPENED:
                    self.opened += 1
                else:
                    assert self.opened and not self.error
                    self.heard.append(event)
        except WireError as error:
            assert self.error is None
            self.error = error

    @property
    def code(self) -> str | None:
        return self.error.code if self.error else None


def chunks(data: bytes, cut: random.Random | None) -> Iterator[bytes]:
    while data:
        size = len(data) if cut is None else cut.choice((1, 2, 3, 5, 17, 400, 5000))
        yield data[:size]
        data = data[size:]


def link(one: End, two: End, cut: random.Random | None = None) -> None:
    """Carry bytes until both are silent."""
    busy = True
    while busy:
        busy = False
        for sender, receiver in ((one, two), (two, one)):
            for chunk in chunks(sender.take(), cut):
                busy = True
                receiver.receive(chunk)


def pair(security: Security, cut: random.Random | None = None) -> tuple[End, End]:
    """A caller and a called end that have accepted each other."""
    caller, called = End(HIGH, security, called=LOW), End(LOW, security, called=None)
    link(caller, called, cut)
    assert (caller.opened, called.opened) == (1, 1), (caller.error, called.error)
    return caller, called


# -- frames -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.integers(0, 2**32))
def test_frames_come_out_as_they_went_in(bodies: list[bytes], seed: int) -> None:
    """However a stream of frames is chunked, the same bodies come out in order."""
    reader, out, cut = FrameReader(300), [], random.Random(seed)
    for chunk in chunks(b"".join(map(frame, bodies)), cut):
        reader.feed(chunk)
        while (body := reader.next()) is not None:
            out.append(bytes(body))
    assert out == bodies


@pytest.mark.parametrize("claimed", [0, 301, 4 * 1024**3 - 1])
def test_length_is_checked_before_anything_is_kept(claimed: int) -> None:
    """A frame that claims more than is allowed, or nothing, is refused by its length alone."""
    reader = FrameReader(300)
    reader.feed(claimed.to_bytes(4, "big"))
    with pytest.raises(WireError, match=str(claimed)):
        reader.next()


def test_frames_behind_a_bad_one_do_not_hide_those_before() -> None:
    """What came whole before a bad frame is delivered, then the error."""
    caller, called = pair(security_for(LOW, None, None, False))
    called.receive(caller.say(SAID[0]) + b"\xff\xff\xff\xff")
    assert (called.heard, called.code) == (SAID[:1], "protocol")


@pytest.mark.parametrize("mode", MODES)
def test_strangers_get_4_kib(mode: Mode, certificates: Certificates) -> None:
    """Until the handshake is done no frame may be longer than 4 KiB; then up to the agreed size."""
    caller, called = pair(certificates.security(mode))
    big = Propose(1, b"x" * (MAX_FRAME - 100))
    called.receive(caller.say(big))
    assert called.heard == [big] and called.error is None
    if mode != "tls":
        stranger = End(LOW, certificates.security(mode), called=None)
        stranger.receive((4097).to_bytes(4, "big"))
        assert stranger.code == "protocol"


def test_hkdf_is_rfc_5869() -> None:
    """Keys are derived as in RFC 5869 (its test cases 1 and 3)."""
    okm = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    okm = hkdf(b"\x0b" * 22, b"", b"", 42)
    assert okm.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"


def test_tags_depend_on_place_and_direction() -> None:
    """The same body has another tag at another place and under another key."""
    seal, other = Seal(b"k" * 32), Seal(b"l" * 32)
    assert len({seal.tag(b"x"), seal.tag(b"x"), other.tag(b"x"), seal.tag(b"y")}) == 4


# -- the handshake ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 2**32))
@slow
def test_both_sides_open_and_hear_everything(mode: Mode, certificates: Certificates, seed: int) -> None:
    """In every mode and however the bytes are chunked, both sides open once and hear all messages in order."""
    cut = random.Random(seed)
    caller, called = pair(certificates.security(mode), cut)
    for message in SAID:
        for chunk in chunks(caller.say(message), cut):
            called.receive(chunk)
        for chunk in chunks(called.say(message), cut):
            caller.receive(chunk)
    assert caller.heard == called.heard == SAID
    assert caller.session.peer is not None and caller.session.peer.node_id == f"id of {LOW}"
    assert called.admitted == [(HIGH, f"id of {HIGH}")] and caller.admitted == [(LOW, f"id of {LOW}")]


def refused(caller: End, called: End, code: str) -> str:
    """Neither side opens, and both know why."""
    link(caller, called)
    assert (caller.opened, called.opened) == (0, 0)
    assert (caller.code, called.code) == (code, code)
    assert caller.error is not None and called.error is not None
    assert caller.error.by_peer != called.error.by_peer
    assert caller.error.text == called.error.text
    return caller.error.text


@pytest.mark.parametrize("mode", MODES)
def test_another_cluster_is_refused(mode: Mode, certificates: Certificates) -> None:
    """A node of another cluster is refused on either side, and told what to check."""
    security = certificates.security(mode)
    text = refused(End(HIGH, security, called=LOW, cluster="c2"), End(LOW, security, called=None), "cluster")
    assert "another cluster" in text and "peers=" in text and HIGH in text


@pytest.mark.parametrize("mode", MODES)
def test_another_version_is_refused(mode: Mode, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that speaks another version is refused, though nothing but the first two fields is known of it."""
    monkeypatch.setattr(handshake, "VERSION", 2)
    caller = End(HIGH, certificates.security(mode), called=LOW)
    new = caller.session._hello
    caller.session._hello = new[:-1]  # and its hello looks different from here on
    caller.session._hello = msgspec.msgpack.encode([1, "replidict", 2, {"all": "new"}])
    if mode != "tls":
        caller.session.output.clear()
        caller.session.output.append(frame(caller.session._hello))
    monkeypatch.setattr(handshake, "VERSION", 1)
    text = refused(caller, End(LOW, certificates.security(mode), called=None), "version")
    assert "version 1" in text and "2" in text and "release" in text


@pytest.mark.parametrize("ours", MODES)
@pytest.mark.parametrize("theirs", MODES)
def test_modes_must_agree(ours: Mode, theirs: Mode, certificates: Certificates) -> None:
    """Two nodes in different modes refuse each other, and both logs say which modes or what to do."""
    caller = End(HIGH, certificates.security(ours), called=LOW)
    called = End(LOW, certificates.security(theirs), called=None)
    link(caller, called)
    if ours == theirs:
        assert caller.opened == called.opened == 1
        return
    assert caller.opened == called.opened == 0
    assert (caller.code, called.code) == ("mode", "mode")
    assert "the same tls= or secret=" in str(caller.error) and "the same tls= or secret=" in str(called.error)


@pytest.mark.parametrize("mode", MODES)
def test_two_nodes_under_one_address(mode: Mode, certificates: Certificates) -> None:
    """A node that claims the address of the one it talks to is refused: also who echoes everything back."""
    security = certificates.security(mode)
    text = refused(End(LOW, security, called=HIGH), End(LOW, security, called=None), "address")
    assert "two nodes go by" in text


@pytest.mark.parametrize("mode", MODES)
def test_who_answers_must_be_who_was_called(mode: Mode, certificates: Certificates) -> None:
    """A node that answers at the address of another is refused by the caller."""
    security = certificates.security(mode)
    called = End("127.0.0.1:7000", security, called=None)
    assert "127.0.0.1:7000" in refused(End(HIGH, security, called=LOW), called, "address")


@pytest.mark.parametrize("mode", MODES)
def test_strangers_are_no_members(mode: Mode, certificates: Certificates) -> None:
    """An address that may not call is refused with the reason given."""
    security = certificates.security(mode)
    called = End(LOW, security, called=None, may_call=lambda address: f"{address} may not")
    assert refused(End(HIGH, security, called=LOW), called, "member") == f"{HIGH} may not"
    assert called.admitted == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("who", ["caller", "called"])
def test_identity_that_is_not_admitted(mode: Mode, who: str, certificates: Certificates) -> None:
    """A peer whose node id is not admitted is refused by either side, and neither side ever opens."""
    security = certificates.security(mode)

    def never(address: str, node_id: str) -> str | None:
        return f"{node_id} was wiped"

    def ever(address: str, node_id: str) -> str | None:
        return None

    caller = End(HIGH, security, called=LOW, admit=never if who == "caller" else ever)
    called = End(LOW, security, called=None, admit=never if who == "called" else ever)
    assert "was wiped" in refused(caller, called, "identity")


def test_wrong_secret_is_refused_and_admit_never_asked(certificates: Certificates) -> None:
    """A peer with another secret is refused by both, and nothing is asked about it: its claim proves nothing."""
    ours, theirs = security_for(LOW, None, SECRET, False), security_for(LOW, None, SECRET + "!", False)
    caller, called = End(HIGH, theirs, called=LOW), End(LOW, ours, called=None)
    assert "the same secret=" in refused(caller, called, "secret")
    assert caller.admitted == called.admitted == []
    assert SECRET.encode() not in caller.sent + called.sent


def test_the_called_side_must_prove_itself_too() -> None:
    """A caller tells nothing, and opens not, for an answer that knows no secret."""
    caller = End(HIGH, security_for(LOW, None, SECRET, False), called=LOW)
    caller.take()
    caller.receive(frame(peer_messages.encode(Hello("replidict", 1, "secret", "c1", "x", LOW, bytes(32)))))
    caller.take()
    caller.receive(frame(peer_messages.encode(handshake.Proof(b""))))
    assert (caller.code, caller.opened, caller.admitted) == ("secret", 0, [])


def test_a_proof_can_not_be_turned_back() -> None:
    """Who sends a caller's own proof back proves nothing: the two sides' proofs differ."""
    caller = End(HIGH, security_for(LOW, None, SECRET, False), called=LOW)
    caller.take()
    caller.receive(frame(peer_messages.encode(Hello("replidict", 1, "secret", "c1", "x", LOW, bytes(32)))))
    caller.receive(caller.take())
    assert (caller.code, caller.opened) == ("secret", 0)


def test_the_handshake_must_end_in_a_sealed_ping() -> None:
    """The called side opens for nothing but a sealed ping."""
    caller, called = (End(a, security_for(LOW, None, SECRET, False), called=c) for a, c in ((HIGH, LOW), (LOW, None)))
    called.receive(caller.take())
    caller.receive(called.take())
    called.receive(caller.take())
    called.receive(frame(PING + bytes(TAG_BYTES)))
    assert (called.code, called.opened) == ("tag", 0)


def certified(certificates: Certificates, name: str, *hosts: str, expired: bool = False) -> Security:
    return security_for(LOW, certificates.issue(name, *hosts, expired=expired), None, False)


@pytest.mark.parametrize("who", ["caller", "called"])
def test_certificate_must_be_for_the_address(who: str, certificates: Certificates) -> None:
    """Each side checks that the other's certificate names the host of its address."""
    bad, good = certified(certificates, "elsewhere", "10.0.0.9"), certificates.security("tls")
    caller = End(HIGH, bad if who == "caller" else good, called=LOW)
    called = End(LOW, bad if who == "called" else good, called=None)
    assert "names neither 127.0.0.1" in refused(caller, called, "name")


@pytest.mark.parametrize("who", ["caller", "called"])
@pytest.mark.parametrize("kind", [0x81, 0x82, 0x86], ids=["e-mail", "DNS", "URI"])
def test_certificate_whose_names_are_no_text(who: str, kind: int, certificates: Certificates) -> None:
    """A certificate of the cluster's authority with names that can't be read is refused as one for another host is."""
    authority = x509.load_pem_x509_certificate(certificates.authority.cert_pem.bytes())
    signing = serialization.load_pem_private_key(certificates.authority.private_key_pem.bytes(), None)
    names = bytes([0x30, 4, kind, 2, 0xFF, 0xFE])
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    issued = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names), False)
        .sign(cast(ec.EllipticCurvePrivateKey, signing), hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = certificates.folder / "no text.pem"
    path.write_bytes(key.private_bytes(*form) + issued.public_bytes(serialization.Encoding.PEM))
    bad = security_for(LOW, TLS(cert=path, key=path, ca=certificates.ca), None, False)
    good = certificates.security("tls")
    caller = End(HIGH, bad if who == "caller" else good, called=LOW)
    called = End(LOW, bad if who == "called" else good, called=None)
    assert "can't be read" in refused(caller, called, "name")


def test_certificate_may_be_for_a_listed_name(certificates: Certificates) -> None:
    """A certificate that names one of `TLS.names` is good for any member."""
    tls = replace(certificates.issue("listed", "replidict.example"), names=("replidict.example",))
    pair(security_for(LOW, tls, None, False))


@pytest.mark.parametrize(
    ("who", "what"),
    [*((who, what) for who in ("caller", "called") for what in ("another authority", "expired")), ("caller", "none")],
)
def test_bad_certificates(who: str, what: str, certificates: Certificates) -> None:
    """With another authority's certificate, an expired one, or none, neither side opens, and one says why."""
    good = certificates.security("tls")
    if what == "another authority":
        bad = security_for(LOW, certificates.issue("other", "127.0.0.1", by=trustme.CA()), None, False)
        reason = "self-signed certificate|unable to get local issuer"
    elif what == "expired":
        bad, reason = certified(certificates, "expired", "127.0.0.1", expired=True), "expired"
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(certificates.ca)
        bad, reason = replace(good, client=context), "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    caller = End(HIGH, bad if who == "caller" else good, called=LOW)
    called = End(LOW, bad if who == "called" else good, called=None)
    link(caller, called)
    assert (caller.opened, called.opened) == (0, 0)
    checking = called if who == "caller" else caller
    assert checking.error is not None
    with pytest.raises(WireError, match=reason):
        raise checking.error
    assert caller.error is not None and called.error is not None


def test_tls_is_1_3_only(certificates: Certificates) -> None:
    """A peer that offers no more than TLS 1.2 is refused."""
    good = certificates.security("tls")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.load_verify_locations(certificates.ca)
    old.load_cert_chain(certificates.good.cert)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    caller, called = End(HIGH, replace(good, client=old), called=LOW), End(LOW, good, called=None)
    link(caller, called)
    assert (called.opened, called.code) == (0, "tls")


# -- clients and farewells ---------------------------------------------------------------------------------------------


class RawClient(End):
    """The end of a caller that is no member."""

    def __init__(self, security: Security, *, cluster: str = "", node_id: str = "") -> None:
        super().__init__("", security, called=LOW, cluster=cluster)
        self.session = WireSession(
            NodeIdentity(cluster, node_id, ""), security, b"",
            called=LOW, max_frame_bytes=MAX_FRAME, may_call=never, admit=never,
        )  # fmt: skip
        self.session.start()


def never(*said: str) -> Any:
    raise AssertionError("nobody asks whether a client is a member")


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 2**32))
@settings(slow, max_examples=10)
def test_clients_ask_and_are_answered(mode: Mode, certificates: Certificates, seed: int) -> None:
    """In every mode a caller that is no member, and knows no cluster id, proves itself, asks and is answered."""
    cut = random.Random(seed)
    client, called = RawClient(certificates.security(mode)), End(LOW, certificates.security(mode), called=None)
    link(client, called, cut)
    assert (client.opened, called.opened, called.admitted) == (1, 1, []), (client.error, called.error)
    assert called.session.is_client and client.session.is_client
    request, answer = client_messages.Set(1, 2.5, b"key", b"x" * 10_000), client_messages.Stored(1, 7)
    for chunk in chunks(client.say(request), cut):
        called.receive(chunk)
    for chunk in chunks(called.say(answer), cut):
        client.receive(chunk)
    assert (called.heard, client.heard) == ([request], [answer])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("message", [*SAID, *(m for m in (peer_messages.RequestVote(9, 9, 9), peer_messages.MembersAre(
    9, 9, [HIGH], [], {}, []), peer_messages.ConfirmLeader(9, 9), peer_messages.ReadIndexRequest(9, 9)))],
    ids=lambda message: type(message).__name__)  # fmt: skip
def test_what_a_client_says_is_no_message_of_raft(mode: Mode, message: Message, certificates: Certificates) -> None:
    """A client that says what a member says is closed, or is heard as asking what its bytes happen to ask."""
    client, called = RawClient(certificates.security(mode)), End(LOW, certificates.security(mode), called=None)
    link(client, called)
    called.receive(client.say(message))
    assert called.code == "protocol" or all(isinstance(heard, client_messages.Request) for heard in called.heard)


@pytest.mark.parametrize("mode", MODES)
def test_members_do_not_ask_as_clients(mode: Mode, certificates: Certificates) -> None:
    """What only clients say, said by a member, closes the connection; so does a client's word to the other end."""
    caller, called = pair(certificates.security(mode))
    called.receive(caller.say(client_messages.Set(1, 2.5, b"key", b"value")))
    assert (called.code, called.heard) == ("protocol", [])
    client, called = RawClient(certificates.security(mode)), End(LOW, certificates.security(mode), called=None)
    link(client, called)
    client.receive(called.say(SAID[1]))
    assert (client.code, client.heard) == ("protocol", [])


def test_clients_need_the_secret() -> None:
    """A client with another secret is refused by both sides."""
    ours, theirs = security_for(LOW, None, SECRET, False), security_for(LOW, None, SECRET + "!", False)
    assert "the same secret=" in refused(RawClient(theirs), End(LOW, ours, called=None), "secret")


@pytest.mark.parametrize("ours", MODES)
@pytest.mark.parametrize("theirs", MODES)
def test_clients_need_the_mode(ours: Mode, theirs: Mode, certificates: Certificates) -> None:
    """A client in another mode is refused, and told so."""
    client, called = RawClient(certificates.security(theirs)), End(LOW, certificates.security(ours), called=None)
    link(client, called)
    assert (client.code, called.code) == ((None, None) if ours == theirs else ("mode", "mode"))


def test_clients_need_a_certificate(certificates: Certificates) -> None:
    """A client's certificate may be for any name, but must be of the authority; the node's must be for its address."""
    good, of_a_person = certificates.security("tls"), certified(certificates, "person", "ann.example")
    client, called = RawClient(of_a_person), End(LOW, good, called=None)
    link(client, called)
    assert (client.opened, called.opened) == (1, 1)
    foreign = security_for(LOW, certificates.issue("foreign", "127.0.0.1", by=trustme.CA()), None, False)
    client, called = RawClient(foreign), End(LOW, good, called=None)
    link(client, called)
    assert called.opened == 0 and called.code == "certificate"
    assert "names neither 127.0.0.1" in refused(RawClient(good), End(LOW, of_a_person, called=None), "name")


@pytest.mark.parametrize("mode", MODES)
def test_a_client_may_insist_on_a_cluster(mode: Mode, certificates: Certificates) -> None:
    """A client that names a cluster is refused by a node of another one."""
    security = certificates.security(mode)
    assert "another cluster" in refused(RawClient(security, cluster="c2"), End(LOW, security, called=None), "cluster")
    client, called = RawClient(security, cluster="c1"), End(LOW, security, called=None)
    link(client, called)
    assert (client.opened, called.opened) == (1, 1)


def test_half_a_client_is_refused(certificates: Certificates) -> None:
    """A caller with a node id and no address is neither a node nor a client; and no client answers calls."""
    security = certificates.security("plain")
    refused(RawClient(security, node_id="n"), End(LOW, security, called=None), "address")
    client = RawClient(security)
    client.receive(client.take())  # an echo
    assert (client.opened, client.code) == (0, "address")


@pytest.mark.parametrize("mode", MODES)
def test_who_is_no_member_may_be_told_farewell(mode: Mode, certificates: Certificates) -> None:
    """A caller that may not call proves itself, and then both sides are open, for the last words alone."""
    security = certificates.security(mode)
    words = peer_messages.MembersAre(3, 4, [LOW], [], {}, [])
    caller = End(HIGH, security, called=LOW)
    called = End(LOW, security, called=None, may_call=lambda address: "removed", farewell=lambda: words)
    link(caller, called)
    assert (caller.opened, called.opened, called.admitted) == (1, 1, [])
    assert (called.session.unwelcome, called.session.farewell) == ("removed", words)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("address", ["127.0.0.1", "[::1:1", "x" * 290, "a:99999", "\n:1"])
def test_what_is_no_address_is_refused(mode: Mode, address: str, certificates: Certificates) -> None:
    """A caller that goes by no address is refused as such, member or not."""
    security = certificates.security(mode)
    called = End(LOW, security, called=None, farewell=lambda: TimeoutNow(1))
    refused(End(address, security, called=LOW), called, "address")


# -- hostile bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("calling", [True, False])
@given(data=st.lists(st.binary(max_size=200) | st.binary(max_size=60).map(frame), max_size=8))
@slow
def test_random_bytes_before_the_handshake(
    mode: Mode, calling: bool, certificates: Certificates, data: list[bytes]
) -> None:
    """Random bytes to a fresh session never raise anything but WireError, open nothing, and ask nothing."""
    end = End(HIGH if calling else LOW, certificates.security(mode), called=LOW if calling else None)
    for chunk in data:
        end.receive(chunk)
    assert (end.opened, end.heard, end.admitted) == (0, [], [])


@pytest.mark.parametrize("mode", ["secret", "tls"])
@given(data=st.lists(st.binary(max_size=200) | st.binary(min_size=1, max_size=60).map(frame), max_size=8))
@slow
def test_random_bytes_after_the_handshake(mode: Mode, certificates: Certificates, data: list[bytes]) -> None:
    """Random bytes on an authenticated connection are never heard as a message."""
    for end in pair(certificates.security(mode)):
        for chunk in data:
            end.receive(chunk)
        assert end.heard == []


@given(data=st.lists(st.binary(min_size=1, max_size=200).map(frame), min_size=1, max_size=8))
@slow
def test_random_bodies_in_plain_mode(data: list[bytes]) -> None:
    """Where nothing is authenticated, a body that is no message closes the connection and raises nothing else."""
    _, called = pair(security_for(LOW, None, None, False))
    for chunk in data:
        called.receive(chunk)
    assert called.error is not None or data[0][4:] == PING or called.heard


BROKEN = {
    "not msgpack": b"\xc1\xc1",
    "no array": b"\xa3abc",
    "unknown tag": b"\x92\x7f\x01",
    "wrong type": b"\x92\x05\xa1x",
    "missing field": b"\x91\x05",
    "broken UTF-8": b"\x93\x09\x01\xa2\xff\xff",
    "deeper than the stack": b"\x93\x05\x01" + b"\x91" * 100_000,
    "array of 4 billion": b"\x97\x03\x01\x01\x01\x01\xdd\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\x93\x08\x01\xc6\xff\xff\xff\xff",
    "trailing bytes": b"\x92\x05\x01\x01",
    "unknown control": b"\x07",
    "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins.",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_bodies_that_are_no_message(mode: Mode, body: bytes, certificates: Certificates) -> None:
    """Even from a proven peer, a body that is no message closes the connection, as WireError and nothing else."""
    caller, called = pair(certificates.security(mode))
    sealed = caller.session.seal(frame(body, caller.session.tag_bytes))
    called.receive(bytes(caller.session.encrypt(sealed)))
    assert (called.code, called.heard) == ("protocol", [])
    if mode != "tls":
        fresh = End(LOW, certificates.security(mode), called=None)
        fresh.receive(frame(body[:4000]))
        assert (fresh.code, fresh.opened) == ("protocol", 0)


def run_mutated(security: Security, mutate: Callable[[int, bytes], bytes]) -> tuple[End, End]:
    """A whole session, handshake and messages, with `mutate(direction, bytes)` between the two ends."""
    caller, called = End(HIGH, security, called=LOW), End(LOW, security, called=None)
    for _ in range(6):
        called.receive(mutate(0, caller.take()))
        caller.receive(mutate(1, called.take()))
    for message in SAID:
        if caller.opened and not caller.error:
            called.receive(mutate(0, caller.say(message)))
        if called.opened and not called.error:
            caller.receive(mutate(1, called.say(message)))
    return caller, called


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 2**32))
@settings(slow, max_examples=150)
def test_mutated_sessions(mode: Mode, certificates: Certificates, seed: int) -> None:
    """Bytes changed, lost or added: nothing raises, and an authenticated end hears a prefix of what was said."""
    rng = random.Random(seed)
    where, direction = rng.choice((rng.randrange(200), rng.randrange(2000), rng.randrange(80_000))), rng.randrange(2)
    passed = [0, 0]

    def mutate(way: int, data: bytes) -> bytes:
        start = passed[way]
        passed[way] += len(data)
        at = where - start
        if way != direction or not 0 <= at < len(data):
            return data
        kind = rng.randrange(3)
        if kind == 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        return data[:at] + data[at + 1 :] if kind == 1 else data[:at] + rng.randbytes(3) + data[at:]

    for end in run_mutated(certificates.security(mode), mutate):
        if mode != "plain":
            assert end.heard == SAID[: len(end.heard)]
            assert end.opened or not end.admitted or end.session.state in (State.AWAIT_PING, State.FAILED)


@pytest.mark.parametrize("mode", ["secret", "tls"])
def test_recorded_session_can_not_be_replayed(mode: Mode, certificates: Certificates) -> None:
    """The recorded bytes of either side open nothing at another time, though they were good once."""
    security = certificates.security(mode)
    caller, called = pair(security)
    called.receive(caller.say(SAID[0]))
    for recorded, target in ((caller, End(LOW, security, called=None)), (called, End(HIGH, security, called=LOW))):
        target.take()
        target.receive(bytes(recorded.sent))
        assert (target.opened, target.heard, target.admitted) == (0, [], [])
        assert target.code == {"secret": "secret", "tls": "tls"}[mode]


@pytest.mark.parametrize("what", ["repeated", "left out", "swapped", "turned back", "cut short", "longer", "untagged"])
def test_frames_in_secret_mode(what: str) -> None:
    """A frame that is repeated, left out, reordered, reflected or altered closes the connection, and is not heard."""
    caller, called = pair(security_for(LOW, None, SECRET, False))
    first, second = caller.say(SAID[0]), caller.say(SAID[1])
    called.receive(first)
    untagged = frame(peer_messages.encode(SAID[1]))
    ended = second[4:]
    bad = {
        "repeated": first,
        "left out": caller.say(SAID[2]),
        "swapped": caller.say(SAID[2]) + second,
        "turned back": [called.say(SAID[1]) for _ in range(3)][2],  # the third one, as that is the place it takes
        "cut short": frame(ended[:-1]),
        "longer": frame(ended[:5] + b"x" + ended[5:]),
        "untagged": untagged,
    }
    called.receive(bad[what])
    assert (called.heard, called.code) == (SAID[:1], "tag")


def test_a_failed_session_yields_nothing_more() -> None:
    """After an error a session ignores whatever comes."""
    caller, called = pair(security_for(LOW, None, None, False))
    called.receive(frame(b"\x07"))
    called.receive(caller.say(SAID[0]))
    assert called.heard == []


def test_close_is_heard_as_such() -> None:
    """A peer that closes on purpose is told apart from one that is lost."""
    caller, called = pair(security_for(LOW, None, SECRET, False))
    called.receive(caller.session.seal(frame(CLOSE, TAG_BYTES)))
    assert called.error is not None and (called.error.code, called.error.by_peer) == ("closed", True)


def test_reasons_of_a_peer_are_fit_for_a_log() -> None:
    """What a peer gives as its reason can't break out of its line, nor fill the log."""
    caller = End(HIGH, security_for(LOW, None, None, False), called=LOW)
    caller.receive(frame(peer_messages.encode(handshake.Refused("x\n", "\x1b[2Jowned\r\n" + "y" * 200))))
    assert caller.error is not None and caller.error.text.startswith("?[2Jowned??") and caller.error.code == "refused"
    caller = End(HIGH, security_for(LOW, None, None, False), called=LOW)
    caller.receive(frame(peer_messages.encode(handshake.Refused("x", "y" * 301))))
    assert caller.code == "protocol"
