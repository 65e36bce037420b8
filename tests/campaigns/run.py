"""The nodes of a campaign whose work is done in their own processes, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.campaigns.account import Account
from tests.processes import Died, Process, Refused, equal_copies, processes, start_all

WORK = "tests.campaigns.work"


@contextmanager
def campaign_of(
    module: str, root: Path, journals: Path, *, work: dict[str, Any] | None = None, **arguments: Any
) -> Iterator[list[Process]]:
    """Three nodes, each a process that runs the loops of this module whenever it is started."""
    journals.mkdir()
    on_open = [[WORK, "begin", str(journals), module, work or {}]]
    with processes(root, 3, on_open=on_open, **arguments) as nodes:
        yield nodes


def finish(nodes: list[Process], account: Account, settle: float = 0.0) -> dict[str, Any]:
    """Have the loops end, then, so many seconds later, those that watch, and return what all nodes hold; what fails is
    a violation."""
    content: dict[str, Any] = {}
    try:
        start_all(nodes)
        stop(nodes, account, watchers=False)
        time.sleep(settle)
        content = equal_copies(nodes)
        stop(nodes, account, watchers=True)
    except (AssertionError, Died, Refused) as error:
        account.violated(f"{type(error).__name__}: {error}")
    return content


def stop(nodes: list[Process], account: Account, *, watchers: bool) -> None:
    """Have the loops end, or those that watch."""
    for asked in [node.submit("run", WORK, "stop", watchers) for node in nodes]:
        account.violations += asked.result(90).result()
