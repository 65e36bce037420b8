"""What a replicated dict gives out: values with their revisions, and views, of which each iteration sees one moment."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Reversible, ValuesView
from typing import Any, Generic, NamedTuple, TypeVar

from typing_extensions import override

from replidict.machine.state_machine import Item

K = TypeVar("K")
V = TypeVar("V")

Moment = Callable[[], dict[Any, Item]]


class Versioned(NamedTuple, Generic[V]):
    """A value, and the revision that wrote it: what `ReplicatedDict.replace` wants back."""

    value: V
    revision: int


class Keys(KeysView[K]):
    """The keys."""

    _mapping: Reversible[K]  # set by KeysView

    def __reversed__(self) -> Iterator[K]:
        return reversed(self._mapping)


class Items(ItemsView[K, V]):
    """The pairs."""

    def __init__(self, mapping: Mapping[K, V], moment: Moment, decode: Callable[[bytes], Any]) -> None:
        super().__init__(mapping)
        self._moment = moment
        self._decode = decode

    @override
    def __contains__(self, item: object) -> bool:
        return isinstance(item, tuple) and len(item) == 2 and super().__contains__(item)

    @override
    def __iter__(self) -> Iterator[tuple[K, V]]:
        return ((key, self._decode(item.value)) for key, item in self._moment().items())

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return ((key, self._decode(item.value)) for key, item in reversed(self._moment().items()))


class Values(ValuesView[V]):
    """The values."""

    def __init__(self, mapping: Mapping[Any, V], moment: Moment, decode: Callable[[bytes], Any]) -> None:
        super().__init__(mapping)
        self._moment = moment
        self._decode = decode

    @override
    def __iter__(self) -> Iterator[V]:
        return (self._decode(item.value) for item in self._moment().values())

    @override
    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for each in self)

    def __reversed__(self) -> Iterator[V]:
        return (self._decode(item.value) for item in reversed(self._moment().values()))
