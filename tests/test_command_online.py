"""Commands that talk to running nodes, embedded ones here: what they do, print, and end with."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from replidict import Options, ReplicatedDict
from replidict.command import bench
from replidict.command.main import main
from replidict.security import Mode
from tests.clusters import Dict, cluster, free_addresses, leader_of, open_member, wait_until
from tests.serving import COMMAND, environment
from tests.wire_support import MODES, SECRET, Certificates


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Dict]]:
    """Two embedded nodes, of one cluster."""
    with cluster(tmp_path / "nodes", 2, timeout=30) as opened:
        yield opened


KEY = "k"


def run(node: Dict | str, *arguments: str | Path, given: bytes | None = None, **settings: str) -> Result:
    """The command, talking to this node."""
    address = node if isinstance(node, str) else str(node.status().address)
    words = [str(each) for each in arguments]
    return CliRunner(env={"REPLIDICT_NODE": address} | settings).invoke(main, words, input=given)


def out(node: Dict | str, *arguments: str | Path, **how: Any) -> str:
    """What it prints, when all goes well."""
    done = run(node, *arguments, **how)
    assert done.exit_code == 0, done.output
    return done.stdout


# -- keys and values ------------------------------------------------------------------------------------------------


def test_increment(nodes: list[Dict]) -> None:
    """`increment` adds to a number, from any node, and prints the sum; what is none is told, and stays."""
    assert out(nodes[0], "increment", "n") == "1\n"
    assert out(nodes[1], "increment", "n", "-3") == "-2\n"
    assert json.loads(out(nodes[1], "increment", "n", "0.5", "--json")) == {"value": -1.5}
    nodes[0]["text"] = "5"
    refused = run(nodes[0], "increment", "text")
    assert refused.exit_code == 1 and "'text' is not a number" in refused.stderr
    assert run(nodes[0], "increment", "n", "many").exit_code == 2
    assert run(nodes[0], "increment", "n", "True").exit_code == 2
    nodes[0].barrier()
    assert nodes[0] == {"n": -1.5, "text": "5"}


def test_text_in_text_out(nodes: list[Dict]) -> None:
    """Without options keys and values are text, given and printed as they are; a write on one node is seen on all."""
    for value in ("distributed", "", "5", "ein Wört\nund noch eins", "'quoted'"):
        assert out(nodes[0], "set", KEY, value) == ""
        for node in nodes:
            assert node.get(KEY, linearizable=True) == value
            assert out(node, "get", KEY) == value + "\n"


LITERALS: list[tuple[str, Any]] = [
    ("5", 5), ("-5", -5), ("1.5", 1.5), ("true", True), ("True", True), ("null", None), ("None", None),
    ('"text"', "text"), ("'text'", "text"), ('{"a": [1, true]}', {"a": [1, True]}),
    ("{'a': (1, b'x')}", {"a": (1, b"x")}),
    ("{1, 2}", {1, 2}), ("b'\\xff'", b"\xff"), (str(10**50), 10**50),
]  # fmt: skip


def test_literals(nodes: list[Dict]) -> None:
    """With --literal a value is JSON or a Python literal, of any type that has one, and printed as one."""
    for text, value in LITERALS:
        out(nodes[0], "set", "--literal", KEY, "--", text)
        found = nodes[0][KEY]
        assert found == value and type(found) is type(value)
        assert out(nodes[0], "get", KEY, "-l") == f"{value!r}\n"
    for text in ("text", "print()", "[" * 500, ""):
        done = run(nodes[0], "set", "--literal", KEY, text)
        assert done.exit_code == 2 and "neither JSON nor a Python literal" in done.stderr


def test_ints_of_any_size(nodes: list[Dict]) -> None:
    """Ints of more digits than Python's own limit are given, stored, listed and printed like any other."""
    big = "1" + "0" * 5000
    limit = sys.get_int_max_str_digits()
    out(nodes[0], "set", "--literal", KEY, f"[{big}, -{big}]")
    assert nodes[0][KEY] == [10**5000, -(10**5000)]
    assert out(nodes[0], "get", KEY) == f"[{big}, -{big}]\n"
    assert f'"value": [{big}, -{big}]' in out(nodes[0], "get", KEY, "--json")
    out(nodes[0], "set", "--literal", KEY, f"({big}, None, {{1}})")
    assert nodes[0][KEY] == (10**5000, None, {1})
    out(nodes[0], "set", "-k", big, "value")
    assert nodes[0][10**5000] == "value"
    assert out(nodes[0], "get", "-k", big) == "value\n"
    assert out(nodes[0], "keys") == f"k\n{big}\n"
    assert out(nodes[0], "keys", "--json") == f'{{"keys": ["k", {big}]}}\n'
    out(nodes[0], "delete", "-k", big)
    assert 10**5000 not in nodes[0]
    assert sys.get_int_max_str_digits() == limit


