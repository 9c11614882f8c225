"""Watches: who is interested in which keys, and how far each one has come. Sans-I/O."""
