"""Founds a new cluster from the disk that is furthest, after a quorum was lost for good.

The same as etcd's `--force-new-cluster` and hashicorp's `peers.json`, and nearly as dangerous: what only the lost nodes
had is gone. If they come back, the founder tells them, and they stop (see `superseded`); but where it does not reach
them, nothing keeps a majority of them from going on as they were.

Rules kept here:

1. All disks are checked as when a node starts, and locked for as long as this takes. A damaged one is refused, and so
   is another than the furthest: the one with the highest last term, and of these the longest log (Raft 5.4.1).
2. The new cluster has a new id, and the founder a new identity: old members refuse it, and it refuses them.
3. What is in the log stays, and counts as committed: an entry that is not known to be may still have been acknowledged.
   One more is added, with this node as the only member, in a term of its own; and one that has tokens of locks go on
   far above those that are known here.
4. First the other disks are noted as superseded, which a node refuses to open, then the chosen one is rewritten in one
   transaction. A crash leaves it the old node or the new one; in between, the same can be done again.
5. The mark stays as it is: a later term and a longer log than it knows of do not contradict it.
6. That nothing is lost is said only where it is sure. Members change one at a time, so a majority of one configuration
   has a node in each majority of the next (thesis 4.1): if a majority of the voters is here, in each configuration that
   may be the last committed one, then the furthest disk has every committed entry, and every later change of the
   members. With fewer a change may have passed these disks by. A disk counts only as the voter that it is, by its
   identity, and only with its mark, and synced: else it may be older than what the node had acknowledged.
7. The founder keeps the fact that it was recovered, whether something may have been lost then, and what it takes to
   tell the others: who it was, and who they were.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from replidict.errors import RemovedError, ReplidictError, StorageError
from replidict.machine import commands as cmd
from replidict.storage import records
from replidict.storage.directory import Directory, connect, put_facts, supersede
from replidict.storage.inspection import Inspected, inspect, see_to_a_node
from replidict.storage.store import RECOVERED

_PUT = "INSERT INTO log(idx, term, command, committed, crc) VALUES (?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Survivors:
    """The disks that are left of a cluster: the chosen one, and the others."""

    chosen: Inspected
    others: Sequence[Inspected]
    directories: Sequence[Directory]
    """Locked; the chosen one first."""

    @property
    def furthest(self) -> Inspected:
        """The one that must be chosen. Of several that are equally far, the chosen one."""
        return max(self.nodes, key=lambda each: (each.last_term, each.last_index))

    @property
    def missing(self) -> list[str]:
        """The voters whose disks are not here."""
        members = self.furthest.members
        return [address for address in members.voters if address not in _voters(members, self.nodes)]

    @property
    def nodes(self) -> Sequence[Inspected]:
        """All of them; the chosen one first."""
        return (self.chosen, *self.others)

    @property
    def certain(self) -> bool:
        """Whether nothing that was acknowledged can be lost (rule 6)."""
        return all(2 * here > voters for here, voters in self._here())

    @property
    def likely(self) -> bool:
        """Whether nothing can be lost if the members have not changed since: each majority has one of these disks."""
        return all(2 * here >= voters for here, voters in self._here())

    def _here(self) -> list[tuple[int, int]]:
        """For each configuration that may be the last committed one: how many voters are here, and how many there are.

        One is committed before the next is in a log, so these are the last two at most.
        """
        known = [self.furthest.settled, *self.furthest.between][-2:]
        marked = [node for node in self.nodes if node.marked and not node.unsynced]
        return [(len(_voters(members, marked)), len(members.voters)) for members in known]

    @property
    def unconfirmed(self) -> int:
        """How many entries of the chosen log are not known to be committed."""
        return self.chosen.last_index - self.chosen.committed

    def refusal(self) -> ReplidictError | None:
        """Why this can't be done; None if it can."""
        nodes = self.nodes
        for node in nodes:
            if node.damage is not None:
                return StorageError(node.damage)
        if self.chosen.superseded is not None:
            return RemovedError(f"{self.chosen.path} is not to be used any more. {self.chosen.superseded}")
        seen: dict[str, Inspected] = {}
        for node in nodes:
            if node.identity.cluster_id != self.chosen.identity.cluster_id:
                return ReplidictError(
                    f"{node.path} belongs to the cluster {node.identity.cluster_id}, and {self.chosen.path} to "
                    f"{self.chosen.identity.cluster_id}: they are not members of one cluster, or one was recovered"
                )
            if (same := seen.setdefault(node.identity.node_id, node)) is not node:
                return ReplidictError(f"{same.path} and {node.path} are copies of one node: leave one of them out")
        if not self.furthest.last_index:
            return ReplidictError(
                f"{self.furthest.path} holds nothing, not one log entry: there is nothing to go on with. If it is "
                "a copy: all files of the directory belong to it"
            )
        if self.furthest is not self.chosen:
            return ReplidictError(
                f"{self.furthest.path} is further than {self.chosen.path}: name it first, to go on with that one"
            )
        return None

    def recover(self, address: str | None = None) -> records.Identity:
        """Make the chosen disk that of the founder of a new cluster, reached at `address` (as before, if None).

        Returns who it is from now on. Raises `ReplidictError` if that can't be done; the chosen disk is as it was then.
        """
        if (refusal := self.refusal()) is not None:
            raise refusal
        old, before = self.chosen.identity, self.chosen.recovered
        new = records.Identity(uuid.uuid4().hex, uuid.uuid4().hex, address or old.address)
        today = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        for directory in self.directories[1:]:
            try:
                supersede(directory.path, old.cluster_id, new.cluster_id, new.address, today)
            except StorageError as error:
                raise StorageError(f"{error}. Nothing was recovered") from error
        certain = self.certain and (before is None or before.certain)
        known = (self.chosen.settled, *self.chosen.between)
        members = sorted({address for each in known for address in (*each.voters, *each.learners)})
        index = self.chosen.members.index
        recovered = records.Recovered(old.cluster_id, today, certain, old.node_id, old.address, index, members, before)
        self._rewrite(new, recovered)
        return new

    def _rewrite(self, new: records.Identity, recovered: records.Recovered) -> None:
        chosen, directory = self.chosen, self.directories[0]
        index, term = chosen.last_index + 1, max(chosen.vote.term, chosen.last_term) + 1
        alone = cmd.Configuration([new.address], [], {new.address: new.node_id})
        command = cmd.encode(alone)
        facts = {
            "identity": new,
            "vote": records.Vote(term, None, chosen.vote.cuts),
            "members": records.Members(index, alone.voters, [], alone.node_ids),
            "pins": records.Pins({}),
            RECOVERED: recovered,
        }
        with closing(connect(directory.file, "fsync")) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
                row = (index, term, command, index, records.log_crc(index, term, command, index))
                db.execute(_PUT, row)
                if chosen.feature_level > 1:
                    tick = cmd.encode(cmd.Tick(0, records.later_token(0)))
                    db.execute(_PUT, (index + 1, term, tick, index, records.log_crc(index + 1, term, tick, index)))
                put_facts(db, facts)
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise StorageError(
                    f"{directory.file}: could not be recovered, and is as it was: {error}. Make sure the disk has "
                    "space and is healthy, then do it again"
                ) from error


def _voters(members: records.Members, nodes: Sequence[Inspected]) -> set[str]:
    """Which of the voters are these nodes, not others that took their addresses before or after them."""
    who = {node.identity.address: node.identity.node_id for node in nodes}
    return {each for each in members.voters if each in who and members.node_ids.get(each, who[each]) == who[each]}


@contextmanager
def survivors(chosen: Path, others: Sequence[Path]) -> Iterator[Survivors]:
    """Lock these directories, and look at what is there. Raises `StorageError`, `ValueError` (one is named twice)."""
    paths = [chosen, *others]
    for number, path in enumerate(paths):
        see_to_a_node(path)
        if any(path.samefile(other) for other in paths[:number]):
            raise ValueError(f"{path} is named twice")
    with ExitStack() as locks:
        directories = [locks.enter_context(closing(Directory(path))) for path in paths]
        first, *rest = [inspect(path) for path in paths]
        yield Survivors(first, rest, directories)
