"""Linearizable and bounded reads where a connection or a clock is lost (thesis 6.4)."""

from __future__ import annotations

from pysyncobj.node import Node

from replidict.node.linearizable_reads import Read
from replidict.options import Options
from replidict.protocol.peer_messages import (
    AppendReply,
    ConfirmLeader,
    LeaderConfirmed,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
)
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import a_leader, put, until


def test_a_round_that_was_lost_is_sent_again() -> None:
    """A read waits for its round: when that is lost with a connection, it goes out again, without another read."""
    with new_cluster(1, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        assert leader.node is not None
        lost: list[Message] = []

        def lose_the_first(sender: str, receiver: str, message: Message) -> bool:
            if isinstance(message, ConfirmLeader) and len(lost) < 2:
                lost.append(message)
                return False
            return True

        cluster.network.filter = lose_the_first
        answered: list[bool] = []
        read = Read(lambda: answered.append(True))
        leader.node.reads.submit(read)
        until(cluster, lambda: bool(answered), "the read is answered", 2 * cluster.options.election_timeout)
        assert len(lost) == 2
        assert read.error is None


def test_nobody_is_fresh_by_the_clock_of_its_last_life() -> None:
    """A follower whose clock began anew believes nothing that the leader tells of the old one (max_staleness)."""
    with new_cluster(2, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        follower = next(machine for machine in cluster.machines.values() if machine is not leader)
        follower.crash()
        follower._clock = [(cluster.loop.now, 1.0, 1.0)]  # the machine was started anew
        follower.start()
        assert leader.node is not None
        assert follower.node is not None
        engine, read_index = follower.node.engine, follower.node.engine.read_index
        write = put(leader, 1)
        until(cluster, lambda: write.result is not None and engine.last_applied >= 2, "the follower is back")
        until(cluster, lambda: read_index.fresh_as_of > 0, "it is fresh again")
        cluster.loop.run_until(cluster.loop.now, lambda: False)
        assert read_index.fresh_as_of <= follower.clock()


def test_an_answer_is_for_the_process_that_asked() -> None:
    """A follower that was started anew never gets the answer to a read that its predecessor asked for."""
    with new_cluster(3, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        follower = next(machine for machine in cluster.machines.values() if machine is not leader)
        assert leader.node is not None
        assert follower.node is not None
        holding, asked, answers = True, 0, list[int | None]()

        def watch(sender: str, receiver: str, message: Message) -> bool:
            nonlocal asked
            asked += isinstance(message, ReadIndexRequest)
            if isinstance(message, ReadIndexReply) and receiver == follower.address:
                answers.append(message.index)
            return not (holding and isinstance(message, ConfirmLeader))

        cluster.network.filter = watch
        follower.node.reads.submit(Read(lambda: None))
        waiting = leader.node.engine.read_index._waiting
        until(cluster, lambda: bool(waiting), "the leader has the question")
        follower.crash()
        write = put(leader, 1)
        until(cluster, lambda: write.result is not None, "another write is acknowledged")
        committed = leader.node.engine.commit_index
        follower.start()
        assert follower.node is not None
        answered: list[bool] = []
        follower.node.reads.submit(Read(lambda: answered.append(True)))
        until(cluster, lambda: asked > 1, "it asks as well")
        holding = False
        until(cluster, lambda: bool(answered), "it has its answer")
        assert min(index for index in answers if index is not None) >= committed


def test_only_the_leader_tells_what_to_wait_for() -> None:
    """An index that another member gives for a read is no answer: it may be one of long ago."""
    with new_cluster(4, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        reader, other = (machine for machine in cluster.machines.values() if machine is not leader)
        assert reader.node is not None
        engine = reader.node.engine
        until(cluster, lambda: engine.leading_peer is not None, "it follows")
        cluster.network.filter = lambda sender, receiver, message: not isinstance(message, ReadIndexReply)
        answered: list[int | None] = []
        reader.node.call(lambda: engine.read_index.ask(answered.append))
        until(cluster, lambda: bool(engine.read_index._calls._waiting), "it has asked")
        (number,) = engine.read_index._calls._waiting
        engine._SyncObj__onMessageReceived(Node(other.address), ReadIndexReply(engine.term, number, 0))
        assert answered == []
        engine._SyncObj__onMessageReceived(Node(leader.address), ReadIndexReply(engine.term, number, 1))
        assert answered == [1]


def test_rounds_that_were_never_begun_confirm_nothing() -> None:
    """Who answers for rounds to come says nothing about whether the leader still is one when they are begun."""
    with new_cluster(5, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        assert leader.node is not None
        engine = leader.node.engine
        for peer in engine.peers.values():
            said = LeaderConfirmed(engine.term, 1 << 60), AppendReply(engine.term, False, 0, 1 << 60)
            for message in said:
                engine._SyncObj__onMessageReceived(peer.node, message)
            assert engine.replication.rounds.answered_by(peer) < 1 << 60
        cluster.network.filter = lambda sender, receiver, message: not isinstance(message, LeaderConfirmed)
        answered: list[int | None] = []
        leader.node.call(lambda: engine.read_index.ask(answered.append))
        until(cluster, lambda: bool(engine.read_index._waiting), "a round is begun")
        assert answered == []
        for peer in list(engine.peers.values())[:1]:
            engine._SyncObj__onMessageReceived(
                peer.node, LeaderConfirmed(engine.term, engine.read_index._rounds.number)
            )
        assert answered == [engine.commit_index]
