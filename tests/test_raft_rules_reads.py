"""When a leader may answer a read, and who asks it, as tables (thesis 6.4; 3.10 for the transfer)."""

from __future__ import annotations

import pytest

from replidict.protocol.peer_messages import (
    AppendEntries,
    AppendReply,
    ConfirmLeader,
    LeaderConfirmed,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
)
from replidict.raft.bounded_staleness import CLOCK_DRIFT
from replidict.raft.leader_calls import LeaderCalls
from tests.raft_parts import TIMEOUT, Parts, a_node

Answers = list[int | None]


def leading(a: Parts, committed: bool = True) -> None:
    """Have a node lead, with the entry of its own term on the disk of a majority, and committed."""
    a.lead()
    a.outbox.persist()
    if committed:
        a.acknowledge(b=a.state.log.last_index)
        a.replication.advance_commit_index()
        a.state.last_applied = a.state.commit_index


def read(a: Parts) -> Answers:
    """Ask for a read index; what was answered so far."""
    answers: Answers = []
    a.read_index.ask(answers.append)
    a.read_index.tick()
    return answers


def test_a_round_for_each_read() -> None:
    """The leader answers with its commit index once a majority has confirmed a round begun after the read arrived; one
    round serves all that came before it (6.4, steps 2 and 3)."""
    with a_node("11") as a:
        leading(a)
        first: Answers = []
        a.read_index.ask(first.append)
        second = read(a)
        assert a.said("b") == a.said("c") == [ConfirmLeader(2, 1)]
        third = read(a)
        a.hear(a.read_index.on_leader_confirmed, "b", LeaderConfirmed(2, 1))
        assert (first, second, third) == ([3], [3], [])
        a.hear(a.read_index.on_leader_confirmed, "c", LeaderConfirmed(2, 2))
        assert third == [3]


def test_no_read_before_an_entry_of_the_own_term_is_committed() -> None:
    """A new leader does not know yet what is committed, and says that it can't answer (6.4, step 1)."""
    with a_node("11") as a:
        leading(a, committed=False)
        assert read(a) == [None]


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        (LeaderConfirmed(2, 1), [3]),
        (LeaderConfirmed(2, 2), []),  # a round that was never begun
        (LeaderConfirmed(1, 1), []),  # of an earlier term
        (LeaderConfirmed(9, 1), [None]),  # there is, or was, another leader
    ],
)
def test_leader_confirmed(said: LeaderConfirmed, answers: Answers) -> None:
    """Only who answers the round in the leader's own term confirms it; a higher term fails what waits."""
    with a_node("11") as a:
        leading(a)
        waiting = read(a)
        a.hear(a.read_index.on_leader_confirmed, "b", said)
        a.read_index.tick()
        assert waiting == answers


def test_a_round_is_sent_again_to_those_who_did_not_answer() -> None:
    """What was sent may be lost with a connection: every heartbeat asks again whoever has not answered."""
    with a_node("11", voters="abcde") as a:
        a.lead()
        a.outbox.persist()
        a.acknowledge(b=3, c=3)
        a.replication.advance_commit_index()
        read(a)
        a.hear(a.read_index.on_leader_confirmed, "b", LeaderConfirmed(2, 1))
        a.network.sent.clear()
        a.read_index.tick()
        assert a.network.sent == []
        a.now += a.state.options.heartbeat
        a.read_index.tick()
        assert sorted(a.network.sent) == [(name, ConfirmLeader(2, 1)) for name in "cde"]


@pytest.mark.parametrize(
    ("term", "answered", "leader"),
    [(4, LeaderConfirmed(5, 7), None), (5, LeaderConfirmed(5, 7), "b:1"), (6, LeaderConfirmed(6, 7), "b:1")],
)
def test_confirm_leader(term: int, answered: LeaderConfirmed, leader: str | None) -> None:
    """A follower says which term it knows, which is on its disk by then; a higher one makes it a follower of that."""
    with a_node("11", term=5) as a:
        assert a.hear(a.read_index.on_confirm_leader, "b", ConfirmLeader(term, 7)) == [answered]
        assert (a.state.leader, a.state.store.term) == (leader, answered.term)


