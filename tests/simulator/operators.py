"""The operator of a cluster, who lets machines in and sends members away, as people do with the product's calls.

Rules kept here:

1. A change is asked of some member that runs, as `replidict.node.admin` does it: again, until it is made, is
   impossible, or is given up. Nothing is forced: that may lose the majority, by design.
2. A machine that joins gets its disk once it is let in. Interrupted before, it asks again under the same identity, or
   is removed instead.
3. A disk that is lost is no safety matter, as long as nobody takes the new one for the old one. So one is lost only
   while all others know its identity, and one at a time, or the majority would be gone.
4. What was begun is brought to an end, also after the last fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from functools import partial

from replidict.protocol.peer_messages import AddMember, Change, RemoveMember, Verdict
from replidict.raft.configuration import MemberSet
from replidict.storage import records
from replidict.storage.directory import Beginning
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.world import CLUSTER_ID
from tests.simulator.cluster import Cluster

MOST = 7
"""Members at a time."""

HEARD_LATE = 5.0
"""Seconds for which a question may still be on its way to the leader."""

PAUSE = 0.1
"""Seconds between two questions."""

Said = Verdict | None
Task = Generator[float, None, None]
"""Something that takes time: yields for how many seconds it waits."""


class Operator:
    """Begins what it is told to, and goes on with it by itself."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._members = cluster.checker.members
        self._busy: set[str] = set()  # addresses that something is done about
        self._lost: str | None = None  # whose disk is lost and not replaced yet
        self._removal_asked = float("-inf")  # when a removal was last asked for
        self.stranded = 0
        self._last = len(cluster.machines)
        self.kinds: dict[str, Callable[[], bool]] = {
            "add a voter": partial(self._add, True),
            "add a reader": partial(self._add, False),
            "interrupted join": partial(self._add, True, interrupted=True),
            "promote a reader": self._promote,
            "remove a follower": partial(self._remove, leader=False),
            "remove the leader": partial(self._remove, leader=True),
            "remove and join again": self._rejoin,
            "disk lost": self._lose_disk,
            "two changes at once": self._two,
            "removed node started": self._start_removed,
        }

    @property
    def busy(self) -> bool:
        """Whether something is not done yet."""
        return bool(self._busy)

    def _begin(self, address: str, task: Task) -> bool:
        self._busy.add(address)
        self._go_on(address, task)
        return True

    def _go_on(self, address: str, task: Task) -> None:
        try:
            pause = next(task)
        except StopIteration:
            self._busy.discard(address)
            return
        self._cluster.loop.after(pause, partial(self._go_on, address, task))

    def _free(self, addresses: frozenset[str]) -> list[str]:
        return sorted(addresses - self._busy)

    def _note(self, what: str, detail: object) -> None:
        self._cluster.trace.note("operator", what, detail)

    def tidy(self) -> None:
        """Remove whoever was let in and never came, or heard that it was removed and was then let in again: a question
        that was given up may have been heard much later. And let those join anew whom nobody can reach: see
        `_is_stranded`."""
        for address in self._free(self._members.latest.all):
            machine = self._cluster.machines.get(address)
            if machine is None or not self._members.is_member(machine) or (machine.removed and machine.node is None):
                self._begin(address, self._until_gone(address))
            elif self._is_stranded(machine):
                self.stranded += 1
                self._begin(address, self._replace(address))

    def _is_stranded(self, machine: Machine) -> bool:
        """Whether every other member has come under an address that this one knows as another's, while it was away."""
        if machine.node is None:
            return False
        latest, known = self._members.latest, machine.node.engine.members
        others = latest.all - {machine.address}
        return bool(others) and all(
            address in known.all and self._members.identity(known, address) != self._members.identity(latest, address)
            for address in others
        )

    # -- what can be begun --------------------------------------------------------------------------------------------

    def _add(self, voter: bool, *, interrupted: bool = False) -> bool:
        if len(self._members.latest.all | self._busy) >= MOST:
            return False
        gone = [a for a, m in self._cluster.machines.items() if m.removed and a not in self._members.latest.all]
        gone = [address for address in gone if address not in self._busy]
        if gone and self._rng.random() < 0.3:
            address = self._rng.choice(gone)
        else:
            self._last += 1
            address = f"n{self._last}:7000"
        return self._begin(address, self._join(address, voter, interrupted))

    def _promote(self) -> bool:
        latest = self._members.latest
        readers = self._free(latest.readers)
        if not readers:
            return False
        address = self._rng.choice(readers)
        change = AddMember(address, True, self._members.identity(latest, address))
        return self._begin(address, self._once(change))

    def _remove(self, *, leader: bool) -> bool:
        latest = self._members.latest
        leading = [a for a, m in self._cluster.machines.items() if m.node is not None and m.node.engine.is_leader]
        some = [address for address in self._free(latest.all) if (address in leading) is leader]
        if not some or not self._may_shrink(latest):
            return False
        address = self._rng.choice(some)
        return self._begin(address, self._once(RemoveMember(address)))

    def _may_shrink(self, latest: MemberSet) -> bool:
        """Whether to remove one more: down to one voter, seldom, but not while a disk is lost."""
        return len(latest.voters) > (3 if self._lost is not None else self._rng.choice((1, 2, 2, 2)))

    def _rejoin(self) -> bool:
        latest = self._members.latest
        some = self._free(latest.all)
        if not some or not self._may_shrink(latest):
            return False
        return self._begin(address := self._rng.choice(some), self._replace(address))

    def _lose_disk(self) -> bool:
        latest = self._members.latest
        some = [address for address in self._free(latest.all) if self._is_known(latest, address)]
        if not some or self._lost is not None or self._cluster.loop.now < self._removal_asked + HEARD_LATE:
            return False
        address = self._lost = self._rng.choice(some)
        machine = self._cluster.machines[address]
        machine.crash(silently=self._rng.random() < 0.5)
        if latest.node_ids.get(address) is None:
            # A founder comes again with an empty directory, and believes to found the cluster.
            machine.replace_disk(self._cluster.founding(list(self._cluster.founders)))
        else:
            machine.diskless = True  # it asks to be let in, and is told to be removed first
        return self._begin(address, self._replace(address))

    def _is_known(self, latest: MemberSet, address: str) -> bool:
        """Whether every other member knows who is at an address, and all would be a majority without it."""
        if address not in self._cluster.machines or len(latest.voters) <= 2:
            return False
        node_id = self._members.identity(latest, address)
        for other in latest.all - {address}:
            machine = self._cluster.machines.get(other)
            if machine is None or machine.node is None:
                return False
            known = machine.node.engine.members
            if len(known.voters) <= 2 or node_id not in (
                machine.node.store.pins.get(address), known.node_ids.get(address)
            ):  # fmt: skip
                return False
        return True

    def _two(self) -> bool:
        kinds = ("add a voter", "add a reader", "promote a reader", "remove a follower", "remove the leader")
        begun = [self.kinds[self._rng.choice(kinds)]() for _ in range(2)]
        return any(begun)

    def _start_removed(self) -> bool:
        gone = [m for a, m in self._cluster.machines.items() if m.removed and m.node is None and a not in self._busy]
        if not gone:
            return False
        machine = self._rng.choice(gone)
        machine.start()
        return True

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _once(self, change: Change) -> Task:
        yield from self._change(change, self._rng.uniform(1.0, 20.0))

    def _join(self, address: str, voter: bool, interrupted: bool) -> Task:
        node_id = self._cluster.new_identity()
        beginning = yield from self._let_in(address, voter, node_id)
        if interrupted:
            yield self._rng.expovariate(0.5)
            if self._rng.random() < 0.5:
                yield from self._until_gone(address)
                return
            beginning = yield from self._let_in(address, voter, node_id)
        if beginning is None:
            return
        machine = self._cluster.machines.get(address)
        if machine is None:
            machine = self._cluster.add(address, beginning)
        else:
            machine.crash()
            machine.replace_disk(beginning)
        if address == self._lost:
            self._lost = None
        machine.start()

    def _replace(self, address: str) -> Task:
        yield self._rng.expovariate(0.5)
        yield from self._until_gone(address)
        yield self._rng.choice((0.0, 1.0)) * self._rng.random()
        yield from self._join(address, self._rng.random() < 0.8, False)

    def _until_gone(self, address: str) -> Generator[float, None, None]:
        while address in self._members.latest.all:
            yield PAUSE
            if self._lost in (None, address) or len(self._members.latest.voters) > 3:
                said = yield from self._change(RemoveMember(address), self._rng.uniform(1.0, 20.0))
                if said == "never":
                    return

    def _let_in(self, address: str, voter: bool, node_id: str) -> Generator[float, None, Beginning | None]:
        """As `replidict.node.admin.admit`; None: it is not possible."""
        change = AddMember(address, voter, node_id)
        while True:
            said = yield from self._change(change, self._rng.uniform(1.0, 20.0))
            if said == "never":
                return None
            if said == "done" and (members := self._as_members_say(address, node_id)) is not None:
                return Beginning(CLUSTER_ID, node_id, members)
            yield PAUSE

    def _as_members_say(self, address: str, node_id: str) -> records.Members | None:
        """The last committed configuration that some member knows, if it has this node."""
        machine = self._somebody(address)
        if machine is None or machine.node is None:
            return None
        known = machine.node.engine.members_are()
        members = MemberSet.of(known.index, known)
        return members.stored() if members.node_ids.get(address) == node_id else None

    def _somebody(self, other_than: str) -> Machine | None:
        able = [
            machine
            for address, machine in self._cluster.machines.items()
            if machine.reachable and (address != other_than or self._rng.random() < 0.2)
        ]
        able = [machine for machine in able if self._members.is_member(machine)]
        return self._rng.choice(able) if able else None

    def _change(self, change: Change, seconds: float) -> Generator[float, None, Said]:
        """As `replidict.node.admin.change`; what was said last."""
        loop, lost, verdict = self._cluster.loop, False, None
        self._note("wants", change)
        deadline = loop.now + seconds
        while loop.now < deadline:
            machine = self._somebody("" if isinstance(change, RemoveMember) else change.address or "")
            if machine is not None:
                verdict = yield from self._ask(machine, change, deadline)
                lost = lost or verdict in ("lost", "done")
                if verdict == "done" or (verdict == "absent" and lost):
                    self._note("done", change)
                    self._members.done(change)
                    return "done"
                if verdict in ("absent", "never"):
                    break
            yield PAUSE
        self._note("gives up", f"{change}: {verdict}")
        return verdict

    def _ask(self, machine: Machine, change: Change, deadline: float) -> Generator[float, None, Verdict]:
        assert machine.node is not None
        node, incarnation, said = machine.node, machine.incarnation, list[Verdict]()
        node.call(lambda: node.engine.reconfiguration.ask(change, lambda verdict, why: said.append(verdict)))
        while not said and self._cluster.loop.now < deadline:
            if isinstance(change, RemoveMember):
                self._removal_asked = self._cluster.loop.now
            if machine.node is None or machine.incarnation != incarnation:
                break
            yield PAUSE / 4
        return said[0] if said else "lost"
