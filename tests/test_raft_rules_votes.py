"""Votes and leaders, as tables (Raft 5.2, 5.4.1, figure 2 and 7; thesis 4.2.3, 6.4.1, 9.6)."""

from __future__ import annotations

import pytest

from replidict.protocol.peer_messages import RequestVote, TimeoutNow, VoteReply
from replidict.raft.role import Role
from tests.raft_parts import TIMEOUT, a_node, address

FIGURE_7 = "1114455666"
"""The log of the leader in figure 7, which stands in term 8."""


@pytest.mark.parametrize(
    ("log", "term", "voted_for", "asked", "last", "granted"),
    [
        # Figure 2, RequestVote, rule 1: no vote for a term that is over.
        ("11", 5, None, 4, "11", False),
        ("11", 5, None, 5, "11", True),
        ("11", 5, None, 6, "11", True),
        # Rule 2: one vote a term, and the same one again if it is asked for again.
        ("11", 5, "c", 5, "11", False),
        ("11", 5, "b", 5, "11", True),
        ("11", 5, "a", 5, "11", False),
        ("11", 5, "c", 6, "11", True),
        # 5.4.1: the later last term is more up to date; of two with the same, the longer log.
        ("", 0, None, 1, "", True),
        ("112", 2, None, 3, "11", False),
        ("112", 2, None, 3, "111111", False),
        ("112", 2, None, 3, "112", True),
        ("112", 2, None, 3, "1122", True),
        ("112", 2, None, 3, "13", True),
        # Figure 7: the followers (a) to (f), asked by the leader.
        ("111445566", 7, None, 8, FIGURE_7, True),
        ("1114", 7, None, 8, FIGURE_7, True),
        ("11144556666", 7, None, 8, FIGURE_7, False),
        ("111445566677", 7, None, 8, FIGURE_7, False),
        ("1114444", 7, None, 8, FIGURE_7, True),
        ("11122233333", 7, None, 8, FIGURE_7, True),
    ],
)
def test_request_vote(log: str, term: int, voted_for: str | None, asked: int, last: str, granted: bool) -> None:
    """A voter with a log, a term and a vote gets or refuses a candidate of a term, whose log is `last`; its term and
    its vote are on disk when it answers."""
    with a_node(log, term=term, voted_for=voted_for) as a:
        request = RequestVote(asked, len(last), int(last[-1:] or 0))
        assert a.hear(a.elections.on_request_vote, "b", request) == [VoteReply(max(term, asked), granted, False, asked)]
        kept = "b:1" if granted else None if asked > term or voted_for is None else address(voted_for)
        assert (a.state.store.term, a.state.store.voted_for) == (max(term, asked), kept)
        assert not a.state.store.pending


@pytest.mark.parametrize(
    ("asked", "last", "granted"),
    [(4, "112", False), (5, "112", True), (5, "11", False), (5, "1122", True), (9, "112", True)],
)
def test_pre_vote(asked: int, last: str, granted: bool) -> None:
    """A pre-vote says what a vote in the next term would be, and changes neither term nor vote (9.6)."""
    with a_node("112", term=5, voted_for="c") as a:
        request = RequestVote(asked, len(last), int(last[-1:]), pre=True)
        assert a.hear(a.elections.on_request_vote, "b", request) == [VoteReply(5, granted, True, asked + 1)]
        assert (a.state.term, a.state.voted_for) == (5, "c:1")


@pytest.mark.parametrize(
    ("heard_before", "transfer", "granted"),
    [(0.0, False, False), (0.9, False, False), (1.0, False, True), (0.0, True, True)],
)
def test_a_leader_is_not_deposed(heard_before: float, transfer: bool, granted: bool) -> None:
    """Who heard a leader within an election timeout refuses, and keeps its term, unless the leader asked for the
    election (4.2.3)."""
    with a_node("11", term=5) as a:
        a.elections.follow(a.peer("c"), 5)
        a.now += heard_before * TIMEOUT
        request = RequestVote(6, 2, 1, transfer=transfer)
        assert a.hear(a.elections.on_request_vote, "b", request) == [VoteReply(6 if granted else 5, granted, False, 6)]
        assert a.state.leader == (None if granted else "c:1")


