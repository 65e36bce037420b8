"""What a program asks of its node besides the dict: is it ready, who is in the cluster, a backup, word of its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from replidict.errors import ReadTimeout, ReplidictError, raise_anew
from replidict.node.backup import Backup
from replidict.node.blocking_calls import make_current
from replidict.node.call_arguments import seconds_of
from replidict.options import NO_NETWORK
from replidict.protocol.peer_messages import AddMember, RemoveMember
from replidict.security import member_of
from replidict.server.shared_node import Opened
from replidict.status import Member, Status
from replidict.storage.restore import restore


class Administration:
    """The methods of `ReplicatedDict` that are not about keys and values."""

    _host: Opened
    _timeout: float

    # -- the node -----------------------------------------------------------------------------------------------------

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until this node's copy has all that was acknowledged anywhere before; else raises `ReadTimeout`."""
        make_current(self._host.node, self._seconds(timeout))

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until there is a leader and this node's copy is up to date. False after `timeout` seconds.

        Plain reads do not wait: before this, they show what this node held when it was last open, and on a node that is
        new, a learner too, nothing. So a program whose plain reads count calls it once, after the opening.
        """
        try:
            self.barrier(timeout=timeout)
        except ReadTimeout:
            return False
        return True

    @property
    def revision(self) -> int:
        """Of the last change applied on this node: the count of changes since the cluster was founded."""
        return self._host.node.machine.revision

    def status(self) -> Status:
        """What this node knows of itself and its cluster. Never waits; answers on a closed dict, too."""
        return self._host.status()

    def on_stop(self, callback: Callable[[ReplidictError], object]) -> None:
        """Have `callback(error)` called once if this node stops by itself, now if it has.

        The error is what every call raises from then on: `RemovedError` (it is no member any more) or `StorageError`.
        `close` calls nobody. The callback runs in a thread of its own, when the directory and the address are free
        again; what it raises is logged.
        """
        self._host.stop_callbacks.add(callback)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else seconds_of(timeout, "timeout")

    # -- the cluster --------------------------------------------------------------------------------------------------

    def members(self) -> tuple[Member, ...]:
        """Everybody in the cluster, in order of address, and how far the leader knows them to be.

        Waits for the leader for two election timeouts at most; without one, tells what this node knows.
        """
        return self._host.cluster.members()

    def add_peer(self, address: str, *, voter: bool = True, timeout: float | None = None) -> None:
        """Make room for a member at an address, from any node (thesis 4.2.1). Returns when that is committed.

        It comes in as a learner, and becomes a voter once it is there and has everything. A new node is started there
        with `join=`, which does this by itself if it was not done before; `add_peer` is for a read replica that shall
        have a vote, or a cluster that shall know beforehand who comes.

        Raises `NotCommitted` (surely not made), `OutcomeUnknown`, `ReplidictError` (it is a voter, and is to be none),
        `SecurityError` (nobody is called there without secret= or tls=), `ValueError`, `ClosedError`, `StorageError`.
        """
        self._host.cluster.change(AddMember(member_of(address), voter), self._seconds(timeout))

    def remove_peer(self, address: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Let a member go, from any node, itself included (thesis 4.1). Returns when that is committed.

        A leader that is removed hands over first. No voter is removed when a majority of those that are left can't be
        reached: remove the ones that are lost first. With `force`, for a member that must go at any price, it is; the
        cluster then has no leader and takes no writes until enough of the missing are back, and this call raises
        `OutcomeUnknown` meanwhile. It is no way out of a lost quorum: that is `replidict recover`.

        Raises `NotCommitted` (surely not made: no leader, another change under way), `OutcomeUnknown`, `ReplidictError`
        (there is no such member, or it is the only voter), `ValueError`, `ClosedError` or `StorageError`.
        """
        self._host.cluster.change(RemoveMember(member_of(address), force), self._seconds(timeout))

    def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> None:
        """Have another voter lead: `to`, or the one whose log is furthest (thesis 3.10). From any node.

        Raises as `remove_peer`; `ReplidictError` when there is no such voter.
        """
        self._host.cluster.hand_over(None if to is None else member_of(to), self._seconds(timeout))

    # -- backups ----------------------------------------------------------------------------------------------------

    def backup(self, path: str | os.PathLike[str]) -> Backup:
        """Write what this node holds at one moment to a new file, for `restore`; others write meanwhile.

        It has every write acknowledged on this node before the call (`barrier` first, for those acknowledged anywhere).
        When this returns, it is checked and on disk. Raises `FileExistsError`, `ReplidictError` (it can't be written
        there: the node goes on), `ClosedError` or `StorageError`.
        """
        if (failure := self._host.node.failure) is not None:
            raise_anew(failure)
        return self._host.backups.make(path)

    @staticmethod
    def restore(backup: str | os.PathLike[str], path: str | os.PathLike[str], *, address: str | None = None) -> None:
        """Make `path` the directory of a node that holds what a backup, or an automatic snapshot, holds.

        It is a new cluster, of which this node is the only member: open it with this `path` and `address`. Raises
        `StorageError` when the backup is damaged, or there is a node at `path` already; nothing was changed then.
        """
        restore(Path(backup).absolute(), Path(path).absolute(), NO_NETWORK if address is None else member_of(address))
