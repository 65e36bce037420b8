"""A cache backend for Django: `BACKEND = "replidict.contrib.django.ReplidictCache"`.

Values are what a dict keeps: numbers, texts, bytes, lists, dicts, dates and so on. Django's interface lets an
application cache any object that can be pickled, responses and querysets for instance. That needs
`OPTIONS = {"pickle": True}`, and means that whoever can write to the cluster can run code in the application. The
pickling is Django's own.

Rules kept here:

1. A process has one dict for a directory, whichever threads and aliases use it.
2. Values that may be pickles have keys of their own, so nothing that was stored without pickle is ever unpickled.
3. `incr` is one command, and never creates a key: one that has just expired would come back for ever.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.cache.backends.redis import RedisSerializer
from django.core.exceptions import ImproperlyConfigured
from typing_extensions import override

from replidict import EncodingError, ReplicatedDict, ReplidictError

PLAIN, PICKLED = "django.cache/", "django.cache.pickle/"
"""What keys begin with, by whether values may be pickles."""

DJANGOS = {"pickle", "MAX_ENTRIES", "CULL_FREQUENCY"}
"""Those of OPTIONS that are no arguments of `ReplicatedDict`."""

AT_ONCE = 200
"""Keys that are removed by one command."""

_ABSENT: Any = object()

_NO_SUMMAND = Decimal("1E+1000")
"""What `incr` counts an absent key as. Nothing can be added to it: the sum has more digits than `increment` keeps."""


class ReplidictCache(BaseCache):
    """Django's cache in a `ReplicatedDict`, shared by all processes of a machine and all machines of a cluster.

    `LOCATION` is the directory. `OPTIONS` are the arguments of `ReplicatedDict`, `share=True` being the default, with
    Django's `MAX_ENTRIES` and `CULL_FREQUENCY`, and `pickle`.

    Example:
        CACHES = {
            "default": {
                "BACKEND": "replidict.contrib.django.ReplidictCache",
                "LOCATION": "/var/lib/site/cache",
                "OPTIONS": {"address": "10.0.0.1:7000", "peers": ["10.0.0.2:7000", "10.0.0.3:7000"], "secret": SECRET},
            }
        }
    """

    def __init__(self, location: str | os.PathLike[str], params: dict[str, Any]) -> None:
        super().__init__(params)
        options = params.get("OPTIONS", {})
        self._location = os.path.realpath(location)
        self._arguments = {name: value for name, value in options.items() if name not in DJANGOS}
        self._pickles = RedisSerializer() if options.get("pickle") else None
        self._prefix = PLAIN if self._pickles is None else PICKLED

    @property
    def _dict(self) -> ReplicatedDict[str, Any]:
        return _open(self._location, self._arguments)

    @override
    def make_and_validate_key(self, key: Any, version: int | None = None) -> str:
        return self._prefix + super().make_and_validate_key(key, version)

    def _ttl(self, timeout: Any) -> float | None:
        """Seconds, 0 for what is not to be kept, None for ever."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else max(timeout, 0)

    def _stored(self, value: Any) -> Any:
        return value if self._pickles is None else self._pickles.dumps(value)

    @contextmanager
    def _refusing(self, key: Any) -> Iterator[None]:
        """Say in Django's words what a dict refuses to keep."""
        try:
            yield
        except EncodingError as error:
            hint = ' Or allow pickles: OPTIONS = {"pickle": True}' if self._pickles is None else ""
            raise EncodingError(f"the cache can't keep {key!r}: {error}.{hint}") from None

    # -- reading ------------------------------------------------------------------------------------------------------

    @override
    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        found = self._dict.get(self.make_and_validate_key(key, version), _ABSENT)
        if found is _ABSENT:
            return default
        return found if self._pickles is None else self._pickles.loads(found)

    @override
    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self.make_and_validate_key(key, version) in self._dict

    # -- writing ------------------------------------------------------------------------------------------------------

    @override
    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        made, ttl, stored = self.make_and_validate_key(key, version), self._ttl(timeout), self._stored(value)
        if ttl == 0:
            self._dict.delete(made)
            return
        self._make_room([made])
        with self._refusing(key):
            self._dict.set(made, stored, ttl=ttl)

    @override
    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store many values, each as a command of its own, all under way at once."""
        ttl = self._ttl(timeout)
        pairs = {self.make_and_validate_key(key, version): self._stored(value) for key, value in data.items()}
        if ttl == 0:
            self._remove(pairs)
            return []
        self._make_room(pairs)
        written = []
        for key, stored in pairs.items():
            with self._refusing(key.removeprefix(self._prefix)):
                written.append(self._dict.submit(key, stored, ttl=ttl))
        for each in written:
            each.result()
        return []

    @override
    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        made, ttl, stored = self.make_and_validate_key(key, version), self._ttl(timeout), self._stored(value)
        if ttl == 0:
            return made not in self._dict
        self._make_room([made])
        with self._refusing(key):
            return self._dict.add(made, stored, ttl=ttl)

    @override
    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        made, ttl = self.make_and_validate_key(key, version), self._ttl(timeout)
        return self._dict.delete(made) if ttl == 0 else self._dict.expire(made, ttl)

    @override
    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> Any:
        """Add to a number, exactly once, and leave its timeout as it is. Rule 3."""
        made = self.make_and_validate_key(key, version)
        d = self._dict
        try:
            return d.increment(made, delta, default=_NO_SUMMAND) if delta else d[made] + delta
        except (KeyError, TypeError, OverflowError):
            if made not in d:
                raise ValueError(f"Key {key!r} not found") from None
            raise

    @override
    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> Any:
        return await sync_to_async(self.incr, thread_sensitive=True)(key, delta, version)

    # -- removing -----------------------------------------------------------------------------------------------------

    @override
    def delete(self, key: Any, version: int | None = None) -> bool:
        return self._dict.delete(self.make_and_validate_key(key, version))

    @override
    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._remove([self.make_and_validate_key(key, version) for key in keys])

    @override
    def clear(self) -> None:
        """Remove what all aliases with this directory have stored, with or without pickle, and nothing else."""
        self._remove(self._keys(PLAIN, PICKLED))

    def _keys(self, *prefixes: str) -> list[str]:
        """Those that begin so, the oldest first."""
        return [key for key in self._dict if isinstance(key, str) and key.startswith(prefixes)]

    def _remove(self, keys: Iterable[str]) -> None:
        waiting = list(keys)
        while waiting:
            with self._dict.transaction() as t:
                for key in waiting[:AT_ONCE]:
                    t[key] = None  # what was written and not read conflicts with nobody
                    del t[key]
            del waiting[:AT_ONCE]

    def _make_room(self, keys: Iterable[str]) -> None:
        """Remove the oldest entries if there are too many, as Django's own backends do."""
        d, most = self._dict, self._max_entries
        if len(d) < most or all(key in d for key in keys):
            return
        present = self._keys(self._prefix)
        if len(present) >= most:
            self._remove(present[: len(present) // self._cull_frequency] if self._cull_frequency else present)


_opened: dict[str, tuple[dict[str, Any], ReplicatedDict[str, Any]]] = {}
_opening = threading.RLock()


def _open(location: str, arguments: dict[str, Any]) -> ReplicatedDict[str, Any]:
    """Rule 1."""
    found = _opened.get(location)
    if found is None:
        with _opening:
            found = _opened.get(location)
            if found is None:
                try:
                    d: ReplicatedDict[str, Any] = ReplicatedDict(location, **{"share": True, **arguments})
                except ReplidictError:
                    raise
                except (TypeError, ValueError) as error:
                    raise ImproperlyConfigured(f"OPTIONS of the cache in {location!r}: {error}") from error
                found = _opened[location] = arguments, d
    if found[0] != arguments:
        raise ImproperlyConfigured(
            f"two caches in {location!r} have different OPTIONS: only {', '.join(sorted(DJANGOS))} may differ"
        )
    return found[1]


def _renew_lock() -> None:
    global _opening
    _opening = threading.RLock()


@atexit.register
def close_all() -> None:
    """Close the dicts of all caches of this process; the next use opens them again. Done at exit."""
    while _opened:
        _opened.popitem()[1][1].close()


os.register_at_fork(after_in_child=_renew_lock)
