"""How a log is brought into line, and what is committed, as tables (Raft 5.3, 5.4.2, figures 2, 7 and 8)."""

from __future__ import annotations

import pytest

from replidict.errors import StorageError
from replidict.protocol.peer_messages import AppendEntries, AppendReply, CommitTo
from replidict.raft.quorum_rounds import QuorumRounds
from replidict.raft.role import Role
from tests.raft_parts import TIMEOUT, Parts, a_node, entries

FIGURE_7 = "1114455666"
"""The log of the leader in figure 7, which stands in term 8."""


def appended(term: int, log: str, after: int, commit: int = 0) -> AppendEntries:
    """What a leader with this log says of the entries behind the first ones."""
    return AppendEntries(term, after, int(log[after - 1]) if after else 0, commit, entries(log, after))


@pytest.mark.parametrize(
    ("log", "term", "leader", "after", "becomes", "success", "match"),
    [
        # Figure 2, AppendEntries, rule 1: a leader of a term that is over is refused, and told the term.
        ("11", 5, (4, "1144"), 2, "11", False, 0),
        # Rule 2: what comes before must be there, and of the same term.
        ("11", 1, (1, "1111"), 3, "11", False, 2),
        ("1122", 2, (3, "1133"), 3, "1122", False, 2),
        ("1122", 2, (3, "1133"), 2, "1133", True, 4),
        # Rule 3: only from the first entry that conflicts; what matches stays, also behind what the message says.
        ("1122", 2, (3, "1123"), 1, "1123", True, 4),
        ("11223", 3, (3, "1122"), 1, "11223", True, 4),
        ("1122", 3, (3, "1122"), 4, "1122", True, 4),
        ("1122", 3, (3, "11"), 2, "1122", True, 2),
        # Rule 4: what is not there is appended.
        ("", 0, (1, "111"), 0, "111", True, 3),
        ("11", 1, (2, "1122"), 2, "1122", True, 4),
        ("11", 1, (2, "1122"), 1, "1122", True, 4),
    ],
)
def test_append_entries(
    log: str, term: int, leader: tuple[int, str], after: int, becomes: str, success: bool, match: int
) -> None:
    """A follower with a log hears the entries behind the first `after` ones of a leader's; what it has acknowledged is
    on its disk. A refusal says from where on the logs may agree."""
    leads, leaders_log = leader
    with a_node(log, term=term) as a:
        (reply,) = a.hear(a.follower.on_append_entries, "b", appended(leads, leaders_log, after))
        assert isinstance(reply, AppendReply)
        assert (reply.term, reply.success, reply.match_index) == (max(term, leads), success, match)
        assert a.terms == becomes
        assert a.state.log.durable_index == len(becomes)
        assert a.state.leader == ("b:1" if leads >= term else None)


@pytest.mark.parametrize(
    ("log", "said", "commit", "committed"),
    [
        ("11", appended(1, "1111", 2, commit=3), 0, 3),
        ("11", appended(1, "1111", 2, commit=9), 0, 4),  # rule 5: no further than what the message verified
        ("1111", appended(1, "11", 2, commit=4), 0, 2),
        ("1111", appended(1, "1111", 4, commit=1), 3, 3),  # and never back
        ("1122", appended(3, "1133", 3, commit=4), 1, 1),
    ],
)
def test_commit_index_of_a_follower(log: str, said: AppendEntries, commit: int, committed: int) -> None:
    """A follower takes as committed what the leader says, as far as its log is known to agree (figure 2, rule 5)."""
    with a_node(log, committed=commit) as a:
        a.hear(a.follower.on_append_entries, "b", said)
        assert a.state.commit_index == committed


@pytest.mark.parametrize(("sender", "term", "committed"), [("b", 3, 2), ("c", 3, 0), ("b", 2, 0), ("b", 4, 0)])
def test_commit_to(sender: str, term: int, committed: int) -> None:
    """Only the leader of the present term moves the commit index, up to what it has verified in that term."""
    with a_node("1111", term=2) as a:
        a.hear(a.follower.on_append_entries, "b", appended(3, "11", 2))
        a.hear(a.follower.on_commit_to, sender, CommitTo(term, 4))
        assert a.state.commit_index == committed


def test_what_is_committed_is_not_cut_off() -> None:
    """A leader whose log differs where this node's is committed shows that data is lost: the node stops."""
    with a_node("1122", committed=3) as a:
        with pytest.raises(StorageError, match="differs from entry 3 on, which is committed here up to 3"):
            a.hear(a.follower.on_append_entries, "b", appended(3, "1133", 2))
        assert a.terms == "1122"


def test_two_leaders_of_a_term_stop_each_other() -> None:
    """That another node leads the term that this one leads can't be: one has lost its vote."""
    with a_node("11") as a:
        a.lead()
        with pytest.raises(StorageError, match="b:1 leads term 2, and so does this node"):
            a.hear(a.follower.on_append_entries, "b", appended(2, "11", 2))


@pytest.mark.parametrize("log", ["111445566", "1114", "11144556666", "111445566677", "1114444", "11122233333"])
def test_figure_7(log: str) -> None:
    """Whatever the followers (a) to (f) lack or have too much of, the leader of term 8 brings their logs into line, and
    needs no more messages than there are terms and one for what is missing."""
    with (
        a_node(FIGURE_7, term=7) as leader,
        a_node(log, term=7) as follower,
    ):
        leader.lead()
        messages = 0
        while leader.peer("b").match_index < len(FIGURE_7) + 1:
            messages += 1
            assert messages <= 6, "it takes too many messages"
            leader.network.sent.clear()
            leader.replication.send()
            for message in leader.said("b"):
                assert isinstance(message, AppendEntries)
                for reply in follower.hear(follower.follower.on_append_entries, "b", message):
                    assert isinstance(reply, AppendReply)
                    leader.replication.on_append_reply(leader.peer("b"), reply)
        assert follower.terms == leader.terms == FIGURE_7 + "8"


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        (AppendReply(3, True, 3), 3),
        (AppendReply(2, True, 3), 0),  # of an earlier term: its follower may have cut that off since
        (AppendReply(3, False, 3), 0),
    ],
)
def test_append_reply(reply: AppendReply, counts: int) -> None:
    """An acknowledgement counts in its own term only, and a refusal never."""
    with a_node("112") as a:
        a.lead()
        a.hear(a.replication.on_append_reply, "b", reply)
        assert a.peer("b").match_index == counts


