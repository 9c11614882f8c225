"""A second server that knows the right answers, and the means to compare with it."""