def test_a_text_that_looks_like_a_literal_is_hinted_at(nodes: list[Dict]) -> None:
    """`set` without --literal stores text, and says on standard error when that looks as if it was not meant."""
    for text, kind in (('{"x": 1}', "dict"), ("5", "int"), ("true", "bool"), ("(1, 2)", "tuple"), ('"quoted"', "str")):
        done = run(nodes[0], "set", KEY, text)
        assert (done.exit_code, done.stdout, nodes[0][KEY]) == (0, "", text)
        assert f"with --literal it is a {kind}" in done.stderr and text in done.stderr
    for text in ("text", "{x}", "on", "10.0.0.1:7000"):
        assert run(nodes[0], "set", KEY, text).stderr == ""
    assert run(nodes[0], "set", "--literal", KEY, "5").stderr == ""
    assert run(nodes[0], "set", KEY, given=b"5").stderr == ""
    assert run(nodes[0], "set", KEY, "5", "--if-absent").stderr.startswith("Error: not stored")


def shell(node: Dict, line: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line with `replidict` in it."""
    settings = environment({"REPLIDICT_NODE": str(node.status().address)})
    return subprocess.run(
        ["sh", "-c", line.replace("replidict", COMMAND)], capture_output=True, text=True, check=False, env=settings
    )


def test_closed_standard_output_is_said(nodes: list[Dict]) -> None:
    """With standard output closed, what would print there does nothing, and says why; what prints nothing works."""
    nodes[0][KEY] = "v"
    for line in (f"get {KEY}", "keys --json", f"set {KEY} w --json", f"delete {KEY} --json", "add 127.0.0.1:1"):
        done = shell(nodes[0], f"replidict {line} >&-")
        assert done.returncode == 1 and done.stderr.startswith("Error: standard output is closed"), line
    assert nodes[0].get(KEY, linearizable=True) == "v" and len(nodes[0].members()) == 2
    assert shell(nodes[0], f"replidict set {KEY} w >&-").returncode == 0
    assert nodes[0].get(KEY, linearizable=True) == "w"


def test_other_standard_streams_that_fail(nodes: list[Dict], tmp_path: Path) -> None:
    """A full disk under standard output, a closed standard input and a closed standard error make no traceback."""
    nodes[0][KEY] = "v"
    done = shell(nodes[0], f"replidict get {KEY} >/dev/full")
    assert done.returncode == 1 and done.stderr == "Error: standard output: No space left on device\n"
    done = shell(nodes[0], f"replidict set {KEY} <&-")
    assert done.returncode == 2 and "standard input is closed" in done.stderr
    assert shell(nodes[0], f"replidict backup {tmp_path / 'b'} 2>&-").returncode == 0


def test_what_has_no_literal_is_shown(nodes: list[Dict]) -> None:
    """Values of all types are shown as Python writes them, and as JSON where that can say it."""
    nodes[0][KEY] = (dt.date(2024, 2, 29), Decimal("9.90"), b"\xff", {"x"})
    assert out(nodes[0], "get", KEY) == "(datetime.date(2024, 2, 29), Decimal('9.90'), b'\\xff', {'x'})\n"
    said = json.loads(out(nodes[0], "get", KEY, "--json"))
    assert said == {
        "key": KEY, "value": ["2024-02-29", "9.90", "/w==", ["x"]], "type": "tuple",
        "revision": nodes[0].versioned(KEY).revision,  # type: ignore[union-attr]
    }  # fmt: skip
    nodes[0][KEY] = {1: 2}
    assert out(nodes[0], "get", KEY) == "{1: 2}\n"
    done = run(nodes[0], "get", KEY, "--json")
    assert done.exit_code == 1 and "JSON can't represent" in done.stderr and done.stdout == ""
    nodes[0][KEY] = float("nan")
    done = run(nodes[0], "get", KEY, "--json")
    assert done.exit_code == 1 and "JSON can't represent nan" in done.stderr and "Usage" not in done.stderr
    nodes[0][KEY] = "\ud800"
    assert out(nodes[0], "get", KEY) == "'\\ud800'\n"


def test_from_and_to_a_file(nodes: list[Dict]) -> None:
    """What is sent to standard input is stored byte for byte, as text if it is UTF-8, and --raw gives it back."""
    for data in (b"", b"text\n", "Wörter".encode(), b"\xff\x00", os.urandom(300_000)):
        out(nodes[0], "set", KEY, given=data)
        assert type(nodes[0][KEY]) is (bytes if b"\xff" in data else str)
        assert run(nodes[1], "get", KEY, "--raw").stdout_bytes == data
    nodes[0][KEY] = 5
    assert run(nodes[1], "get", KEY, "--raw").exit_code == 1


def test_conditions(nodes: list[Dict]) -> None:
    """--if-absent and --if-revision store in one step or not at all, and the exit status says which."""
    out(nodes[0], "set", KEY, "first", "--if-absent")
    done = run(nodes[1], "set", KEY, "second", "--if-absent", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout) == {"done": False} and "is there" in done.stderr
    revision = json.loads(out(nodes[0], "get", KEY, "--json"))["revision"]
    assert run(nodes[0], "set", KEY, "third", "--if-revision", str(revision + 1)).exit_code == 1
    out(nodes[0], "set", KEY, "third", "--if-revision", str(revision))
    assert out(nodes[0], "get", KEY) == "third\n"
    assert run(nodes[0], "set", KEY, "x", "--if-absent", "--if-revision", "1").exit_code == 2
    assert run(nodes[0], "set", KEY, "x", "--if-revision", "9" * 23).exit_code == 2
    said = json.loads(out(nodes[0], "set", KEY, "last", "--json"))
    assert said == {"done": True, "revision": nodes[0].versioned(KEY).revision}  # type: ignore[union-attr]


def test_delete(nodes: list[Dict]) -> None:
    """A key that is there is removed; one that is not is exit status 1, for `get` as well."""
    nodes[0][KEY] = 1
    assert out(nodes[1], "delete", KEY) == ""
    assert KEY not in nodes[1]
    for command in ("delete", "get"):
        done = run(nodes[0], command, KEY)
        assert done.exit_code == 1 and done.stdout == "" and f"no key {KEY!r}" in done.stderr


def test_keys(nodes: list[Dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are listed in order, by prefix, from a key on, up to a limit, over more pages than one; those that are no
    text come last, as literals."""
    names = [f"{KEY}/{number:03}" for number in range(50)]
    nodes[0].update(dict.fromkeys(reversed(names), 1))
    for page in (7, 50, 1000):
        monkeypatch.setattr("replidict.protocol.client_messages.PAGE_MAX", page)
        assert out(nodes[1], "keys", f"{KEY}/").split() == names
        assert out(nodes[1], "keys", f"{KEY}/", "--limit", "20").split() == names[:20]
        assert out(nodes[1], "keys", f"{KEY}/", "--limit", "5", "--after", names[9]).split() == names[10:15]
    assert out(nodes[1], "keys", f"{KEY}/", "--limit", "0") == ""
    assert json.loads(out(nodes[1], "keys", f"{KEY}/", "--json", "--limit", "2")) == {"keys": names[:2]}
    assert out(nodes[1], "keys", f"{KEY}/", "-l", "--limit", "1") == f"{names[0]!r}\n"
    nodes[0][(1, "x")] = nodes[0][b"\xff"] = 1
    everything = out(nodes[1], "keys").splitlines()
    assert {"(1, 'x')", "b'\\xff'"} == set(everything[-2:]) and everything[:-2] == sorted(everything[:-2])
    assert out(nodes[0], "get", "-k", "(1, 'x')") == "1\n"
    assert out(nodes[0], "set", "-k", "(1, 'x')", "2") == "" and nodes[0][(1, "x")] == "2"
    assert out(nodes[0], "delete", "-k", "b'\\xff'") == ""
    del nodes[0][(1, "x")]


ESCAPES = "\x1b[2J\x07"


def test_control_characters_stay_off_the_terminal(nodes: list[Dict]) -> None:
    """A key with control characters is printed as a literal, so that it does nothing to a terminal and is one line; so
    is such a value, on a terminal, where tabs and line ends stay what they are."""
    nodes[0][f"{KEY}{ESCAPES}\n"] = f"a{ESCAPES}"
    nodes[0]["plain"] = "two\n\tlines"
    assert out(nodes[0], "keys").splitlines() == [repr(f"{KEY}{ESCAPES}\n"), "plain"]
    assert out(nodes[0], "get", f"{KEY}{ESCAPES}\n") == f"a{ESCAPES}\n"
    assert run(nodes[0], "get", f"{KEY}{ESCAPES}\n", "--raw").stdout_bytes == f"a{ESCAPES}".encode()
    ours, theirs = pty.openpty()
    settings = environment({"REPLIDICT_NODE": str(nodes[0].status().address)})
    for key in (f"{KEY}{ESCAPES}\n", "plain"):
        subprocess.run([COMMAND, "get", key], stdout=theirs, env=settings, check=True)
    os.close(theirs)
    said = b""
    while not said.endswith(b"lines\r\n"):
        said += os.read(ours, 10_000)
    os.close(ours)
    assert said == repr(f"a{ESCAPES}").encode() + b"\r\ntwo\r\n\tlines\r\n"


# -- the cluster ------------------------------------------------------------------------------------------------------


def test_status(nodes: list[Dict]) -> None:
    """What a node knows of itself, for people and for scripts."""
    leader = leader_of(nodes)
    said = json.loads(out(leader, "status", "--json"))
    assert said["role"] == "leader" and said["node_id"] == leader.status().node_id
    text = out(leader, "status")
    assert "role       leader" in text and str(leader.status().address) in text


def test_members(nodes: list[Dict]) -> None:
    """Everybody, whether they vote, who leads, how far they are."""
    leader = str(leader_of(nodes).status().address)
    addresses = sorted(str(node.status().address) for node in nodes)
    said = json.loads(out(nodes[0], "members", "--json"))["members"]
    assert [each["address"] for each in said] == addresses and all(each["voter"] for each in said)
    head, *rows = [line.split() for line in out(nodes[0], "members").splitlines()]
    assert head[:3] == ["MEMBER", "VOTE", "LEADS"] and [row[0] for row in rows] == addresses
    assert [row[0] for row in rows if row[2] == "leader"] == [leader]


def test_the_life_of_a_cluster(tmp_path: Path) -> None:
    """Added, joined, handed over, removed, from any node: each is done when the command returns."""
    with cluster(tmp_path, timeout=30) as nodes:
        (new,) = free_addresses(1)
        first = str(nodes[0].status().address)
        said = out(nodes[0], "add", new, "--no-vote")
        assert said == f"{new} may come: start it with --join, if it does not run yet.\n"
        with ReplicatedDict[str, Any](tmp_path / "new", address=new, join=first, voter=False, timeout=30) as joined:
            assert [m["voter"] for m in json.loads(out(new, "members", "--json"))["members"]].count(False) == 1
            out(new, "set", "k", "v")
            before = leader_of(nodes).status()
            to = next(str(n.status().address) for n in nodes if not n.status().is_leader)
            assert out(nodes[0], "transfer", to) == f"{to} leads now.\n"
            assert str(leader_of(nodes).status().address) == to
            led = out(nodes[0], "transfer").split()[0]
            assert led != to and leader_of(nodes).status().address == led
            assert leader_of(nodes).status().term <= before.term + 4, "one change of hands, or two, and no more"
            assert out(nodes[0], "remove", new) == f"{new} is no member any more.\n"
            wait_until(lambda: joined.status().role == "removed", "the removed node has stopped")
        done = run(nodes[0], "remove", new)
        assert done.exit_code == 1 and "no member" in done.stderr
        assert run(nodes[0], "transfer", new).exit_code == 1
        assert run(nodes[0], "add", "nonsense").exit_code == 2


def test_a_node_removes_itself(tmp_path: Path) -> None:
    """The node that is asked is the one to go, a follower or the leader: it may fall silent as it stops, and still the
    command says that it is done, since another member does."""
    with cluster(tmp_path, timeout=30) as nodes:
        for node in (next(n for n in nodes if not n.status().is_leader), leader_of(nodes)):
            gone = str(node.status().address)
            assert out(gone, "remove", gone) == f"{gone} is no member any more.\n"
        (left,) = (node for node in nodes if node.status().role != "removed")
        wait_until(lambda: [each.address for each in left.members()] == [left.status().address], "one is left")


def test_json_of_changes(nodes: list[Dict], tmp_path: Path) -> None:
    """What changes the cluster says for scripts that it is done, and what became of it."""
    (new,) = free_addresses(1)
    assert json.loads(out(nodes[0], "add", new, "--json")) == {"done": True, "address": new}
    assert json.loads(out(nodes[0], "remove", new, "--json")) == {"done": True, "address": new}
    to = next(str(n.status().address) for n in nodes if not n.status().is_leader)
    assert json.loads(out(nodes[0], "transfer", to, "--json")) == {"done": True, "leader": to}
    out(nodes[0], "backup", tmp_path / "b")
    restored = tmp_path / "r"
    said = json.loads(out("", "restore", tmp_path / "b", restored, "--address", new, "--json"))
    assert said == {"done": True, "path": str(restored), "address": new}
    with ReplicatedDict[str, Any](restored, address=new, timeout=30) as opened:
        opened.barrier()
    said = json.loads(out("", "recover", restored, "--yes", "--json"))
    who = json.loads(out("", "inspect", restored, "--json"))
    assert said == {
        "done": True, "path": str(restored), "certain": True, "address": new,
        "cluster_id": who["cluster_id"], "node_id": who["node_id"],
    }  # fmt: skip


def interrupted(*arguments: str, when: Callable[[], object]) -> tuple[int, str]:
    """How the command ends, and what it says, if Ctrl-C is pressed when this has returned."""
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which who runs the tests may ignore
    command = [COMMAND, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment({}), preexec_fn=heed) as process:
        try:
            when()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, said


def test_ctrl_c(tmp_path: Path) -> None:
    """Interrupted once a write was sent: it may be done, and that is exit status 4. Before, it is 130."""
    patient = Options(election_timeout=20)  # it goes on leading without the other one
    first, second = free_addresses(2)
    with ReplicatedDict[str, Any](tmp_path / "1", address=first, options=patient, timeout=30) as leader:
        with ReplicatedDict[str, Any](tmp_path / "2", address=second, join=first, options=patient, timeout=30):
            wait_until(lambda: all(each.voter for each in leader.members()), "the other one votes")
        before = leader.status().log_entries
        status, said = interrupted(
            "set", "k", "v", "--node", first,
            when=lambda: wait_until(lambda: leader.status().log_entries > before, "it is in the log"),
        )  # fmt: skip
        assert (status, "may or may not be done" in said) == (4, True), said
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        kept: list[socket.socket] = []
        status, said = interrupted("set", "k", "v", "--node", address, when=lambda: kept.append(silent.accept()[0]))
        kept[0].close()
    assert (status, said) == (130, "Error: interrupted\n")


def test_the_most_telling_error(tmp_path: Path) -> None:
    """A name of several addresses, one of which somebody else answers at: that is said, not that others refuse."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            while True:
                try:
                    client, _ = other.accept()
                except OSError:
                    return
                with client, suppress(OSError):  # it hangs up at what it reads
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    client.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        done = run(f"localhost:{other.getsockname()[1]}", "get", "k")
        other.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    assert done.exit_code == 1 and "speaks another protocol" in done.stderr


def test_without_a_majority(tmp_path: Path) -> None:
    """Writes and reads that need one end in time and say what is known; --local and status go on."""
    with cluster(tmp_path) as nodes:
        nodes[0]["k"] = "v"
        nodes[0].barrier()
        nodes[1].close()
        nodes[2].close()
        wait_until(lambda: not nodes[0].status().is_leader, "it has noticed")
        done = run(nodes[0], "set", "k", "w", "--timeout", "1")
        assert done.exit_code in (3, 4) and "Traceback" not in done.output
        done = run(nodes[0], "get", "k", "--timeout", "1")
        assert done.exit_code == 6 and done.stdout == ""
        assert out(nodes[0], "get", "k", "--local") == "v\n"
        assert json.loads(out(nodes[0], "status", "--json"))["is_leader"] is False
        assert run(nodes[0], "remove", str(nodes[1].status().address), "--timeout", "1").exit_code == 3


def test_no_node_there() -> None:
    """A node that does not run, or is none, is exit status 6; an address that is none is exit status 2."""
    (nowhere,) = free_addresses(1)
    done = run(nowhere, "get", "k")
    assert done.exit_code == 6 and nowhere in done.stderr and "check the address" in done.stderr
    for nonsense in ("nonsense", "", "host:0x10", "host:99999"):
        assert run("", "get", "k", "--node", nonsense).exit_code == 2
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert run(f"127.0.0.1:{silent.getsockname()[1]}", "get", "k", "--timeout", "0.3").exit_code == 6


# -- security ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_protection(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """A secret from a file or the environment, certificates by option or environment: who has none is not let in."""
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "wrong").write_text("another secret than theirs")
    good = {"--cert": certificates.good.cert, "--cert-key": certificates.good.key, "--ca": certificates.good.ca}
    options: dict[str, list[Any]] = {
        "plain": [],
        "secret": ["--secret-file", tmp_path / "secret"],
        "tls": [w for pair in good.items() for w in pair],
    }
    settings: dict[str, list[dict[str, Any]]] = {
        "plain": [{}],
        "secret": [{"REPLIDICT_SECRET": SECRET}, {"REPLIDICT_SECRET_FILE": str(tmp_path / "secret")}],
        "tls": [{f"REPLIDICT_{name[2:].replace('-', '_').upper()}": str(path) for name, path in good.items()}],
    }
    protected: dict[str, dict[str, Any]] = {
        "plain": {}, "secret": {"secret": SECRET}, "tls": {"tls": certificates.good}
    }  # fmt: skip
    (address,) = free_addresses(1)
    with ReplicatedDict[str, str](tmp_path / "n", address=address, timeout=30, **protected[mode]) as node:
        node["k"] = "v"
        assert out(address, "get", "k", *options[mode]) == "v\n"
        for setting in settings[mode]:
            assert out(address, "get", "k", **setting) == "v\n"
        strangers: list[list[Any]] = [["--secret-file", tmp_path / "wrong"], *([] if mode == "plain" else [[]])]
        for stranger in strangers:
            done = run(address, "get", "k", *stranger)
            assert done.exit_code == 7 and done.stdout == "" and SECRET not in done.output
    assert run(address, "get", "k", "--secret-file", tmp_path / "missing").exit_code == 7
    assert run(address, "get", "k", "--cert", tmp_path / "missing").exit_code == 2
    assert run("10.1.2.3:7000", "get", "k").exit_code == 7


def test_no_secret_is_an_option() -> None:
    """Nobody can be led to put a secret on a command line, which all users of a machine see."""
    for command in main.commands.values():
        assert not [option for option in command.params if option.name in ("secret", "token", "http_token")]


# -- backups ----------------------------------------------------------------------------------------------------------


def test_backup_and_restore(nodes: list[Dict], tmp_path: Path) -> None:
    """A node's state comes to a file on this machine, which is checked, only this user can read, and makes a new
    cluster; a file that is there is never replaced."""
    nodes[0][KEY] = [1, (2,)]
    nodes[0][f"{KEY}/big"] = os.urandom(1_000_000)
    said = json.loads(out(nodes[0], "backup", tmp_path / "b", "--json"))
    assert said == {
        "path": str(tmp_path / "b"), "revision": nodes[0].revision, "keys": len(nodes[0]),
        "index": said["index"], "size": (tmp_path / "b").stat().st_size,
    }  # fmt: skip
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0
    done = run(nodes[0], "backup", tmp_path / "b")
    assert done.exit_code == 1 and "never replaces" in done.stderr
    assert f"{len(nodes[0])} keys" in out(nodes[0], "backup", tmp_path / "b2")
    for nowhere in ("", "/", tmp_path / ".."):
        done = run(nodes[0], "backup", nowhere)
        assert done.exit_code in (1, 2) and "PosixPath" not in done.stderr
    done = run(nodes[0], "backup", tmp_path / "missing" / "b")
    assert done.exit_code == 1 and "no backup was made" in done.stderr
    (address,) = free_addresses(1)
    assert "first node" in out("", "restore", tmp_path / "b", tmp_path / "r", "--address", address)
    with ReplicatedDict[str, Any](tmp_path / "r", address=address) as restored:
        assert restored.snapshot() == nodes[0].snapshot()
    assert run("", "restore", tmp_path / "b", tmp_path / "r").exit_code == 5
    assert sorted(each.name for each in tmp_path.iterdir()) == ["b", "b2", "nodes", "r"]
    del nodes[0][f"{KEY}/big"]


def test_a_node_that_falls_silent(nodes: list[Dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup whose node says nothing any more is given up, as no answer in time, and nothing is left of it."""
    monkeypatch.setattr("replidict.client.connection.SILENCE", 1.0)
    nodes[0][KEY] = os.urandom(2_000_000)
    with through_proxy(str(nodes[0].status().address), 1_000_000) as address:
        done = run(address, "backup", tmp_path / "b")
    assert done.exit_code == 6 and "no answer" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["nodes"]


@contextmanager
def through_proxy(address: str, most: int) -> Iterator[str]:
    """Another address of a node, by which it says only so many bytes, and then nothing."""
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def forward(source: socket.socket, target: socket.socket, left: int) -> None:
            while left > 0 and (data := source.recv(65536)):
                target.sendall(data)
                left -= len(data)

        def serve() -> None:
            client, _ = listening.accept()
            with client, socket.create_connection((host, int(port))) as node:
                threading.Thread(target=forward, args=(node, client, most), daemon=True).start()
                forward(client, node, 1 << 60)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join(30)


def test_progress_on_a_terminal_only(nodes: list[Dict], tmp_path: Path) -> None:
    """What takes long shows how far it is, on a terminal, and never among what it prints."""
    ours, theirs = pty.openpty()
    settings = environment({"REPLIDICT_NODE": str(nodes[0].status().address)})
    done = subprocess.run(
        [COMMAND, "backup", tmp_path / "b"], stdout=subprocess.PIPE, stderr=theirs, env=settings, check=True, text=True
    )
    os.close(theirs)
    assert b"100%" in os.read(ours, 10_000)
    os.close(ours)
    assert "%" not in done.stdout and "keys" in done.stdout
    assert run(nodes[0], "backup", tmp_path / "b2").stderr == ""


# -- bench ------------------------------------------------------------------------------------------------------------


def test_bench(nodes: list[Dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of operation is measured, alone and side by side, and nothing of it stays."""
    monkeypatch.setattr(bench, "KEYS", 5)
    before = nodes[0].snapshot()
    said = json.loads(out(nodes[0], "bench", "--seconds", "0.1", "--connections", "3", "--size", "10", "--json"))
    assert [(each["operation"], each["connections"]) for each in said["results"]] == [
        (name, count) for name in ("set", "get", "get --local") for count in (1, 3)
    ]
    assert all(each["per_second"] > 0 and each["p50_ms"] <= each["longest_ms"] for each in said["results"])
    assert "milliseconds" in out(nodes[0], "bench", "--seconds", "0.1", "--connections", "1")
    assert nodes[0].snapshot() == before


def test_bench_that_is_interrupted_leaves_nothing(nodes: list[Dict]) -> None:
    """Ctrl-C while it writes: its keys are removed all the same, and the exit status is 130."""
    before = nodes[0].snapshot()
    status, said = interrupted(
        "bench", "--seconds", "60", "--node", str(nodes[0].status().address),
        when=lambda: wait_until(lambda: len(nodes[0]) > len(before), "it has written a key"),
    )  # fmt: skip
    assert (status, said) == (130, "Error: interrupted\n")
    nodes[0].barrier()
    assert nodes[0].snapshot() == before


def test_bench_that_fails_says_why(tmp_path: Path) -> None:
    """Without a majority it ends, with what the first operation ended with."""
    addresses = free_addresses(3)
    with open_member(tmp_path, addresses, 0):
        done = run(addresses[0], "bench", "--seconds", "0.1", "--timeout", "0.3", "--connections", "1")
        assert done.exit_code in (3, 4, 6) and "Traceback" not in done.output
