"""What becomes of a change of the members, as tables (thesis 4.1, 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from replidict.machine import commands as cmd
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import (
    AddMember,
    AppendReply,
    Change,
    ChangeReply,
    ChangeRequest,
    MembersReply,
    MembersRequest,
    RemoveMember,
    TransferTo,
)
from replidict.raft.configuration import Configurations, MemberSet
from replidict.raft.reconfiguration import MAX_PROMOTION_LAG
from tests.raft_parts import Parts, a_node, address


def members(index: int, voters: str, learners: str = "") -> MemberSet:
    return MemberSet(index, frozenset(map(address, voters)), frozenset(map(address, learners)))


def entry(index: int, voters: str, learners: str = "") -> Entry:
    return Entry(index, 1, cmd.encode(members(index, voters, learners).configuration()))


@contextmanager
def a_leader(*, voters: str = "abc", away: str = "", committed: bool = True) -> Iterator[Parts]:
    """Node `a` leads term 2, and has heard of all but those that are away; the first entry of its term is committed."""
    with a_node("11", voters=voters) as a:
        a.lead()
        a.outbox.persist()
        a.replication.send()
        for peer in a.state.peers.values():
            peer.connected = peer.address.removesuffix(":1") not in away
            if peer.connected and committed:
                a.replication.on_append_reply(peer, AppendReply(2, True, 3, round=1))
        a.replication.advance_commit_index()
        a.state.last_applied = a.state.commit_index
        a.network.sent.clear()
        yield a


def ask(a: Parts, change: Change) -> list[tuple[str, str]]:
    """Ask for a change; what was answered so far."""
    said: list[tuple[str, str]] = []
    a.reconfiguration.ask(change, lambda verdict, why: said.append((verdict, why)))
    return said


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        (AddMember("b:1", True), "done", ""),
        (AddMember("b:1", False), "never", "remove it first"),
        (AddMember("nowhere", True), "never", "must end in a port"),
        (AddMember("b:1", True, "id of another"), "never", "with another disk"),
        (AddMember("c:1", True, "id of c"), "never", "a founding member"),
        (RemoveMember("x:1"), "absent", "is no member"),
        (RemoveMember("a:1"), "later", "is handing over first"),
        (TransferTo("a:1"), "done", ""),
        (TransferTo("x:1"), "never", "is no voter"),
    ],
)
def test_changes_that_are_answered_at_once(change: Change, verdict: str, why: str) -> None:
    """What is so already is done; what can't be is refused, in words; nothing joins the log."""
    with a_leader() as a:
        a.state.store.pin("b:1", "id of b")
        ((said, text),) = ask(a, change)
        assert said == verdict and why in text
        assert a.state.log.last_index == 3


@pytest.mark.parametrize(
    ("change", "voters", "learners"),
    [
        (AddMember("d:1", True), "abc", "d"),  # 4.2.1: a learner first
        (AddMember("d:1", False), "abc", "d"),
        (RemoveMember("c:1"), "ab", ""),
    ],
)
def test_a_change_is_in_force_at_once_and_done_when_committed(change: Change, voters: str, learners: str) -> None:
    """A configuration is in force as soon as it is in the log (4.1); who asked hears of it when it is committed."""
    with a_leader() as a:
        said = ask(a, change)
        now = members(4, voters, learners)
        assert (a.state.members.voters, a.state.members.learners) == (now.voters, now.learners)
        assert set(a.state.peers) == {"b:1", "c:1"} | now.learners, "whom it lets go is listened to until then"
        a.reconfiguration.settle()
        assert said == []
        a.outbox.persist()
        a.acknowledge(b=4)
        a.replication.advance_commit_index()
        a.reconfiguration.settle()
        assert said == [("done", "")]


def test_one_change_at_a_time() -> None:
    """The next change waits until the last one is committed and applied (4.1)."""
    with a_leader() as a:
        ask(a, AddMember("d:1", True))
        assert ask(a, AddMember("e:1", True)) == [("later", "another change of the members is under way")]
        a.outbox.persist()
        a.acknowledge(b=4)
        a.replication.advance_commit_index()
        a.state.last_applied = 4
        assert ask(a, AddMember("e:1", True)) == []


def test_no_change_before_an_entry_of_the_own_term_is_committed() -> None:
    """A new leader may not know of a change that is under way (the correction of July 2015 to 4.1)."""
    with a_leader(committed=False) as a:
        assert ask(a, AddMember("d:1", True)) == [("later", "the leader has only just been elected")]


@pytest.mark.parametrize(
    ("voters", "away", "change", "verdict"),
    [
        ("abc", "c", RemoveMember("c:1"), None),  # who is lost goes
        ("abcd", "d", RemoveMember("c:1"), None),
        ("abcde", "de", RemoveMember("c:1"), "later"),  # two of four that would be left are out of reach
        ("abcde", "de", RemoveMember("e:1"), None),
        ("abcde", "de", RemoveMember("c:1", force=True), None),
    ],
)
def test_a_majority_stays_within_reach(voters: str, away: str, change: RemoveMember, verdict: str | None) -> None:
    """No voter goes whose removal would leave no majority within reach, unless it is forced."""
    with a_leader(voters=voters, away=away) as a:
        said = [verdict for verdict, _ in ask(a, change)]
        assert said == ([] if verdict is None else [verdict])


