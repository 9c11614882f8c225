"""etcd's v3 API over a node: decode, check, evaluate, encode. Knows nothing of gRPC."""
