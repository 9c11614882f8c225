"""Which shard owns which keys: the partition table and its lookups."""
