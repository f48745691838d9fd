"""What millpond promises in figures, measured: `python -m benchmarks`."""
