from datetime import datetime
from typing import Any

from apscheduler.triggers.base import BaseTrigger

class Job:
    id: str
    name: str
    args: Any
    kwargs: Any
    func: Any
    max_instances: int
    trigger: BaseTrigger
    next_run_time: datetime | None
    _scheduler: Any
    _jobstore_alias: str | None
    def __init__(self, scheduler: Any, id: str | None = None, **options: Any) -> None: ...
    def __getstate__(self) -> dict[str, Any]: ...
    def __setstate__(self, state: dict[str, Any]) -> None: ...
