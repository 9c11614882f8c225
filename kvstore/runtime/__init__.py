"""What the process as a whole is set to: the garbage collector's policy."""
