"""Is a recorded history of dict operations linearizable: does one order explain every result and respect real time?

The specification is a plain `dict` (`history.apply`). The search is Wing and Gong's, with Lowe's memory of
configurations (what is placed, state), as in Porcupine: in a linked list of calls and returns, whatever was called
before the first return may come next. What it leaves out never changes the verdict:

- **Unseen values.** No result tells apart two values that nothing ever compares with, so all of them become one.
- **Reads at once.** An operation that, given its result, cannot change any state (a read, a failed compare-and-set) is
  placed as soon as it fits: every order in which it comes later stays valid when it is moved to here.
- **Twins.** Of equal operations that may come next, the first to return goes first: swapping the two breaks nothing.
  Of equal unknown ones the first called goes first, since none of them ever has to.
- **Lost values.** A step is refused if it removes a value that an operation yet to be placed saw and none can write.
- **Transactions** are checked for strict serializability, since each is one operation on several keys. What it read is
  told by value: a key that was changed and changed back, or deleted and stored again, between read and commit is not
  noticed where values repeat, nor is a read whose value the history does not tell. A conflict is always allowed.
- **Fewer unknowns win.** Nothing obliges an unknown operation to happen. So a configuration fails if another one, with
  the same state and the same returned operations, used a subset of its unknown operations and failed. (Of all failed
  ones that could be completed, the one nearest to completion would lead to another one that is nearer.)
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.history import READS, SPANNING, UNCHECKED, Operation, State, apply

_UNSEEN = object()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `check` found: `assert verdict.ok, verdict` shows the explanation."""

    outcome: Literal["linearizable", "not linearizable", "undecided"]
    explanation: str = ""
    order: tuple[Operation, ...] = ()  # if linearizable, an order that proves it; per key, one key after the other
    configurations: int = 0  # how many the search looked at

    @property
    def ok(self) -> bool:
        return self.outcome == "linearizable"

    def __str__(self) -> str:
        return self.explanation or self.outcome


def partition_by_key(history: Iterable[Operation]) -> dict[Hashable, list[Operation]]:
    """One history per key: the whole is linearizable iff each of these is (locality: Herlihy and Wing)."""
    parts: defaultdict[Hashable, list[Operation]] = defaultdict(list)
    for op in history:
        if op.kind in SPANNING:
            raise ValueError(f"belongs to no single key: {op!r}")
        parts[op.key].append(op)
    return dict(parts)


def check(history: Iterable[Operation], *, initial: Mapping[Any, Any] | None = None, seconds: float = 60.0) -> Verdict:
    """Check `history` against a dict that held `initial`: key by key if no operation spans keys, else as a whole."""
    operations, start, end = list(history), tuple((initial or {}).items()), time.monotonic() + seconds
    whole = any(op.kind in SPANNING for op in operations)
    parts = [operations] if whole else sorted(partition_by_key(operations).values(), key=len)
    order, configurations, late = list[Operation](), 0, ""
    for number, part in enumerate(parts):
        held = start if whole else tuple(item for item in start if item[0] == part[0].key)
        now = time.monotonic()
        search = _Search(part, held, now + (end - now) / (len(parts) - number))
        ok = search.run()
        order, configurations = order + search.best, configurations + search.configurations
        if ok is False:
            return Verdict("not linearizable", _explain(held, search, min(seconds, 10.0)), (), configurations)
        if ok is None:
            late = late or f"undecided after {seconds} s: {len(part)} operations, the first is {part[0]}"
    return Verdict("undecided", late) if late else Verdict("linearizable", "", tuple(order), configurations)


