"""What `millpond.httpx` and `millpond.httpx2` have in common: millpond's pools over the connections of httpcore."""
