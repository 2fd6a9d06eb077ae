"""What a scenario file says: systems, workloads, cells, searches, targets."""
