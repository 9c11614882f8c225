"""What the process as a whole is set to: the collector's policy, compiled or interpreted."""
