"""A job store for APScheduler 3: `ReplidictJobStore`, with schedulers of which only the leader's runs the jobs.

APScheduler's interface is made of pickles: its own job stores pickle every job, and run what they unpickle. This one
keeps a job as plain values: the name of its function, its arguments, and its trigger, if that is one of APScheduler's
own. Arguments of other types, methods of objects and triggers of your own need `pickle=True`. Either way, whoever can
write to the cluster can have the scheduler call any function by its name: that is what a job is.

Rules kept here:

1. Nothing is due for a scheduler that is cut off, or that does not lead where `leader` is given.
2. What a scheduler that has run a job writes changes only the time of the next run, and only if no other scheduler has
   changed it meanwhile.
3. A job that can't be restored here, for want of a module for instance, stays for those who can.
"""

from __future__ import annotations

import datetime as dt
import pickle as pickles
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from apscheduler.job import Job
from apscheduler.jobstores.base import BaseJobStore, ConflictingIdError, JobLookupError
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.cron.fields import BaseField
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from apscheduler.util import astimezone
from typing_extensions import override

from replidict import (
    ClosedError,
    DecodingError,
    EncodingError,
    Held,
    Leadership,
    NotCommitted,
    OutcomeUnknown,
    ReplicatedDict,
    ReplidictError,
    Transaction,
    Watch,
)

TRIGGERS: dict[str, type[BaseTrigger]] = {
    "date": DateTrigger,
    "interval": IntervalTrigger,
    "cron": CronTrigger,
    "calendarinterval": CalendarIntervalTrigger,
    "and": AndTrigger,
    "or": OrTrigger,
}
"""Those that are kept as plain values, by the names that APScheduler gives them."""

Stored: TypeAlias = dict[str, Any]
"""`next_run_time`, or None if it is paused, and either `job`, plain values, or `pickle`."""


