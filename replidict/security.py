"""Authentication of nodes and clients: TLS certificates, a shared secret, or none (on loopback only).

Rules this module keeps:

1. A node off loopback never listens without TLS or a secret, unless the user wrote `insecure=True`.
2. Only 127.0.0.0/8, ::1 and the name `localhost` count as loopback; what can't be told counts as off loopback.
3. Files are read once, when the node is made: a bad one fails there, by name, and not at the first connection.
4. No secret and no key appears in a repr, a message or a log line.

What each mode gives:

- `tls`: private and authentic, with forward secrecy. Certificates on both sides, both checked against `ca`, and
  each against the address that its node goes by.
- `secret`: authentic, not private: whoever can read the network reads the values, but can't speak, change, replay or
  reorder. There is no forward secrecy to speak of: nothing was hidden, and who learns the secret can speak.
- `plain`: neither. Every user of this machine (with `insecure=True`: everyone who reaches the port) is trusted.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import ssl
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from replidict.brief import brief
from replidict.errors import ReplidictError, SecurityError
from replidict.logging_thread import Logger

logger = Logger(__name__)

Mode = Literal["plain", "secret", "tls"]
SECRET_MIN_BYTES = 8
KEYS_MAX = 16  # kept: an own cluster, and those it was recovered from

_LOOPBACK = ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")


class _Strings(Protocol):
    """A collection of strings, but not a string itself, whose `__contains__` differs."""

    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, item: object, /) -> bool: ...


Strings: TypeAlias = _Strings | Iterator[str]
"""Several strings: an iterable of them for which type checkers refuse a single one, which is made of strings too."""


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Certificates for the connections between nodes: TLS 1.3, in which both sides authenticate themselves.

    The files are PEM and are read once, when the dict is opened: to renew them, restart one node after the other. A
    node's certificate must have, as a subject alternative name, the host of its address (IP or DNS) or one of `names`,
    and must be valid for client and server authentication.

    Args:
        cert: The file of this node's certificate, with its chain.
        key: The file of its private key.
        ca: The file of the certificate that has signed the certificates of all nodes.
        names: Further names that the certificates of nodes may have.

    Raises:
        ValueError: `names` is a str. (A file that can't be used raises `SecurityError` when the dict is opened.)

    Example:
        >>> from replidict import TLS
        >>> tls = TLS(cert="node1.pem", key="node1.key", ca="ca.pem", names=["replidict.example"])
    """

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]
    ca: str | os.PathLike[str]
    names: Strings = ()

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not all(isinstance(name, str) and name for name in self.names):
            raise ValueError(f"TLS(names={brief(self.names)}): must hold names, e.g. ('replidict.example',)")
        object.__setattr__(self, "names", tuple(self.names))
        for name in ("cert", "key", "ca"):
            if isinstance(path := getattr(self, name), str | os.PathLike):
                object.__setattr__(self, name, os.path.abspath(path))  # the working directory may be another by then


@dataclass(frozen=True, eq=False)
class Security:
    """How connections are protected; made by `security_for`."""

    mode: Mode
    loopback_only: bool = False
    """Neither listen off loopback nor call anyone there: set in plain mode, unless `insecure=True`."""
    names: tuple[str, ...] = ()
    secret: bytes = field(default=b"", repr=False)
    server: ssl.SSLContext | None = field(default=None, repr=False)
    client: ssl.SSLContext | None = field(default=None, repr=False)
    _keys: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)

    def stretch(self, cluster_id: str) -> bytes:
        """The key that all nodes of the cluster share (secret mode; else empty), by scrypt (RFC 7914).

        Slow on purpose (about 0.1 s, 16 MiB), so that a weak secret is expensive to guess from a recorded
        handshake; done once for each of the first few clusters that are asked for. All nodes must come to the same key
        before they have exchanged a byte, so the salt can't be random: the cluster id makes it differ between
        clusters, which is what a salt is for.
        """
        if self.mode != "secret":
            return b""
        if (known := self._keys.get(cluster_id)) is not None:
            return known
        salt = hashlib.sha256(b"replidict secret 1\0" + cluster_id.encode()).digest()
        key = hashlib.scrypt(self.secret, salt=salt, n=2**14, r=8, p=1, dklen=32)
        if len(self._keys) < KEYS_MAX:
            self._keys[cluster_id] = key
        return key


