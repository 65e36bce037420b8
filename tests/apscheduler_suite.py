"""APScheduler's own tests of job stores, on `ReplidictJobStore`. `test_contrib_apscheduler.py` copies this file to an
empty directory and runs it there, with the tests of APScheduler as the package `tests`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from replidict import Options, ReplicatedDict
from replidict.contrib.apscheduler import ReplidictJobStore
from tests.conftest import *  # noqa: F403
from tests.test_jobstores import *  # type: ignore[import-untyped]  # noqa: F403

for name, value in list(globals().items()):
    if name.startswith("test_") and not {"jobstore", "persistent_jobstore"} & set(inspect.signature(value).parameters):
        del globals()[name]  # it is of another store


@pytest.fixture(scope="module")
def d(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicatedDict[str, Any]]:
    with ReplicatedDict[str, Any](tmp_path_factory.mktemp("data"), options=Options(durability="process")) as d:
        yield d


@pytest.fixture(params=["plain", "pickle"])
def jobstore(request: pytest.FixtureRequest, d: ReplicatedDict[str, Any]) -> Iterator[ReplidictJobStore]:
    store = ReplidictJobStore(d, pickle=request.param == "pickle")
    store.start(None, "replidict")
    yield store
    store.remove_all_jobs()
    store.shutdown()


persistent_jobstore = jobstore
