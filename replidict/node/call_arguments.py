"""Checks the arguments of public calls, before anything is changed; the `ValueError` names the wrong one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from replidict.brief import brief
from replidict.errors import EncodingError
from replidict.machine.codec import Codec, FaithfulCodec, encode_key
from replidict.options import NO_NETWORK, Options
from replidict.security import TLS, Security, Strings, checked_address, is_same, security_for

TTL_MAX = 100 * 365 * 86_400.0
"""Seconds; longer is for ever."""
NAME_MAX = 1000
"""Characters of a lock's name, and of what its holder says."""


def check_kinds(options: object, codec: object, tls: object) -> None:
    """Are these what they are to be?"""
    if not isinstance(options, Options):
        raise ValueError(f"options={brief(options)}: must be an Options(...)")
    for method in ("encode", "decode"):
        if not callable(getattr(codec, method, None)):
            raise ValueError(f"codec={brief(codec)}: must have encode() and decode(), see replidict.Codec")
    if tls is not None and not isinstance(tls, TLS):
        raise ValueError(f"tls={brief(tls)}: must be a TLS(cert=, key=, ca=)")


def check_share(share: object) -> None:
    """Is this what `share=` takes?"""
    if not isinstance(share, bool):
        raise ValueError(f"share={brief(share)}: must be True or False")


def network_of(address: str | None, tls: TLS | None, secret: str | bytes | None, insecure: bool) -> Security | None:
    """The security of a node's network; None for a node without an address."""
    if address is not None:
        return security_for(address, tls, secret, insecure)
    if tls is not None or secret is not None:
        raise ValueError("tls= and secret= protect the network: give address= and peers= as well, or leave them out")
    return None


def founders_of(address: str | None, peers: Strings) -> list[str]:
    """All founding members, this one included, in ascending order; host names in lower case."""
    if isinstance(peers, str | bytes) or not isinstance(peers, Iterable):
        raise ValueError(
            f"peers={brief(peers)}: must be a list of addresses, e.g. ['10.0.0.2:7000', '10.0.0.3:7000']; a node that "
            "has none founds a cluster of its own: leave peers= out, or give []"
        )
    listed = list(peers)
    if address is None:
        if listed:
            raise ValueError("peers= needs address=: the host:port at which the peers reach this node")
        return [NO_NETWORK]
    founders = [checked_address(address, "address")]
    for peer in listed:
        checked_address(peer, "peers")
        if is_same(peer, address):
            raise ValueError(f"peers= holds this node's own address {peer}: list the other nodes only")
        if any(is_same(peer, each) for each in founders):
            raise ValueError(f"peers= holds {peer} twice")
        founders.append(peer)
    return sorted(each.lower() for each in founders)


def member_to_join(join: str | None, address: str | None, founders: list[str], voter: bool) -> str | None:
    """The address of the member that a new node asks to be let in, if it does."""
    if not isinstance(voter, bool):
        raise ValueError(f"voter={brief(voter)}: must be True or False")
    if join is None:
        if not voter:
            raise ValueError("voter=False is for a node that joins: give join=, the address of a member, as well")
        return None
    if address is None:
        raise ValueError("join= needs address=: the host:port at which the members reach this node")
    if len(founders) > 1:
        raise ValueError("join= joins a running cluster, and peers= founds a new one: give one of them")
    if is_same(checked_address(join, "join"), checked_address(address, "address")):
        raise ValueError(f"join={join!r} is this node's own address: give that of a member of the cluster")
    return join.lower()


def seconds_of(value: float, name: str) -> float:
    """The value, if a thread can wait that long."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name}={brief(value)}: must be a number of seconds from 0 to {threading.TIMEOUT_MAX:.0f}")
    return value


def encoded_key(key: object, options: Options) -> bytes:
    """The bytes of a key. Raises `EncodingError` when it can't be one, or is too long."""
    data = encode_key(key)
    if len(data) > options.max_key_bytes:
        raise EncodingError(
            f"a key of {len(data)} bytes, encoded, is longer than Options(max_key_bytes={options.max_key_bytes})"
        )
    return data


def encoded_value(value: object, codec: Codec, options: Options) -> bytes:
    """The bytes of a value. Raises `EncodingError` when it can't be kept, or is too large."""
    data = codec.encode(value)
    if type(data) is not bytes:
        raise EncodingError(f"codec= gave a {type(data).__name__}, and must give bytes")
    if len(data) > options.max_value_bytes:
        raise EncodingError(
            f"a value of {len(data)} bytes, encoded, is larger than "
            f"Options(max_value_bytes={options.max_value_bytes}): split it, or store it elsewhere"
        )
    return data


def revision_of(value: int) -> int:
    """The value, if a write can have had this revision."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"revision={brief(value)}: must be a revision, as `versioned` and `set` give it")
    return int(value)


def check_comparable(codec: Codec, values: list[bytes]) -> None:
    """Refuse a comparison that would stop every node: a codec of the user's that can't read its own bytes, or values
    of which `==` raises. Raises `EncodingError`."""
    if isinstance(codec, FaithfulCodec):
        return
    try:
        first = codec.decode(values[0])
        for value in values:
            bool(codec.decode(value) == first)
    except Exception as error:
        raise EncodingError(
            f"codec= can't compare these values: {type(error).__name__}: {error}; nothing was changed"
        ) from error


def in_commands(encoded: list[tuple[bytes, bytes]], most: int) -> Iterator[tuple[list[tuple[bytes, bytes]], int]]:
    """Pairs in order, in as few commands as hold `most` bytes each, with the bytes of each."""
    start, size = 0, 0
    for end, (key, value) in enumerate(encoded):
        length = len(key) + len(value)
        if end > start and size + length > most:
            yield encoded[start:end], size
            start, size = end, 0
        size += length
    if encoded:
        yield encoded[start:], size


def pairs_of(other: Any, named: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    """The pairs in the arguments of `dict.update`. The name `timeout` is refused as a key."""
    if "timeout" in named:
        raise TypeError(
            "update(timeout=...) could be a key or a time limit: write update({'timeout': ...}) for the key; the time "
            "limit is the timeout= that the dict was opened with"
        )
    return chain(_pairs_of(other), named.items())


def _pairs_of(other: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(other, Mapping):
        return other.items()
    if hasattr(other, "keys"):
        return [(key, other[key]) for key in other.keys()]  # noqa: SIM118 -- what dict.update does
    return [(key, value) for key, value in other]


def ttl_of(value: Any, name: str = "ttl") -> float:
    """The value, if it is a time to live in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r}: must be a positive number of seconds")
    return min(float(value), TTL_MAX)


def text_of(value: object, name: str, least: int) -> str:
    """The value, if it is a str with an allowed number of characters. Raises `ValueError`."""
    if (
        not isinstance(value, str)
        or not least <= len(value) <= NAME_MAX
        or any("\ud800" <= c <= "\udfff" for c in value)
    ):
        raise ValueError(f"{name}={value!r}: must be a str of {least} to {NAME_MAX} characters")
    return value
