"""The driver for tooz: held to the tests of tooz, and what it promises beyond them."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tooz
from tooz import coordination
from tooz.coordination import CoordinationDriver, get_coordinator

from replidict.testing.ports import free_addresses
from tests.clusters import wait_until

SKIPPED = {
    "test_timeout": "not based on timeout",
    "test_watch_join_group_disappear": "ability to destroy groups",
}

Start = Callable[..., CoordinationDriver]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Coordinators with this directory, or this URL, which are stopped at the end."""
    started: list[CoordinationDriver] = []

    def start(member: bytes, url: str = f"replidict://{tmp_path}/shared", **options: Any) -> CoordinationDriver:
        coordinator = get_coordinator(url, member, **options)
        coordinator.start()
        started.append(coordinator)
        return coordinator

    yield start
    for coordinator in reversed(started):
        if coordinator.is_started:
            coordinator.stop()


def test_the_tests_of_tooz(tmp_path: Path) -> None:
    """All the tests that tooz has for drivers pass, but for those that this driver is not meant for."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--junitxml=result.xml",
        "--pyargs",
        "tooz.tests.test_coordination",
    ]
    environment = os.environ | {"TOOZ_TEST_URL": f"replidict://{tmp_path}/data"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout
    cases = list(ET.parse(tmp_path / "result.xml").iter("testcase"))
    skipped = {case.get("name"): why.get("message") or "" for case in cases for why in case.iter("skipped")}
    assert set(skipped) == set(SKIPPED) and all(SKIPPED[str(name)] in skipped[name] for name in skipped), skipped
    assert len(cases) >= 83


def test_a_process_that_dies_leaves(start: Start, tmp_path: Path) -> None:
    """The members of a process that was killed are gone at once, and others lead and have its locks."""
    here = start(b"here")
    here.create_group(b"group").get()
    program = (
        "from tooz.coordination import get_coordinator\n"
        f"there = get_coordinator('replidict://{tmp_path}/shared', b'there')\n"
        "there.start()\n"
        "there.join_group(b'group').get()\n"
        "there.get_lock(b'lock').acquire()\n"
        "there.watch_elected_as_leader(b'group', print)\n"
        "there.run_watchers()\n"
        "input()"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_until(lambda: here.get_leader(b"group").get() == b"there", "the other process leads")
    assert here.get_members(b"group").get() == {b"there"}
    lock = here.get_lock(b"lock")
    assert not lock.acquire(blocking=False)
    events: list[Any] = []
    note: Any = events.append
    here.watch_leave_group(b"group", note)
    here.watch_elected_as_leader(b"group", note)
    other.kill()
    other.communicate()
    assert lock.acquire(blocking=30) and lock.is_still_owner()  # type: ignore[arg-type]

    def told() -> bool:
        here.run_watchers()
        return {type(event) for event in events} == {coordination.MemberLeftGroup, coordination.LeaderElected}

    wait_until(told, "that member has left, and this one leads")
    assert here.get_leader(b"group").get() == b"here" and here.get_members(b"group").get() == set()


def test_heartbeats_bring_members_back(start: Start) -> None:
    """A member whose lease was lost is a member again after the next heartbeat, with its capabilities."""
    here: Any = start(b"here")
    here.join_group_create(b"group", {"weight": 1})
    here.join_group_create(b"left", {})
    here.leave_group(b"left").get()
    here.update_capabilities(b"group", {"weight": 2}).get()
    assert here.heartbeat() > 0
    here._lease.revoke()
    assert here.get_members(b"group").get() == set()
    here.heartbeat()
    assert here.get_members_with_capabilities(b"group").get() == {b"here": {"weight": 2}}
    assert here.get_members(b"left").get() == set()


def test_names_are_any_bytes(start: Start) -> None:
    """Groups, members and locks may have any names: none is taken for another one, or for a part of one."""
    here, there = start(b"a/b\xff"), start(b"%2F")
    for group in (b"g", b"g/a", b"g%2Fa", b"\x00\xff/", "grün".encode()):
        here.create_group(group).get()
        here.join_group(group).get()
        there.join_group(group).get()
        assert here.get_members(group).get() == {b"a/b\xff", b"%2F"}
        there.leave_group(group).get()
    assert len(here.get_groups().get()) == 5
    assert here.get_lock(b"l/1").acquire(blocking=False) and there.get_lock(b"l").acquire(blocking=False)
    assert not there.get_lock(b"l/1").acquire(blocking=False)


def test_machines_of_a_cluster(start: Start, tmp_path: Path) -> None:
    """Coordinators on several nodes have the same groups, locks and leader."""
    addresses = free_addresses(3)
    nodes = []
    for number, address in enumerate(addresses):
        peers = ",".join(each for each in addresses if each != address)
        nodes.append((f"replidict://{tmp_path}/node{number}?address={address}&peers={peers}&timeout=5", b"%d" % number))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # the first of three has no majority yet
        a, b, c = pool.map(lambda node: start(node[1], node[0]), nodes)
    a.create_group(b"group").get()
    for each in (a, b, c):
        each.join_group(b"group").get()
        assert b"0" in each.get_members(b"group").get()
    for number in range(20):  # what one was told, another one knows
        here, there = (a, b, c)[number % 3], (a, b, c)[(number + 1) % 3]
        here.create_group(b"%d" % number).get()
        there.join_group(b"%d" % number).get()
    lock = b.get_lock(b"lock")
    with lock:
        assert not c.get_lock(b"lock").acquire(blocking=False)
        assert c.get_lock(b"lock").break_()
        wait_until(lambda: not lock.is_still_owner(), "the holder has heard of it")


def test_errors_are_those_of_tooz(start: Start, tmp_path: Path) -> None:
    """What can't be reached, opened or stored is an error of tooz, and says what to do."""
    with pytest.raises(coordination.ToozConnectionError, match="replidict:///DIRECTORY"):
        start(b"a", "replidict://elsewhere:1/data")
    with pytest.raises(tooz.ToozError, match="no_such_option"):
        start(b"a", f"replidict://{tmp_path}/other?no_such_option=1")
    with pytest.raises(tooz.ToozError, match="ttl"):
        start(b"a", f"replidict://{tmp_path}/other?timeout=-1")
    here = start(b"a")
    here.create_group(b"group").get()
    with pytest.raises(coordination.SerializationError, match="can't keep"):
        here.join_group(b"group", {"object": object()}).get()