def test_an_append_reply_of_a_higher_term_deposes() -> None:
    """Figure 2, rules for all servers, on a leader; what only a leader knows is forgotten."""
    with a_node("112") as a:
        a.lead()
        a.hear(a.replication.on_append_reply, "b", AppendReply(9, False, 0))
        assert (a.state.role, a.state.term, a.state.leader) == (Role.FOLLOWER, 9, None)
        assert a.replication.rounds.confirmed_at == float("-inf")


def test_an_acknowledgement_of_what_there_is_not_stops_the_leader() -> None:
    """A follower that holds more than the leader's log shows that one of the two has lost data."""
    with a_node("112") as a:
        a.lead()
        with pytest.raises(StorageError, match="acknowledges entry 9, but this leader's log ends at 4"):
            a.hear(a.replication.on_append_reply, "b", AppendReply(3, True, 9))


@pytest.mark.parametrize(
    ("log", "durable", "match", "committed"),
    [
        # The leader of five stands in the next term, whose first entry is the last one of its log.
        ("12", 3, {"b": 3, "c": 3}, 3),
        ("12", 3, {"b": 3}, 0),  # no majority
        ("12", 2, {"b": 3, "c": 3}, 0),  # the leader counts itself only up to its own disk
        ("12", 2, {"b": 3, "c": 3, "d": 3}, 3),  # and need not
        ("12", 3, {"b": 3, "c": 2}, 0),
        # Figure 8, (c): entry 2 is on a majority, but of an earlier term; (e): with one of the own term it is safe.
        ("12", 3, {"b": 2, "c": 2}, 0),
        ("12", 3, {"b": 2, "c": 2, "d": 2, "e": 2}, 0),
        ("12", 3, {"b": 3, "c": 3, "d": 2, "e": 2}, 3),
    ],
)
def test_commit_rule(log: str, durable: int, match: dict[str, int], committed: int) -> None:
    """A leader commits an entry of its own term that is on the disks of a majority, and with it all before (5.4.2)."""
    with a_node(log, voters="abcde") as a:
        a.lead()
        if durable == 3:
            a.outbox.persist()
        assert a.state.log.durable_index == durable
        a.acknowledge(**match)
        a.replication.advance_commit_index()
        assert a.state.commit_index == committed


def followed(a: Parts, *names: str) -> list[bool]:
    """Whom a leader has confirmed after each of these has answered the only round."""
    rounds = QuorumRounds(a.state)
    number = rounds.begin(a.now)
    found = []
    for name in names:
        rounds.answer(a.peer(name), number)
        found.append(rounds.confirmed_at == a.now)
    return found


@pytest.mark.parametrize(
    ("voters", "answers", "confirmed"),
    [
        ("abc", "b", [True]),
        ("abcd", "bc", [False, True]),
        ("abcde", "bc", [False, True]),
        ("abcde", "bbc", [False, False, True]),
    ],
)
def test_a_round_needs_a_majority(voters: str, answers: str, confirmed: list[bool]) -> None:
    """The leader and those that answered must be more than half of the voters; each counts once."""
    with a_node(voters=voters) as a:
        assert followed(a, *answers) == confirmed


def test_rounds_in_turn() -> None:
    """Who answers a round has answered all before it; one that was never begun is not counted; what was answered in an
    earlier leadership counts no more."""
    with a_node(voters="abcde") as a:
        rounds = QuorumRounds(a.state)
        times = {rounds.begin(float(time)): float(time) for time in (10, 20, 30)}
        first, second, third = times
        rounds.answer(a.peer("b"), third)
        rounds.answer(a.peer("d"), third + 1)
        assert (rounds.confirmed, rounds.answered_by(a.peer("d")), rounds.began_at) == (0, 0, 30.0)
        rounds.answer(a.peer("c"), second)
        assert (rounds.confirmed, rounds.confirmed_at) == (second, 20.0)
        rounds.answer(a.peer("c"), first)
        assert rounds.answered_by(a.peer("c")) == second
        rounds.reset()
        assert (rounds.confirmed_at, rounds.answered_by(a.peer("b"))) == (float("-inf"), 0)
        fourth = rounds.begin(40.0)
        rounds.answer(a.peer("b"), fourth)
        assert fourth > third and rounds.confirmed_at == float("-inf")


def test_heartbeats_keep_the_leader_in_office() -> None:
    """An idle leader sends each follower an empty AppendEntries a heartbeat, and knows from the answers since when it
    was followed."""
    with a_node("1") as a:
        a.lead()
        a.outbox.persist()
        a.replication.send()
        began = a.now
        for name in "bc":
            a.acknowledge(**{name: 2})
        a.network.sent.clear()
        a.replication.send()
        assert a.network.sent == []
        a.now += a.state.options.heartbeat
        a.replication.send()
        (heartbeat,) = a.said("b")
        assert isinstance(heartbeat, AppendEntries) and heartbeat.prev_index <= 2
        a.hear(a.replication.on_append_reply, "b", AppendReply(2, True, 2, round=1))
        assert a.replication.rounds.confirmed_at == began < a.now < began + TIMEOUT
