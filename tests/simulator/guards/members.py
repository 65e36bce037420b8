"""Guards of membership (thesis, chapter 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from replidict.protocol.peer_messages import AddMember, RemoveMember, Verdict
from replidict.raft import configuration, engine, quorum_rounds, reconfiguration, replication, state
from replidict.raft.configuration import MemberSet
from replidict.storage import records, store
from replidict.testing.simulator.transport import SimulatedTransport
from tests.simulator import member_scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("E8, thesis 4.1", 25, changing=True)
def one_change_at_a_time() -> Replacements:
    """A change is made while the last one is not committed: majorities that do not overlap are in force at once."""

    def not_now(self: reconfiguration.Reconfiguration) -> str | None:
        why = original(self)
        return None if why == "another change of the members is under way" else why

    original = reconfiguration.Reconfiguration._not_now
    yield reconfiguration.Reconfiguration, "_not_now", not_now


@guard("thesis 4.1, 2015", 100, changing=True)
def change_in_a_term_of_ones_own() -> Replacements:
    """A new leader makes a change before it has committed an entry of its own term, beside one it does not know of."""

    def not_now(self: reconfiguration.Reconfiguration) -> str | None:
        why = original(self)
        return None if why == "the leader has only just been elected" else why

    original = reconfiguration.Reconfiguration._not_now
    yield reconfiguration.Reconfiguration, "_not_now", not_now


@guard("thesis 4.1", 25, changing=True)
def in_force_when_appended() -> Replacements:
    """A configuration is in force only once it is committed: nodes count by different ones."""

    def current(self: configuration.Configurations) -> MemberSet:
        return self._known[0]

    yield configuration.Configurations, "current", property(current)


@guard("thesis 4.1", scenario=member_scenarios.a_backup_beside_a_change)
def members_before_the_state() -> Replacements:
    """A backup brings the state table up to date, but not the members: a crash forgets one that it covers."""

    def flush(self: store.Store) -> None:
        while self.table.behind:
            self._follow()

    yield store.Store, "flush", flush


@guard("thesis 4.1", 50, changing=True)
def taken_back_with_its_entry() -> Replacements:
    """A configuration stays in force although its entry was cut off the log."""

    def cut(self: configuration.Configurations, index: int) -> bool:
        return False

    yield configuration.Configurations, "cut", cut


@guard("E8", 50, changing=True)
def in_force_after_a_restart() -> Replacements:
    """A node that restarts goes by the last committed configuration, and forgets the one in its log."""

    def of_log(applied: MemberSet, entries: Any) -> configuration.Configurations:
        return configuration.Configurations(applied)

    yield configuration.Configurations, "of_log", of_log


@guard("thesis 4.2.1", 25, changing=True)
def learners_do_not_count() -> Replacements:
    """A learner's vote and its acknowledgements count as a voter's."""

    def is_majority(self: MemberSet, addresses: Any) -> bool:
        return len(self.all.intersection(addresses)) * 2 > len(self.voters)

    def advance(self: replication.Replication) -> None:
        known = self._state
        if not known.is_leader:
            return
        stored = sorted(
            (
                known.log.durable_index if address == known.address else known.peers[address].match_index
                for address in known.members.all
            ),
            reverse=True,
        )
        index = stored[len(known.members.voters) // 2]
        if index > known.commit_index and known.log.term_at(index) == known.term:
            known.commit_index = index

    yield MemberSet, "is_majority", is_majority
    yield replication.Replication, "advance_commit_index", advance


@guard("thesis 4.2.1", 25, changing=True)
def learners_first() -> Replacements:
    """A node is a voter from the start, with an empty log: for long, a majority may have to wait for it."""

    def added(self: reconfiguration.Reconfiguration, change: AddMember) -> MemberSet | tuple[Verdict, str]:
        wanted = original(self, change)
        if not isinstance(wanted, MemberSet) or not change.voter:
            return wanted
        return replace(wanted, voters=wanted.voters | {change.address}, learners=wanted.learners - {change.address})

    original = reconfiguration.Reconfiguration._added
    yield reconfiguration.Reconfiguration, "_added", added


@guard("thesis 4.2.2", 50, changing=True)
def hand_over_before_leaving() -> Replacements:
    """A leader removes itself, and manages a cluster that it is no part of."""

    def removed(self: reconfiguration.Reconfiguration, change: RemoveMember) -> MemberSet | tuple[Verdict, str]:
        members, address = self._state.members, change.address
        if address != self._state.address or members.voters == {address}:
            return original(self, change)
        return replace(members, voters=members.voters - {address})

    original = reconfiguration.Reconfiguration._removed
    yield reconfiguration.Reconfiguration, "_removed", removed


@guard("thesis 4.1", scenario=member_scenarios.who_is_let_go_takes_it_back, nodes=5)
def listen_until_it_is_committed() -> Replacements:
    """Whom an uncommitted change lets go is not listened to: if it is elected, it can't take the change back."""

    def heard(self: configuration.Configurations) -> frozenset[str]:
        return self.current.all

    yield configuration.Configurations, "heard", property(heard)


