"""Works out what a transaction or an increment will do, before anything is changed.

Rules kept here:

1. A key is unchanged if the same revision wrote it, or if it was absent and is absent. A key that was deleted and
   stored again has another revision, whatever its value is.
2. Writes are planned one after the other, each on top of those before; one that can't be done ends the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Literal, NamedTuple, Protocol

from replidict.machine import commands as cmd
from replidict.machine.arithmetic import add, number, stored_number
from replidict.machine.codec import DEFAULT_CODEC, Codec

Place = Callable[[bytes], Hashable]
"""Where an encoded key stands."""


class Stored(Protocol):
    """The value and revision of a key."""

    @property
    def value(self) -> bytes:
        """Encoded."""

    @property
    def revision(self) -> int:
        """The revision that wrote it."""


class Step(NamedTuple):
    """One change of a plan: the key's place, the key, and its new value, or None if it is removed.

    The key ends with `expiring`, or is permanent, unless it `keeps` what it had.
    """

    where: Hashable
    key: bytes
    value: bytes | None
    expiring: cmd.Expiring | None
    keeps: bool


def conflicts(op: cmd.Transact, items: Mapping[Hashable, Stored], place: Place, revision: int) -> list[bytes] | None:
    """The keys that are not as the transaction saw them, none if only the dict as a whole is not; None if all is."""
    changed = []
    for key, seen in op.checks:
        present = items.get(place(key))
        if (None if present is None else present.revision) != seen:
            changed.append(key)
    return changed if changed or op.whole not in (None, revision) else None


def planned(op: cmd.Transact, items: Mapping[Hashable, Stored], place: Place, codec: Codec) -> list[Step] | bytes:
    """The changes that the writes come to, in order; or the key of an increment that can't be done."""
    steps: list[Step] = []
    so_far: dict[Hashable, bytes | None] = {}
    for each in op.writes:
        expiring = each if isinstance(each, cmd.Expiring) else None
        write = each.operation if isinstance(each, cmd.Expiring) else each
        where = place(write.key)
        stored = items.get(where)
        present = so_far.get(where) if where in so_far or stored is None else stored.value
        value: bytes | None = None
        match write:
            case cmd.Put():
                value = write.value
            case cmd.Delete() if present is None:
                continue
            case cmd.Increment():
                total = incremented(write, present, codec)
                if not isinstance(total, bytes):
                    return write.key
                value = total
        so_far[where] = value
        steps.append(Step(where, write.key, value, expiring, isinstance(write, cmd.Increment)))
    return steps


def incremented(op: cmd.Increment, present: bytes | None, codec: Codec) -> bytes | Literal[False] | None:
    """The new value, encoded; False if it can't be kept, None if the present one is no number that this can be added
    to. What a codec of the user's raises says one or the other: it is pure, so that it does so on every machine."""
    try:
        by = stored_number(op.by, DEFAULT_CODEC)
        total = add(stored_number(op.default, DEFAULT_CODEC) if present is None else stored_number(present, codec), by)
    except OverflowError:
        return False
    except (MemoryError, RecursionError):
        raise  # of this machine only: the node must stop, not differ
    except Exception:  # noqa: BLE001 -- see above
        return None
    try:
        data = codec.encode(number(total))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 -- see above
        return False
    return data if type(data) is bytes else False
