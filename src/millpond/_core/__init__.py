"""The core: the pure state machine that both shells carry.

It decides and never acts: no I/O, no clock, no lock, no log, no await, no randomness. A shell calls it under its lock
with the event and the time, and carries out what it asks for. The hot path alone goes without the lock: see `Lease`.
"""
