"""The fault atlas: what callers see when servers and networks fail, through millpond and through its peers."""
