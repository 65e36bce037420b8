"""How a thread waits for a write or a read, and which error it gets when time runs out."""

from __future__ import annotations

import threading

from replidict.errors import NotCommitted, OutcomeUnknown, ReadTimeout, ReplidictError, raise_anew, waits_for_itself
from replidict.machine import commands as cmd
from replidict.node.linearizable_reads import Read
from replidict.node.node import Node
from replidict.node.proposals import Write, result_of
from replidict.own_threads import in_node_thread


def rounded(seconds: float) -> str:
    """For an error's text: of the time that was asked for, a little may have passed already."""
    return f"{float(f'{seconds:.3g}'):g}"


def is_current(node: Node) -> bool:
    """Whether this node's copy surely includes everything acknowledged anywhere so far, as far as it knows without
    messages."""
    if node.failure is not None:
        raise_anew(node.failure)
    engine = node.engine
    commit_index = engine.commit_index
    return engine.clock() < engine.read_index.lease_until and engine.last_applied >= commit_index


def is_recent(node: Node, max_staleness: float) -> bool:
    """Whether it surely includes all that was acknowledged anywhere up to `max_staleness` seconds ago."""
    return node.engine.clock() - node.engine.read_index.fresh_as_of <= max_staleness


def not_current(seconds: float) -> ReadTimeout:
    """The error for a read that no majority confirmed in time."""
    return ReadTimeout(
        f"no majority of the cluster confirmed within {rounded(seconds)} s that this node is up to date: check "
        "that a majority of the peers is running and reachable, or read this node's own copy"
    )


def make_current(node: Node, seconds: float) -> None:
    """Return when this node's copy includes all that was acknowledged anywhere before the call; else `ReadTimeout`."""
    if is_current(node):
        return
    if in_node_thread():
        raise waits_for_itself(ReplidictError, "this read can't be confirmed to be up to date")
    done = threading.Lock()
    done.acquire()
    read = Read(done.release)
    node.reads.submit(read)
    if not node.wait(done, True, seconds):
        read.abandoned = True
        raise not_current(seconds)
    if read.error is not None:
        raise_anew(read.error)


def make_recent(node: Node, max_staleness: float, seconds: float) -> None:
    """Return when this node's copy includes all that was acknowledged anywhere up to `max_staleness` seconds ago."""
    if not is_recent(node, max_staleness):
        make_current(node, seconds)


def write(node: Node, operation: cmd.Operation, size: int, seconds: float) -> cmd.Result:
    """Write an operation of about `size` bytes, wait, and return its result. Raises what a missing answer means."""
    if node.failure is not None:
        raise_anew(node.failure)
    if in_node_thread():
        raise waits_for_itself(NotCommitted, "this write was not sent and will not be applied")
    done = threading.Lock()
    done.acquire()
    submitted = Write(operation, size, done.release)
    node.proposals.submit(submitted)
    if not node.wait(done, True, seconds):
        error = given_up(node, submitted, seconds)
        if isinstance(error, NotCommitted) or not done.acquire(blocking=False):
            raise error
        # else the answer came at the last moment
    return result_of(submitted)


def given_up(node: Node, submitted: Write, seconds: float) -> ReplidictError:
    """Give up a write `seconds` after it was submitted. Returns the error for its caller."""
    if node.proposals.give_up(submitted):
        if submitted.level > node.feature_level.current and node.engine.leader is not None:
            return NotCommitted(node.feature_level.why_not(submitted.level))
        return NotCommitted(
            f"no leader could be reached within {rounded(seconds)} s, so this write was not sent to anyone: it is not "
            "applied and never will be. Check that a majority of the peers is running and reachable, and that "
            "none of them refuses this node: its log says so"
        )
    return OutcomeUnknown(
        f"this write was sent, but no majority confirmed it within {rounded(seconds)} s: it may or may not be "
        "applied. Read with linearizable=True, once a majority is there, to find out"
    )
