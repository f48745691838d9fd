"""What a pool is worth, measured: `make demo` runs one workload without a pool and with millpond, and breaks the server."""
