"""Checks the arguments of locks and semaphores."""

from __future__ import annotations

from replidict.machine.locks import EXCLUSIVE
from replidict.node.call_arguments import text_of, ttl_of
from replidict.node.lock_requests import Wanted


def wanted_lock(name: str, ttl: float, shared: bool, info: str) -> Wanted:
    """A request for a lock, exclusive or shared."""
    if not isinstance(shared, bool):
        raise ValueError(f"shared={shared!r}: must be True or False")
    return Wanted(text_of(name, "name", 1), ttl_of(ttl), shared, EXCLUSIVE, text_of(info, "info", 0))


def wanted_permit(name: str, permits: int, ttl: float, info: str) -> Wanted:
    """A request for one of `permits` permits."""
    if isinstance(permits, bool) or not isinstance(permits, int) or not 0 < permits < 2**31:
        raise ValueError(f"permits={permits!r}: must be a positive number")
    return Wanted(text_of(name, "name", 1), ttl_of(ttl), False, permits, text_of(info, "info", 0))