def _explain(initial: State, search: _Search, seconds: float) -> str:
    """Draw the first return that no order explains (whatever precedes it in time is linearizable), if time allows."""
    returns, limit = search.ops[: search.count], time.monotonic() + seconds
    good, bad, step, order = search.furthest, search.count, 1, search.best
    while bad - good > 1:  # gallop from where the search got to, since a prefix that is linearizable is checked faster
        middle = good + step if good + step < bad else (good + bad) // 2
        known = set(map(id, returns[:middle]))
        opened = [op for op in search.ops if id(op) not in known and op.call <= returns[middle - 1].end]
        probe = _Search([*returns[:middle], *(replace(op, ret=None, result=None) for op in opened)], initial, limit)
        if (ok := probe.run()) is None:
            break
        good, bad, step, order = (middle, bad, step * 2, probe.best) if ok else (good, middle, 1, order)
    state, culprit = initial, returns[good]  # if time ran out, what the order could not get past
    for op in order:
        state = apply(state, op)[0]
    placed = {(op.client, op.call) for op in [*order, culprit]}
    waiting = [op for op in search.ops if op.call <= culprit.end and (op.client, op.call) not in placed]
    rows = [("  ", op) for op in order[-8:]] + [("? ", op) for op in waiting[:24]] + [("! ", culprit)]
    stamps = sorted({stamp for _, op in rows for stamp in (op.call, op.end)})
    width = max(len(str(op)) for _, op in rows)
    end = "fits nowhere" if bad - good == 1 else "is where time ran out"
    lines = [
        f"not linearizable: some order explains the first {good} of {len(returns)} returns, none the first {bad}",
        f"such an order ends with the unmarked ones and leaves {dict(state)}; ? is waiting; ! {end}",
    ]
    for mark, op in rows:
        left, right = stamps.index(op.call), stamps.index(op.end)
        bar = " " * left + "[" + "-" * (right - left) + (">" if op.ret is None else "]")
        lines.append(f"{mark}{op!s:<{width}}  {bar}  {op.call}..{'' if op.ret is None else op.ret}")
    return "\n".join(lines)


def _shape(op: Operation, seen: set[Any]) -> Operation:
    """What `op` does to the dict, whoever calls it and whenever, with all unseen values made one."""
    argument = op.argument
    if op.kind == "update":
        argument = [(key, value if (key, value) in seen else _UNSEEN) for key, value in argument]
    elif op.kind == "transact":
        argument = (argument[0], [(k, v if v is None or (k, v) in seen else _UNSEEN) for k, v in argument[1]])
    elif op.kind == "compare_and_set":
        argument = (argument[0], argument[1] if (op.key, argument[1]) in seen else _UNSEEN)
    elif op.kind in {"set", "add"} and (op.key, argument) not in seen:
        argument = _UNSEEN
    if op.ret is None:
        return Operation("", 0, None, "delete" if op.kind == "pop" else op.kind, op.key, argument)
    return Operation("", 0, 0, op.kind, op.key, argument, None if op.kind in UNCHECKED else op.result)


