"""The life of a write: propose, append, commit; and recovery, snapshots, compaction, expiry."""