@guard("thesis 4.2.2, fig. 4.6", scenario=member_scenarios.a_voter_that_is_let_go_is_needed, nodes=4)
def stand_until_it_is_committed() -> Replacements:
    """A voter that an uncommitted change lets go does not stand, although only its log is complete (found: S3)."""

    def members(self: state.RaftState) -> MemberSet:
        return self.configurations.current

    yield state.RaftState, "committed_members", property(members)


@guard("a wiped disk", 150, changing=True)
def only_the_disk_that_is_known() -> Replacements:
    """A new disk under an old address counts as the old one: it has forgotten votes and entries."""

    def admit(self: engine.Engine, address: str, node_id: str) -> str | None:
        return None

    yield engine.Engine, "admit", admit


@guard("thesis 4.2.3", 50, changing=True)
def tell_who_the_members_are() -> Replacements:
    """A member that was away while the members changed goes on with those it knew: it never hears of its removal."""

    def hear(self: engine.Engine, message: Any) -> None:
        pass

    yield engine.Engine, "hear_of_members", hear


@guard("thesis 4.1", scenario=member_scenarios.all_it_knew_are_gone)
def hear_non_members_on_the_members() -> Replacements:
    """A member that was away while all others were replaced listens to none of them (found: S4)."""

    def parted(self: SimulatedTransport, connection: Any, *what: Any) -> None:
        self._network.cut(connection)

    yield SimulatedTransport, "_parted", parted


@guard("thesis 4.1", 50, changing=True)
def never_go_back_to_older_members() -> Replacements:
    """What others say of the members is believed, also if it is older than what is known here."""

    def adopt(self: configuration.Configurations, committed: MemberSet, commit_index: int) -> bool:
        if committed == self._known[0]:
            return False
        self._known = [committed, *(members for members in self._known if members.index > committed.index)]
        return True

    def set_members(self: Any, members: records.Members) -> None:
        self._members = members
        self._dirty = True

    yield configuration.Configurations, "adopt", adopt


@guard("majority", scenario=member_scenarios.a_new_leader_knows_nobody_yet)
def count_who_has_answered() -> Replacements:
    """A new leader takes a voter for alive that has not answered it yet, and removes one that is needed (found: S5)."""

    def missing(self: reconfiguration.Reconfiguration, voters: frozenset[str]) -> list[str]:
        for peer in self._state.peers.values():
            self._replication.rounds._answered.setdefault(peer, 1)
        return original(self, voters)

    original = reconfiguration.Reconfiguration._missing
    yield reconfiguration.Reconfiguration, "_missing", missing


@guard("thesis 6.4", scenario=member_scenarios.a_read_while_the_cluster_shrinks)
def count_again_when_members_leave() -> Replacements:
    """A read whose round waits for a member that leaves waits for ever (found: S6)."""

    def count(self: quorum_rounds.QuorumRounds) -> None:
        if self._state.members.voters != {self._state.address}:  # of whom nobody answers
            original(self)

    original = quorum_rounds.QuorumRounds.count
    yield quorum_rounds.QuorumRounds, "count", count
