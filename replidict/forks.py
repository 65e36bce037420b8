"""What is done first in a forked child: each module that has something of its parent's says what. And uWSGI.

Rules kept here:

1. uWSGI forks its workers without telling Python, but calls a function of its own in each.
2. It forks them whatever the threads of its first process are doing. A worker that was forked while one of them had
   the interpreter waits for it for ever. So no thread is started in that process before it must be.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from replidict.errors import ReplidictError

_functions: list[Callable[[], object]] = []
_pid = os.getpid()


def in_forked_child(function: Callable[[], object]) -> None:
    """Have a function called in each child that is forked from now on, in the order of these calls."""
    _functions.append(function)


def _forked() -> None:
    global _pid
    if _pid == os.getpid():
        return  # both have told
    _pid = os.getpid()
    for function in _functions:
        function()


def workers_will_be_forked() -> bool:
    """Whether this is the process of uWSGI from which its workers are forked, and that is yet to come (rule 2)."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None or not hasattr(uwsgi, "worker_id") or uwsgi.worker_id():
        return False
    master = uwsgi.masterpid()
    return bool(master == os.getpid() or (not master and uwsgi.numproc > 1))


def before_threads(path: str | os.PathLike[str]) -> None:
    """Say what is wrong with starting threads here, for a dict in this directory, if anything is.

    Raises `ReplidictError` where uWSGI runs none: until release 2.0.22 or so it must be told to.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    if not getattr(uwsgi, "has_threads", 0):
        raise ReplidictError("uWSGI runs this program without threads, and a dict needs one: --enable-threads")
    if workers_will_be_forked():
        warnings.warn(
            f"the dict in {str(path)!r} is used before uWSGI forks its workers, and a worker that is forked while "
            "a thread of the dict runs may hang: close it before, or use --lazy-apps",
            RuntimeWarning,
            stacklevel=2,
        )


def _hear_uwsgi(uwsgi: Any) -> None:
    """Rule 1."""
    if uwsgi.masterpid():  # without a master nothing is forked, and the next module can't be imported
        with suppress(ImportError):
            importlib.import_module("uwsgidecorators")  # it takes the hook when it is imported: so before us
    others: Callable[[], object] | None = getattr(uwsgi, "post_fork_hook", None)

    def forked() -> None:
        _forked()
        if others is not None:
            others()

    uwsgi.post_fork_hook = forked


os.register_at_fork(after_in_child=_forked)
if "uwsgi" in sys.modules:
    _hear_uwsgi(sys.modules["uwsgi"])
