"""The job store for APScheduler: held to APScheduler's own tests, and what it promises beyond them."""

from __future__ import annotations

import datetime as dt
import doctest
import logging
import queue
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from replidict import DecodingError, EncodingError, ReadTimeout, ReplicatedDict
from replidict.contrib import apscheduler
from replidict.contrib.apscheduler import ReplidictJobStore
from replidict.testing import Cluster
from tests.foreign_suites import folder_with_tests_of

Dict = ReplicatedDict[str, Any]

WITHIN = 30.0
BERLIN = ZoneInfo("Europe/Berlin")
NOW = dt.datetime(2026, 2, 27, 13, 30, 7, tzinfo=BERLIN)
PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


class Thing:
    """What no dict keeps."""

    def method(self) -> None:
        """What a job may do."""


def nothing(*arguments: object, **named: object) -> None:
    """What jobs do here."""


def job(name: str, **options: Any) -> Job:
    scheduler = BackgroundScheduler(timezone="UTC")
    defaults = {
        "func": nothing,
        "trigger": IntervalTrigger(hours=1, timezone="UTC"),
        "executor": "default",
        "args": (),
        "kwargs": {},
        "name": name,
        "misfire_grace_time": None,
        "coalesce": True,
        "max_instances": 1,
        "next_run_time": PAST,
    }
    return Job(scheduler, name, **defaults | options)


@contextmanager
def scheduler_with(store: ReplidictJobStore) -> Iterator[tuple[BackgroundScheduler, queue.Queue[str]]]:
    """A scheduler that runs, and the jobs that it has run."""
    scheduler, ran = BackgroundScheduler(timezone="UTC"), queue.Queue[str]()
    scheduler.add_listener(lambda event: ran.put(event.job_id), EVENT_JOB_EXECUTED)
    scheduler.add_jobstore(store)
    scheduler.start()
    try:
        yield scheduler, ran
    finally:
        if scheduler.running:
            scheduler.shutdown()


def test_the_tests_of_apscheduler(tmp_path: Path) -> None:
    """APScheduler's tests of job stores pass, with pickle and without; only a method of an object needs pickle."""
    folder = folder_with_tests_of("apscheduler")
    shutil.copy(Path(__file__).with_name("apscheduler_suite.py"), tmp_path / "test_store.py")
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=result.xml", "test_store.py"]
    subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(folder)}, capture_output=True, timeout=300)
    cases = list(ET.parse(tmp_path / "result.xml").iter("testcase"))
    bad = {case.get("name"): "".join(case.itertext()) for case in cases if len(case)}
    need_pickle = {f"test_add_callable_instance_method_job[plain-{zone}]" for zone in ("pytz", "zoneinfo")}
    assert set(bad) == need_pickle and all("pickle=True" in text for text in bad.values()), bad
    assert len(cases) >= 96


def test_the_example_of_the_docstring(replidict_dict: Dict) -> None:
    """The example in the docstring of the job store does what it says."""
    names = {"d": replidict_dict, "ReplidictJobStore": ReplidictJobStore}
    (example,) = doctest.DocTestFinder(recurse=False).find(ReplidictJobStore, globs=names)
    assert doctest.DocTestRunner().run(example).failed == 0


