"""Settings that all machines share: changed rarely and safely, read all the time at the cost of a dict.

A plain read is this node's own copy and asks nobody, so a service keeps its settings through any failure of the
network. `max_staleness` is for the few that must not be old, `compare_and_set` for people who edit at the same time,
and a watch for what must be set up anew when a setting changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/settings.py`

from examples.local import Dict, three_nodes
from replidict import ReadTimeout, Watch

DEFAULTS = {"log_level": "INFO", "max_upload_mb": 20, "maintenance": False}


def setting(d: Dict, name: str) -> Any:
    """No network: fast, and good while the cluster is cut off. May lag by the time a message takes."""
    return d.get(name, DEFAULTS[name])


def in_maintenance(d: Dict) -> bool:
    """At most a second old. If nobody can tell, be careful."""
    try:
        return bool(d.get("maintenance", False, max_staleness=1.0))
    except ReadTimeout:
        return True


def edit(d: Dict, name: str, old: Any, new: Any) -> bool:
    """Change what was seen on the screen, unless someone else has changed it meanwhile."""
    return d.compare_and_set(name, old, new)


def reload_on_change(d: Dict, apply: Callable[[str, Any], object]) -> Watch[Any, Any]:
    """Apply each setting now, and again whenever it changes, in a thread that ends with the watch (or the dict)."""
    watch = d.watch(snapshot=True, resync=True)

    def follow() -> None:
        for change in watch:
            for event in change.events:
                apply(event.key, DEFAULTS[event.key] if event.value is None else event.value)

    Thread(target=follow, daemon=True).start()
    return watch


def main() -> None:
    with three_nodes() as (one, two, three):
        for name, value in DEFAULTS.items():
            one.add(name, value)  # the first node of all to start writes them; nobody's changes are undone
        two.update(log_level="DEBUG", max_upload_mb=50)  # both at once, on every node
        three.barrier()  # for this demonstration: all that was written before is in this node's copy now
        print("on the third node:", {name: setting(three, name) for name in DEFAULTS})
        print("first editor, 50 to 80:", edit(one, "max_upload_mb", 50, 80))
        print("second editor, 50 to 10:", edit(three, "max_upload_mb", 50, 10), "- reload the page")
        applied: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        with reload_on_change(three, lambda name, value: applied.put((name, value))):
            print("applied at the start:", dict(applied.get(timeout=30) for _ in DEFAULTS))
            one["log_level"] = "WARNING"
            print("applied when it was changed:", applied.get(timeout=30))
        print("in maintenance:", in_maintenance(two))


if __name__ == "__main__":
    main()
