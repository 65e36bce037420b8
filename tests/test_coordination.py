"""Ttls, leases, locks and fences as a pure function of the log, against a plain model (promises 11 and 12)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict.machine import commands as cmd
from replidict.machine.changes import Changes
from replidict.machine.codec import DEFAULT_CODEC, decode, encode, encode_key
from replidict.machine.outcomes import BatchApplied
from replidict.machine.state_machine import StateMachine

KEYS = ["a", "b", "c"]
LEASES = [1, 2, 3]
REQUESTS = list(range(6))
NAMES = {"lock": 0, "pool": 2}  # names, and the permits asked for

Operation = tuple[Any, ...]


class Log:
    """A state machine that applies single operations, and is written down as its node would do it."""

    def __init__(self) -> None:
        self.machine = StateMachine(DEFAULT_CODEC)
        self.machine.apply(1, cmd.encode(cmd.OpenSession(b"n" * 16)))
        self.kept: dict[str, bytes] = {}
        self._sequence = 0

    def apply(self, command: cmd.Command) -> Changes:
        self.last = self.machine.apply(self.machine.applied_index + 1, cmd.encode(command))
        changes = self.machine.take_changes()
        told = self.machine.take_told()
        if not changes.cleared:
            assert [(change[3], change[4], change[0]) for change in told] == [row[1:] for row in changes.rows]
        self.expired = {change[0] for change in told if change[1] == "expire"}
        for name, data in changes.kept.items():
            if data is None:
                assert self.kept.pop(name, None) is not None or name not in self.kept
            else:
                self.kept[name] = data
        return changes

    def perform(self, operation: cmd.Operation) -> cmd.Result:
        self._sequence += 1
        self.changes = self.apply(cmd.TimedBatch(1, self._sequence, self._sequence - 1, [operation]))
        assert isinstance(self.last, BatchApplied)
        assert isinstance(self.last.results, list)
        return self.last.results[0]

    def tick(self, milliseconds: int) -> Changes:
        return self.apply(cmd.Tick(milliseconds))

    def reload(self) -> None:
        """Have another machine go on from what was written down."""
        old, self.machine = self.machine, StateMachine(DEFAULT_CODEC)
        rows = [(item.position, item.key, item.value, item.revision) for item in old.items.values()]
        self.machine.load(
            rows,
            list(old.sessions.items()),
            index=old.applied_index,
            revision=old.revision,
            next_position=old.take_changes().next_position,
            kept=list(self.kept.items()),
        )

    @property
    def map(self) -> dict[Any, Any]:
        return {key: decode(item.value) for key, item in self.machine.items.items()}


@dataclass
class Ticket:
    request: int
    lease: int
    shared: bool
    token: int = 0


@dataclass
class Model:
    """The same, as it would be said: lists, and a look at everything each time."""

    now: int = 0
    token: int = 0
    map: dict[str, int] = field(default_factory=dict)
    deadlines: dict[str, int] = field(default_factory=dict)
    hangs_on: dict[str, int] = field(default_factory=dict)
    leases: dict[int, tuple[int, int]] = field(default_factory=dict)  # ttl, deadline
    holders: dict[str, list[Ticket]] = field(default_factory=lambda: {name: [] for name in NAMES})
    queues: dict[str, list[Ticket]] = field(default_factory=lambda: {name: [] for name in NAMES})

    def tick(self, milliseconds: int) -> list[str]:
        """Returns the keys that expire."""
        self.now = max(self.now, milliseconds)
        ended = [lease for lease, (_, deadline) in self.leases.items() if deadline <= self.now]
        gone = [
            key
            for key in self.map
            if self.deadlines.get(key, self.now + 1) <= self.now or self.hangs_on.get(key) in ended
        ]
        self.end(ended, gone)
        return gone

    def end(self, leases: list[int], keys: list[str]) -> None:
        for key in keys:
            self.forget(key)
        for lease in leases:
            del self.leases[lease]
        for lines in (self.holders, self.queues):
            for name in lines:
                lines[name] = [ticket for ticket in lines[name] if ticket.lease not in leases]
        self.settle()

    def forget(self, key: str) -> None:
        for each in (self.map, self.deadlines, self.hangs_on):
            each.pop(key, None)

    def settle(self) -> None:
        for name in sorted(NAMES):
            holders, queue = self.holders[name], self.queues[name]
            while queue and (
                len(holders) < NAMES[name]
                if NAMES[name]
                else not holders or (queue[0].shared and all(holder.shared for holder in holders))
            ):
                self.token += 1
                holders.append(queue.pop(0))
                holders[-1].token = self.token

    def put(self, key: str, value: int, ttl: int | None = None, lease: int | None = None) -> None:
        self.map[key] = value
        self.deadlines.pop(key, None)
        self.hangs_on.pop(key, None)
        if ttl is not None:
            self.deadlines[key] = self.now + ttl
        if lease is not None:
            self.hangs_on[key] = lease

    def increment(self, key: str, by: int) -> None:
        self.map[key] = self.map.get(key, 0) + by

    def write(self, write: Operation) -> bool:
        """One write of a transaction. Returns whether it changed anything."""
        match write:
            case "put", key, value, ttl, lease:
                self.put(key, value, ttl, lease)
            case "increment", key, by:
                self.increment(key, by)
            case "delete", key:
                there = key in self.map
                self.forget(key)
                return there
        return True

    def renew(self, lease: int) -> None:
        self.leases[lease] = (self.leases[lease][0], self.now + self.leases[lease][0])

    def find(self, name: str, request: int) -> Ticket | None:
        return next((each for each in self.holders[name] + self.queues[name] if each.request == request), None)

    def leave(self, name: str, request: int) -> None:
        for lines in (self.holders, self.queues):
            lines[name] = [each for each in lines[name] if each.request != request]
        self.settle()


_ttls = st.one_of(st.none(), st.integers(1, 40))
_leases = st.sampled_from(LEASES)
_writes = st.one_of(
    st.tuples(
        st.just("put"), st.sampled_from(KEYS), st.integers(0, 9), _ttls, st.one_of(st.none(), st.none(), _leases)
    ),
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 9), st.none(), st.none()),
    st.tuples(st.just("delete"), st.sampled_from(KEYS)),
    st.tuples(st.just("increment"), st.sampled_from(KEYS), st.integers(0, 9)),
)
_fences = st.one_of(st.none(), st.none(), st.tuples(st.sampled_from(sorted(NAMES)), st.integers(1, 3)))
_steps = st.one_of(
    st.tuples(st.just("transact"), _fences, st.lists(_writes, max_size=5)),
    st.tuples(st.just("increment"), st.sampled_from(KEYS), st.integers(0, 9)),
    st.tuples(st.just("tick"), st.integers(-9, 30)),
    st.tuples(st.just("reload")),
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 9)),
    st.tuples(st.just("expiring"), st.sampled_from(KEYS), st.integers(0, 9), _ttls, st.one_of(st.none(), _leases)),
    st.tuples(st.just("expiring"), st.sampled_from(KEYS), st.integers(0, 9), _ttls, st.one_of(st.none(), _leases)),
    st.tuples(st.just("add"), st.sampled_from(KEYS), st.integers(0, 9), _ttls),
    st.tuples(st.just("expire"), st.sampled_from(KEYS), _ttls),
    st.tuples(st.just("delete"), st.sampled_from(KEYS)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("open"), _leases, st.integers(1, 60)),
    st.tuples(st.just("open"), _leases, st.integers(1, 60)),
    st.tuples(st.just("renew"), st.lists(_leases, max_size=3, unique=True)),
    st.tuples(st.just("end"), st.lists(_leases, max_size=2)),
    st.tuples(
        st.just("acquire"),
        st.sampled_from(sorted(NAMES)),
        st.sampled_from(REQUESTS),
        _leases,
        st.booleans(),
        st.booleans(),
    ),
    st.tuples(
        st.just("acquire"),
        st.sampled_from(sorted(NAMES)),
        st.sampled_from(REQUESTS),
        _leases,
        st.booleans(),
        st.just(True),
    ),
    st.tuples(st.just("release"), st.sampled_from(sorted(NAMES)), st.sampled_from(REQUESTS)),
    st.tuples(st.just("break"), st.sampled_from(sorted(NAMES)), st.integers(1, 12)),
    st.tuples(st.just("fenced"), st.sampled_from(sorted(NAMES)), st.integers(1, 12), st.sampled_from(KEYS)),
)


def run(log: Log, model: Model, step: Operation) -> None:
    """Have both do the same, and compare what they say of it."""
    match step:
        case "tick", ms:
            revision = log.machine.revision
            now = max(model.now + ms, 0)
            changes = log.tick(now)
            gone = model.tick(now)
            assert sorted(decode(row[1]) for row in changes.rows) == sorted(gone)
            assert {row[3] for row in changes.rows} == log.expired == ({revision + 1} if gone else set())
        case ("reload",):
            log.reload()
        case "put", key, value:
            log.perform(cmd.Put(encode_key(key), encode(value)))
            model.put(key, value)
        case "expiring", key, value, ttl, lease:
            said = log.perform(cmd.Expiring(cmd.Put(encode_key(key), encode(value)), ttl, lease))
            if lease is None or lease in model.leases:
                model.put(key, value, ttl, lease)
                assert isinstance(said, int)
            else:
                assert isinstance(said, str)
                assert said.startswith("LeaseLost: ")
        case "increment", key, by:
            model.increment(key, by)
            assert log.perform(increment(key, by)) == encode(model.map[key])
        case "transact", fence, writes:
            transact(log, model, fence, writes)
        case "add", key, value, ttl:
            assert log.perform(cmd.Expiring(cmd.Add(encode_key(key), encode(value)), ttl, None)) is (
                key not in model.map
            )
            if key not in model.map:
                model.put(key, value, ttl)
        case "expire", key, ttl:
            revision = log.machine.revision
            assert log.perform(cmd.Expire(encode_key(key), ttl)) is (key in model.map)
            assert log.machine.revision == revision
            if key in model.map:
                if ttl is None:
                    model.put(key, model.map[key])
                else:
                    model.deadlines[key] = model.now + ttl
        case "delete", key:
            log.perform(cmd.Delete(encode_key(key)))
            model.forget(key)
        case ("clear",):
            log.perform(cmd.Clear())
            for key in list(model.map):
                model.forget(key)
        case "open", lease, ttl:
            log.perform(cmd.OpenLease(lease, ttl))
            model.leases[lease] = (ttl, model.now + ttl)
        case "renew", leases:
            known = [lease for lease in leases if lease in model.leases]
            assert log.perform(cmd.RenewLeases(leases)) == len(known)
            for lease in known:
                model.renew(lease)
        case "end", leases:
            known = [lease for lease in dict.fromkeys(leases) if lease in model.leases]
            gone = [key for key in model.map if model.hangs_on.get(key) in known]
            assert log.perform(cmd.EndLeases(leases)) == len(known)
            assert sorted(decode(row[1]) for row in log.changes.rows) == sorted(gone)
            assert len({row[3] for row in log.changes.rows}) == bool(gone)
            assert not log.expired
            model.end(known, gone)
        case "acquire", name, request, lease, shared, wait:
            acquire(log, model, name, request, lease, shared, wait)
        case "release", name, request:
            ticket = model.find(name, request)
            said = log.perform(cmd.Release(name, request))
            assert said is (None if ticket is None else ticket.token != 0)
            model.leave(name, request)
        case "break", name, token:
            held = next((each for each in model.holders[name] if each.token == token), None)
            assert log.perform(cmd.BreakLock(name, token)) is (held is not None)
            if held is not None:
                model.leave(name, held.request)
        case "fenced", name, token, key:
            said = log.perform(cmd.Fenced(name, token, cmd.Put(encode_key(key), encode(token))))
            if any(each.token == token for each in model.holders[name]):
                model.put(key, token)
                assert isinstance(said, int)
            else:
                assert isinstance(said, str)
                assert said.startswith("LockLost: ")


def increment(key: str, by: int) -> cmd.Increment:
    return cmd.Increment(encode_key(key), encode(by), encode(0))


def transact(log: Log, model: Model, fence: tuple[str, int] | None, writes: list[Operation]) -> None:
    made: list[Any] = []
    for write in writes:
        match write:
            case "put", key, value, ttl, lease:
                put = cmd.Put(encode_key(key), encode(value))
                made.append(put if ttl is None and lease is None else cmd.Expiring(put, ttl, lease))
            case "delete", key:
                made.append(cmd.Delete(encode_key(key)))
            case "increment", key, by:
                made.append(increment(key, by))
    operation = cmd.Transact([], made)
    revision = log.machine.revision
    said = log.perform(operation if fence is None else cmd.Fenced(*fence, operation))
    if fence is not None and all(each.token != fence[1] for each in model.holders[fence[0]]):
        refused = "LockLost: "
    elif any(write[0] == "put" and write[4] not in (None, *model.leases) for write in writes):
        refused = "LeaseLost: "
    else:
        changed = [model.write(write) for write in writes]
        assert said == log.machine.revision == revision + any(changed)
        return
    assert isinstance(said, str)
    assert said.startswith(refused)
    assert (log.machine.revision, log.changes.rows, log.changes.kept) == (revision, [], {})


def acquire(log: Log, model: Model, name: str, request: int, lease: int, shared: bool, wait: bool) -> None:
    elsewhere = any(model.find(other, request) for other in NAMES if other != name)
    if elsewhere:
        return  # a request's number is drawn, and never given twice
    said = log.perform(cmd.Acquire(name, request, lease, shared, NAMES[name], wait, "holder", "info"))
    if lease not in model.leases:
        assert isinstance(said, str)
        assert said.startswith("LeaseLost: ")
        return
    known = model.find(name, request)
    if known is None:
        known = Ticket(request, lease, shared)
        model.queues[name].append(known)
        model.settle()
    if known.token:
        assert said == known.token
        assert said is not True
    elif wait:
        assert said is None
    else:
        assert said is False
        model.leave(name, request)
    model.renew(lease)


def compare(log: Log, model: Model) -> None:
    machine, coordination = log.machine, log.machine.coordination
    assert list(log.map.items()) == list(model.map.items())
    assert coordination.clock.now == model.now
    assert coordination.locks.token == model.token
    for key in model.map:
        ends = (model.deadlines.get(key), model.leases.get(model.hangs_on.get(key, 0), (0, None))[1])
        expected = min((each for each in ends if each is not None), default=None)
        assert coordination.leases.deadline(machine.items[key].position) == expected
    assert coordination.leases.open.keys() == model.leases.keys()
    for name in NAMES:
        lock = coordination.locks.by_name.get(name)
        holders = [] if lock is None else list(lock.holders.values())
        queue = [] if lock is None else list(lock.queue.values())
        assert [(each.request, each.token) for each in holders] == [(t.request, t.token) for t in model.holders[name]]
        assert [each.request for each in queue] == [t.request for t in model.queues[name]]
    deadlines = [*model.deadlines.values(), *(deadline for _, deadline in model.leases.values())]
    assert coordination.clock.next_deadline == min(deadlines, default=None)
    assert len(coordination.clock) == len(deadlines)


@settings(max_examples=150)
@given(st.lists(_steps, min_size=10, max_size=60))
def test_it_does_what_the_model_says(steps: list[Operation]) -> None:
    """Whatever the order of commands, ends, grants, tokens and fences are those of the plain model, also in a machine
    that goes on from what another one has written down; and nothing is written down that is no more."""
    log, model = Log(), Model()
    for step in steps:
        run(log, model, step)
        compare(log, model)
    again = dict(log.kept)
    log.reload()
    assert log.kept == again
    compare(log, model)
    named = {name.partition(":")[0] for name in log.kept if ":" in name}
    assert bool(model.leases) == ("lease" in named)
    assert bool(model.deadlines or model.hangs_on) == ("deadline" in named)


def test_a_transaction_leaves_the_rows_of_replaying_it() -> None:
    """A node that loads what was written down, and one that applies the log, have the same rows and the same times,
    also of keys that a transaction stored, removed and stored again with other ends."""
    log = Log()
    log.perform(cmd.OpenLease(1, 500))
    a, b, c = (encode_key(key) for key in "abc")

    def ending(key: bytes, ttl: int | None, lease: int | None = None) -> cmd.Expiring:
        return cmd.Expiring(cmd.Put(key, encode(1)), ttl, lease)

    log.perform(cmd.Transact([], [ending(a, 100), ending(b, 100), ending(c, 700, 1)]))
    log.tick(50)
    log.perform(
        cmd.Transact(
            [],
            [cmd.Delete(a), ending(a, None, 1), cmd.Put(b, encode(2)), ending(b, 80), increment("b", 1),
             increment("c", 1), ending(encode_key("d"), 5), cmd.Delete(encode_key("d"))],
        )
    )  # fmt: skip
    replayed = log.machine
    rows = dict(replayed.kept)
    assert sorted(rows) == ["clock", "deadline:2", "deadline:3", "deadline:4", "lease:1"]
    log.reload()
    assert log.machine.kept == log.kept == rows
    for now, left in ((129, ["b", "c", "a"]), (130, ["c", "a"]), (499, ["c", "a"]), (500, [])):
        log.tick(now)
        replayed.apply(replayed.applied_index + 1, cmd.encode(cmd.Tick(now)))
        replayed.take_changes()
        assert list(log.map) == list(replayed.items) == left
        assert log.machine.kept == replayed.kept


def held(log: Log, name: str, request: int, lease: int, *, shared: bool = False) -> cmd.Result:
    return log.perform(cmd.Acquire(name, request, lease, shared, 0, True, "holder", "info"))


def test_what_is_due_goes_as_one_change_in_order_of_deadline() -> None:
    """One `Tick` removes all that is due as one revision, first what was due first, and says that time did it."""
    log = Log()
    for key, ttl in (("late", 30), ("never", 900), ("early", 10)):
        log.perform(cmd.Expiring(cmd.Put(encode_key(key), encode(1)), ttl, None))
    changes = log.tick(30)
    assert [decode(row[1]) for row in changes.rows] == ["early", "late"]
    assert {row[3] for row in changes.rows} == log.expired == {4}
    assert list(log.map) == ["never"]


def test_nothing_goes_before_its_time() -> None:
    """A key with a ttl of 10 is there at 9 and gone at 10, however often the clock was heard."""
    log = Log()
    log.tick(1000)
    log.perform(cmd.Expiring(cmd.Put(encode_key("k"), encode(1)), 10, None))
    for now in (1001, 1009, 1000, 3):
        log.tick(now)
        assert log.map == {"k": 1}
    log.tick(1010)
    assert log.map == {}


def test_renewing_changes_no_revision() -> None:
    """Renewing a lease and `expire` change no key: no revision, no row of the map."""
    log = Log()
    log.perform(cmd.OpenLease(1, 50))
    log.perform(cmd.Put(encode_key("k"), encode(1)))
    for operation in (cmd.RenewLeases([1]), cmd.Expire(encode_key("k"), 5), cmd.Expire(encode_key("k"), None)):
        log.perform(operation)
        assert (log.machine.revision, log.changes.rows) == (1, [])


def test_asking_for_a_lock_renews_the_lease() -> None:
    """Asking for a lock renews the lease that the request depends on: it lives for its whole ttl from then on."""
    log = Log()
    log.perform(cmd.OpenLease(1, 50))
    log.tick(40)
    held(log, "x", 1, 1)
    log.tick(89)
    assert list(log.machine.coordination.leases.open) == [1]
    log.tick(90)
    assert not log.machine.coordination.leases.open
    assert not log.machine.coordination.locks.by_name


def test_nobody_who_is_gone_is_granted_a_lock() -> None:
    """When holder and first waiter end together, the second waiter has the lock, with the next token."""
    log = Log()
    for lease, ttl in ((1, 10), (2, 10), (3, 900)):
        log.perform(cmd.OpenLease(lease, ttl))
    assert held(log, "x", 1, 1) == 1
    assert held(log, "x", 2, 2) is None
    assert held(log, "x", 3, 3) is None
    log.tick(10)
    (ticket,) = log.machine.coordination.locks.by_name["x"].holders.values()
    assert (ticket.request, ticket.token) == (3, 2)


def test_no_reader_overtakes_a_writer() -> None:
    """Readers share a lock; once a writer waits, later readers wait behind it."""
    log = Log()
    log.perform(cmd.OpenLease(1, 900))
    assert held(log, "x", 1, 1, shared=True) == 1
    assert held(log, "x", 2, 1, shared=True) == 2
    assert held(log, "x", 3, 1) is None
    assert held(log, "x", 4, 1, shared=True) is None
    log.perform(cmd.Release("x", 1))
    log.perform(cmd.Release("x", 2))
    assert list(log.machine.coordination.locks.by_name["x"].holders) == [3]


def test_a_name_is_a_lock_or_a_semaphore() -> None:
    """As long as somebody has it, a name has the permits that the first one asked for; others are refused in words."""
    log = Log()
    log.perform(cmd.OpenLease(1, 900))
    assert log.perform(cmd.Acquire("x", 1, 1, False, 3, True, "", "")) == 1
    said = held(log, "x", 2, 1)
    assert isinstance(said, str)
    assert "semaphore with permits=3" in said
    log.perform(cmd.Release("x", 1))
    assert held(log, "x", 2, 1) == 2


def test_tokens_go_on_above_what_is_said() -> None:
    """A `Tick` can say that tokens up to some number may have been granted: the next one is larger."""
    log = Log()
    log.perform(cmd.OpenLease(1, 900))
    log.apply(cmd.Tick(0, 1000))
    log.apply(cmd.Tick(0, 5))
    log.reload()
    assert held(log, "x", 1, 1) == 1001


@pytest.mark.parametrize("ttl", [2**63, 2**64 - 1])
def test_any_number_is_a_ttl(ttl: int) -> None:
    """A number that nobody will live to see is no reason to fail: the state can be written down all the same."""
    log = Log()
    log.perform(cmd.Expiring(cmd.Put(encode_key("k"), encode(1)), ttl, None))
    log.perform(cmd.OpenLease(1, ttl))
    log.tick(2**64 - 1)
    assert log.map == {}


def test_many_renewals_cost_no_memory() -> None:
    """A deadline that is moved on and on leaves nothing behind."""
    log = Log()
    log.perform(cmd.OpenLease(1, 50))
    clock = log.machine.coordination.clock
    for now in range(0, 5000, 10):
        log.tick(now)
        log.perform(cmd.RenewLeases([1]))
    assert len(clock._heap) <= 2 * len(clock) + 64


@pytest.mark.parametrize(
    ("operation", "needs"),
    [
        (cmd.Put(b"", b""), False),
        (cmd.Release("x", 1), False),
        (cmd.EndLeases([1]), False),
        (cmd.Expire(b"", None), False),
        (cmd.Expire(b"", 1), True),
        (cmd.Expiring(cmd.Put(b"", b""), None, 1), False),
        (cmd.Expiring(cmd.Put(b"", b""), 1, None), True),
        (cmd.Fenced("x", 1, cmd.Put(b"", b"")), False),
        (cmd.Fenced("x", 1, cmd.Expiring(cmd.Put(b"", b""), 1, None)), True),
        (cmd.Increment(b"", b"", b""), False),
        (cmd.Transact([], []), False),
        (cmd.Transact([], [cmd.Put(b"", b""), cmd.Expiring(cmd.Put(b"", b""), None, 1)]), False),
        (cmd.Transact([], [cmd.Put(b"", b""), cmd.Expiring(cmd.Put(b"", b""), 1, None)]), True),
        (cmd.Fenced("x", 1, cmd.Transact([], [cmd.Expiring(cmd.Put(b"", b""), 1, 1)])), True),
        (cmd.RenewLeases([1]), True),
        (cmd.OpenLease(1, 1), True),
    ],
)
def test_what_needs_the_time(operation: cmd.Operation, needs: bool) -> None:
    """A write without a ttl needs no clock, so it costs no `Tick`."""
    assert cmd.needs_time(operation) is needs


def test_a_glance_tells_ticks_and_timed_batches() -> None:
    """A leader tells by two bytes what needs the time, and that a follower proposes what it may not."""
    tick, timed = cmd.encode(cmd.Tick(5)), cmd.encode(cmd.TimedBatch(1, 1, 0, []))
    assert cmd.is_tick(tick)
    assert not cmd.may_be_proposed(tick)
    assert cmd.is_timed(timed)
    assert cmd.may_be_proposed(timed)
    plain = cmd.encode(cmd.Batch(1, 1, 0, []))
    assert not cmd.is_tick(plain)
    assert not cmd.is_timed(plain)
