"""Measurements: jotd beside etcd and beside the bare transport, by the same load generator."""
