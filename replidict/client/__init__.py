"""Programs that talk to a node over the cluster's protocol without being members."""
