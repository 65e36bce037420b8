"""What nodes and clients say to each other, and what stands in the log: typed messages, and nothing else."""
