"""Makes a write fail, or a lock get lost, when a test asks for it."""

from __future__ import annotations

from functools import partial
from typing import Any

from replidict.api.replicated_dict import ReplicatedDict
from replidict.errors import NotCommitted, OutcomeUnknown, ReplidictError
from replidict.machine import commands as cmd
from replidict.node.proposals import Proposals, Write

Failure = NotCommitted | OutcomeUnknown | type[NotCommitted] | type[OutcomeUnknown]

_HOUSEKEEPING = (cmd.OpenLease, cmd.RenewLeases, cmd.EndLeases, cmd.Acquire, cmd.Release, cmd.BreakLock)
"""What is written for leases and locks, and not because a program wrote something."""


def fail_next(d: ReplicatedDict[Any, Any], error: Failure, *, applied: bool = False) -> None:
    """Have the next write of this dict fail: any method that changes keys, a transaction, a future of `submit`.

    Writes of leases and locks are not meant, and go on. Only one write fails; what is asked for last counts.

    Args:
        d: The dict; others of its cluster are not concerned.
        error: What the write raises: `NotCommitted` or `OutcomeUnknown`, or an instance of one of them.
        applied: Whether the write is applied all the same, which only `OutcomeUnknown` leaves open.

    Raises:
        ValueError: An error that no write raises for want of an answer, or a write that is applied but not committed.

    Example:
        >>> fail_next(d, OutcomeUnknown, applied=True)  # doctest: +SKIP
        >>> with pytest.raises(OutcomeUnknown):  # doctest: +SKIP
        ...     d["k"] = 1
        >>> d["k"]  # doctest: +SKIP
        1
    """
    arm([d], error, applied)


def arm(dicts: list[ReplicatedDict[Any, Any]], error: Failure, applied: bool) -> None:
    """Have the next write of any of these dicts fail, and no other."""
    failure = _instance(error)
    if applied and isinstance(failure, NotCommitted):
        raise ValueError("applied=True: a write that raises NotCommitted is surely not applied; ask for OutcomeUnknown")
    all_proposals = [d._host.node.proposals for d in dicts]
    once = [failure]  # whoever takes it out fails

    def answered_otherwise(proposals: Proposals, write: Write) -> bool:
        if isinstance(write.operation, _HOUSEKEEPING):
            return False
        for each in all_proposals:
            each.answered_otherwise = None
        try:
            failure = once.pop()
        except IndexError:
            return False
        if applied:
            _apply(proposals, write, failure)
        else:
            _answer(write, failure)
        return True

    for proposals in all_proposals:
        proposals.answered_otherwise = partial(answered_otherwise, proposals)


def _apply(proposals: Proposals, write: Write, failure: ReplidictError) -> None:
    """Apply the operation, and then report an unknown outcome."""
    write.sent = True
    really = Write(write.operation, write.size, lambda: _answer(write, really.error or failure))
    proposals.submit(really)


def _answer(write: Write, failure: ReplidictError) -> None:
    write.error = failure
    write.done()


def _instance(error: object) -> NotCommitted | OutcomeUnknown:
    if isinstance(error, type) and issubclass(error, NotCommitted):
        return error("this write was not sent, and is not applied: a test has asked for this (fail_next)")
    if isinstance(error, type) and issubclass(error, OutcomeUnknown):
        return error("this write may or may not be applied: a test has asked for this (fail_next)")
    if isinstance(error, NotCommitted | OutcomeUnknown):
        return error
    raise ValueError(f"error={error!r}: must be NotCommitted or OutcomeUnknown")


def steal_lock(d: ReplicatedDict[Any, Any], name: str) -> int:
    """Take a lock, or all permits of a semaphore, from the holders; the next in line get it.

    The holder's `held.lost` is set, and the log refuses what it writes with `fence=held`. Returns when that is applied
    here: on another node the holder hears of it a moment later.

    Args:
        d: A dict of the cluster, the holder's or another.
        name: The name of the lock.

    Returns:
        From how many holders it was taken.
    """
    d.barrier()
    return sum(d.break_lock(name, token=info.token) for info in d.locks() if info.name == name)
