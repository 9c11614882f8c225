"""What the process as a whole is set to: collector, allocator, threads; compiled or interpreted."""
