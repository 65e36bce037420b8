"""What a benchmark yields: rows of figures, and notes on how they came about."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ANY = "-"
"""In a case: this figure does not depend on it, and may be compared with any."""


@dataclass(frozen=True)
class Note:
    """A remark that belongs below the table."""

    text: str


@dataclass(frozen=True)
class Row:
    """The figures of one system in one case; the unit is the last word of a figure's name."""

    system: str
    case: dict[str, str | int]
    figures: dict[str, float]

    @property
    def identity(self) -> tuple[object, ...]:
        """The same for rows that are runs of the same."""
        return (self.system, *self.case.items())


@dataclass
class Result:
    """A benchmark's rows, each the median of its runs."""

    name: str
    title: str
    compare: tuple[str, ...]
    against: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    runs: list[list[Row]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failed: str | None = None

    def ratios(self, row: Row) -> dict[str, float]:
        """How this row of ours compares with those it should be compared with; below 1 is less than theirs."""
        if not row.system.startswith("replidict"):
            return {}
        found: dict[str, float] = {}
        for figure in self.compare:
            for system in self.against:
                for other in self.rows:
                    if other.system == system != row.system and matches(other.case, row.case):
                        theirs, ours = other.figures.get(figure), row.figures.get(figure)
                        if theirs and ours is not None:
                            found[f"{figure} / {system}"] = ours / theirs
        return found

    def tables(self) -> list[list[Row]]:
        """Rows that belong into one table: those whose cases are told apart by the same."""
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row.case), []).append(row)
        return list(groups.values())

    def as_json(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "title": self.title,
            "seconds": round(self.seconds, 3),
            "failed": self.failed,
            "notes": self.notes,
            "rows": [
                {
                    "system": row.system,
                    "case": row.case,
                    "figures": row.figures,
                    "ratios": self.ratios(row),
                    "runs": [each.figures for each in run] if len(run) > 1 else [],
                }
                for row, run in zip(self.rows, self.runs, strict=True)
            ],
        }


def matches(case: dict[str, str | int], wanted: dict[str, str | int]) -> bool:
    """Whether they say the same wherever both say something."""
    return all(value == ANY or wanted.get(name) in (value, ANY) for name, value in case.items())


def medians(rows: Iterable[Row]) -> tuple[list[Row], list[list[Row]]]:
    """One row for all that differ in nothing but the run, with the median of each figure; and those it came from."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.identity, []).append(row)
    merged = [
        Row(
            group[0].system,
            group[0].case,
            {
                name: statistics.median(row.figures[name] for row in group if name in row.figures)
                for name in dict.fromkeys(name for row in group for name in row.figures)
            },
        )
        for group in groups.values()
    ]
    return merged, list(groups.values())