@pytest.mark.parametrize(("since_start", "granted"), [(0.9, False), (1.0, True)])
def test_silence_after_a_start(since_start: float, granted: bool) -> None:
    """A node that has just started may have promised a leader its silence (6.4.1)."""
    with a_node() as a:
        a.now = since_start * TIMEOUT
        assert a.hear(a.elections.on_request_vote, "b", RequestVote(1, 0, 0)) == [
            VoteReply(1 if granted else 0, granted, False, 1)
        ]


@pytest.mark.parametrize(
    ("replies", "role"),
    [
        ([], Role.CANDIDATE),
        ([("b", 6, True)], Role.CANDIDATE),
        ([("b", 6, True), ("b", 6, True)], Role.CANDIDATE),  # a voter counts once
        ([("b", 6, True), ("c", 6, False)], Role.CANDIDATE),
        ([("b", 6, True), ("c", 5, True)], Role.CANDIDATE),  # of the election before
        ([("b", 6, True), ("c", 6, True)], Role.LEADER),
    ],
)
def test_votes_are_counted(replies: list[tuple[str, int, bool]], role: Role) -> None:
    """Of five, three votes of one term make a leader (5.2), which begins with an entry of its own term (8)."""
    with a_node("11", term=5, voters="abcde") as a:
        a.elections._stand(transfer=False)
        assert (a.state.store.term, a.state.store.voted_for, a.state.store.pending) == (6, "a:1", False)
        for name, asked, granted in replies:
            a.hear(a.elections.on_vote_reply, name, VoteReply(asked, granted, False, asked))
        assert (a.state.role, a.terms) == (role, "116" if role is Role.LEADER else "11")


def test_a_higher_term_ends_a_candidature() -> None:
    """Figure 2, rules for all servers: a reply of a higher term makes the candidate a follower of that term."""
    with a_node("11", term=5) as a:
        a.elections._stand(transfer=False)
        a.hear(a.elections.on_vote_reply, "b", VoteReply(9, False, False, 6))
        assert (a.state.role, a.state.term, a.state.voted_for, a.state.leader) == (Role.FOLLOWER, 9, None, None)


@pytest.mark.parametrize(
    ("heard", "leads"), [({"b": 0.9, "c": 0.9}, True), ({"b": 0.9, "c": 1.0}, True), ({"b": 1.0, "c": 1.0}, False)]
)
def test_a_leader_without_a_majority_steps_down(heard: dict[str, float], leads: bool) -> None:
    """A leader that has not heard a majority for an election timeout leads no longer (6.2)."""
    with a_node() as a:
        a.lead()
        a.now += 10 * TIMEOUT
        for name, before in heard.items():
            a.peer(name).heard_at = a.now - before * TIMEOUT
        a.elections.tick()
        assert a.state.is_leader == leads


@pytest.mark.parametrize(
    ("sender", "term", "stands"), [("b", 5, True), ("c", 5, False), ("b", 4, False), ("b", 6, False)]
)
def test_timeout_now(sender: str, term: int, stands: bool) -> None:
    """Only the leader of the present term may have a node stand at once (3.10), by votes that need no silence."""
    with a_node("11", term=5) as a:
        a.elections.follow(a.peer("b"), 5)
        a.hear(a.elections.on_timeout_now, sender, TimeoutNow(term))
        assert a.state.role is (Role.CANDIDATE if stands else Role.FOLLOWER)
        assert a.said("c") == ([RequestVote(6, 2, 1, transfer=True)] if stands else [])


@pytest.mark.parametrize(("has_led", "abstains"), [(False, True), (True, False)])
def test_who_is_told_that_it_is_superseded_abstains(has_led: bool, abstains: bool) -> None:
    """A node that has had no leader since its start neither votes nor stands until the word is over."""
    with a_node() as a:
        if has_led:
            a.elections.follow(a.peer("c"), 1)
            a.now += 3 * TIMEOUT
        a.elections.abstain(until=a.now + 5)
        assert a.elections.abstains == abstains
        (reply,) = a.hear(a.elections.on_request_vote, "b", RequestVote(2, 0, 0))
        assert isinstance(reply, VoteReply) and reply.granted == (not abstains)
        a.now += 5
        assert not a.elections.abstains
