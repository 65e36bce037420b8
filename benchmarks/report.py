"""Results as text: a table for each benchmark, and the whole as a page of Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.results import Result, Row


def number(value: float) -> str:
    """Three digits, as a person would write them."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value == int(value):
        return str(int(value))
    if value < 0.01:
        return f"{value:.2g}"
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def table(result: Result, rows: list[Row]) -> list[list[str]]:
    """Head and rows: system, case, figures, ratios; a column for whatever any row has."""
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    ratios = [
        f"{figure} / {system}"
        for figure in result.compare
        for system in result.against
        if any(f"{figure} / {system}" in result.ratios(row) for row in rows)
    ]

    def line(row: Row) -> list[str]:
        compared = result.ratios(row)
        return [
            row.system,
            *(cell(value) for value in row.case.values()),
            *(number(row.figures[name]) if name in row.figures else "" for name in figures),
            *(f"{number(compared[name])}x" if name in compared else "" for name in ratios),
        ]

    return [["system", *rows[0].case, *figures, *ratios], *(line(row) for row in rows)]


def plain(result: Result) -> str:
    """For a terminal."""
    lines = [f"{result.name}: {result.title} ({result.seconds:.1f} s)"]
    for rows in result.tables():
        cells = table(result, rows)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        left = 1 + len(rows[0].case)
        for line in cells:
            texts = [
                each.ljust(width) if column < left else each.rjust(width)
                for column, (each, width) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  " + "  ".join(texts).rstrip())
    lines += [f"  - {note}" for note in result.notes]
    if result.failed:
        lines.append(f"  FAILED: {result.failed}")
    return "\n".join(lines)


def markdown(results: list[Result], about: dict[str, Any], picture: str | None = None) -> str:
    """A page: what it ran on, then each benchmark."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{about['command']}` on {about['date'][:10]}. Figures are medians of {about['runs']} "
        f"round{'s' * (about['runs'] > 1)} in one sitting, unless a note says otherwise.",
        "",
        f"- Machine: {about['processor']}, {about['cpus']} CPUs, {about['memory GiB']} GiB, {about['system']}, "
        f"files on {about['file system']}",
        f"- Versions: {versions}",
        *(f"- {each}" for each in about["left out"]),
        "",
        "Every node is a process of its own on loopback, and all share the machine: read the ratios rather than the",
        "figures. The clients of replidict and PySyncObj are threads in the process of the leader, or of a follower;",
        "etcd's are threads of one process of their own, in Python by gRPC, connected to that member. Stock PySyncObj",
        "does not sync to disk; replidict (unless a row says otherwise) and etcd do.",
        "A ratio is ours divided by theirs: below 1 is better for times, above 1 for rates.",
    ]
    if picture:
        lines += ["", f"![Latency and throughput of writes, by threads]({picture})"]
    for result in results:
        lines += ["", f"## {result.name}: {result.title}"]
        for rows in result.tables():
            head, *body = table(result, rows)
            left = 1 + len(rows[0].case)
            lines += ["", "| " + " | ".join(head) + " |"]
            lines.append("|" + "|".join(" --- " if column < left else " ---: " for column in range(len(head))) + "|")
            lines += ["| " + " | ".join(line) + " |" for line in body]
        if result.notes or result.failed:
            lines += ["", *(f"- {note}" for note in result.notes)]
            lines += [f"- **Failed**: {result.failed}"] if result.failed else []
    return "\n".join(lines) + "\n"
