"""The methods of `ReplicatedDict` about its node and its cluster: readiness, members, backups, and how a node ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from replidict.errors import ReadTimeout, ReplidictError, raise_anew
from replidict.node.blocking_calls import make_current
from replidict.node.call_arguments import seconds_of
from replidict.node.online_backup import Backup
from replidict.options import NO_NETWORK
from replidict.protocol.peer_messages import AddMember, RemoveMember
from replidict.security import member_of
from replidict.server.shared_node import Opened
from replidict.status import Member, Status
from replidict.storage.restore import restore


class Administration:
    """The methods of `ReplicatedDict` that administer its node and its cluster."""

    _host: Opened
    _timeout: float

    # -- the node -----------------------------------------------------------------------------------------------------

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until this node's copy has every write that returned on any node before this call (Raft thesis 6.4).

        Args:
            timeout: Seconds to wait; None: the dict's timeout.

        Raises:
            ReadTimeout: No majority could be reached in time.
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> d.barrier()
        """
        make_current(self._host.node, self._seconds(timeout))

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until there is a leader and this node's copy is up to date.

        Plain reads do not wait: until then, they show what this node had on disk when it was opened, which is nothing
        on a new node. A program that needs more calls this once, after it has opened the dict.

        Args:
            timeout: Seconds to wait; None: the dict's timeout.

        Returns:
            Whether the copy is up to date; False when the time is over.

        Raises:
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> d.wait_ready(timeout=5)
            True
        """
        try:
            self.barrier(timeout=timeout)
        except ReadTimeout:
            return False
        return True

    @property
    def revision(self) -> int:
        """The revision of the last change applied on this node: the number of changes since the cluster was founded."""
        return self._host.node.machine.revision

    def status(self) -> Status:
        """Return what this node knows of itself and its cluster. It never waits, and works on a closed dict, too.

        Example:
            >>> d["a"] = 1
            >>> d.status().role, d.status().keys
            ('leader', 1)
        """
        return self._host.status()

    def on_stop(self, callback: Callable[[ReplidictError], object]) -> None:
        """Have a function called once if this node stops by itself; it is called now if the node has stopped already.

        It runs in a thread of its own, when the directory and the address are free again. What it raises is logged.
        `close` does not call it.

        Args:
            callback: Called with the error that every call raises from then on: `RemovedError` if this node is no
                member any more, else `StorageError`.

        Example:
            >>> d.on_stop(lambda error: print("the node has stopped:", error))
        """
        self._host.stop_callbacks.add(callback)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else seconds_of(timeout, "timeout")

    # -- the cluster --------------------------------------------------------------------------------------------------

    def members(self) -> tuple[Member, ...]:
        """Return all members of the cluster, in order of address, with what the leader knows of each.

        It waits for the leader's answer, for two election timeouts at most. Without one it returns what this node
        knows.

        Raises:
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> [member.address for member in d.members()]
            ['local']
        """
        return self._host.cluster.members()

    def add_peer(self, address: str, *, voter: bool = True, timeout: float | None = None) -> None:
        """Add a member, or give a learner a vote, from any node (Raft thesis 4.2.1). It returns when that is committed.

        The member is added as a learner and becomes a voter once it has everything. A new node that is opened with
        `join=` does all this itself. Call this for a read replica that is to have a vote, or to name a member before it
        is opened.

        Args:
            address: "host:port" of the member.
            voter: Whether it becomes a voter.
            timeout: Seconds to wait; None: the dict's timeout.

        Raises:
            NotCommitted: The change was not made: there is no leader, or another change is under way.
            OutcomeUnknown: The change may or may not be made; see `members`.
            ReplidictError: The member is a voter already and `voter` is False.
            SecurityError: The address is off loopback, and this node has neither `secret` nor `tls`.
            ValueError: An argument makes no sense.
            ClosedError, StorageError: The node has stopped.
        """
        self._host.cluster.change(AddMember(member_of(address), voter), self._seconds(timeout))

    def remove_peer(self, address: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Remove a member, this node included, from any node (Raft thesis 4.1). It returns when that is committed.

        A leader that is removed hands leadership over first. The removal of a voter is refused when no majority of the
        remaining voters can be reached: remove the lost ones first. When a quorum is lost, use `replidict recover`
        instead.

        Args:
            address: "host:port" of the member.
            force: Remove it even if no majority of the remaining voters can be reached. The cluster then has no leader
                until enough of them are back, and this call may raise `OutcomeUnknown`.
            timeout: Seconds to wait; None: the dict's timeout.

        Raises:
            NotCommitted: The change was not made: there is no leader, or another change is under way.
            OutcomeUnknown: The change may or may not be made; see `members`.
            ReplidictError: There is no such member, or it is the only voter.
            ValueError: An argument makes no sense.
            ClosedError, StorageError: The node has stopped.
        """
        self._host.cluster.change(RemoveMember(member_of(address), force), self._seconds(timeout))

    def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> None:
        """Have another voter become the leader, from any node (Raft thesis 3.10).

        Args:
            to: "host:port" of the voter; None: the one whose log is furthest.
            timeout: Seconds to wait; None: the dict's timeout.

        Raises:
            ReplidictError: There is no such voter.
            NotCommitted, OutcomeUnknown, ValueError, ClosedError, StorageError: As `remove_peer`.
        """
        self._host.cluster.hand_over(None if to is None else member_of(to), self._seconds(timeout))

    # -- backups ----------------------------------------------------------------------------------------------------

    def backup(self, path: str | os.PathLike[str]) -> Backup:
        """Write this node's copy at one moment to a new file, for `restore`. Writes go on meanwhile.

        It has every write that returned on this node before the call; call `barrier` first for those that returned on
        others. When it returns, the file has been checked and is on disk.

        Args:
            path: The file to make.

        Returns:
            A `Backup`, which describes the file.

        Raises:
            FileExistsError: There is something at `path` already.
            ReplidictError: The file can't be written; the node goes on.
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> d["a"] = 1
            >>> d.backup("monday.backup").revision
            1
            >>> ReplicatedDict.restore("monday.backup", "restored")
            >>> with ReplicatedDict("restored") as restored:
            ...     restored["a"]
            1
        """
        if (failure := self._host.node.failure) is not None:
            raise_anew(failure)
        return self._host.backups.make(path)

    @staticmethod
    def restore(backup: str | os.PathLike[str], path: str | os.PathLike[str], *, address: str | None = None) -> None:
        """Make a node's directory from a backup, or from an automatic snapshot.

        The node is the only member of a new cluster: open it with the same `path` and `address`.

        Args:
            backup: The file.
            path: The directory to make.
            address: "host:port" of the new node; None: a single node without a network.

        Raises:
            StorageError: The backup is damaged, or there is a node at `path` already; nothing was changed.
            ValueError: `address` makes no sense.
        """
        restore(Path(backup).absolute(), Path(path).absolute(), NO_NETWORK if address is None else member_of(address))
