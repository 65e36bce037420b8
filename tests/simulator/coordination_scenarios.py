"""Stories told by hand, of ttls and locks: for what a random run meets too seldom."""

from __future__ import annotations

from replidict.errors import LockLost
from replidict.machine import commands as cmd
from replidict.machine.codec import encode, encode_key
from replidict.node.held_leases import milliseconds
from replidict.node.lock_requests import Request, State, Wanted
from replidict.node.proposals import Write
from replidict.protocol.peer_messages import Propose
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator.cluster import Cluster, cluster_of
from tests.simulator.scenarios import _around, a_leader, leader, until


def _set(machine: Machine, key: str, ttl: float) -> None:
    assert machine.node is not None
    cluster_of(machine).checker.coordination.promised(key, ttl)
    operation = cmd.Expiring(cmd.Put(encode_key(key), encode("v")), milliseconds(ttl), None)
    write = Write(operation, 100, lambda: None)
    machine.node.proposals.submit(write)
    until(cluster_of(machine), lambda: write.result is not None, "it is stored")


def _ask(machine: Machine, name: str, ttl: float) -> Request:
    assert machine.node is not None
    machine.node.locks.holder = machine.address
    wanted = Wanted(name, ttl, False, 0, "")
    request = machine.node.locks.request(wanted, lambda: None)
    machine.node.locks.ask(request, wanted, True)
    return request


def _passes(machine: Machine, request: Request) -> bool:
    assert machine.node is not None
    try:
        machine.node.locks.see_to(request)
    except LockLost:
        return False
    return True


def a_follower_that_says_what_time_it_is(cluster: Cluster) -> None:
    """A follower proposes a `Tick` of its own: nothing expires by it."""
    cluster.start()
    first = a_leader(cluster)
    follower = next(machine for machine in cluster.machines.values() if machine is not first)
    assert follower.node is not None
    _set(follower, "key", 900.0)
    engine = follower.node.engine
    engine.outbox.send(engine.peers[first.address], Propose(engine.term, cmd.encode(cmd.Tick(10**9))))
    cluster.loop.run_until(cluster.loop.now + 5)
    assert first.node is not None
    if "key" not in first.node.machine.items:
        raise Violation("never early", "a follower has made a key expire")


def leaders_that_come_and_go(cluster: Cluster) -> None:
    """The leader dies every two seconds: a ttl of six seconds is over three seconds after that at the latest."""
    cluster.start()
    a_leader(cluster)
    _set(next(iter(cluster.machines.values())), "key", 6.0)
    began = cluster.loop.now
    while cluster.loop.now < began + 9.0:
        cluster.loop.run_until(min(cluster.loop.now + 2.0, began + 9.0))
        dead = leader(cluster)
        if dead is not None and cluster.loop.now < began + 8.0:
            dead.crash()
            cluster.loop.after(0.5, dead.start)
    until(cluster, lambda: leader(cluster) is not None, "a leader")
    machine = leader(cluster)
    assert machine is not None
    assert machine.node is not None
    if "key" in machine.node.machine.items:
        raise Violation("never late", "a ttl of 6 s is not over after 9 s")


def an_answer_that_takes_long(cluster: Cluster) -> None:
    """A holder's renewal reaches the leader, and the answer takes nearly an election timeout; then the holder is cut
    off. When the next one has the lock, the first one knows that it has it no more."""
    cluster.start()
    first = a_leader(cluster)
    holder, other = (machine for machine in cluster.machines.values() if machine is not first)
    held = _ask(holder, "lock", 3.0)
    until(cluster, lambda: held.state is State.HELD, "it is held")
    waiting = _ask(other, "lock", 3.0)
    until(cluster, lambda: waiting.state is State.WAITING, "the other waits")
    assert holder.node is not None
    leases, before = holder.node.leases, held.lease.counts_from
    until(cluster, lambda: leases._renewing, "it is renewed")
    cluster.network.block([(first.address, holder.address), (other.address, holder.address)], give_up=False)
    cluster.loop.run_until(cluster.loop.now + 0.9 * cluster.options.election_timeout)
    cluster.network.heal()
    until(cluster, lambda: held.lease.counts_from > before, "the renewal is acknowledged")
    cluster.network.block(_around(cluster, holder.address))
    until(cluster, lambda: waiting.state is State.HELD, "the other has it", 20.0)
    if _passes(holder, held):
        raise Violation("one holder", f"{holder.address} believes to hold what {other.address} was granted")


def one_that_leaves_the_line(cluster: Cluster) -> None:
    """One holds the lock, another waits and gives up: the first one holds it still, and the next in line waits on."""
    cluster.start()
    first = a_leader(cluster)
    holder, other = (machine for machine in cluster.machines.values() if machine is not first)
    held = _ask(holder, "lock", 60.0)
    until(cluster, lambda: held.state is State.HELD, "it is held")
    waiting = _ask(other, "lock", 60.0)
    until(cluster, lambda: waiting.state is State.WAITING, "another waits")
    next_one = _ask(other, "lock", 60.0)
    until(cluster, lambda: next_one.state is State.WAITING, "and one more")
    assert other.node is not None and first.node is not None
    other.node.locks.withdraw(waiting)
    other.wake()
    (lock,) = first.node.machine.coordination.locks.by_name.values()
    until(cluster, lambda: len(lock.queue) + len(lock.holders) == 2, "the log knows that it has left")
    cluster.loop.run_until(cluster.loop.now + 1.0)
    if next_one.state is not State.WAITING or not _passes(holder, held):
        raise Violation("one holder", f"{other.address} gave up, and {holder.address} lost what it held")