TRIGGERS: list[BaseTrigger] = [
    DateTrigger(NOW),
    IntervalTrigger(minutes=7, start_date=NOW, end_date=NOW + dt.timedelta(days=1), jitter=None),
    IntervalTrigger(days=1, timezone=dt.timezone(dt.timedelta(hours=5, minutes=30)), start_date=NOW),
    CronTrigger(timezone=BERLIN),
    CronTrigger(day="last", hour="*/7", minute="5-40/9,55", timezone=BERLIN),
    CronTrigger(day="1st mon,3rd fri", month="feb-apr", timezone=BERLIN, end_date=NOW + dt.timedelta(days=900)),
    CronTrigger(year="2027", week="9", day_of_week="mon-fri", second="*/30", timezone="UTC"),
    CalendarIntervalTrigger(months=1, hour=3, minute=30, start_date=dt.date(2026, 1, 31), timezone=BERLIN),
    AndTrigger([CronTrigger(hour=9, timezone=BERLIN), OrTrigger([CronTrigger(hour=9, minute=0, timezone=BERLIN)])]),
    OrTrigger([CronTrigger(hour=9, timezone=BERLIN), DateTrigger(NOW + dt.timedelta(hours=3))]),
]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_triggers_need_no_pickle(replidict_dict: Dict, trigger: BaseTrigger) -> None:
    """Each of APScheduler's own triggers is kept as plain values, and fires when it would have fired."""
    store = ReplidictJobStore(replidict_dict)
    store.add_job(job("it", trigger=trigger, args=(1, "a"), kwargs={"b": [2]}))
    found = store.lookup_job("it")
    assert found is not None and (found.args, found.kwargs) == ((1, "a"), {"b": [2]})
    restored = found.trigger
    assert type(restored) is type(trigger) and str(restored) == str(trigger)
    last: dt.datetime | None = None
    for _ in range(12):
        fires = trigger.get_next_fire_time(last, last or NOW)
        assert restored.get_next_fire_time(last, last or NOW) == fires
        if fires is None:
            break
        last = fires
    assert last is not None


def test_jitter_is_kept(replidict_dict: Dict) -> None:
    """What is drawn at random by a trigger is drawn from as much as before."""
    store = ReplidictJobStore(replidict_dict)
    store.add_job(job("it", trigger=OrTrigger([IntervalTrigger(hours=1, timezone="UTC", jitter=7)], jitter=9)))
    found: Any = store.lookup_job("it")
    assert (found.trigger.jitter, found.trigger.triggers[0].jitter) == (9, 7)


def test_pickle_is_asked_for(replidict_dict: Dict, caplog: pytest.LogCaptureFixture) -> None:
    """What needs pickle is refused, in words; what was pickled is read only where that was allowed, and stays."""
    plain, pickling = ReplidictJobStore(replidict_dict), ReplidictJobStore(replidict_dict, pickle=True)

    class Own(DateTrigger):
        """A trigger of the application's."""

    for refused in (job("it", args=(Thing(),)), job("it", func=Thing().method), job("it", trigger=Own())):
        with pytest.raises(EncodingError, match=r"the job 'it' can't be stored: .* ReplidictJobStore\(pickle=True\)"):
            plain.add_job(refused)
        assert len(replidict_dict) == 0
    pickling.add_job(job("it", func=Thing().method))
    pickling.add_job(job("other"))
    with pytest.raises(DecodingError, match=r"'apscheduler/it' is stored as a pickle"):
        plain.lookup_job("it")
    assert plain.get_all_jobs() == [] and len(pickling.get_all_jobs()) == 2
    plain.add_job(job("third"))
    assert [each.id for each in pickling.get_all_jobs()] == ["it", "other", "third"]


def test_what_can_not_be_restored_here_stays(replidict_dict: Dict, caplog: pytest.LogCaptureFixture) -> None:
    """A job whose function this process lacks is left to those that have it, and is told of once."""
    store = ReplidictJobStore(replidict_dict)
    store.add_job(job("newer"))
    store.add_job(job("known", next_run_time=NOW))
    stored = replidict_dict["apscheduler/newer"]
    stored["job"]["func"] = "a_later_release:function"
    replidict_dict["apscheduler/newer"] = stored
    for _ in range(3):
        assert [each.id for each in store.get_all_jobs()] == ["known"] and store.get_next_run_time() == NOW
    assert len(replidict_dict) == 2
    assert [record.getMessage() for record in caplog.records] == [
        'Unable to restore job "apscheduler/newer" here -- leaving it'
    ]


