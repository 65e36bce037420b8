"""A log entry, and the type of its numbers."""

from __future__ import annotations

from typing import Annotated

import msgspec

NUMBER_MAX = 2**62 - 1
Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
"""A term, an index, a place in a file. What is none is refused here, and not by the disk, which would end the node."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the log. `command` starts with a kind byte (see `replidict.machine.commands`)."""

    index: Number
    term: Number
    command: bytes
