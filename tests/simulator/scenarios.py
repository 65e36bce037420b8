"""Stories told by hand: for what a random run meets too seldom, or does not count as wrong.

Each is a function of a cluster that is not started yet; it raises `Violation` if the story ends badly. Who leads is not
prescribed, so a story first looks who does.
"""

from __future__ import annotations

from collections.abc import Callable

from pysyncobj.node import Node

from replidict.machine import commands as cmd
from replidict.machine.codec import decode, encode, encode_key
from replidict.node import proposals
from replidict.node.linearizable_reads import Read
from replidict.node.proposals import Write
from replidict.protocol.peer_messages import AppendEntries, Message, ReadIndexReply, SnapshotPiece, VoteReply
from replidict.raft import engine, replication
from replidict.raft.role import Role
from replidict.storage import snapshot, state_table
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator import limits
from tests.simulator.cluster import Cluster

Scenario = Callable[[Cluster], None]


def until(cluster: Cluster, condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Let time pass until something is so."""
    if not condition():
        cluster.loop.run_until(cluster.loop.now + seconds, condition)
    if not condition():
        raise Violation("scenario", f"{what}: not within {seconds} s")


def leader(cluster: Cluster) -> Machine | None:
    """The leader of the highest term, if there is one that runs."""
    found = [m for m in cluster.machines.values() if m.node is not None and m.node.engine.is_leader and not m.paused]
    return max(found, key=lambda m: m.node.engine.term if m.node is not None else 0, default=None)


def a_leader(cluster: Cluster) -> Machine:
    """Wait for a leader that has committed an entry of its term everywhere."""

    def settled() -> bool:
        machine = leader(cluster)
        if machine is None or machine.node is None:
            return False
        engine = machine.node.engine
        running = [m.node.engine for m in cluster.machines.values() if m.node is not None]
        return engine.log.term_at(engine.commit_index) == engine.term and all(
            other.commit_index == engine.log.last_index for other in running
        )

    until(cluster, settled, "a leader")
    machine = leader(cluster)
    assert machine is not None
    return machine


def put(machine: Machine, number: int, filler: str = "", key: str = "key") -> Write:
    """Write something on a machine."""
    write = Write(cmd.Put(encode_key(key), encode(f"value {number}{filler}")), 100, lambda: None)
    assert machine.node is not None
    machine.node.proposals.submit(write)
    return write


def _around(cluster: Cluster, address: str) -> list[tuple[str, str]]:
    others = [other for other in cluster.machines if other != address]
    return [(address, other) for other in others] + [(other, address) for other in others]


def no_entry_is_deleted_or_sent_again(cluster: Cluster) -> None:
    """Without faults no follower deletes an entry, and the leader sends none twice."""
    cluster.network.delay = (0.001, 0.03)
    cluster.start()
    a_leader(cluster)
    machines = list(cluster.machines.values())
    for number in range(600):
        put(machines[number % len(machines)], number)
        cluster.loop.run_until(cluster.loop.now + 0.01)
    for machine in machines:
        assert machine.node is not None
        deleted, again = machine.node.engine.log.deleted_entries, machine.node.engine.replication.entries_resent
        if deleted or again:
            raise Violation("no waste", f"{machine.address} deleted {deleted} entries and sent {again} again")


def a_node_that_returns_disturbs_nobody(cluster: Cluster) -> None:
    """A follower that was cut off for long comes back, and the leader stays the leader of the same term."""
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    term = first.node.engine.term
    away = next(m for m in cluster.machines.values() if m is not first)
    cluster.network.block(_around(cluster, away.address))
    cluster.loop.run_until(cluster.loop.now + 10)
    cluster.network.heal()
    cluster.loop.run_until(cluster.loop.now + 5)
    terms = {m.address: m.node.engine.term for m in cluster.machines.values() if m.node is not None}
    if not first.node.engine.is_leader or set(terms.values()) != {term}:
        raise Violation("manners", f"{away.address} came back, and {first.address} lost the lead of {term}: {terms}")


def a_leader_without_a_majority_steps_down(cluster: Cluster) -> None:
    """A leader that hears nobody any more knows within an election timeout that it leads no longer."""
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    cluster.network.block(_around(cluster, first.address), give_up=False)
    cluster.loop.run_until(cluster.loop.now + cluster.options.election_timeout + 2 * cluster.options.heartbeat)
    if first.node.engine.is_leader:
        raise Violation("manners", f"{first.address} still leads, and hears nobody")


def _cut_off_from_its_leader(cluster: Cluster) -> tuple[Machine, Machine, Machine]:
    """Of three nodes, a leader with a lease, one that hears nothing of it any more, and one that does."""
    cluster.start()
    first = a_leader(cluster)
    deaf, voter = (machine for machine in cluster.machines.values() if machine is not first)
    cluster.network.block([(first.address, deaf.address)], give_up=False)
    return first, deaf, voter


def _still_leads(first: Machine, deaf: Machine) -> None:
    if first.node is None or not first.node.engine.is_leader:
        raise Violation("manners", f"{first.address} had a majority, and lost the lead to {deaf.address}")


def a_voter_is_true_to_its_leader(cluster: Cluster) -> None:
    """Who hears the leader gives its vote to nobody else, so that the leader may read under its lease."""
    first, deaf, _ = _cut_off_from_its_leader(cluster)
    cluster.loop.run_until(cluster.loop.now + 5)
    _still_leads(first, deaf)


def a_voter_is_true_after_a_restart(cluster: Cluster) -> None:
    """A voter that restarts just before it is asked for its vote may have promised its silence before."""
    first, deaf, voter = _cut_off_from_its_leader(cluster)
    for _ in range(5):
        assert deaf.node is not None
        due = deaf.true_time(deaf.node.engine.elections.next_deadline())
        cluster.loop.run_until(due - 0.12)
        voter.crash()
        voter.start()
        cluster.loop.run_until(due + 0.1)
        _still_leads(first, deaf)


def a_lease_ends_with_a_transfer(cluster: Cluster) -> None:
    """The election that a leader asked for need not wait for its lease, so it has none any more."""
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    cluster.loop.run_until(cluster.loop.now + 0.5)
    first.node.engine.transfer.begin()
    cluster.network.block([way for way in _around(cluster, first.address) if way[1] == first.address], give_up=False)
    first.wake()
    until(cluster, lambda: leader(cluster) is not first, "another leader")


def a_deposed_leader_serves_no_read(cluster: Cluster) -> None:
    """A leader that has handed over and does not know it yet is asked for a linearizable read."""
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    put(first, 1)
    cluster.loop.run_until(cluster.loop.now + 0.5)
    first.node.engine.transfer.begin()
    cluster.network.block([way for way in _around(cluster, first.address) if way[1] == first.address], give_up=False)
    first.wake()
    others = [machine for machine in cluster.machines.values() if machine is not first]
    until(cluster, lambda: any(m.node is not None and m.node.engine.is_leader for m in others), "another leader")
    write = put(others[0], 2)
    until(cluster, lambda: write.result is not None, "the other leader commits")
    served: list[str] = []

    def done() -> None:
        if read.error is None and first.node is not None:
            served.append(str(decode(first.node.machine.items["key"].value)))

    read = Read(done)
    first.node.reads.submit(read)
    cluster.loop.run_until(cluster.loop.now + 0.3)
    if served and served != ["value 2"]:
        raise Violation("linearizability", f"{first.address} reads {served} after 'value 2' was acknowledged elsewhere")


def a_new_leader_serves_no_read_yet(cluster: Cluster) -> None:
    """A write is acknowledged, and its leader is gone before anybody hears that. The next leader, which can't commit
    anything yet, is asked for a linearizable read."""
    cluster.start()
    first = a_leader(cluster)
    others = [machine for machine in cluster.machines.values() if machine is not first]
    write = put(first, 1)

    def swallow(machine: Machine, unheard: Callable[[Message], bool]) -> None:
        assert machine.transport is not None
        send = machine.transport.send
        machine.transport.send = lambda node, message: unheard(message) or send(node, message)  # type: ignore[method-assign]

    swallow(first, lambda message: write.result is not None)
    for other in others:
        swallow(other, lambda message: isinstance(message, AppendEntries) and bool(message.entries))
    until(cluster, lambda: write.result is not None, "the write is acknowledged")
    cluster.network.block(_around(cluster, first.address), give_up=False)

    def leads(machine: Machine) -> bool:
        return machine.node is not None and machine.node.engine.is_leader

    until(cluster, lambda: any(map(leads, others)), "another leader")
    second = next(filter(leads, others))
    assert second.node is not None
    items, served = second.node.machine.items, list[bool]()
    second.node.reads.submit(Read(lambda: served.append("key" in items)))
    cluster.loop.run_until(cluster.loop.now + 0.3)
    if False in served:
        raise Violation("linearizability", f"{second.address} does not see a write that was acknowledged elsewhere")


def an_answer_meets_a_full_queue(cluster: Cluster) -> None:
    """The leader can't send the answer to a follower's read at once: the connection's queue is full, and stays open."""
    cluster.start()
    first = a_leader(cluster)
    follower = next(machine for machine in cluster.machines.values() if machine is not first)
    assert first.transport is not None and follower.node is not None
    send, refused = first.transport.send, list[Message]()

    def full_at_first(node: Node, message: Message) -> bool:
        if isinstance(message, ReadIndexReply) and len(refused) < 2:
            refused.append(message)
            return False
        return send(node, message)

    first.transport.send = full_at_first  # type: ignore[method-assign]
    answered: list[bool] = []
    follower.node.reads.submit(Read(lambda: answered.append(True)))
    until(cluster, lambda: bool(answered), "the read is answered")
    assert len(refused) == 2


def a_snapshot_of_what_is_known(cluster: Cluster) -> None:
    """A follower gets a snapshot that ends within its log, of entries that it has not applied yet."""
    constants = [(state_table, "GATHER_ENTRIES", 1), (state_table, "GATHER_ROWS", 1), (engine, "APPLY_AT_ONCE", 1)]
    with limits.in_force([*constants, (proposals, "WINDOW", 10)]):
        cluster.start()
        first = a_leader(cluster)
        assert first.node is not None
        source = first.node
        put(first, 0)
        cluster.loop.run_until(cluster.loop.now + 1)
        follower = next(machine for machine in cluster.machines.values() if machine is not first)
        assert follower.node is not None
        before = source.engine.log.last_index
        cluster.network.filter = lambda sender, receiver, message: (
            receiver != follower.address or (isinstance(message, AppendEntries) and bool(message.entries))
        )
        for number in range(6):
            source.engine.replicated_log.append(cmd.encode(cmd.OpenSession(b"nonce %d" % number)))
        first.wake()
        until(cluster, lambda: source.store.applied.index >= before + 2, "the leader's state table follows")
        made = snapshot.create(source.store.uri, cluster.directory / "by hand.snapshot")
        held = follower.node.engine
        if not held.last_applied < made.index < held.log.last_index:
            raise Violation("scenario", f"{held.last_applied} < {made.index} < {held.log.last_index} should hold")
        piece = SnapshotPiece(
            held.term, made.index, made.term, "by hand", made.size, made.sha256, 0, made.path.read_bytes()
        )
        held._handlers[SnapshotPiece](held.peers[first.address], piece)
        follower.wake()
        until(cluster, lambda: held.snapshots._incoming is None, "the follower is done with it")
        cluster.network.filter = None
        cluster.loop.run_until(cluster.loop.now + 1)
        a_leader(cluster)


def a_snapshot_that_does_not_fit_at_first(cluster: Cluster) -> None:
    """A follower's queue is full when it is found to need a snapshot; no connection is lost."""
    short = [
        (state_table, "GATHER_ENTRIES", 2),
        (replication, "WINDOW_BYTES", 60_000),
        (replication, "MESSAGE_BYTES", 4000),
    ]
    with limits.in_force(short):
        cluster.network.capacity = 30_000
        cluster.start()
        first = a_leader(cluster)
        follower = next(machine for machine in cluster.machines.values() if machine is not first)
        assert first.node is not None and follower.node is not None
        first.node.store.log_retain = 3
        way = [(first.address, follower.address)]
        cluster.network.block(way, give_up=False)
        for number in range(40):
            put(first, number, "x" * 3000)
            cluster.loop.run_until(cluster.loop.now + 0.02)
        raft, behind = first.node.engine, follower.node.engine
        peer, connections = raft.peers[follower.address], behind.peers[first.address].connections
        if peer.snapshot_sending is None or peer.snapshot_offset:
            raise Violation("scenario", f"{peer.snapshot_offset} bytes of {peer.snapshot_sending} went out")
        cluster.network.unblock(way)
        cluster.loop.run_until(cluster.loop.now + 20, lambda: behind.last_applied == raft.last_applied)
        if behind.peers[first.address].connections != connections:
            raise Violation("scenario", "the connection was lost")
        if behind.last_applied != raft.last_applied:
            raise Violation("progress", f"{follower.address} is at {behind.last_applied}, not {raft.last_applied}")


def a_batch_that_overtakes(cluster: Cluster) -> None:
    """The second batch of a session comes into the log before the first one, whose way was longer."""
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    raft, machine = first.node.engine, first.node.machine
    raft.replicated_log.append(cmd.encode(cmd.OpenSession(b"by hand")))
    session = raft.log.last_index
    for sequence in (2, 1):
        operation = cmd.Put(encode_key(f"batch {sequence}"), encode(f"batch {sequence}"))
        raft.replicated_log.append(cmd.encode(cmd.Batch(session, sequence, 0, [operation])))
    last = raft.log.last_index
    first.wake()
    until(cluster, lambda: machine.applied_index >= last, "the batches are applied")
    if list(machine.items) != ["batch 1"]:
        raise Violation("exactly once", f"batch 2 came before batch 1, and the items are {list(machine.items)}")


def a_voter_counts_once(cluster: Cluster) -> None:
    """The same vote, heard twice, is one vote."""
    cluster.network.filter = lambda sender, receiver, message: not isinstance(message, VoteReply)
    cluster.start()
    machine = next(iter(cluster.machines.values()))
    assert machine.node is not None
    engine = machine.node.engine
    cluster.loop.run_until(0.2)
    engine.elections._stand(transfer=False)
    voter = next(iter(engine.peers.values()))
    for _ in range(len(cluster.machines)):
        engine._handlers[VoteReply](voter, VoteReply(engine.term, True, False, engine.term))
    if engine.role is Role.LEADER:
        raise Violation("votes", f"{machine.address} leads by the vote of {voter.address} alone")


def a_leader_counts_what_it_has_stored(cluster: Cluster) -> None:
    """One follower and the leader are a majority of three, but not before the leader has written the entry, too."""
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    raft = first.node.engine
    raft.replicated_log.append(cmd.NO_OP)  # in memory, as when its disk is slower than a follower's
    index = raft.log.last_index
    next(iter(raft.peers.values())).match_index = index
    raft.replication.advance_commit_index()
    if raft.commit_index >= index:
        raise Violation("commit", f"{first.address} takes {index} as committed, which only one node has on disk")


def figure_8(cluster: Cluster) -> None:
    """An entry of an earlier term on a majority is not committed: another leader may still replace it."""
    with limits.in_force([(replication, "MESSAGE_BYTES", 1)]):
        _figure_8(cluster)


def _figure_8(cluster: Cluster) -> None:
    network = cluster.network
    cluster.start()
    first = a_leader(cluster)

    def only_old_entries(sender: str, receiver: str, message: Message) -> bool:
        return not isinstance(message, AppendEntries) or all(entry.term < message.term for entry in message.entries)

    network.filter = only_old_entries  # (a) a leader writes an entry, and nobody else gets it
    put(first, 1)
    cluster.loop.run_until(cluster.loop.now + 0.05)
    first.crash()
    until(cluster, lambda: leader(cluster) is not None, "(b) the second leader")
    second = leader(cluster)
    assert second is not None
    cluster.loop.run_until(cluster.loop.now + 0.05)
    second.crash()
    third = next(m for m in cluster.machines.values() if m is not first and m is not second)
    first.start()  # (c) the first leads again, and brings its old entry to a majority
    until(cluster, lambda: leader(cluster) is first, "(c) the first leads again")
    until(
        cluster,
        lambda: third.disk.shadow.last_index() >= first.disk.shadow.last_index() - 1,
        "(c) the old entry goes out",
    )
    cluster.loop.run_until(cluster.loop.now + 0.5)
    first.crash()
    second.start()  # (d) the second has a later entry in its place
    until(cluster, lambda: leader(cluster) is second, "(d) the second leads again")
    network.filter = None
    first.start()
    a_leader(cluster)


def a_late_acknowledgement(cluster: Cluster) -> None:
    """An acknowledgement is under way while its receiver is deposed, changes its log and is elected again."""
    network = cluster.network
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    others = [m for m in cluster.machines.values() if m is not first]
    slow, second, third, *_ = others

    def to(*allowed: Machine) -> Callable[[str, str, Message], bool]:
        names = [machine.address for machine in allowed]
        return lambda sender, receiver, message: (
            sender != first.address or receiver in names or not (isinstance(message, AppendEntries) and message.entries)
        )

    network.filter = to(slow)
    network.block([(slow.address, first.address)], give_up=False)
    before = first.node.engine.log.last_index
    put(first, 1)  # opens the session
    cluster.loop.run_until(cluster.loop.now + 0.05)
    first.node.engine.replicated_log.append(cmd.NO_OP)
    until(cluster, lambda: slow.disk.shadow.last_index() >= before + 2, "the slow one has the entries")
    cluster.loop.run_until(cluster.loop.now + 0.05)
    slow.pause()
    first.pause()
    network.filter = None
    until(cluster, lambda: leader(cluster) is not None, "another leader")
    second_leader = leader(cluster)
    assert second_leader is not None and second_leader.node is not None
    cluster.loop.run_until(cluster.loop.now + 0.5)
    first.resume()
    term = second_leader.node.engine.term
    until(cluster, lambda: first.disk.shadow.holds(before + 1, term), "the first takes the new entry")
    cluster.loop.run_until(cluster.loop.now + 0.3)
    network.filter = to(second if second is not second_leader else third)
    second_leader.node.engine.transfer.begin(first.address)
    second_leader.wake()
    until(cluster, lambda: leader(cluster) is first, "the first leads again")
    cluster.loop.run_until(cluster.loop.now + 0.1)
    network.unblock([(slow.address, first.address)])
    cluster.loop.run_until(cluster.loop.now + 0.35)
    network.filter = None
    slow.resume()
    a_leader(cluster)


class _OfOneMachine:
    """A codec that can't read on this machine what the others can."""

    def encode(self, value: object, /) -> bytes:
        return encode(value)

    def decode(self, data: bytes, /) -> object:
        raise LookupError("something is missing on this machine")


def a_node_of_other_settings(cluster: Cluster) -> None:
    """What one node alone can't apply, the others apply: it stops before it answers anything else than they do, and has
    what they have when it is back with its settings mended."""
    cluster.start()
    first = a_leader(cluster)
    odd = next(machine for machine in cluster.machines.values() if machine is not first)
    assert first.node is not None and odd.node is not None
    odd.differs = True
    odd.node.machine._codec = _OfOneMachine()
    key, longer = encode_key("key"), b"\xd9\x01a"  # the same text, in other bytes
    writes = [
        Write(cmd.Put(key, encode("a")), 100, lambda: None),
        Write(cmd.CompareAndSet(key, longer, encode("b")), 100, lambda: None),
    ]
    for write in writes:
        first.node.proposals.submit(write)
    until(cluster, lambda: writes[-1].result is True, "the others apply it")
    until(cluster, lambda: odd.node is None, "it stops")
    odd.differs = False
    odd.start()
    a_leader(cluster)
    assert odd.node is not None
    until(cluster, lambda: odd.node is not None and decode(odd.node.machine.items["key"].value) == "b", "it is back")