@pytest.mark.parametrize(
    ("after", "transfer", "answers"),
    [
        (0.89, False, [3]),
        (0.91, False, []),  # a lease is shorter than the silence of those who gave it, by what clocks may differ
        (0.0, True, []),  # whoever was told to stand need not wait for the lease to end
    ],
)
def test_lease(after: float, transfer: bool, answers: Answers) -> None:
    """For a while after a majority has answered, the leader answers alone (6.4.1)."""
    with a_node("11") as a:
        leading(a)
        read(a)
        a.hear(a.read_index.on_leader_confirmed, "b", LeaderConfirmed(2, 1))
        if transfer:
            assert a.transfer.begin("b:1")
            a.transfer.tick()
            assert a.said("b")[-1:] == [TimeoutNow(2)]
        a.now += after * TIMEOUT
        assert read(a) == answers


@pytest.mark.parametrize(("log", "acknowledged", "told"), [("11", 3, True), ("11", 2, False)])
def test_transfer(log: str, acknowledged: int, told: bool) -> None:
    """The successor is told to stand once its log is level; commands that come meanwhile wait, and are taken when an
    election timeout has passed and nobody has taken over (3.10)."""
    with a_node(log) as a:
        leading(a, committed=False)
        a.acknowledge(c=acknowledged)
        assert a.transfer.begin() and a.transfer.active
        a.transfer.tick()
        assert (TimeoutNow(2) in a.said("c")) == told
        a.transfer.hold(b"a command")
        a.now += 0.99 * TIMEOUT
        a.transfer.tick()
        assert (a.transfer.active, a.state.log.last_index) == (True, 3)
        a.now += 0.01 * TIMEOUT
        a.transfer.tick()
        assert not a.transfer.active
        assert [entry.command for entry in a.state.log.entries_from(4, 1 << 20)] == [b"a command"]


def test_transfer_to_nobody() -> None:
    """A node that is not connected, or is no voter, can't take over; nor can any if a follower is asked."""
    with a_node("11") as a:
        assert not a.transfer.begin("b:1"), "it does not lead"
        leading(a)
        a.peer("b").connected = False
        assert not a.transfer.begin("b:1")
        assert not a.transfer.begin("x:1")
        assert a.transfer.begin("c:1")


# -- followers --------------------------------------------------------------------------------------------------------


def test_a_follower_asks_the_leader() -> None:
    """A follower's read is answered with what the leader says, whom it was sent to, once."""
    with a_node("11", term=5) as a:
        assert read(a) == [None], "there is no leader"
        a.elections.follow(a.peer("b"), 5)
        answers = read(a)
        (question,) = a.said("b")
        assert isinstance(question, ReadIndexRequest)
        a.hear(a.read_index.on_read_index_reply, "c", ReadIndexReply(5, question.request_id, 1))
        a.hear(a.read_index.on_read_index_reply, "b", ReadIndexReply(5, question.request_id + 1, 1))
        assert answers == []
        for _ in range(2):
            a.hear(a.read_index.on_read_index_reply, "b", ReadIndexReply(5, question.request_id, 2))
        assert answers == [2]


def test_a_follower_is_asked() -> None:
    """A node that does not lead says so at once."""
    with a_node("11", term=5) as a:
        said = a.hear(a.read_index.on_read_index_request, "b", ReadIndexRequest(5, 7))
        assert said == [ReadIndexReply(5, 7, None)]


