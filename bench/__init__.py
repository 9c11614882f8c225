"""Measurements: jotd beside etcd, by the native load generator and by a Go client."""
