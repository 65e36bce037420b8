"""Describes log entries in words, for `inspect`."""

from __future__ import annotations

from typing import Any

import msgspec

from replidict.command.output import shortened
from replidict.errors import EncodingError
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, decode_key
from replidict.machine.jsonable import literal

SHOWN = 3
"""So many writes of an entry are told; how many more there are, is."""


def described(command: bytes) -> str:
    """Describe a log entry."""
    try:
        said = cmd.decode(command)
    except cmd.UnknownCommand:
        return "what this release does not know: upgrade it"
    match said:
        case cmd.NoOp():
            return "a leader begins its term"
        case cmd.OpenSession():
            return "a session begins"
        case cmd.Batch(operations=operations):
            words = [_operation(operation) for operation in operations[:SHOWN]]
            more = len(operations) - len(words)
            return "; ".join(words) + (f"; and {more} more" if more else "") if words else "no writes"
        case cmd.Configuration(voters=voters, learners=learners):
            return f"voters {' '.join(voters)}" + (f", learners {' '.join(learners)}" if learners else "")
        case cmd.RaiseLevel(level=level):
            return f"the feature level is {level}"
        case cmd.Tick(milliseconds=milliseconds):
            return f"the cluster's clock shows {milliseconds / 1000:.3f} s"


def _operation(operation: cmd.Operation) -> str:
    match operation:
        case cmd.Update(items=items):
            first = ", ".join(f"{_key(key)} = {_value(value)}" for key, value in items[:SHOWN])
            return f"update {first}" + (f", and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
        case cmd.Remove(last=True):
            return f"popitem {_key(operation.key)} if at revision {operation.revision}"
        case cmd.Take(key=None):
            return "popitem"
        case cmd.Expiring(operation=inner, ttl_ms=ttl_ms, lease=lease):
            for_how_long = "" if ttl_ms is None else f" for {ttl_ms / 1000:g} s"
            return _operation(inner) + for_how_long + ("" if lease is None else f" with lease {lease}")
        case cmd.Fenced(name=name, token=token, operation=inner):
            return f"{_operation(inner)} if {literal(name)} is held with token {token}"
        case cmd.Expire(key=key, ttl_ms=ttl_ms):
            return f"expire {_key(key)} " + ("never" if ttl_ms is None else f"in {ttl_ms / 1000:g} s")
        case cmd.OpenLease(lease=lease, ttl_ms=ttl_ms):
            return f"lease {lease} for {ttl_ms / 1000:g} s"
        case cmd.RenewLeases(leases=leases) | cmd.EndLeases(leases=leases):
            verb = "renew" if isinstance(operation, cmd.RenewLeases) else "end"
            return f"{verb} leases {' '.join(map(str, leases[:SHOWN]))}" + (" ..." if len(leases) > SHOWN else "")
        case cmd.Acquire(name=name, holder=holder):
            return f"acquire {literal(name)} for {shortened(holder)}"
        case cmd.Release(name=name, request=request):
            return f"release {literal(name)} of request {request}"
        case cmd.BreakLock(name=name, token=token):
            return f"break_lock {literal(name)} of token {token}"
        case cmd.PopItem() | cmd.Clear():
            return type(operation).__name__.lower()
        case cmd.Increment(key=key, by=by):
            return f"increment {_key(key)} by {_value(by)}"
        case cmd.Transact(checks=checks, writes=writes, whole=whole):
            seen = [f"{_key(key)} {'absent' if at is None else f'at revision {at}'}" for key, at in checks]
            seen += [] if whole is None else [f"all at revision {whole}"]
            text = f"transaction: {_some([_operation(write) for write in writes]) or 'no writes'}"
            return text + (f" if {_some(seen)}" if seen else "")
        case _:
            names = {
                "Put": "set",
                "SetDefault": "setdefault",
                "Remove": "pop",
                "Take": "pop",
                "CompareAndSet": "compare_and_set",
            }
            told = msgspec.structs.asdict(operation)
            text = f"{names.get(type(operation).__name__, type(operation).__name__.lower())} {_key(told['key'])}"
            if "expected" in told:
                text += f" from {_value(told['expected'])}"
            if "value" in told:
                text += f" = {_value(told['value'])}"
            return text + (f" if at revision {told['revision']}" if "revision" in told else "")


def _some(parts: list[str]) -> str:
    more = len(parts) - SHOWN
    return ", ".join(parts[:SHOWN]) + (f", and {more} more" if more > 0 else "")


def _key(data: bytes) -> str:
    return _literal(data, decode_key)


def _value(data: bytes) -> str:
    return _literal(data, DEFAULT_CODEC.decode)


def _literal(data: bytes, decode: Any) -> str:
    try:
        return shortened(literal(decode(data)), 40)
    except EncodingError:  # of a codec that the program brought along
        return shortened(repr(data), 40)
