"""The benchmark suite runs, cleans up behind itself, and computes its figures right. Nothing here depends on speed."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import etcd, etcd_wire, hashicorp
from benchmarks.measure import percentile, run_threads
from benchmarks.report import markdown, number, plain
from benchmarks.results import ANY, Result, Row, medians
from benchmarks.suite import BENCHMARKS
from benchmarks.suite.locks import between
from benchmarks.systems import cluster

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_quick_run_yields_positive_figures_for_every_case(tmp_path: Path) -> None:
    """What docs/benchmarks.md is made from: JSON, tables and Markdown of a run, and nothing left of its files."""
    files = tmp_path / "files"
    files.mkdir()
    done = run(
        *(
            "--quick",
            "floor",
            "writes",
            "anatomy",
            "reads",
            "--without",
            "etcd",
            "--without",
            "raft",
            "--without",
            "diskcache",
        ),
        *("--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md"), "--directory", str(files)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(files.iterdir()) == []
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["quick"] and found["runs"] == 1 and found["cpus"] >= 1
    assert found["versions"].keys() >= {"python", "sqlite", "replidict", "pysyncobj"}
    assert found["left out"] == [f"{peer} is left out, as asked" for peer in ("etcd", "raft", "diskcache")]
    assert list(found["benchmarks"]) == ["floor", "writes", "anatomy", "reads"]
    for benchmark in found["benchmarks"].values():
        assert benchmark["failed"] is None
        assert not any("calls failed" in note for note in benchmark["notes"])
        for row in benchmark["rows"]:
            assert all(figure > 0 for figure in row["figures"].values()), row
            assert {"p50 ms", "p50 us"} & row["figures"].keys()

    writes = found["benchmarks"]["writes"]["rows"]
    cases = {(row["system"], *row["case"].values()) for row in writes}
    places = [(1, "alone"), (3, "leader"), (3, "follower")]
    assert cases == {
        ("SQLite commit", ANY, ANY, 1),
        ("replicated, nothing else", 3, "leader", 1),
        *(("replidict", *place, threads) for place in places for threads in (1, 16)),
        *(("stock", *place, threads) for place in places[1:] for threads in (1, 16)),
    }
    case = {"nodes": 3, "at": "leader", "threads": 1}
    on_leader = next(row for row in writes if row["system"] == "replidict" and row["case"] == case)
    assert on_leader["ratios"].keys() == {
        *("p50 ms / SQLite commit", "p50 ms / stock", "per s / stock", "CPU us / stock"),
        *(f"{figure} / replicated, nothing else" for figure in ("p50 ms", "per s", "CPU us")),
    }
    kinds = {(row["case"]["read"], row["case"]["at"]) for row in found["benchmarks"]["reads"]["rows"]}
    assert kinds == {(kind, place) for kind in ("local", "linearizable") for place in ("leader", "follower")}
    assert "| replidict | 3 | follower | 16 |" in (tmp_path / "out.md").read_text()
    assert "writes: " in done.stdout


def test_list_names_every_benchmark() -> None:
    """`--list` says what there is."""
    done = run("--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [each.name for each in BENCHMARKS]


def test_an_unknown_name_is_refused() -> None:
    """A misspelt name must not pass for a run of nothing."""
    done = run("wirtes")
    assert done.returncode == 2 and "wirtes" in done.stderr


@pytest.mark.parametrize("option", ["--json", "--markdown", "--picture", "--directory"])
def test_what_cannot_be_written_is_refused_before_the_run(tmp_path: Path, option: str) -> None:
    """A full run takes an hour: that its figures have nowhere to go is said first."""
    for wrong in (tmp_path / "missing" / "out.svg", *([tmp_path] if option != "--directory" else [])):
        done = run("--list", option, str(wrong))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{option} {wrong}" in done.stderr
    done = run("--list", "--picture", str(tmp_path / "out.bmp"))
    assert done.returncode == 2 and ".svg or .png" in done.stderr
    done = run("--list", "floor", "--picture", str(tmp_path / "out.svg"))
    assert done.returncode == 2 and "writes" in done.stderr


@pytest.mark.skipif(etcd.missing() is not None, reason="etcd or grpcio is not installed")
def test_etcd_keeps_what_the_client_writes(tmp_path: Path) -> None:
    """The hand-written messages are those of etcd, so that what is timed is a real write and a real read."""
    with cluster(tmp_path, "etcd", 3) as members:
        for place in ("leader", "follower"):
            client = members.at(place)
            client.call("load", keys=20, piece=10)
            for kind in ("local", "linearizable"):
                assert client.call("reads", threads=2, seconds=0.1, kind=kind, keys=20)["count"] > 0
            assert client.call("writes", threads=2, seconds=0.1)["errors"] == 0
            client.call("clear_numbers", keys=3)
            moved = client.call("transactions", threads=4, seconds=0.2, keys=3)
            assert moved["count"] > 0 and moved["errors"] == 0
            assert client.call("sum_of_numbers", keys=3) == 0
        both = [members.at(place).submit("hand_overs", rounds=3, hold=0.05) for place in ("leader", "follower")]
        turns = sorted(turn for each in both for turn in each.result(60))
        assert len(turns) == 6 and all(then[0] > turn[1] for turn, then in pairwise(turns))
        assert members.at("follower").call("queue", waiters=3)["ms a hand-over"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(hashicorp.missing() is not None, reason="Go or hashicorp/raft is not installed")
def test_hashicorp_raft_takes_writes_and_reads(tmp_path: Path) -> None:
    """The Go program builds, elects a leader, and does what is timed."""
    with cluster(tmp_path, "raft", 3) as members:
        client = members.at("leader")
        client.call("fill")
        assert client.call("reads", threads=2, seconds=0.1, kind="linearizable")["count"] > 0
        written = client.call("writes", threads=2, seconds=0.1)
        assert written["count"] > 0 and written["errors"] == 0
        refused = members.at("follower").call("writes", threads=1, seconds=0.1)
        assert refused["count"] == 0 and "not the leader" in refused["error"]
    assert list(tmp_path.iterdir()) == []


def test_etcd_messages() -> None:
    """Against bytes written out from the protobuf specification."""
    assert etcd_wire.put_request(b"k", b"v" * 300) == b"\x0a\x01k\x12\xac\x02" + b"v" * 300
    assert etcd_wire.range_request(b"k", serializable=True) == b"\x0a\x01k\x38\x01"
    assert etcd_wire.txn_request([b"p"]) == b"\x12\x03\x12\x01p"
    pair = etcd_wire.bytes_field(1, b"k") + b"\x10\x05" + etcd_wire.bytes_field(5, b"v")
    assert etcd_wire.value_of(etcd_wire.bytes_field(1, b"") + etcd_wire.bytes_field(2, pair)) == b"v"
    assert etcd_wire.value_of(b"") is None
    assert etcd_wire.watch_request(b"k") == b"\x0a\x03\x0a\x01k"
    event = etcd_wire.bytes_field(2, pair)
    assert etcd_wire.watched_values(b"\x10\x01" + etcd_wire.bytes_field(11, event) * 2) == [b"v", b"v"]
    compare = b"\x10\x02\x1a\x01k\x30\x07"  # target: mod revision; key; 7
    assert etcd_wire.txn_request([b"p"], [(b"k", 7)]) == b"\x0a\x07" + compare + b"\x12\x03\x12\x01p"
    assert etcd_wire.read_request([b"r"]) == b"\x12\x03\x0a\x01r"
    pair = etcd_wire.bytes_field(1, b"k") + b"\x18\x07" + etcd_wire.bytes_field(5, b"v")
    responses = [etcd_wire.bytes_field(1, etcd_wire.bytes_field(2, pair)), etcd_wire.bytes_field(1, b"")]
    answer = b"\x10\x01" + b"".join(etcd_wire.bytes_field(3, each) for each in responses)
    assert etcd_wire.succeeded(answer) and not etcd_wire.succeeded(b"")
    assert etcd_wire.read_values(answer) == [(b"v", 7), (None, 0)]
    assert etcd_wire.lock_request(b"k", 5) == b"\x0a\x01k\x10\x05" and etcd_wire.lease_grant_request(5) == b"\x08\x05"
    assert etcd_wire.member_and_leader(b"\x0a\x03\x10\x80\x01" + b"\x20\x80\x01" + b"\x30\x07") == (128, 128, 7)


def test_hand_overs_are_between_processes() -> None:
    """From a release to when the next one had the lock, unless that is the same process."""
    assert between([[(1.0, 2.0), (6.0, 7.0), (7.1, 8.0)], [(2.5, 5.0)]]) == [0.5, 1.0]


def test_percentiles() -> None:
    """By nearest rank."""
    ordered = [float(each) for each in range(1, 101)]
    assert [percentile(ordered, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) == 0.0


def test_failures_are_counted_and_not_timed() -> None:
    """A system that fails fast must not look fast."""

    def fail(_: str) -> None:
        raise OSError("no")

    found = run_threads(fail, [["a"], ["b"]], 5.0)
    assert found["count"] == 0 and found["errors"] > 2 and found["error"] == "OSError: no"


def test_medians_and_ratios() -> None:
    """A ratio compares the medians of the same case; what does not depend on the case compares with all."""
    rows = [Row("replidict", {"nodes": 3, "threads": 1}, {"p50 ms": value}) for value in (9.0, 1.0, 2.0)]
    rows += [
        Row("etcd", {"nodes": 3, "threads": 1}, {"p50 ms": 4.0}),
        Row("etcd", {"nodes": 1, "threads": 1}, {"p50 ms": 100.0}),
        Row("floor", {"nodes": ANY, "threads": 1}, {"p50 ms": 1.0}),
    ]
    result = Result("name", "title", ("p50 ms",), ("etcd", "floor"))
    result.rows, result.runs = medians(rows)
    assert [len(run) for run in result.runs] == [3, 1, 1, 1]
    assert result.ratios(result.rows[0]) == {"p50 ms / etcd": 0.5, "p50 ms / floor": 2.0}
    assert result.ratios(result.rows[1]) == {}
    assert "0.500x" in plain(result)


def test_failed_benchmarks_are_in_the_report() -> None:
    """A benchmark that broke down must not look as if it had not been asked for."""
    result = Result("name", "title", (), (), failed="Failed: why")
    about = {
        "versions": {},
        "command": "python -m benchmarks",
        "date": "2026-01-01T00:00:00",
        "runs": 1,
        "processor": "",
        "cpus": 2,
        "memory GiB": 1,
        "system": "",
        "file system": "",
        "left out": [],
    }
    assert "FAILED: Failed: why" in plain(result)
    assert "**Failed**: Failed: why" in markdown([result], about)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00084, "0.00084"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (20, "20")],
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    """Enough to compare, and no more than was measured."""
    assert number(value) == text
    assert number(12_345.6) == "12,346"