class ReplidictJobStore(BaseJobStore):
    """Stores jobs in a `ReplicatedDict`. Schedulers of all processes and machines may use the same.

    A job that one process adds, changes or removes wakes the schedulers of the others at once.

    Args:
        d: The dict; None: this opens one by `arguments`, and closes it when the scheduler is shut down.
        prefix: What the keys of jobs begin with; another one for each job store of a dict.
        pickle: Whether jobs may be stored that need pickle. Only a store that allows it reads those that are.
        leader: The name of a lock; then jobs are due only in the process that leads, as by `run_as_leader`, and another
            one leads within `ttl` when that has died. Without it, run one scheduler only.
        ttl: Seconds, as for `run_as_leader`.
        arguments: Those of `ReplicatedDict`, `path` among them.

    Example:
        >>> from apscheduler.schedulers.background import BackgroundScheduler
        >>> scheduler = BackgroundScheduler(timezone="UTC")
        >>> scheduler.add_jobstore(ReplidictJobStore(d, leader="jobs"))
        >>> scheduler.start()
        >>> job = scheduler.add_job("os:getpid", "interval", minutes=5, id="report")
        >>> [key for key in d]
        ['apscheduler/report']
        >>> scheduler.shutdown()
    """

    def __init__(
        self,
        d: ReplicatedDict[str, Any] | None = None,
        *,
        prefix: str = "apscheduler/",
        pickle: bool = False,
        leader: str | None = None,
        ttl: float = 10.0,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if (d is None) != bool(arguments):
            raise ValueError("give either a ReplicatedDict, or the arguments to open one: path=...")
        self._prefix, self._pickle = prefix, pickle
        self._leader, self._ttl = leader, ttl
        self._arguments = arguments
        self._d = ReplicatedDict(**arguments) if d is None else d
        self._open = True
        self._watch: Watch[str, Any] | None = None
        self._watching: threading.Thread | None = None
        self._leadership: Leadership | None = None
        self._held: Held | None = None
        self._due: dict[str, tuple[Job, dt.datetime]] = {}
        """What the scheduler is running, by id. It has a lock while it does, so nobody else removes or updates then."""
        self._lost: dict[str, Stored] = {}

    # -- its life -----------------------------------------------------------------------------------------------------

    @override
    def start(self, scheduler: Any, alias: str) -> None:
        super().start(scheduler, alias)
        if not self._open:
            self._d, self._open = ReplicatedDict(**self._arguments), True
        if scheduler is None:
            return
        self._watch = self._d.watch(prefix=self._prefix, resync=True)
        self._watching = threading.Thread(target=self._wake_at_changes, args=(self._watch,), name=f"jobs {alias}")
        self._watching.daemon = True
        self._watching.start()
        if self._leader is not None:
            self._leadership = self._d.run_as_leader(self._leader, self._lead, ttl=self._ttl, info=alias)

    @override
    def shutdown(self) -> None:
        if self._leadership is not None:
            self._leadership.stop()
        if self._watch is not None and self._watching is not None:
            self._watch.close()
            self._watching.join()
        self._leadership = self._watch = self._watching = None
        if self._arguments:
            self._d.close()
            self._open = False

    def _wake_at_changes(self, watch: Watch[str, Any]) -> None:
        try:
            for _ in watch:
                self._wake()
        except ClosedError:
            pass
        except Exception:
            self._logger.exception("jobs that other processes add are noticed late from now on")

    def _wake(self) -> None:
        if self._scheduler.running:  # if it is just being started, it looks by itself
            self._scheduler.wakeup()

    def _lead(self, held: Held) -> None:
        self._held = held
        try:
            self._wake()
            held.lost.wait()
        finally:
            self._held = None

    # -- reading ------------------------------------------------------------------------------------------------------

    @override
    def lookup_job(self, job_id: str) -> Job | None:
        stored = self._d.get(self._prefix + job_id)
        return None if stored is None else self._restored(self._prefix + job_id, stored)

    @override
    def get_due_jobs(self, now: dt.datetime) -> list[Job]:
        if not self._leads():
            return []
        self._d.barrier()  # rule 1
        jobs = list(self._jobs(now))
        self._due = {job.id: (job, job.next_run_time) for job in jobs if job.next_run_time is not None}
        return jobs

    @override
    def get_next_run_time(self) -> dt.datetime | None:
        if not self._leads():
            return None
        return next((job.next_run_time for job in self._jobs()), None)

    @override
    def get_all_jobs(self) -> list[Job]:
        return list(self._jobs())

    def _leads(self) -> bool:
        """Whether this process may run jobs."""
        if self._leader is None or self._scheduler is None:
            return True
        held = self._held
        if held is None:
            return False
        try:
            held.check()
        except ReplidictError:
            return False
        return True

    def _jobs(self, until: dt.datetime | None = None) -> Iterator[Job]:
        """Those that can be restored here, the next one first and paused ones last; only those due, if so."""
        found = self._d.scan(self._prefix)
        last = dt.datetime.max.replace(tzinfo=dt.UTC)
        for key, stored in sorted(found, key=lambda pair: pair[1]["next_run_time"] or last):
            at = stored["next_run_time"]
            if until is not None and (at is None or at > until):
                return
            try:
                job = self._restored(key, stored)
            except Exception:
                if self._lost.get(key) != stored:  # once, and not whenever somebody looks
                    self._lost[key] = stored
                    self._logger.exception('Unable to restore job "%s" here -- leaving it', key)
            else:
                yield job

    def _restored(self, key: str, stored: Stored) -> Job:
        if "job" in stored:
            state = stored["job"] | {"trigger": _restored_trigger(stored["job"]["trigger"])}
        elif self._pickle:
            state = pickles.loads(stored["pickle"])  # noqa: S301 -- was asked for
        else:
            raise DecodingError(f"the job {key!r} is stored as a pickle: ReplidictJobStore(pickle=True) reads it", key)
        job = Job.__new__(Job)
        job.__setstate__(state | {"next_run_time": stored["next_run_time"]})
        job._scheduler, job._jobstore_alias = self._scheduler, self._alias
        return job

    # -- writing ------------------------------------------------------------------------------------------------------

    @override
    def add_job(self, job: Job) -> None:
        stored = self._stored(job)
        with _refusing(job, self._pickle):
            added = self._d.add(self._prefix + job.id, stored)
        if not added:
            raise ConflictingIdError(job.id)

    @override
    def update_job(self, job: Job) -> None:
        running, due = self._due.pop(job.id, (None, None))
        if running is job and due is not None:
            self._has_run(job.id, due, job.next_run_time)
            return
        key = self._prefix + job.id

        def write(t: Transaction[str, Any]) -> None:
            if key not in t:
                raise JobLookupError(job.id)
            t[key] = stored

        stored = self._stored(job)
        with _refusing(job, self._pickle):
            self._d.transact(write)

    @override
    def remove_job(self, job_id: str) -> None:
        _, due = self._due.pop(job_id, (None, None))
        if due is not None:
            self._has_run(job_id, due, None)
        elif not self._d.delete(self._prefix + job_id):
            raise JobLookupError(job_id)

    @override
    def remove_all_jobs(self) -> None:
        for key, _ in self._d.scan(self._prefix):
            self._d.delete(key)

    def _has_run(self, job_id: str, due: dt.datetime, then: dt.datetime | None) -> None:
        """Rule 2, for a job that was due and is then; None: never. An error would end the scheduler's thread, and is
        logged instead."""
        key = self._prefix + job_id

        def advance(t: Transaction[str, Any]) -> None:
            stored = t.get(key)
            if stored is None or stored["next_run_time"] != due:
                return
            if then is None:
                del t[key]
            else:
                t[key] = stored | {"next_run_time": _plain(then)}

        try:
            self._d.transact(advance)
        except (NotCommitted, OutcomeUnknown) as error:
            self._logger.error('Job "%s" has run, and may run again: that is not stored: %s', job_id, error)

    def _stored(self, job: Job) -> Stored:
        state = job.__getstate__()
        at = _plain(state.pop("next_run_time"))
        if self._pickle:
            return {"next_run_time": at, "pickle": pickles.dumps(state, pickles.HIGHEST_PROTOCOL)}
        with _refusing(job, self._pickle):
            return {"next_run_time": at, "job": state | {"trigger": _plain_trigger(job.trigger)}}


# -- jobs as plain values ----------------------------------------------------------------------------------------------


@contextmanager
def _refusing(job: Job, pickle: bool) -> Iterator[None]:
    """Say in APScheduler's words what a dict refuses to keep."""
    try:
        yield
    except EncodingError as error:
        hint = "" if pickle else " Or allow pickles: ReplidictJobStore(pickle=True)"
        raise EncodingError(f"the job {job.id!r} can't be stored: {error}.{hint}") from None


def _plain_trigger(trigger: BaseTrigger) -> dict[str, Any]:
    """What describes a trigger. Raises `EncodingError` if it is none of APScheduler's own."""
    name = next((name for name, kind in TRIGGERS.items() if type(trigger) is kind), None)
    if name is None:
        raise EncodingError(f"its trigger {trigger!r} is none of APScheduler's own")
    if isinstance(trigger, AndTrigger | OrTrigger):
        state = {"jitter": trigger.jitter, "triggers": [_plain_trigger(each) for each in trigger.triggers]}
    else:
        state = {part: _plain(value) for part, value in trigger.__getstate__().items()}
    return {"type": name, **state}


def _restored_trigger(described: dict[str, Any]) -> BaseTrigger:
    """The trigger that a description is of."""
    state = {part: value.tzinfo if part == "timezone" else value for part, value in described.items()}
    kind = TRIGGERS[state.pop("type")]
    if "triggers" in state:
        return kind([_restored_trigger(each) for each in state["triggers"]], state["jitter"])
    if "fields" in state:
        state["fields"] = CronTrigger(**state["fields"], timezone=state["timezone"]).fields
    trigger = kind.__new__(kind)
    trigger.__setstate__(state)
    return trigger


def _plain(value: Any) -> Any:
    """A part of a trigger as a dict keeps it: no zone of pytz, and one without a time as that of a time."""
    if isinstance(value, dt.datetime):
        return value.astimezone(astimezone(value.tzinfo))
    if isinstance(value, dt.tzinfo):
        return dt.time(tzinfo=astimezone(value))
    if isinstance(value, list) and value and isinstance(value[0], BaseField):
        return {field.name: str(field) for field in value if not field.is_default}
    return value
