"""The results of the commands that a node applies, for the calls that wait for them (see `state_machine`)."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeAlias

from replidict.machine import commands as cmd


class Refusal(Enum):
    """Why a batch was surely not applied by this entry."""

    NO_SESSION = "the session is not open (any more)"
    GAP = "an earlier batch of the session is missing"
    FORGOTTEN = "the batch was applied and acknowledged before: its results are no longer kept"


class SessionOpened(NamedTuple):
    """Outcome of `OpenSession`."""

    nonce: bytes
    session: int


class BatchApplied(NamedTuple):
    """Outcome of `Batch`: results in order, or why there are none."""

    session: int
    sequence: int
    results: list[cmd.Result] | Refusal


class LevelRaised(NamedTuple):
    """Outcome of `RaiseLevel`: the cluster's feature level."""

    level: int


Outcome: TypeAlias = SessionOpened | BatchApplied | LevelRaised | Refusal | None
