"""Counting what happens, cheaply, and telling Prometheus about it under etcd's names."""
