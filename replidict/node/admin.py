"""Lists and changes the members of a cluster. The calls here wait for the result.

Rules kept here:

1. A change is requested again until it is made, is surely impossible, or the deadline has passed. A change that is
   already made is no error, so repeating the request is safe.
2. `NotCommitted` says that the change was surely not made; once an answer was lost, it is `OutcomeUnknown`. So it is,
   too, when this node stops before it hears the answer, unless it was asked to remove itself and was removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from replidict.errors import (
    ClosedError,
    NotCommitted,
    OutcomeUnknown,
    RemovedError,
    ReplidictError,
    SecurityError,
    raise_anew,
    waits_for_itself,
)
from replidict.latch import Latch
from replidict.monotonic_clock import clock
from replidict.node.blocking_calls import rounded
from replidict.node.raft_node import RaftNode
from replidict.own_threads import in_node_thread
from replidict.protocol.peer_messages import AddMember, Change, RemoveMember, TransferTo, Verdict
from replidict.raft.configuration import MemberSet
from replidict.raft.reconfiguration import Progress
from replidict.security import Security, is_loopback, split_address
from replidict.status import Member

RETRY_PAUSE = 0.02  # seconds
REPORT_WITHIN = 2.0  # election timeouts in which a leader says how far everybody is, or there is none

Answered = TypeVar("Answered")


class Cluster:
    """The cluster as seen from one node. For any thread but the node's own."""

    def __init__(self, node: RaftNode, security: Security | None) -> None:
        """`security` is that of the node's network, if it has one."""
        self._node, self._security = node, security

    def change(self, change: AddMember | RemoveMember, seconds: float) -> None:
        """Have a change of the members made, and return when it is committed. Raises what its absence means."""
        if isinstance(change, AddMember):
            self._check(change.address)
        self._repeat(change, seconds, lambda verdict, lost: verdict == "done" or (verdict == "absent" and lost))

    def _check(self, address: str) -> None:
        """Can this node have such a member?"""
        if self._security is None:
            raise ReplidictError(f"can't add {address}: a dict without address= has no network and no other members")
        if self._security.loopback_only and not is_loopback(split_address(address)[0]):
            raise SecurityError(
                f"can't add {address}: it is not a loopback address, and this node connects to others only with "
                "secret= or tls="
            )

    def hand_over(self, to: str | None, seconds: float) -> None:
        """Have another voter lead, and return when this node knows that it does. Raises what its absence means."""
        engine = self._node.engine
        before = engine.leader

        def handed_over(verdict: Verdict, lost: bool) -> bool:
            nonlocal before
            before = before or engine.leader
            return engine.leader is not None and (engine.leader == to if to else engine.leader != before)

        self._repeat(TransferTo(to), seconds, handed_over)

    def _repeat(self, change: Change, seconds: float, made: Callable[[Verdict, bool], bool]) -> None:
        """Ask until it is made; `made` is told the verdict, and whether an answer got lost."""
        deadline = clock() + seconds
        lost = False
        verdict: Verdict
        why = "no leader could be reached"
        if self._node.failure is not None:
            raise_anew(self._node.failure)
        while True:
            said = self._ask_leader(change, deadline, lost)
            if said is not None:
                verdict, why = said
            else:
                verdict = "lost"
            lost = lost or verdict in ("lost", "done")
            if made(verdict, lost):
                return
            if verdict in ("absent", "never"):
                raise ReplidictError(f"{_named(change)}: {why}")
            time.sleep(RETRY_PAUSE)
            if made(verdict, lost):  # by now: to ask the next leader to hand over would go on and on
                return
            if clock() >= deadline:
                self._too_late(change, seconds, why, lost)

    def _ask_leader(self, change: Change, deadline: float, lost: bool) -> tuple[Verdict, str] | None:
        """Ask once: the verdict, or None when it does not come in time. Rule 2; `lost`: was an earlier one?"""
        engine, begun = self._node.engine, False

        def ask(answer: Callable[[tuple[Verdict, str]], None]) -> None:
            nonlocal begun
            begun = True
            engine.reconfiguration.ask(change, lambda verdict, why: answer((verdict, why)))

        try:
            return self._ask(ask, deadline)
        except ClosedError as error:
            leaves = isinstance(change, RemoveMember) and change.address == engine.address
            if leaves and isinstance(error, RemovedError):
                return "done", ""
            if not begun and not lost:
                raise
            raise OutcomeUnknown(
                f"{_named(change)}: this node stopped before it was told the outcome, so it may or may not be "
                f"made: members() of another node tells ({error})"
            ) from error
        except NotCommitted:  # too busy
            if not lost:
                raise
            return None

    def _too_late(self, change: Change, seconds: float, why: str, lost: bool) -> NoReturn:
        if lost:
            raise OutcomeUnknown(
                f"{_named(change)}: it was not confirmed within {rounded(seconds)} s, so it may or may not be made, "
                "now or later: members() tells, or ask again, which does no harm"
            )
        raise NotCommitted(f"{_named(change)}: not made within {rounded(seconds)} s: {why}")

    def admit(self, address: str, node_id: str, voter: bool, seconds: float) -> MemberSet:
        """Let a node in; returns the members it then belongs to, itself included."""
        deadline = clock() + seconds
        self.change(AddMember(address, voter, node_id), seconds)
        engine = self._node.engine

        def committed(answer: Callable[[MemberSet], None]) -> None:
            answer(MemberSet.of((known := engine.members_are()).index, known))

        while True:
            members = self._ask(committed, deadline)
            if members is not None and members.node_ids.get(address) == node_id:
                return members
            if clock() >= deadline:
                raise OutcomeUnknown(
                    f"{address} was let in, but this node was not told within {rounded(seconds)} s: join again, "
                    "which does no harm"
                )
            time.sleep(RETRY_PAUSE)

    def members(self) -> tuple[Member, ...]:
        """Everybody, in order of address, with what the leader knows of them."""
        engine = self._node.engine
        within = REPORT_WITHIN * engine.options.election_timeout
        progress: Progress | None = self._ask(engine.reconfiguration.ask_progress, clock() + within)
        known, leader = engine.members, engine.leader
        releases = {peer.address: peer.release for peer in engine.peers.values()}
        releases[engine.address] = self._node.feature_level.release

        def member(address: str) -> Member:
            match_index, last_contact, digest = (progress or {}).get(address, (None, None, None))
            release = releases.get(address)
            return Member(
                address,
                address in known.voters,
                address == leader,
                match_index,
                last_contact,
                None if release is None else release.version,
                None if digest is None else digest.digest.hex(),
                None if digest is None else digest.index,
            )

        return tuple(member(address) for address in sorted(known.all))

    def _ask(self, ask: Callable[[Callable[[Answered], None]], None], deadline: float) -> Answered | None:
        """Have something asked in the node's thread; the answer, or None when it does not come in time.

        Raises what has stopped the node, if something has; `NotCommitted` when it was so busy that nothing was asked.
        """
        if in_node_thread():
            raise waits_for_itself(NotCommitted, "nothing was asked and nothing is changed")
        answers: list[Answered] = []
        heard = Latch()

        def hear(answer: Answered) -> None:
            answers.append(answer)
            heard.set()

        begun = self._node.call(lambda: ask(hear))
        try:
            begun.result(timeout=max(deadline - clock(), 0.0))
        except TimeoutError:
            if begun.withdraw():
                raise NotCommitted(f"{self._node.engine.address} is too busy to ask in time") from None
        while not heard.wait(min(0.25, max(deadline - clock(), 0.0))):
            if clock() >= deadline or self._node.failure is not None:
                break
        if answers:
            return answers[0]
        if self._node.failure is not None:
            raise_anew(self._node.failure)
        return None


def _named(change: Change) -> str:
    if isinstance(change, TransferTo):
        return f"handing over leadership to {change.address or 'any other voter'}"
    return f"{'adding' if isinstance(change, AddMember) else 'removing'} {change.address}"
