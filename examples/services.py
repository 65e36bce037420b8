"""Services that are listed as long as their processes live.

Each process attaches its address to a lease, which the node's own thread renews. When the process dies, nobody has to
notice and to clean up: the lease ends, and the address is gone on all nodes. When it stops in order, that is at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/services.py`

from examples.local import Dict, three_nodes
from replidict import Lease

TTL = 2.0  # seconds: so long after its death a service may still be listed


def register(d: Dict, service: str, address: str) -> Lease:
    """List an address until the lease that is returned ends."""
    lease = d.lease(TTL)
    d.set(f"services/{service}/{address}", {"since": time.time()}, lease=lease)
    return lease


def addresses(d: Dict, service: str) -> list[str]:
    """Where a service is to be found now."""
    prefix = f"services/{service}/"
    return sorted(key.removeprefix(prefix) for key in d if key.startswith(prefix))


def main() -> None:
    with three_nodes() as nodes:
        leases = [register(d, "mail", f"10.0.0.{number}:25") for number, d in enumerate(nodes, 1)]
        nodes[0].barrier()
        print("three are there:  ", *addresses(nodes[0], "mail"))
        leases[0].revoke()
        print("one has stopped:  ", *addresses(nodes[0], "mail"))
        nodes[2].close()  # as a process that ends; one that is killed is listed for TTL seconds more
        nodes[0].barrier()
        print("one is gone:      ", *addresses(nodes[0], "mail"))
        leases[1].check()  # raises LeaseLost if nobody could renew it
        print(f"and one is there, for {leases[1].remaining:.0f} s more at least, if nobody renewed it now")


if __name__ == "__main__":
    main()
