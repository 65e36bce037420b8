"""The cluster's feature level, as users meet it. `pop` stands for what level 2 adds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import replidict
from replidict import NotCommitted, Options, ReplicatedDict
from replidict.command.main import main
from replidict.machine import commands as cmd
from replidict.machine.codec import encode_key
from replidict.node.proposals import Write
from replidict.protocol.client_messages import Join, decode_request
from replidict.protocol.peer_messages import encode
from replidict.release import FIRST, LEVEL, THIS, Release
from replidict.security import Mode
from replidict.storage import file_format
from replidict.transport.handshake import Hello
from tests.clusters import Dict, cluster, free_addresses, open_member, wait_until
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import leader, until
from tests.test_wire import HIGH, LOW, End, refused
from tests.wire_support import MODES, Certificates


@pytest.fixture(autouse=True)
def pop_needs_level_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does in this module."""
    monkeypatch.setitem(cmd.LEVEL_OF, cmd.Pop, 2)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Dict]:
    """One of three founders, with a second one; the third one never came."""
    addresses = free_addresses(3)
    with open_member(tmp_path, addresses, 0) as first, open_member(tmp_path, addresses, 1):
        first.wait_ready(30)
        yield first


def test_a_node_by_itself_has_the_highest_level_at_once(tmp_path: Path) -> None:
    """A node without other members need not wait for any, neither the first time nor after a restart."""
    for _ in range(2):
        with ReplicatedDict[str, int](tmp_path) as d:
            d["k"] = 1
            assert d.pop("k") == 1
            assert d.status().feature_level == LEVEL == file_format.SHARED
            assert [member.release for member in d.members()] == [replidict.__version__]


def test_a_new_cluster_has_the_highest_level_soon(tmp_path: Path) -> None:
    """When all founders are there, a write that needs the level waits for it, and is not refused."""
    with cluster(tmp_path) as nodes:
        for node in nodes:
            assert node.pop("k", None) is None
            assert node.status().feature_level == LEVEL
            assert {member.release for member in node.members()} == {replidict.__version__}


def test_a_write_above_the_level_names_who_is_in_the_way(alone: Dict) -> None:
    """It is refused with the address of a member that nobody has heard of, by every way to write, and other writes are
    not held up."""
    here = {alone.status().address, *alone.status().connected}
    (missing,) = (member.address for member in alone.members() if member.address not in here)
    with pytest.raises(NotCommitted, match=rf"feature level 2.*has level 1.*{missing} can't be reached.*never will be"):
        alone.pop("k", None)
    assert alone.status().feature_level == 1
    alone["k"] = 1
    assert alone["k"] == 1
    assert [member.release for member in alone.members() if member.address == missing] == [None]


def test_a_write_that_has_no_time_to_wait_says_what_for(tmp_path: Path) -> None:
    """A write that gives up while the level may yet rise is not applied either, and says so."""
    addresses = free_addresses(3)
    with open_member(tmp_path, addresses, 0) as first, open_member(tmp_path, addresses, 1):
        first.wait_ready(30)
        with pytest.raises(NotCommitted, match="this write needs feature level 2"):
            first.pop("k", None, timeout=0.05)


def test_the_command_shows_level_and_releases(tmp_path: Path) -> None:
    """`status`, `members` and `inspect` of the command tell them, in words and as JSON."""

    def out(*arguments: str) -> str:
        done = CliRunner().invoke(main, list(arguments))
        assert done.exit_code == 0, done.output
        return str(done.output)

    (address,) = free_addresses(1)
    with ReplicatedDict[str, int](tmp_path, address=address) as d:
        d["k"] = 1
        wait_until(lambda: d.status().feature_level == LEVEL, "the level is raised")
        assert "level 2" in out("status", "--node", address)
        assert json.loads(out("status", "--node", address, "--json"))["feature_level"] == LEVEL
        assert replidict.__version__ in out("members", "--node", address)
        (member,) = json.loads(out("members", "--node", address, "--json"))["members"]
        assert member["release"] == replidict.__version__
    assert "level 2" in out("inspect", str(tmp_path))
    assert json.loads(out("inspect", str(tmp_path), "--json"))["feature_level"] == LEVEL
    assert "the feature level is 2" in out("inspect", str(tmp_path), "--entries", "100")


# -- on the wire ----------------------------------------------------------------------------------------------------


class HelloOfTheFirst(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What release 0.1.0 says."""

    magic: str
    version: int
    mode: str
    cluster_id: str
    node_id: str
    address: str
    nonce: bytes


def test_hellos_of_both_releases_are_read_by_both() -> None:
    """What the present release adds stands behind what the first one says: that one leaves it out, and has not said."""
    said = ("replidict", 1, "plain", "c", "n", LOW, bytes(32))
    old = msgspec.msgpack.decode(encode(HelloOfTheFirst(*said)), type=Hello)
    assert old.release == FIRST == Release(1, "0.1.0")
    new = Hello(*said, *THIS)  # type: ignore[arg-type]
    assert msgspec.msgpack.decode(encode(new), type=HelloOfTheFirst) == HelloOfTheFirst(*said)
    assert msgspec.msgpack.decode(encode(new), type=Hello).release == THIS


def test_who_asks_to_join_without_a_word_on_its_release_has_the_first_one() -> None:
    """So does release 0.1.0."""
    old = msgspec.msgpack.encode([12, 1, 1.0, LOW, "n", True])
    asked = decode_request(old)
    assert isinstance(asked, Join) and (asked.level, asked.version) == FIRST


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("who", ["caller", "called"])
def test_a_release_that_is_too_old_is_refused(mode: Mode, who: str, certificates: Certificates) -> None:
    """Either side may refuse the other's release; the other is told why, and neither side ever opens."""
    security = certificates.security(mode)
    heard: list[Any] = []

    def never(address: str, release: Release) -> str:
        heard.append((address, release))
        return "too old"

    def ever(address: str, release: Release) -> None:
        return None

    caller = End(HIGH, security, called=LOW, meet=never if who == "caller" else ever)
    called = End(LOW, security, called=None, meet=never if who == "called" else ever)
    assert refused(caller, called, "version") == "too old"
    assert heard == [(LOW if who == "caller" else HIGH, THIS)]


# -- waiting for the level ------------------------------------------------------------------------------------------


def test_a_write_waits_for_a_founder_that_is_about_to_come() -> None:
    """While a cluster is being started, a write above the level waits a moment for those that are not there yet; when
    they come, it is done."""
    with new_cluster(1, 3, Options()) as simulated:
        first, second, third = simulated.machines.values()
        first.start()
        second.start()
        until(simulated, lambda: leader(simulated) is not None, "a leader")
        assert first.node is not None
        written = Write(cmd.Pop(encode_key("k")), 1, lambda: None)
        first.node.proposals.submit(written)
        simulated.loop.run_until(simulated.loop.now + 0.7)
        assert (written.error, written.sent) == (None, False)
        third.start()
        until(
            simulated, lambda: written.sent and first.node is not None and not first.node.proposals._in_flight, "done"
        )
        assert written.error is None and first.node.machine.level == 2
