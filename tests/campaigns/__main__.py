"""Minutes of trouble for real processes, and then the account.

    python -m tests.campaigns NAME [--seconds 120] [--seed N] [--json FILE]

NAME is one of: writes, watch, expiry, locks, transactions, increment, workers. Prints what happens, and at the end a
summary as JSON. Exit status 1 if a promise was broken; `violations` tells which, and what led to it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from importlib import import_module
from pathlib import Path

NAMES = ("writes", "watch", "expiry", "locks", "transactions", "increment", "workers")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="name", required=True)
    for name in NAMES:
        one = subparsers.add_parser(name)
        one.add_argument("--seconds", type=float, default=120.0)
        if name not in ("workers", "expiry"):
            one.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
        one.add_argument("--json", type=Path, default=None, help="write the summary to this file, too")
        if name == "writes":
            one.add_argument("--nodes", type=int, default=3)
        if name == "workers":
            one.add_argument("--workers", type=int, default=4, help="on each of the three hosts")
            one.add_argument("--every", type=float, default=5.0, help="seconds between two kills on a host")
            one.add_argument("--within", type=float, default=3.0, help="seconds until all workers are served again")
            one.add_argument("--clients", type=int, default=6, help="of each host")
            one.add_argument("--pause", type=float, default=0.05, help="seconds of each client between two requests")
    return parser.parse_args()


def main() -> int:
    """Run one campaign."""
    options = vars(arguments())
    name, file = options.pop("name"), options.pop("json")
    print(f"{name}: {options}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"replidict-{name}-") as directory:
        campaign = import_module(f"tests.campaigns.{name}")
        found = campaign.run(Path(directory), **options, say=lambda line: print(line, flush=True))
    text = json.dumps({"campaign": name, **found}, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n")
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
