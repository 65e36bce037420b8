"""Stories of members that come and go, told by hand (see `scenarios`)."""

from __future__ import annotations

import random
from functools import partial

from replidict.node.linearizable_reads import Read
from replidict.protocol.peer_messages import (
    AddMember,
    AppendEntries,
    ConfirmLeader,
    MembersAre,
    Message,
    RemoveMember,
    Verdict,
)
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator.cluster import Cluster
from tests.simulator.operators import Operator
from tests.simulator.scenarios import a_leader, leader, put, until

Said = list[tuple[Verdict, str]]


def change(machine: Machine, wanted: AddMember | RemoveMember) -> Said:
    """Ask a node for a change; the list gets its answer."""
    said: Said = []
    assert machine.node is not None
    engine = machine.node.engine
    machine.node.call(lambda: engine.reconfiguration.ask(wanted, lambda *answer: said.append(answer)))
    return said


def made(cluster: Cluster, wanted: AddMember | RemoveMember) -> None:
    """Have a change made, by whoever leads."""
    for _ in range(50):
        said = change(a_leader(cluster), wanted)
        until(cluster, partial(bool, said), f"{wanted} is answered")
        if said[0][0] in ("done", "absent"):
            return
        cluster.loop.run_until(cluster.loop.now + 0.1)
    raise Violation("scenario", f"{wanted} is not made")


def a_voter_that_is_let_go_is_needed(cluster: Cluster) -> None:
    """Of four, one is to be removed; only it and the leader have that in their logs when the leader crashes. The other
    two can't be elected by it, whose log is longer, and are no majority of the four: it must stand itself."""
    cluster.start()
    first = a_leader(cluster)
    goes, *stay = (machine for machine in cluster.machines.values() if machine is not first)
    names = [machine.address for machine in stay]

    def only_to_who_goes(sender: str, receiver: str, message: Message) -> bool:
        return not (receiver in names and isinstance(message, AppendEntries) and message.entries)

    cluster.network.filter = only_to_who_goes
    change(first, RemoveMember(goes.address))
    assert goes.node is not None
    held = goes.node.engine
    until(cluster, lambda: goes.address not in held.members.voters, "it has the entry that lets it go")
    cluster.loop.run_until(cluster.loop.now + 0.1)
    first.crash()
    cluster.network.filter = None
    until(cluster, lambda: leader(cluster) is not None, "another leader, of three that are left of four")
    until(cluster, lambda: goes.removed, "the change is made, and it goes")
    first.start()
    a_leader(cluster)
    if cluster.checker.members.latest.voters != {first.address, *names}:
        raise Violation("scenario", f"the members are {cluster.checker.members.latest}")


def who_is_let_go_takes_it_back(cluster: Cluster) -> None:
    """Of five, one is to be removed; the leader crashes when only one more has that in its log, and the one that was to
    go is elected by the others: those two must follow it, though they go by members it does not belong to."""
    cluster.start()
    first = a_leader(cluster)
    goes, knows, *rest = (machine for machine in cluster.machines.values() if machine is not first)
    names = [machine.address for machine in (goes, *rest)]
    cluster.network.filter = lambda sender, receiver, message: (
        not (receiver in names and isinstance(message, AppendEntries) and message.entries)
    )
    change(first, RemoveMember(goes.address))
    assert knows.node is not None and goes.node is not None
    held, elected = knows.node.engine, goes.node.engine
    until(cluster, lambda: goes.address not in held.members.voters, "one more has the entry")
    cluster.loop.run_until(cluster.loop.now + 0.1)
    first.crash()
    knows.pause()
    cluster.network.filter = None
    for _ in range(20):
        if elected.is_leader:
            break
        until(cluster, lambda: leader(cluster) is not None, "a leader of the other three")
        now = leader(cluster)
        if now is not None and now.node is not None and now is not goes:
            now.node.engine.transfer.begin(goes.address)
            now.wake()
        cluster.loop.run_until(cluster.loop.now + 0.5)
    until(cluster, lambda: elected.is_leader, "the one that was to go leads")
    knows.resume()
    first.start()
    until(cluster, lambda: goes.address in held.members.voters, "it takes the change back")
    a_leader(cluster)


