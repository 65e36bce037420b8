"""For tests of programs that use a `ReplicatedDict`: clusters of real nodes in this process, and what befalls them."""

from replidict.testing.cluster import Cluster
from replidict.testing.failures import fail_next, steal_lock
from replidict.testing.time_travel import Clock

__all__ = ["Clock", "Cluster", "fail_next", "steal_lock"]
