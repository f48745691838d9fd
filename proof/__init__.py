"""What holds millpond against its promises beyond its tests: `python -m proof`, explained in docs/proof.md."""
