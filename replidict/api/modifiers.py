"""What a program gives to a write besides key and value (`ttl`, `lease`, `fence`), checked."""

from __future__ import annotations

from replidict.api.held_lock import Held
from replidict.api.lease import GrantedLease
from replidict.node.call_arguments import ttl_of
from replidict.node.held_leases import milliseconds
from replidict.server.operations import PLAIN, Modifiers


def modifiers_of(ttl: float | None, lease: GrantedLease | None, fence: Held | None) -> Modifiers:
    """These for a write. Raises `ValueError` for what is no ttl, no lease or no lock."""
    if ttl is None and lease is None and fence is None:
        return PLAIN
    if lease is not None and not isinstance(lease, GrantedLease):
        raise ValueError(f"lease={lease!r}: must be what lease() gives")
    ttl_ms = None if ttl is None else milliseconds(ttl_of(ttl))
    return Modifiers(ttl_ms, None if lease is None else lease.id, fence_of(fence))


def fence_of(fence: Held | None) -> tuple[str, int] | None:
    """The name and the token of a lock. Raises `ValueError` for what is no lock that was held."""
    if fence is None:
        return None
    if not isinstance(fence, Held):
        raise ValueError(f"fence={fence!r}: must be what a lock gives that is held: `with d.lock(...) as held`")
    return fence.name, fence.token
