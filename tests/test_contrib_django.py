"""The cache for Django: held to Django's own tests, and what it promises beyond them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext
from django.core.cache.backends.redis import RedisSerializer
from django.core.exceptions import ImproperlyConfigured

from replidict import EncodingError, Options
from replidict.contrib import django
from replidict.contrib.django import ReplidictCache
from tests.foreign_suites import folder_with_tests_of, outcome, run

NEED_PICKLE = {
    "test_data_types", "test_cache_read_for_model_instance", "test_cache_read_for_model_instance_with_deferred",
    "test_cache_write_for_model_instance_with_deferred", "test_cache_write_unpicklable_object",
    "test_add_fail_on_pickleerror", "test_set_fail_on_pickleerror",
}  # fmt: skip
"""Of Django's tests: those that store functions, classes, models, responses, or expect an error of pickle."""

QUICK = {"options": Options(durability="process")}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReplidictCache]:
    yield ReplidictCache(tmp_path / "cache", {"OPTIONS": QUICK})
    django.close_all()


def test_the_tests_of_django(tmp_path: Path) -> None:
    """Django's tests of backends pass, all of them with pickle, and without it all that need none."""
    folder = folder_with_tests_of("django") / "tests"
    both = [run("tests.django_suite", folder, how, tmp_path / how) for how in ("pickle", "plain")]
    pickle, plain = map(outcome, both)
    assert (pickle["failed"], pickle["skipped"]) == ([], []), pickle["text"]
    assert (set(plain["failed"]), plain["skipped"]) == (NEED_PICKLE, []), plain["text"]
    assert pickle["run"] == plain["run"] >= 54


def test_increments_are_exact(cache: ReplidictCache, tmp_path: Path) -> None:
    """Threads, coroutines and processes count together, and none of what they count is lost."""
    cache.set("visits", 0)
    program = (
        "from replidict.contrib.django import ReplidictCache\n"
        "from replidict import Options\n"
        "options = {'options': Options(durability='process')}\n"
        f"cache = ReplidictCache({str(tmp_path / 'cache')!r}, {{'OPTIONS': options}})\n"
        "for _ in range(50): cache.incr('visits')"
    )
    others = [subprocess.Popen([sys.executable, "-W", "error", "-c", program]) for _ in range(2)]

    def count() -> None:
        for _ in range(50):
            cache.incr("visits")

    async def count_here() -> None:
        async with ThreadSensitiveContext():
            for _ in range(50):
                await cache.aincr("visits", 2)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    asyncio.run(count_here())
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert cache.incr("visits", 0) == 2 * 50 + 2 * 50 + 100


@pytest.mark.parametrize("delta", [1, -1, 0, 10**800, 0.5], ids=["1", "-1", "0", "many digits", "0.5"])
def test_what_is_gone_is_not_counted_up(cache: ReplidictCache, delta: Any) -> None:
    """To increment a key that is not there, or not there any more, is an error, and creates none."""
    with pytest.raises(ValueError, match="Key 'gone' not found"):
        cache.incr("gone", delta)
    assert not cache.has_key("gone") and not len(cache._dict)


def test_increments_leave_the_timeout(cache: ReplidictCache) -> None:
    """A counter goes when it should, however often it is counted up."""
    cache.set("attempts", 1, timeout=50)
    assert cache.incr("attempts") == 2
    left = cache._dict.ttl(cache.make_and_validate_key("attempts"))
    assert left is not None and left <= 51


def test_without_pickle_the_error_says_what_to_do(cache: ReplidictCache) -> None:
    """What a dict can't keep is refused when it is stored, and the error names the key and the option."""
    for store in (cache.set, cache.add, lambda key, value: cache.set_many({key: value})):
        with pytest.raises(EncodingError, match=r"can't keep '.*session': .*object.*OPTIONS = {\"pickle\": True}"):
            store("session", object())
    assert not cache.has_key("session")


def test_nothing_is_unpickled_that_was_stored_without(cache: ReplidictCache, tmp_path: Path) -> None:
    """Bytes that somebody had stored by a cache without pickle are never run by one with pickle."""
    pickling = ReplidictCache(tmp_path / "cache", {"OPTIONS": {**QUICK, "pickle": True}})
    for value in (RedisSerializer().dumps(print), bytearray(RedisSerializer().dumps(print))):
        cache.set("form", value)
        assert pickling.get("form") is None
        assert cache.get("form") == value
    pickling.set("form", print)
    assert pickling.get("form") is print and cache.get("form") == value


def test_all_caches_of_a_directory_are_one_dict(cache: ReplidictCache, tmp_path: Path) -> None:
    """Aliases and threads have caches of their own, and a process one dict; different options are refused."""
    other = ReplidictCache(str(tmp_path / "cache"), {"OPTIONS": {**QUICK, "MAX_ENTRIES": 5}, "KEY_PREFIX": "other"})
    assert other._dict is cache._dict
    with pytest.raises(ImproperlyConfigured, match="different OPTIONS"):
        ReplidictCache(tmp_path / "cache", {"OPTIONS": {}}).get("key")
    with pytest.raises(ImproperlyConfigured, match="no_such_option"):
        ReplidictCache(tmp_path / "another", {"OPTIONS": {"no_such_option": 1}}).get("key")


def test_clear_leaves_what_is_not_djangos(cache: ReplidictCache) -> None:
    """The cache may share a directory with an application's own keys, and clears only what caches have stored."""
    cache._dict["settings"] = "kept"
    cache.set_many({str(number): number for number in range(2 * django.AT_ONCE + 1)})
    cache.clear()
    assert dict(cache._dict) == {"settings": "kept"}


def test_the_oldest_entries_make_room(tmp_path: Path) -> None:
    """At MAX_ENTRIES the oldest third goes before another one is stored; an entry that is there needs no room."""
    cache = ReplidictCache(tmp_path / "cache", {"OPTIONS": {**QUICK, "MAX_ENTRIES": 6}})
    try:
        cache.set_many(dict.fromkeys("abcdef", 1))
        cache.set("a", 2)
        assert [key for key in "abcdef" if cache.has_key(key)] == list("abcdef")
        assert cache.add("g", 1)
        assert [key for key in "abcdefg" if cache.has_key(key)] == list("cdefg")
    finally:
        django.close_all()