def all_it_knew_are_gone(cluster: Cluster) -> None:
    """A member is away while all that it knows are replaced, by others elsewhere: they tell it when it is back."""
    operator = Operator(cluster, random.Random(0))
    cluster.start()
    a_leader(cluster)
    founders = list(cluster.machines)

    def join(address: str) -> None:
        operator._begin(address, operator._join(address, True, False))
        until(cluster, lambda: not operator.busy and address in cluster.checker.members.latest.voters, "it joins", 30)

    join("n5:7000")
    away = cluster.machines["n5:7000"]
    away.crash()
    for gone, comes in zip(founders, ("n6:7000", "n7:7000", "n4:7000"), strict=True):
        join(comes)
        made(cluster, RemoveMember(gone))
    away.start()

    def knows() -> bool:
        latest = cluster.checker.members.latest
        return away.node is not None and away.node.engine.members == latest and away.node.engine.leader is not None

    until(cluster, knows, "it knows the members, and follows their leader")


def a_new_leader_knows_nobody_yet(cluster: Cluster) -> None:
    """Of three, one falls silent, and another hands over: the new leader must not remove it before it knows of the
    third, or the two that are left would be no majority."""
    cluster.start()
    first = a_leader(cluster)
    silent, second = (machine for machine in cluster.machines.values() if machine is not first)
    assert first.node is not None and second.node is not None
    engine = second.node.engine
    silent.pause()
    first.node.engine.transfer.begin(second.address)
    first.wake()
    until(cluster, lambda: engine.is_leader, "the second one leads")
    until(cluster, lambda: engine.log.term_at(engine.commit_index) == engine.term, "and may make changes")
    for _ in range(20):
        change(second, RemoveMember(first.address))
        cluster.loop.run_until(cluster.loop.now + 0.02)
    if first.address not in engine.members.voters:
        raise Violation("majority", f"{first.address} is removed, and {silent.address} is silent")


def a_read_while_the_cluster_shrinks(cluster: Cluster) -> None:
    """A read waits for a round of two voters, of which one is removed before it answers: the other is enough then."""
    cluster.start()
    first = a_leader(cluster)
    assert first.node is not None
    third, second = (machine for machine in cluster.machines.values() if machine is not first)
    made(cluster, RemoveMember(third.address))
    put(first, 1)
    cluster.loop.run_until(cluster.loop.now + 0.5)
    first.node.engine.read_index.end_lease()  # no lease, which needs no round
    cluster.network.filter = lambda sender, receiver, message: not isinstance(message, ConfirmLeader)
    answered: list[bool] = []
    first.node.reads.submit(Read(lambda: answered.append(True)))
    cluster.loop.run_until(cluster.loop.now + 0.1)
    made(cluster, RemoveMember(second.address))
    until(cluster, lambda: bool(answered), "the read is answered")


def a_backup_beside_a_change(cluster: Cluster) -> None:
    """A follower that has just applied a change of the members makes a backup, for which it brings its state table up
    to date, and crashes behind the first transaction of that: it comes back with the members that it had applied."""
    cluster.start()
    first = a_leader(cluster)
    stays, goes = (machine for machine in cluster.machines.values() if machine is not first)
    put(first, 1)
    cluster.loop.run_until(cluster.loop.now + 0.1)
    stays.backs_up = stays.crashes_in_backups = True
    # It is to know of the change by what it applies alone.
    cluster.network.filter = lambda sender, receiver, message: (
        receiver != stays.address or not isinstance(message, MembersAre)
    )
    change(first, RemoveMember(goes.address))
    until(cluster, lambda: stays.node is None, "it crashes")
    stays.backs_up = False
    stays.start()
    assert stays.node is not None  # nobody has told it anything yet
    if goes.address in stays.node.engine.members.all:
        raise Violation("configuration", f"{stays.address} has forgotten that {goes.address} was removed")