@pytest.mark.parametrize(
    ("behind", "heard", "promoted"),
    [(MAX_PROMOTION_LAG, True, True), (MAX_PROMOTION_LAG + 1, True, False), (0, False, False)],
)
def test_a_learner_becomes_a_voter(behind: int, heard: bool, promoted: bool) -> None:
    """The leader makes a voter of a learner that is connected and has nearly all that is committed (4.2.1)."""
    with a_leader() as a:
        ask(a, AddMember("d:1", True))
        for _ in range(2 * MAX_PROMOTION_LAG):
            a.log.append(cmd.NO_OP)
        a.outbox.persist()
        a.acknowledge(b=a.state.log.last_index)
        a.replication.advance_commit_index()
        a.state.last_applied = a.state.commit_index
        d = a.peer("d")
        d.connected, d.heard_at = heard, a.now
        a.replication.rounds.answer(d, 1)
        a.acknowledge(d=a.state.commit_index - behind)
        a.reconfiguration.tick()
        assert ("d:1" in a.state.members.voters) == promoted


def test_a_reader_stays_a_learner() -> None:
    """Who joined without a vote is never made a voter."""
    with a_leader() as a:
        ask(a, AddMember("d:1", False))
        a.outbox.persist()
        a.acknowledge(b=4)
        a.replication.advance_commit_index()
        a.state.last_applied = 4
        a.peer("d").connected, a.peer("d").heard_at = True, a.now
        a.replication.rounds.answer(a.peer("d"), 1)
        a.acknowledge(d=4)
        a.reconfiguration.tick()
        assert a.state.members.voters == {"a:1", "b:1", "c:1"}


def test_a_change_of_a_leader_that_is_deposed_is_lost() -> None:
    """A change that was in the log of a deposed leader may be done or not: to ask again is safe."""
    with a_leader() as a:
        said = ask(a, AddMember("d:1", True))
        a.elections.see_term(9)
        a.reconfiguration.settle()
        assert said == [("lost", "the leader lost its office")]


def test_a_follower_asks_the_leader() -> None:
    """A change, and how far everybody is, is asked of the leader; each answer comes once, or is lost with it."""
    with a_node(term=5) as a:
        assert ask(a, AddMember("d:1", True)) == [("later", "no leader could be reached")]
        a.elections.follow(a.peer("b"), 5)
        said, lost = ask(a, AddMember("d:1", True)), ask(a, RemoveMember("c:1"))
        progress: list[object] = []
        a.reconfiguration.ask_progress(progress.append)
        first, second, third = a.said("b")
        assert isinstance(first, ChangeRequest) and first.change == AddMember("d:1", True)
        assert isinstance(second, ChangeRequest) and isinstance(third, MembersRequest)
        a.hear(a.reconfiguration.on_change_reply, "b", ChangeReply(5, first.request_id, "done", ""))
        a.hear(a.reconfiguration.on_members_reply, "b", MembersReply(5, third.request_id, {"a:1": (3, 0.0)}))
        assert (said, progress, lost) == ([("done", "")], [{"a:1": (3, 0.0, None)}], [])
        a.peer("b").connections += 1
        a.reconfiguration.tick()
        assert lost == [("lost", "the leader was lost")]


def test_a_follower_is_asked() -> None:
    """A node that does not lead says so at once."""
    with a_node(term=5) as a:
        request = ChangeRequest(5, 7, AddMember("d:1", True))
        said = a.hear(a.reconfiguration.on_change_request, "b", request)
        assert said == [ChangeReply(5, 7, "later", "a:1 is not the leader any more")]
        assert a.hear(a.reconfiguration.on_members_request, "b", MembersRequest(5, 8)) == [MembersReply(5, 8, None)]


# -- the configurations in a log --------------------------------------------------------------------------------------


def test_configurations_in_a_log() -> None:
    """The last configuration in the log is in force; whom an uncommitted one lets go is listened to; one that is cut
    off is taken back; what is applied is forgotten."""
    known = Configurations.of_log(
        members(0, "abc"), [entry(3, "abc", "d"), Entry(4, 1, cmd.NO_OP), entry(5, "ab", "d")]
    )
    assert known.current == replace(members(5, "ab", "d"))
    assert known.heard == {"a:1", "b:1", "c:1", "d:1"}
    assert known.committed(4) == members(3, "abc", "d")
    assert known.cut(5) and known.current == members(3, "abc", "d")
    assert not known.cut(4)
    assert known.applied(2) is None
    assert known.applied(4) == members(3, "abc", "d")
    assert known.heard == {"a:1", "b:1", "c:1", "d:1"}
    assert not known.note([entry(2, "a")]), "one that is older than what is known changes nothing"


def test_a_committed_configuration_is_adopted() -> None:
    """What others know to be committed is true, if it is later than what is known here to be."""
    known = Configurations.of_log(members(3, "abc"), [entry(5, "abcd"), entry(9, "abcde")])
    assert not known.adopt(members(2, "ab"), 4)
    assert known.adopt(members(7, "bcd"), 4)
    assert known.committed(4) == members(7, "bcd") and known.current == members(9, "abcde")


@pytest.mark.parametrize(
    ("voters", "learners", "said", "majority"),
    [
        ("a", "", "a", True), ("ab", "", "a", False), ("abc", "", "ab", True), ("abc", "", "a", False),
        ("abcd", "", "ab", False), ("abc", "de", "ade", False), ("abc", "de", "abd", True), ("abc", "", "axyz", False),
    ],
)  # fmt: skip
def test_is_majority(voters: str, learners: str, said: str, majority: bool) -> None:
    """More than half of the voters; nobody else counts."""
    assert members(1, voters, learners).is_majority(map(address, said)) == majority
