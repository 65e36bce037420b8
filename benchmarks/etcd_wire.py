"""The etcd messages that the client needs, by hand: protobuf is small enough when one needs so little of it.

So the peer needs `grpcio` alone: no generated code, which ties itself to releases of protobuf. Field numbers are those
of etcd 3's `rpc.proto`, `kv.proto` and `v3lock.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

VARINT, BYTES = 0, 2


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def bytes_field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | BYTES) + varint(len(data)) + data


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: a number or bytes, the only types met here."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == VARINT:
            value, at = read_varint(data, at)
            yield tag >> 3, value
        elif tag & 7 == BYTES:
            length, at = read_varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"protobuf wire type {tag & 7}, which etcd's answers here do not use")


def put_request(key: bytes, value: bytes) -> bytes:
    """PutRequest: key, value."""
    return bytes_field(1, key) + bytes_field(2, value)


def range_request(key: bytes, *, serializable: bool) -> bytes:
    """RangeRequest of one key; serializable is etcd's word for this member's own copy."""
    return bytes_field(1, key) + (b"\x38\x01" if serializable else b"")


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3 | VARINT) + varint(value)


def txn_request(puts: list[bytes], unchanged: Iterable[tuple[bytes, int]] = ()) -> bytes:
    """TxnRequest of so many PutRequests, if these keys still have these mod revisions (0: absent)."""
    compares = [number_field(2, 2) + bytes_field(3, key) + number_field(6, revision) for key, revision in unchanged]
    return b"".join([bytes_field(1, each) for each in compares] + [bytes_field(2, bytes_field(2, put)) for put in puts])


def read_request(ranges: list[bytes]) -> bytes:
    """TxnRequest that only reads: so many RangeRequests, of one moment."""
    return b"".join(bytes_field(2, bytes_field(1, each)) for each in ranges)


def parts(data: bytes, wanted: int) -> list[bytes]:
    """All fields of this number that are bytes."""
    return [value for number, value in fields(data) if number == wanted and isinstance(value, bytes)]


def number_of(data: bytes, wanted: int) -> int:
    """The field of this number that is a number; 0 if it is left out."""
    return next((value for number, value in fields(data) if number == wanted and isinstance(value, int)), 0)


def succeeded(txn_response: bytes) -> bool:
    """Whether the conditions of a TxnRequest held."""
    return bool(number_of(txn_response, 2))


def read_values(txn_response: bytes) -> list[tuple[bytes | None, int]]:
    """Value and mod revision of each key that a `read_request` read; None and 0 if it is absent."""
    found: list[tuple[bytes | None, int]] = []
    for response in parts(txn_response, 3):
        (range_response,) = parts(response, 1)
        pairs = parts(range_response, 2)
        found.append((next(iter(parts(pairs[0], 5)), b""), number_of(pairs[0], 3)) if pairs else (None, 0))
    return found


def lease_grant_request(seconds: int) -> bytes:
    """LeaseGrantRequest: TTL; etcd chooses the id."""
    return number_field(1, seconds)


def lock_request(name: bytes, lease: int) -> bytes:
    """LockRequest: name, lease."""
    return bytes_field(1, name) + number_field(2, lease)


def unlock_request(key: bytes) -> bytes:
    """UnlockRequest: the key that the LockResponse has as its second field."""
    return bytes_field(1, key)


def watch_request(key: bytes) -> bytes:
    """WatchRequest that creates a watch of one key."""
    return bytes_field(1, bytes_field(1, key))


def watched_values(watch_response: bytes) -> list[bytes]:
    """The values that the events of a WatchResponse have put."""
    events = [event for number, event in fields(watch_response) if number == 11 and isinstance(event, bytes)]
    pairs = [pair for event in events for number, pair in fields(event) if number == 2 and isinstance(pair, bytes)]
    return [value for pair in pairs for number, value in fields(pair) if number == 5 and isinstance(value, bytes)]


def value_of(range_response: bytes) -> bytes | None:
    """The value in a RangeResponse."""
    for number, pair in fields(range_response):
        if number == 2 and isinstance(pair, bytes):
            return next((value for field, value in fields(pair) if field == 5 and isinstance(value, bytes)), b"")
    return None


def member_and_leader(status_response: bytes) -> tuple[int, int, int]:
    """Ids of the member that answered with this StatusResponse and of its leader (0: none), and its term."""
    member = leader = term = 0
    for number, value in fields(status_response):
        if number == 1 and isinstance(value, bytes):
            member = next((each for field, each in fields(value) if field == 2 and isinstance(each, int)), 0)
        elif number == 4 and isinstance(value, int):
            leader = value
        elif number == 6 and isinstance(value, int):
            term = value
    return member, leader, term
