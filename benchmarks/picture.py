"""A picture of the writes: latency and throughput by threads, of every system on three nodes."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.results import Result

FORMATS = (".svg", ".png")


def missing() -> str | None:
    """Why no picture can be drawn; None if one can."""
    if find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed (pip install --group picture)"
    return None


def draw(writes: Result, path: Path) -> None:
    """Write the picture; its format is the path's suffix."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    plots = import_module("matplotlib.pyplot")
    lines: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for row in writes.rows:
        threads, place = row.case["threads"], str(row.case["at"])
        if row.case["nodes"] == 3 and isinstance(threads, int):
            figures = (threads, row.figures["p50 ms"], row.figures["per s"])
            lines.setdefault((row.system, place), []).append(figures)
    figure, (latency, rate) = plots.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colours = dict(zip(dict.fromkeys(system for system, _ in lines), ("C0", "C1", "C2", "C3"), strict=False))
    for (system, place), points in lines.items():
        style = {"color": colours[system], "linestyle": "-" if place == "leader" else "--", "marker": "o"}
        threads_axis = [each[0] for each in points]
        latency.plot(threads_axis, [each[1] for each in points], label=f"{system}, {place}", **style)
        rate.plot(threads_axis, [each[2] for each in points], label=f"{system}, {place}", **style)
    for axes, title, unit in ((latency, "Latency (p50)", "ms"), (rate, "Throughput", "writes/s")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted({each[0] for points in lines.values() for each in points}))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        axes.set_title(f"{title}, three nodes")
        axes.set_xlabel("threads")
        axes.set_ylabel(unit)
        axes.grid(True, alpha=0.3)
    rate.legend()
    figure.savefig(path)
    plots.close(figure)
