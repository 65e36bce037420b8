"""The views of a `ReplicatedDict` (each iteration sees one moment), and `Versioned`."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Reversible, ValuesView
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from typing_extensions import override

from replidict.brief import brief
from replidict.errors import DecodingError
from replidict.machine.changes import Item
from replidict.machine.stored_values import value_of

K = TypeVar("K")
V = TypeVar("V")

Moment = Callable[[], dict[Any, Item]]
Decode = Callable[[bytes], Any]

SHOWN = 20
"""So many keys, values or pairs are in a `repr`; that there are more is said by dots."""


class Versioned(NamedTuple, Generic[V]):
    """A value, and the revision that wrote it: what `ReplicatedDict.replace` compares with.

    Attributes:
        value: The value.
        revision: The revision of the write that stored it.
    """

    value: V
    revision: int


class Keys(KeysView[K]):
    """The keys."""

    _mapping: Reversible[K]  # set by KeysView

    def __reversed__(self) -> Iterator[K]:
        return reversed(self._mapping)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}([{_listed(brief(key) for key in self)}])"


class Items(ItemsView[K, V]):
    """The pairs."""

    def __init__(self, mapping: Mapping[K, V], moment: Moment, decode: Decode) -> None:
        super().__init__(mapping)
        self._moment = moment
        self._decode = decode

    @override
    def __contains__(self, item: object) -> bool:
        return isinstance(item, tuple) and len(item) == 2 and super().__contains__(item)

    @override
    def __iter__(self) -> Iterator[tuple[K, V]]:
        return ((key, value_of(self._decode, key, item.value)) for key, item in self._moment().items())

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return ((key, value_of(self._decode, key, item.value)) for key, item in reversed(self._moment().items()))

    @override
    def __repr__(self) -> str:
        pairs = (f"({brief(key)}, {_value(self._decode, key, item)})" for key, item in self._moment().items())
        return f"{type(self).__name__}([{_listed(pairs)}])"


class Values(ValuesView[V]):
    """The values."""

    def __init__(self, mapping: Mapping[Any, V], moment: Moment, decode: Decode) -> None:
        super().__init__(mapping)
        self._moment = moment
        self._decode = decode

    @override
    def __iter__(self) -> Iterator[V]:
        return (value_of(self._decode, key, item.value) for key, item in self._moment().items())

    @override
    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for each in self)

    def __reversed__(self) -> Iterator[V]:
        return (value_of(self._decode, key, item.value) for key, item in reversed(self._moment().items()))

    @override
    def __repr__(self) -> str:
        values = (_value(self._decode, key, item) for key, item in self._moment().items())
        return f"{type(self).__name__}([{_listed(values)}])"


def contents(moment: Iterable[tuple[Any, Item]], decode: Decode) -> str:
    """Pairs as the `repr` of a dict shows them, shortened."""
    return "{" + _listed(f"{brief(key)}: {_value(decode, key, item)}" for key, item in moment) + "}"


def _value(decode: Decode, key: object, item: Item) -> str:
    try:
        return brief(value_of(decode, key, item.value))
    except DecodingError:
        return "<can't be decoded on this machine>"


def _listed(texts: Iterator[str]) -> str:
    shown = list(islice(texts, SHOWN))
    return ", ".join([*shown, *(["..."] if next(texts, None) is not None else [])])