def security_for(address: str, tls: TLS | None, secret: str | bytes | None, insecure: bool) -> Security:
    """The security of the node at `address`. Raises `SecurityError` if there would be none and the address is not
    loopback.

    `ValueError` for both `tls` and `secret`, and for a secret that is empty or shorter than 8 bytes. Use
    `secrets.token_hex(32)`: a secret that people can remember, a machine can guess.
    """
    host, _ = split_address(address)
    if tls is not None and secret is not None:
        raise ValueError("tls= and secret= both protect the network: give one of them, the same on every node")
    if tls is not None:
        return Security("tls", names=tuple(tls.names), server=_context(tls, True), client=_context(tls, False))
    if secret is not None:
        raw = secret.encode() if isinstance(secret, str) else secret
        if not isinstance(raw, bytes) or len(raw) < SECRET_MIN_BYTES:
            raise ValueError(
                f"secret= must be a str or bytes of at least {SECRET_MIN_BYTES} bytes: make one with "
                "secrets.token_hex(32)"
            )
        return Security("secret", secret=raw)
    if is_loopback(host):
        return Security("plain", loopback_only=not insecure)
    if not insecure:
        raise SecurityError(
            f"{address} is not on loopback, and anyone who reaches it could read and write this dict: give every node "
            "the same secret= (secrets.token_hex(32)) or tls=TLS(cert=, key=, ca=), or insecure=True if the network "
            "itself lets no one else in"
        )
    logger.warning("%s listens with insecure=True: anyone who reaches it can read and write this dict", address)
    return Security("plain")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `"host:port"` or `"[::1]:port"`; `ReplidictError` if it is no address peers can call."""
    host, colon, digits = address.rpartition(":")
    problem = ""
    if not colon or not (digits.isascii() and digits.isdigit() and len(digits) < 6 and 0 < int(digits) < 65536):
        problem = "it must end in a port from 1 to 65535"
    elif host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        problem = "an IPv6 address goes in brackets"
    if not host or not host.isprintable() or any(char.isspace() or char in "[]/" for char in host):
        problem = problem or "it must begin with a host name or IP address"
    elif _is_unspecified(host):
        problem = "it must be one that the peers can call, not all of them at once"
    if problem:
        raise ReplidictError(f"bad address {address!r}: {problem}, as in '10.0.0.1:7000' or '[::1]:7000'")
    return host, int(digits)


def member_of(address: str) -> str:
    """The address of a member, in lower case."""
    return checked_address(address, "address").lower()


def checked_address(address: object, name: str) -> str:
    """The address that a caller gave as `name`, if it is one. Raises `ValueError`."""
    if not isinstance(address, str):
        raise ValueError(f"{name}: {address!r} is not an address: must be a str, 'host:port'")
    try:
        _, port = split_address(address)
    except ReplidictError as error:
        raise ValueError(f"{name}: {error}") from None
    if not address.endswith(f":{port}"):
        raise ValueError(f"{name}: {address!r}: write the port without leading zeros, as the other nodes do")
    return address


def _is_unspecified(host: str) -> bool:
    """Does this stand for all addresses of a machine? `0`, `0x0` and the like do, to a resolver."""
    ip = _ip(host)
    if ip is not None:
        return ip.is_unspecified
    try:
        return socket.inet_aton(unicodedata.normalize("NFKC", host)) == bytes(4)
    except (OSError, UnicodeError):
        return False


def is_same(address: str, other: str) -> bool:
    """Are these two spellings of one address, as far as that can be told without asking a resolver?"""
    (host, port), (other_host, other_port) = split_address(address), split_address(other)
    return port == other_port and not _spelled(host).isdisjoint(_spelled(other_host))


def _spelled(host: str) -> set[str]:
    ip = _ip(host)
    if ip is not None:
        return {str(ip)}
    return {"127.0.0.1", "::1"} if host.lower() == "localhost" else {host.lower()}


def is_loopback(host: str) -> bool:
    """True only for what surely never leaves this machine: 127.0.0.0/8, ::1 and `localhost`."""
    ip = _ip(host)
    return host.lower() == "localhost" if ip is None else any(ip in network for network in _LOOPBACK)


def certificate_is_for(certificate: Mapping[str, Any], host: str, names: Iterable[str]) -> bool:
    """Does this verified certificate (as `SSLObject.getpeercert` gives it) carry `host` or one of `names`?

    Subject alternative names only (RFC 6125 6.4.4), and a wildcard stands for one whole leftmost label.
    """
    held = [(kind, value.strip()) for kind, value in certificate.get("subjectAltName", ())]
    return any(_matches(kind, value, name) for name in (host, *names) for kind, value in held)


def _matches(kind: str, value: str, wanted: str) -> bool:
    ip = _ip(wanted)
    if ip is not None:
        return kind == "IP Address" and _ip(value) == ip
    if kind != "DNS":
        return False
    value, wanted = value.lower().rstrip("."), wanted.lower().rstrip(".")
    if value.startswith("*."):
        _, dot, parent = wanted.partition(".")
        return bool(dot) and "." in parent and parent == value[2:]
    return value == wanted


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _context(tls: TLS, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with a certificate demanded of the other side; its name is checked once its address is known."""
    for name in ("cert", "key", "ca"):
        path = getattr(tls, name)
        try:
            with open(path, "rb"):
                pass
        except (OSError, TypeError) as error:
            raise SecurityError(f"TLS({name}={path!r}): can't read it: {error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A resumed session would skip the check of the certificate, which may have expired since.
    context.options |= ssl.OP_NO_TICKET
    if server:
        context.num_tickets = 0
    try:
        context.load_verify_locations(cafile=tls.ca)
    except ssl.SSLError as error:
        raise SecurityError(f"TLS(ca={tls.ca!r}): not a PEM file of certificates: {error}") from error
    try:
        # Without a password function, OpenSSL would stop and ask for one on the terminal.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except ssl.SSLError as error:
        raise SecurityError(
            f"TLS(cert={tls.cert!r}, key={tls.key!r}): not a PEM certificate and the unencrypted key that belongs "
            f"to it: {error}"
        ) from error
    return context