class _Search:
    """One search for an order of `history`, until the moment `limit`. Operations are numbered as they return."""

    def __init__(self, history: Iterable[Operation], initial: State, limit: float) -> None:
        self.ops = ops = sorted(
            (op for op in history if op.ret is not None or op.kind not in READS), key=lambda op: (op.end, op.call)
        )
        self.limit, self.configurations, self.furthest = limit, 0, -1
        self.best: list[Operation] = []  # an order of all that returned before operation number `furthest`
        self.count = count = sum(op.ret is not None for op in ops)
        seen = {item for op in ops for item in op.saw()}
        seen.update((op.key, op.argument[0]) for op in ops if op.kind == "compare_and_set")
        seen.update(item for op in ops if op.kind == "transact" for item in op.argument[0])
        shapes: dict[Operation, int] = {}
        self.shape = [shapes.setdefault(_shape(op, seen), len(shapes)) for op in ops]
        self.shapes = list(shapes)
        self.reads = [op.only_reads() for op in shapes]
        self.writes, self.saw = [op.writes() for op in shapes], [op.saw() for op in shapes]
        self.writers = Counter(item for shape in self.shape for item in self.writes[shape])  # of those yet to be placed
        self.seers = Counter(item for shape in self.shape for item in self.saw[shape])
        self.unknown: defaultdict[int, list[int]] = defaultdict(list)
        for number in range(count, len(ops)):
            self.unknown[self.shape[number]].append(number)
        # The linked list: event n is the call of operation n, event count + n its return; the head is the last event.
        events = [(op.call, False, number) for number, op in enumerate(ops[:count])]
        events += [(op.end, True, count + number) for number, op in enumerate(ops[:count])]
        ring = [2 * count, *(event for _, _, event in sorted(events))]
        self.after, self.before = [0] * len(ring), [0] * len(ring)
        for left, right in zip(ring, ring[1:] + ring[:1], strict=True):
            self.after[left], self.before[right] = right, left
        self.trail: list[int] = []  # what is placed, in its order
        self.placed = 0  # bit n: operation n, which returned, is in the trail
        self.states, self.numbers = [initial], {initial: 0}
        self.steps: dict[tuple[int, int], tuple[int, State] | None] = {}

    def run(self) -> bool | None:
        """Whether there is an order; None if time is up. Depth first: the stack says what to undo, and to try next."""
        state, used = 0, 0  # used, bit n: operation count + n, which is unknown, is in the trail
        tried: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
        stack: list[tuple[int, Iterator[tuple[int, int, int]]]] = []
        while True:
            candidates, first = self._place_reads(state)
            if first > self.furthest:
                self.furthest, self.best = first, [self.ops[number] for number in self.trail]
            if not candidates:
                return True
            self.configurations += 1
            if self.configurations % 256 == 0 and time.monotonic() > self.limit:
                return None
            rivals = tried[first, self.placed >> first, state]
            if not any(rival & used == rival for rival in rivals):
                rivals.append(used)
                stack.append((len(self.trail), self._choices(candidates, first, state, used)))
            while stack:
                mark, choices = stack[-1]
                self._take_back(mark)
                if (choice := next(choices, None)) is not None:
                    number, state, used = choice
                    self._place(number)
                    break
                stack.pop()
            else:
                return False

    def _place_reads(self, state: int) -> tuple[list[int], int]:
        """Place every read that fits; which returned operations may come next then, and which of all returns first."""
        while True:
            candidates, progress, event = [], False, self.after[-1]
            while event < self.count:
                following, shape = self.after[event], self.shape[event]
                if self.reads[shape] and self._step(state, shape):
                    self._place(event)
                    progress = True
                else:
                    candidates.append(event)
                event = following
            if not progress:
                return candidates, event - self.count

    def _choices(self, candidates: list[int], first: int, state: int, used: int) -> Iterator[tuple[int, int, int]]:
        """The steps to try: the operation, the state after it, and the unknown operations used by then."""
        turns = [(number, used) for number in sorted(candidates)]  # the most urgent first
        for twins in self.unknown.values():
            number = next((twin for twin in twins if not used >> twin - self.count & 1), -1)
            if number >= 0 and self.ops[number].call <= self.ops[first].end:
                turns.append((number, used | 1 << number - self.count))
        tried = set()
        for number, then in turns:
            shape = self.shape[number]
            if shape not in tried and (step := self._step(state, shape)):
                after, lost = step
                loses = (not self.writers[item] and self.seers[item] > self.saw[shape].count(item) for item in lost)
                if not (number >= self.count and after == state) and not any(loses):
                    yield number, after, then
            tried.add(shape)

    def _step(self, state: int, shape: int) -> tuple[int, State] | None:
        """The state after an operation of this shape, and the items that it removes; None if its result is another."""
        if (state, shape) not in self.steps:
            op, before = self.shapes[shape], self.states[state]
            after, result = apply(before, op)
            fits = op.ret is None or op.kind in UNCHECKED or result == op.result
            number = self.numbers.setdefault(after, len(self.states))
            self.states += [after] if number == len(self.states) else []
            self.steps[state, shape] = (number, tuple(set(before).difference(after))) if fits else None
        return self.steps[state, shape]

    def _place(self, number: int) -> None:
        self.trail.append(number)
        self._count(self.shape[number], -1)
        if number < self.count:
            self.placed ^= 1 << number
            for event in (number, number + self.count):
                before, after = self.before[event], self.after[event]
                self.after[before], self.before[after] = after, before

    def _take_back(self, mark: int) -> None:
        while len(self.trail) > mark:
            number = self.trail.pop()
            self._count(self.shape[number], 1)
            if number < self.count:
                self.placed ^= 1 << number
                for event in (number + self.count, number):
                    self.after[self.before[event]] = self.before[self.after[event]] = event

    def _count(self, shape: int, by: int) -> None:
        for item in self.writes[shape]:
            self.writers[item] += by
        for item in self.saw[shape]:
            self.seers[item] += by
