"""What a pool is worth, measured: one workload without a pool and with millpond, while its server is broken."""
