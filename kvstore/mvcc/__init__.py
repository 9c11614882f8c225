"""The multi-version store: sans-I/O, synchronous, typed (DESIGN §5)."""
