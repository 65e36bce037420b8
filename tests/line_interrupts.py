"""Interrupts a call, as Ctrl-C does, at a chosen line of the package."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import replidict

PACKAGE = str(Path(replidict.__file__).parent)


def interrupted(point: int, work: Callable[[], None]) -> bool:
    """Have the `point`th line of the package that `work` runs raise KeyboardInterrupt. Returns whether it got there."""
    lines = 0

    def look(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        lines += event == "line" and line != "try:"  # which does nothing that could be interrupted
        if lines > point:
            sys.settrace(None)
            raise KeyboardInterrupt
        return look

    sys.settrace(look)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False