def test_what_others_have_changed_is_not_undone(replidict_dict: Dict) -> None:
    """A scheduler that has run a job moves it on only if it is as it was; it neither brings back a job nor a time."""
    late, other = ReplidictJobStore(replidict_dict), ReplidictJobStore(replidict_dict)
    for name in ("moved", "removed", "changed", "done", "as it was"):
        late.add_job(job(name))
    due = {each.id: each for each in late.get_due_jobs(NOW)}
    assert len(due) == 5

    moved, changed = other.lookup_job("moved"), other.lookup_job("changed")
    assert moved is not None and changed is not None
    moved.next_run_time, changed.args = NOW, ("new",)
    other.update_job(moved)
    other.update_job(changed)
    other.remove_job("removed")
    other.remove_job("done")

    for name in ("moved", "removed", "changed", "as it was"):
        due[name].next_run_time = PAST + dt.timedelta(hours=1)
        late.update_job(due[name])
    late.remove_job("done")  # it has run for the last time; that it is gone is no error in the scheduler's loop
    found = {each.id: each for each in other.get_all_jobs()}
    assert {name: each.next_run_time for name, each in found.items()} == {
        "moved": NOW, "changed": PAST + dt.timedelta(hours=1), "as it was": PAST + dt.timedelta(hours=1)
    }  # fmt: skip
    assert found["changed"].args == ("new",)
    with pytest.raises(JobLookupError):
        late.remove_job("done")


def test_nothing_is_due_for_who_is_cut_off() -> None:
    """A scheduler that reaches no majority runs nothing, and says so to APScheduler, which tries again."""
    with Cluster(3, timeout=3.0) as cluster:
        store = ReplidictJobStore(cluster[0])
        store.add_job(job("it"))
        assert store.get_due_jobs(NOW)
        cluster.partition({0}, {1, 2})
        with pytest.raises(ReadTimeout):
            store.get_due_jobs(NOW)


def test_only_the_leader_runs_jobs(replidict_cluster: Cluster) -> None:
    """Each job runs in the leader's scheduler, wherever it was added, and in another one when the leader is gone."""
    a, b = (ReplidictJobStore(replidict_cluster[i], leader="jobs") for i in (0, 1))
    with scheduler_with(a) as (first, ran_first):
        first.add_job(nothing, "date", run_date=PAST, id="one", misfire_grace_time=None)
        assert ran_first.get(timeout=WITHIN) == "one"
        with scheduler_with(b) as (second, ran_second):
            second.add_job(nothing, "date", run_date=PAST, id="two", misfire_grace_time=None)
            assert ran_first.get(timeout=WITHIN) == "two"
            first.add_job(nothing, "interval", hours=1, id="three")
            first.shutdown()
            second.add_job(nothing, "date", run_date=PAST, id="four", misfire_grace_time=None)
            assert ran_second.get(timeout=WITHIN) == "four"
            assert ran_first.empty() and ran_second.empty()
            assert second.get_job("three") is not None
            holder = replidict_cluster[2].leader("jobs")
            assert holder is None or holder.info == "default"


def test_a_store_may_open_its_dict(tmp_path: Path) -> None:
    """Given the arguments of a dict, the store opens and closes it, also when its scheduler is started again."""
    store = ReplidictJobStore(path=tmp_path / "jobs", leader="jobs", pickle=True)
    for _ in range(2):
        store.start(BackgroundScheduler(timezone="UTC"), "default")
        store.shutdown()
    both: list[dict[str, Any]] = [{}, {"d": store._d, "path": tmp_path}]
    for wrong in both:
        with pytest.raises(ValueError, match="either a ReplicatedDict, or the arguments"):
            ReplidictJobStore(**wrong)


def test_an_interval_goes_on(replidict_dict: Dict) -> None:
    """A job that repeats runs again and again, and its next run is in the dict."""
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    with scheduler_with(ReplidictJobStore(replidict_dict, leader="jobs")) as (scheduler, ran):
        scheduler.add_job(nothing, "interval", seconds=0.05, id="often", coalesce=True, misfire_grace_time=None)
        assert [ran.get(timeout=WITHIN) for _ in range(3)] == ["often"] * 3
    assert replidict_dict["apscheduler/often"]["next_run_time"] > NOW
    assert set(apscheduler.TRIGGERS) == {"date", "interval", "cron", "calendarinterval", "and", "or"}
