"""Explores every state of the core that small pools can come to."""
