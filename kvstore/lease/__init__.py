"""Leases: sans-I/O, time passed in."""
