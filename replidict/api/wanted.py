"""What a caller wants of a lock or a semaphore, checked."""

from __future__ import annotations

from replidict.machine.locks import EXCLUSIVE
from replidict.node.call_arguments import ttl_of
from replidict.node.locks import Wanted

NAME_MAX = 1000
"""Characters of a lock's name, and of what its holder says."""


def text_of(value: object, name: str, least: int) -> str:
    """The value, if it is a text of so many characters. Raises `ValueError`, as all here."""
    if (
        not isinstance(value, str)
        or not least <= len(value) <= NAME_MAX
        or any("\ud800" <= c <= "\udfff" for c in value)
    ):
        raise ValueError(f"{name}={value!r}: must be a text of {least} to {NAME_MAX} characters")
    return value


def wanted_lock(name: str, ttl: float, shared: bool, info: str) -> Wanted:
    """A lock, for one holder or for those that share it."""
    if not isinstance(shared, bool):
        raise ValueError(f"shared={shared!r}: must be True or False")
    return Wanted(text_of(name, "name", 1), ttl_of(ttl), shared, EXCLUSIVE, text_of(info, "info", 0))


def wanted_permit(name: str, permits: int, ttl: float, info: str) -> Wanted:
    """One of so many permits."""
    if isinstance(permits, bool) or not isinstance(permits, int) or not 0 < permits < 2**31:
        raise ValueError(f"permits={permits!r}: must be a positive number")
    return Wanted(text_of(name, "name", 1), ttl_of(ttl), False, permits, text_of(info, "info", 0))
