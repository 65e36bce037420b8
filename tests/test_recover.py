"""`replidict recover`: a quorum is lost, and the furthest disk founds a new cluster."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from typing_extensions import override

from replidict import Options, RemovedError, ReplicatedDict
from replidict.command.main import main
from replidict.machine import commands as cmd
from replidict.protocol.log_entry import Entry
from replidict.storage import records, recovery
from replidict.storage.directory import FILE_NAME, connect
from tests.clusters import cluster, free_addresses, leader_of, wait_until
from tests.storage_support import FRAME, WAL, Failing, Rig, flip, image, put, written
from tests.test_inspect import on_disk


def recover(*arguments: Path | str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["recover", *map(str, arguments)], input=answer)


def but_for_the_lock(path: Path) -> dict[str, Any]:
    """Everything in a node's directory; the file that is locked is made if need be."""
    return {name: found for name, found in on_disk(path).items() if not name.endswith("/lock")}


def identity(path: Path) -> records.Identity:
    with closing(sqlite3.connect(path / FILE_NAME)) as db:
        (data,) = db.execute("SELECT data FROM fact WHERE name = 'identity'").fetchone()
    return msgspec.msgpack.decode(data, type=records.Identity)


def three_disks(root: Path, addresses: list[str]) -> list[Path]:
    """What three nodes left: the first has the longest log, the second a later term, the third is behind both."""
    for number, address in enumerate(addresses):
        founders = [address, *(other for other in addresses if other != address)]
        one = Rig(root / f"n{number}", founders=founders)
        one.perform(put("k", 0))
        if number != 2:
            one.perform(put("k", 1), put("only here", number), term=1 + number)
        if number == 0:
            one.put_many("many", 20)
        image(root / f"n{number}", root / f"disk{number}")
        one.close()
    return [root / f"disk{number}" for number in range(3)]


@pytest.fixture
def addresses() -> list[str]:
    return free_addresses(3)


@pytest.fixture
def disks(tmp_path: Path, addresses: list[str]) -> list[Path]:
    """What three nodes left that were killed; see `three_disks`."""
    return three_disks(tmp_path, addresses)


# -- what becomes of a cluster ----------------------------------------------------------------------------------------


