"""What replidict costs, beside its peers in the same run: `python -m benchmarks --list`.

How the figures come about, so that they can be trusted:

1. Every node is an operating-system process of its own, on loopback, with its files on one file system.
2. Only the public API is timed, by `time.perf_counter`, around one call.
3. The measuring threads run in the process of the node they talk to. etcd can't be embedded, so its clients are a
   process of their own, which talks to the leader's or a follower's member. hashicorp/raft's are goroutines in its
   nodes.
4. All systems of one run are driven by the same loop (`measure.py`), with the same keys and values; one system runs
   at a time, and the rounds of all systems alternate. Figures are medians of `--runs` rounds.
5. Ratios are of figures from the same run: they are what carries over to another machine.
"""