def test_the_answer_goes_back_by_its_connection() -> None:
    """The leader answers a follower by the connection of the question, or not at all; a full queue holds it up."""
    with a_node("11") as a:
        leading(a)
        for number, name in enumerate("bbc", 1):
            a.hear(a.read_index.on_read_index_request, name, ReadIndexRequest(2, number))
        a.peer("c").connections += 1
        a.read_index.tick()
        a.network.sent.clear()
        a.network.full = True
        a.hear(a.read_index.on_leader_confirmed, "b", LeaderConfirmed(2, 1))
        a.outbox.retry_answers()
        assert a.network.sent == []
        a.network.full = False
        a.outbox.retry_answers()
        assert a.network.sent == [("b", ReadIndexReply(2, 1, 3)), ("b", ReadIndexReply(2, 2, 3))]


@pytest.mark.parametrize("what", ["nothing", "the connection", "a new connection", "the leader", "the member"])
def test_calls_that_are_lost(what: str) -> None:
    """A question to the leader is lost with its connection, with the office, or with the member, and then no answer
    counts any more."""
    with a_node(term=5) as a:
        calls: LeaderCalls[str] = LeaderCalls(a.state, a.outbox)
        assert not calls.ask(lambda number: ReadIndexRequest(5, number), "nobody leads")
        leader = a.peer("b")
        a.elections.follow(leader, 5)
        assert calls.ask(lambda number: ReadIndexRequest(5, number), "asked")
        (question,) = a.said("b")
        assert isinstance(question, ReadIndexRequest)
        match what:
            case "the connection":
                leader.connected = False
            case "a new connection":
                leader.connections += 1
            case "the leader":
                a.elections.follow(a.peer("c"), 6)
            case "the member":
                del a.state.peers["b:1"]
        assert calls.take_lost() == ([] if what == "nothing" else ["asked"])
        assert calls.answered(leader, question.request_id) == ("asked" if what == "nothing" else None)
        assert calls.take_lost() == [] and calls.answered(leader, question.request_id) is None


def test_a_full_queue_is_no_question() -> None:
    """A question that did not go out has no answer to wait for."""
    with a_node(term=5) as a:
        calls: LeaderCalls[str] = LeaderCalls(a.state, a.outbox)
        a.elections.follow(a.peer("b"), 5)
        a.network.full = True
        assert not calls.ask(lambda number: ReadIndexRequest(5, number), "asked")
        assert calls.take_lost() == []


@pytest.mark.parametrize(
    ("echo", "age", "commit", "as_of"),
    [
        (1.0, 0.1, 2, 1.0 - 0.1 * (1 + CLOCK_DRIFT)),
        (1.0, float("inf"), 2, float("-inf")),  # the leader does not know yet what is committed
        (0.0, 0.1, 2, float("-inf")),  # it has no time stamp of this process yet
        (9.0, 0.1, 2, float("-inf")),  # this machine's clock began anew
        (1.0, 0.1, 3, float("-inf")),  # what was committed then is not applied here yet
    ],
)
def test_freshness(echo: float, age: float, commit: int, as_of: float) -> None:
    """A follower knows on its own clock since when its state is complete: the leader returns its time stamp, and says
    how long before it knew itself to lead."""
    with a_node("11", committed=2) as a:
        a.now, a.state.last_applied = 2.0, 2
        a.hear(a.follower.on_append_entries, "b", AppendEntries(1, 2, 1, commit, [], 1, echo, age))
        a.read_index.tick()
        assert a.read_index.fresh_as_of == as_of


def test_acknowledgements_become_one() -> None:
    """What waits for the same commit is acknowledged once, up to the furthest; a higher term meanwhile refuses it."""
    with a_node() as a:
        b = a.peer("b")
        for reply in (AppendReply(1, True, 3), AppendReply(1, True, 2)):
            a.outbox.hold(b, reply)
        assert a.network.sent == []
        a.outbox.persist()
        assert a.said("b") == [AppendReply(1, True, 3)]
        a.network.sent.clear()
        a.outbox.hold(b, AppendReply(1, True, 4))
        a.elections.see_term(2)
        a.outbox.persist()
        assert a.said("b") == [AppendReply(2, False, 0)]