def test_it_goes_on_and_old_members_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What one of three disks held is there, and can be written to; an old member beside it is refused on both sides,
    says so, hears nothing of the new cluster and does not disturb it."""
    with cluster(tmp_path) as nodes:
        nodes[0].update(a=1, b=(2,))
        nodes[0]["a"] = 3
        revision = nodes[0].versioned("a")
        addresses = [str(node.status().address) for node in nodes]
    done = recover(tmp_path / "n0", "--yes")
    assert done.exit_code == 0, done.output
    caplog.set_level(logging.INFO)
    with (
        ReplicatedDict[str, Any](tmp_path / "n0", address=addresses[0]) as founder,
        ReplicatedDict[str, Any](tmp_path / "n1", address=addresses[1], timeout=0.2) as old,
    ):
        assert list(founder.items()) == [("a", 3), ("b", (2,))] and founder.versioned("a") == revision
        founder["new"] = 1
        assert founder.status().peers == () and founder.status().cluster_id != old.status().cluster_id
        term = founder.status().term

        def said(by: str) -> bool:
            found = [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"{by}:")]
            return any("belongs to another cluster" in message for message in found)

        wait_until(lambda: said(addresses[0]) and said(addresses[1]), "both sides refuse, and say so")
        assert (
            "new" not in old._host.node.machine.items
            and founder.status().term == term
            and founder.status().connected == ()
        )
        founder["still"] = "alone"
    with ReplicatedDict[str, Any](tmp_path / "n0", address=addresses[0]) as founder:
        assert founder.snapshot() == {"a": 3, "b": (2,), "new": 1, "still": "alone"}


def test_a_majority_of_the_old_disks_is_the_old_cluster(tmp_path: Path) -> None:
    """What the command warns of: old disks that are not named, started together while the new founder is not there to
    tell them (see `test_supersede_notifier`), go on as the old cluster, beside the new one; neither takes the other's
    writes."""
    with cluster(tmp_path) as nodes:
        nodes[0]["k"] = "before"
        addresses = [str(node.status().address) for node in nodes]
    done = recover(tmp_path / "n0", "--yes")
    assert "must never be started again" in done.output and "LOST" in done.output
    with ExitStack() as stack:
        old = [
            stack.enter_context(ReplicatedDict[str, Any](tmp_path / f"n{n}", address=addresses[n], timeout=30))
            for n in (1, 2)
        ]
        old[0]["k"] = "old"
        assert leader_of(old).status().address in addresses[1:]
        founder = stack.enter_context(ReplicatedDict[str, Any](tmp_path / "n0", address=addresses[0], timeout=30))
        founder["k"] = "new"
        assert old[1].get("k", linearizable=True) == "old" and founder.get("k", linearizable=True) == "new"


def test_disks_that_are_named_are_never_opened_again(disks: list[Path], addresses: list[str]) -> None:
    """The other disks that are given are superseded: opening one is refused, with where its cluster goes on."""
    done = recover(disks[1], disks[0], disks[2], "--yes")
    assert done.exit_code == 0, done.output
    new = identity(disks[1])
    for number in (0, 2):
        for _ in range(2):
            with pytest.raises(RemovedError, match=rf"disk{number} must not be opened.*goes on as {new.cluster_id}"):
                ReplicatedDict[str, Any](disks[number], address=addresses[number])
        shown = CliRunner().invoke(main, ["inspect", str(disks[number])])
        assert shown.exit_code == 8 and "goes on as" in shown.output and "integrity     ok" in shown.output
    with ReplicatedDict[str, Any](disks[1], address=addresses[1]) as founder:
        assert founder.snapshot() == {"k": 1, "only here": 1}


def test_entries_that_nobody_knew_to_be_committed_count(disks: list[Path], addresses: list[str]) -> None:
    """All that is in the log is there from the first read on, as it may have been acknowledged; that is said before."""
    done = recover(disks[1], "--yes")
    assert re.search(r"not known to be committed, which will be: [1-9]", done.output)
    with ReplicatedDict[str, Any](disks[1], address=addresses[1]) as founder:
        assert founder["only here"] == 1
        assert founder.set("k", 2) == founder.revision


def test_it_listens_where_it_was_told(disks: list[Path], addresses: list[str]) -> None:
    """With --address the new founder is another address's from now on."""
    (elsewhere,) = free_addresses(1)
    assert recover(disks[1], "--address", elsewhere, "--yes").exit_code == 0
    with pytest.raises(ValueError, match=f"belongs to the node {elsewhere}"):
        ReplicatedDict[str, Any](disks[1], address=addresses[1])
    with ReplicatedDict[str, Any](disks[1], address=elsewhere) as founder:
        founder["k"] = 9
        assert founder.status().is_leader
    assert recover(disks[0], "--address", "nonsense").exit_code == 2


# -- what it tells and asks -------------------------------------------------------------------------------------------


def test_it_tells_and_asks(disks: list[Path], addresses: list[str]) -> None:
    """Each disk's term, index, age and members are shown, which is furthest, what may be lost; without a yes nothing
    is changed."""
    before = [but_for_the_lock(disk) for disk in disks]
    done = recover(disks[1], disks[2], answer="n\n")
    assert done.exit_code == 1
    head, first, second, *_ = done.output.splitlines()
    assert head.split() == ["DATA", "NODE", "LAST", "TERM", "LAST", "INDEX", "WRITTEN", "VOTERS"]
    assert re.match(
        rf"{disks[1]} +{addresses[1]} +2 +3 +\d+ seconds ago +{' '.join(sorted(addresses))} +furthest", first
    )
    assert re.match(rf"{disks[2]} +{addresses[2]} +1 +2 +\d+ seconds ago +{' '.join(sorted(addresses))}$", second)
    assert f"Missing here: 1 of 3 voters, {addresses[0]}" in done.output and "none is lost" in done.output
    assert "Go on with" in done.output
    for disk, files in zip(disks, before, strict=True):
        assert but_for_the_lock(disk) == files


@pytest.mark.parametrize(
    ("named", "says"), [([1], "LOST"), ([1, 2], "none is lost"), ([1, 0, 2], "none is lost")], ids=str
)
def test_it_says_what_may_be_lost(disks: list[Path], named: list[int], says: str) -> None:
    """Whether an acknowledged write can be on none of the disks named: not, if every majority has one of them."""
    done = recover(*(disks[number] for number in named), answer="n\n")
    assert (
        says in done.output
        and len({"LOST", "none is lost"} & {w for w in ("LOST", "none is lost") if w in done.output}) == 1
    )


