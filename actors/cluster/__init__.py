"""The Ray cluster: connection, placement and reservation of nodes, cores and GPUs."""
