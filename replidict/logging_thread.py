"""Logs for the threads of this package: a thread of its own calls the logging handlers.

A logging handler runs in the thread that logs, and holds a lock. If it writes to the dict, or if a signal handler
interrupts it and waits for the dict, while a node's thread that logs waits for that lock, both wait for each other. So
no thread of a node ever calls a handler; other threads log as usual.

Rules kept here:

1. Records of this package's threads are queued with their time, place and thread; the writer passes them on in order.
2. Nothing waits for the writer without a limit, because a handler may take as long as it likes.
"""

from __future__ import annotations

import logging
import sys
import threading
from queue import SimpleQueue
from typing import Any, NamedTuple

from replidict.forks import in_forked_child
from replidict.latch import Latch
from replidict.own_threads import OWN_THREADS, in_own_thread

_PATIENCE = 1.0  # seconds

LINES_MAX = 10_000
"""Lines that may wait; a handler that hangs must not cost all memory."""


class _Line(NamedTuple):
    logger: logging.Logger
    level: int
    text: str
    arguments: tuple[object, ...]
    error: Any  # as `sys.exc_info()` gives it, or None
    stamp: logging.LogRecord  # made where it was logged: time and thread


class Logger:
    """The subset of `logging.Logger` that this package uses."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, text: str, *arguments: object) -> None:
        """Log at level DEBUG."""
        self._log(logging.DEBUG, text, arguments, None)

    def info(self, text: str, *arguments: object) -> None:
        """Log what happens in normal operation."""
        self._log(logging.INFO, text, arguments, None)

    def warning(self, text: str, *arguments: object) -> None:
        """Log at level WARNING."""
        self._log(logging.WARNING, text, arguments, None)

    def error(self, text: str, *arguments: object) -> None:
        """Log what does not work."""
        self._log(logging.ERROR, text, arguments, None)

    def exception(self, text: str, *arguments: object) -> None:
        """Log what does not work, with the traceback of the exception at hand."""
        self._log(logging.ERROR, text, arguments, sys.exc_info())

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Log a line of a level."""
        self._log(level, text, arguments, None)

    def _log(self, level: int, text: str, arguments: tuple[object, ...], error: Any) -> None:
        writer = _writers[-1] if _writers and in_own_thread() else None
        if writer is None:
            self._logger.log(level, text, *arguments, exc_info=error, stacklevel=3)
        elif writer.lines.qsize() < LINES_MAX:
            frame = sys._getframe(2)
            code = frame.f_code
            stamp = logging.LogRecord(
                self._logger.name, level, code.co_filename, frame.f_lineno, text, (), None, code.co_name
            )
            writer.lines.put(_Line(self._logger, level, text, arguments, error, stamp))


class LogWriter:
    """The thread that writes the log records of an open dict's threads."""

    def __init__(self) -> None:
        self.lines: SimpleQueue[_Line | None] = SimpleQueue()
        # No `OwnThread`: what a handler does here may wait for a node, and what it logs is written at once.
        self._thread = threading.Thread(target=self._run, name=f"{OWN_THREADS}log", daemon=True)
        self._over = Latch()

    def start(self) -> None:
        """Begin. Raises `RuntimeError` if the system has no thread left."""
        self._thread.start()
        _writers.append(self)

    def finish(self) -> None:
        """End when all is written that was logged so far. Idempotent."""
        try:
            _writers.remove(self)
        except ValueError:
            return
        self.lines.put(None)

    def join(self) -> None:
        """Wait until it has ended, after `finish`, for a second at most; not from within."""
        if self._thread.is_alive() and threading.get_ident() != self._thread.ident:
            self._over.wait(_PATIENCE)

    def _run(self) -> None:
        try:
            while (line := self.lines.get()) is not None:
                _write(line)
                del line  # or what it refers to is kept alive until there is another
        finally:
            self._over.set()


_writers: list[LogWriter] = []
in_forked_child(_writers.clear)


def _write(line: _Line) -> None:
    logger, stamp = line.logger, line.stamp
    try:
        if not logger.isEnabledFor(line.level):
            return
        record = logger.makeRecord(
            logger.name, line.level, stamp.pathname, stamp.lineno, line.text, line.arguments, line.error, stamp.funcName
        )
        for name in ("created", "msecs", "relativeCreated", "thread", "threadName"):
            setattr(record, name, getattr(stamp, name))
        logger.handle(record)
    except BaseException:  # noqa: BLE001 -- a filter or handler of the program's may raise anything, and ends nothing
        sys.excepthook(*sys.exc_info())