def with_members(disk: Path, addresses: list[str], *said: cmd.Configuration) -> None:
    """Have the log of this disk go on with these configurations, not known to be committed."""
    one = Rig(disk, founders=addresses)
    for configuration in said:
        one.log.append([Entry(one.log.last_index + 1, one.log.last_term, cmd.encode(configuration))])
    one.store.commit()
    one.close()


def told(*disks: Path) -> str:
    """What it says may be lost."""
    said = " ".join(recover(*disks, answer="n\n").output.split())
    assert "Go on with" in said
    for words in ("is on one of these disks: none is lost.", "None is lost, unless the members changed after", "LOST"):
        if words in said:
            return words
    raise AssertionError(said)


def test_members_may_have_changed_unheard(disks: list[Path], addresses: list[str]) -> None:
    """Half of an even number of voters: the others may have gone on after a change that these disks never heard of, as
    one who was removed while it was stopped; so nothing is promised, but on that condition."""
    with_members(disks[1], [addresses[1], *addresses[::2]], cmd.Configuration(addresses[:2], []))
    assert told(disks[1], disks[2]) == told(disks[1]).replace("LOST", "None is lost, unless the members changed after")
    assert told(disks[1], disks[0]) == "is on one of these disks: none is lost."
    done = recover(disks[1], disks[2], answer="n\n")
    assert "changed after log entry 4," in done.output and f"1 of 2 voters, {addresses[0]}" in done.output


def test_a_change_may_have_been_taken_back(disks: list[Path], addresses: list[str]) -> None:
    """A majority of a configuration that nobody knows to be committed is not enough: also one of that before it."""
    more = free_addresses(2)
    with_members(
        disks[1], [addresses[1], *addresses[::2]],
        cmd.Configuration([*addresses, *more], []), cmd.Configuration(addresses, []),
    )  # fmt: skip
    assert told(disks[1], disks[2]) == "LOST"
    assert told(disks[1], disks[2], disks[0]) == "is on one of these disks: none is lost."


def test_who_came_after_it_counts(disks: list[Path], addresses: list[str]) -> None:
    """A disk whose node was removed, and its address taken by another node, is not the disk of that voter."""
    assert told(disks[1], disks[2]) == "is on one of these disks: none is lost."
    others = {addresses[2]: "0" * 32, addresses[1]: identity(disks[1]).node_id}
    with_members(disks[1], [addresses[1], *addresses[::2]], cmd.Configuration(addresses, [], others))
    assert told(disks[1], disks[2]) == "LOST"
    assert addresses[2] in recover(disks[1], disks[2], answer="n\n").output.partition("Missing here")[2]


def test_a_copy_without_its_mark(disks: list[Path]) -> None:
    """A file without the mark beside it may be an older one: it is said, and nothing is promised."""
    (disks[2] / "mark").unlink()
    assert told(disks[1], disks[2]) == "LOST"
    assert f"{disks[2]} has no mark" in recover(disks[1], disks[2], answer="n\n").output


