"""How a new node asks a member to let it into a running cluster, until it is let in."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from replidict.client.connection import Client, UnreachableError
from replidict.errors import NotCommitted, OutcomeUnknown, ReplidictError, SecurityError
from replidict.logging_thread import Logger
from replidict.monotonic_clock import clock
from replidict.protocol.client_messages import Join, Joined
from replidict.release import THIS
from replidict.security import Security
from replidict.storage import records
from replidict.storage.directory import Beginning

logger = Logger(__name__)

CALL_SECONDS = 3.0  # for one attempt to connect
RETRY_PAUSE = 0.2  # seconds


def way_in(
    address: str, member: str | None, voter: bool, security: Security | None, seconds: float
) -> Callable[[str], Beginning] | None:
    """How the node at `address` is let in under an identity, by the cluster of `member`; None if it joins none."""
    if member is None or security is None:
        return None
    return partial(enter, address=address, voter=voter, member=member, security=security, seconds=seconds)


def enter(node_id: str, *, address: str, voter: bool, member: str, security: Security, seconds: float) -> Beginning:
    """Have the node at `address` let in by the cluster of `member`, and return what it begins with.

    Asks again until it is, or surely can't be, or the deadline has passed. To ask again under the same `node_id` does
    no harm. Raises `NotCommitted`, `OutcomeUnknown` (it may be a member now), `SecurityError`, `ValueError`,
    `ReplidictError`.
    """
    deadline = clock() + seconds
    unknown = False
    while True:
        left = max(deadline - clock(), 0.0)
        try:
            with Client(member, security=security, timeout=min(left, CALL_SECONDS)) as client:
                said = client.request(
                    lambda number, timeout: Join(number, timeout, address, node_id, voter, *THIS),
                    Joined,
                    timeout=max(deadline - clock(), 0.0),
                )
        except (UnreachableError, NotCommitted, OutcomeUnknown) as error:
            unknown = unknown or isinstance(error, OutcomeUnknown)
            why: ReplidictError = error
        except ReplidictError as error:
            kind = SecurityError if isinstance(error, SecurityError) else ReplidictError
            raise kind(f"{address} can't join the cluster of {member}: {error}") from error
        else:
            logger.info("%s: let in by %s, into a cluster of %s", address, member, ", ".join(said.voters))
            return Beginning(
                said.cluster_id,
                node_id,
                records.Members(said.index, said.voters, said.learners, said.node_ids, said.readers),
            )
        if clock() + RETRY_PAUSE >= deadline:
            raise (OutcomeUnknown if unknown else NotCommitted)(
                f"{address} could not join the cluster of {member} within {seconds:g} s: {why}. Start it again, with "
                "the same directory: it goes on from there"
            ) from why
        time.sleep(RETRY_PAUSE)