def test_a_disk_that_was_not_synced(tmp_path: Path) -> None:
    """A node with durability="process" whose write-ahead log is torn where it can be, is recovered; that it may have
    acknowledged more is said, though it has a mark of an earlier run."""
    path, address, options = tmp_path / "n", free_addresses(1)[0], Options(durability="process")
    with ReplicatedDict[str, int](path, address=address) as d:
        d["key 0"] = 0
    assert "none is lost" in recover(path, answer="n\n").output
    with ReplicatedDict[str, int](path, address=address, options=options) as d:
        for number in range(40):
            d[f"key {number}"] = number
        torn = Path(shutil.copytree(path, tmp_path / "torn"))
    flip(torn / WAL, 32 + FRAME * (len(written((torn / WAL).read_bytes())) // FRAME // 2) + 100, 3)
    done = recover(torn, "--yes")
    assert done.exit_code == 0 and "ran with durability='process'" in done.output and "LOST" in done.output
    with ReplicatedDict[str, int](torn, address=address) as founder:
        assert founder["key 1"] == 1 and 5 < len(founder) < 40


class Interrupted(io.RawIOBase):
    """A terminal at which somebody presses Ctrl-C instead of answering."""

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: object) -> int:
        raise KeyboardInterrupt


def test_ctrl_c_at_the_question(disks: list[Path]) -> None:
    """It is an interruption and not a no: the exit status is that of one, and nothing is changed."""
    before = identity(disks[1])
    done = CliRunner().invoke(main, ["recover", str(disks[1]), str(disks[0])], input=io.BufferedReader(Interrupted()))
    assert done.exit_code == 130 and "interrupted" in done.output
    assert identity(disks[1]) == before


def test_who_is_no_voter(disks: list[Path], addresses: list[str]) -> None:
    """The disk of a learner, or of a node that was removed, can be gone on with; that it is one is said."""
    with_members(disks[1], [addresses[1], *addresses[::2]], cmd.Configuration(addresses[::2], [addresses[1]]))
    assert f"{disks[1]}: this node was no voter" in recover(disks[1], answer="n\n").output


def test_nothing_to_go_on_with(tmp_path: Path, addresses: list[str]) -> None:
    """A disk without one log entry, such as a copy of a new node's file without the write-ahead log, is refused."""
    Rig(tmp_path / "n", founders=addresses).close()
    done = recover(tmp_path / "n", "--yes")
    assert done.exit_code == 1 and "nothing to go on with" in done.output


@pytest.mark.parametrize(("others", "may"), [([], "may have been lost"), ([2], "nothing acknowledged was lost")])
def test_that_it_was_recovered_is_kept(disks: list[Path], addresses: list[str], others: list[int], may: str) -> None:
    """The founder knows that it was recovered and whether something may have been lost: `inspect` says it, and so does
    the next `recover`, by which it is not forgotten; a node opens it."""
    old = identity(disks[1]).cluster_id
    assert recover(disks[1], *(disks[number] for number in others), "--yes").exit_code == 0
    with ReplicatedDict[str, Any](disks[1], address=addresses[1]) as founder:
        founder["k"] = 2
    shown = CliRunner().invoke(main, ["inspect", str(disks[1])])
    assert shown.exit_code == 0 and re.search(rf"recovered .* from the cluster {old}: .*{may}", shown.output)
    again = recover(disks[1], "--yes")
    assert re.search(rf"{disks[1]} was itself recovered on .* from the cluster {old}: .*{may}", again.output)
    said = json.loads(CliRunner().invoke(main, ["inspect", str(disks[1]), "--json"]).output)["recovered"]
    assert said["cluster_id"] != old and said["certain"] == bool(others)


def test_the_furthest_must_be_named_first(disks: list[Path]) -> None:
    """A longer log of an earlier term is not further (Raft 5.4.1): another than the furthest disk is refused."""
    done = recover(disks[0], disks[1], "--yes")
    assert done.exit_code == 1
    assert f"{disks[1]} is further than {disks[0]}: name it first" in done.output
    assert recover(disks[2], disks[0], "--yes").exit_code == 1
    assert recover(disks[0], disks[2], "--yes").exit_code == 0


def a_copy(disks: list[Path]) -> tuple[int, str]:
    shutil.rmtree(disks[2])
    shutil.copytree(disks[1], disks[2])
    return 1, "are copies of one node"


def of_another_cluster(disks: list[Path]) -> tuple[int, str]:
    shutil.rmtree(disks[2])
    Rig(disks[2], founders=free_addresses(3)).close()
    return 1, "not members of one cluster"


def torn(disks: list[Path]) -> tuple[int, str]:
    wal = disks[2] / WAL
    wal.write_bytes(written(wal.read_bytes())[:-100])
    return 5, "already acknowledged"


def damaged(disks: list[Path]) -> tuple[int, str]:
    with closing(sqlite3.connect(disks[2] / FILE_NAME, isolation_level=None)) as db:
        db.execute("UPDATE log SET command = x'00' WHERE idx = 2")
    return 5, "checksum of log entry 2"


def missing(disks: list[Path]) -> tuple[int, str]:
    shutil.rmtree(disks[2])
    return 5, "no such directory"


def emptied(disks: list[Path]) -> tuple[int, str]:
    (disks[2] / FILE_NAME).unlink()
    return 5, "holds no node"


def the_same(disks: list[Path]) -> tuple[int, str]:
    shutil.rmtree(disks[2])
    disks[2].symlink_to(disks[1])
    return 2, "named twice"


def superseded(disks: list[Path]) -> tuple[int, str]:
    (disks[2] / "superseded").write_text("Its cluster goes on elsewhere")
    return 8, "goes on elsewhere"


@pytest.mark.parametrize(
    "spoil", [a_copy, of_another_cluster, torn, damaged, missing, emptied, the_same], ids=lambda spoil: spoil.__name__
)
def test_what_is_refused_beside_it(disks: list[Path], spoil: Callable[[list[Path]], tuple[int, str]]) -> None:
    """A disk that is damaged, torn, no node's, a copy, or of another cluster: refused, and nothing is changed."""
    status, message = spoil(disks)
    before = [but_for_the_lock(disk) for disk in disks[1:]]
    done = recover(disks[1], disks[2], "--yes")
    assert done.exit_code == status and re.search(message, done.output), done.output
    for disk, files in zip(disks[1:], before, strict=True):
        assert but_for_the_lock(disk) == files


@pytest.mark.parametrize("spoil", [torn, damaged, missing, emptied, superseded], ids=lambda spoil: spoil.__name__)
def test_what_is_refused_itself(disks: list[Path], spoil: Callable[[list[Path]], tuple[int, str]]) -> None:
    """A disk that a node would refuse founds nothing."""
    status, message = spoil(disks)
    done = recover(disks[2], "--yes")
    assert done.exit_code == status and re.search(message, done.output), done.output


def test_a_node_that_runs_is_refused(tmp_path: Path, addresses: list[str]) -> None:
    """A survivor that still runs must be stopped first."""
    with ReplicatedDict[str, int](tmp_path / "d", address=addresses[0], peers=addresses[1:]):
        done = recover(tmp_path / "d", "--yes")
        assert done.exit_code == 5 and "in use" in done.output


def test_a_recovered_disk_is_of_another_cluster(disks: list[Path]) -> None:
    """Done twice by mistake, with an old disk beside the new founder: refused, as what it is."""
    assert recover(disks[1], "--yes").exit_code == 0
    done = recover(disks[1], disks[0], "--yes")
    assert done.exit_code == 1 and "one was recovered" in done.output


# -- crashes ----------------------------------------------------------------------------------------------------------


class Photographed:
    """A connection that keeps what is on disk before and after each statement, as a crash there would leave it."""

    def __init__(self, connection: sqlite3.Connection, disks: list[Path], root: Path) -> None:
        self._connection, self._disks, self._root = connection, disks, root
        self.taken: list[list[Path]] = []

    def _take(self) -> None:
        root = self._root / f"image{len(self.taken)}"
        self.taken.append([Path(shutil.copytree(disk, root / disk.name)) for disk in self._disks])

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._take()
        done = self._connection.execute(*arguments)
        self._take()
        return done

    def close(self) -> None:
        self._connection.close()
        self._take()


def test_a_crash_leaves_the_old_node_or_the_new_one(
    disks: list[Path], addresses: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is killed, the disk is whole, and the old node's or the new one's; the others are superseded before
    it is the new one's, and the same command can be given again."""
    old = identity(disks[1])
    photographed: list[Photographed] = []

    def connecting(*arguments: Any) -> Any:
        photographed.append(Photographed(connect(*arguments), disks, tmp_path))
        return photographed[-1]

    monkeypatch.setattr(recovery, "connect", connecting)
    with recovery.survivors(disks[1], [disks[0], disks[2]]) as found:
        new = found.recover()
    monkeypatch.undo()
    seen = []
    for images in photographed[0].taken:
        who = identity(Path(shutil.copytree(images[1], images[1].with_name("looked at"))))
        seen.append(who)
        assert (images[0] / "superseded").exists() and (images[2] / "superseded").exists()
        if who == old:
            assert recover(images[1], images[0], images[2], "--yes").exit_code == 0
        with ReplicatedDict[str, Any](images[1], address=addresses[1], timeout=30) as opened:
            assert opened.snapshot() == {"k": 1, "only here": 1}
            opened["k"] = 2
            assert opened.status().peers == ()
    assert seen == [old] * seen.count(old) + [new] * seen.count(new)
    assert seen.count(old) > 5 and seen.count(new) >= 2


@pytest.mark.parametrize("statement", ["INSERT INTO log", "INSERT OR REPLACE INTO fact", "COMMIT"])
def test_a_full_disk_leaves_the_old_node(disks: list[Path], monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """A disk that can't be written to stays the old node's, and that is said; then the same can be done again."""
    old = identity(disks[1])

    def connecting(*arguments: Any) -> Any:
        failing = Failing(connect(*arguments))
        failing.fails = statement
        return failing

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "connect", connecting)
        done = recover(disks[1], disks[0], "--yes")
    assert done.exit_code == 5 and "is as it was" in done.output
    assert identity(disks[1]) == old
    assert recover(disks[1], disks[0], "--yes").exit_code == 0
    assert identity(disks[1]) != old
