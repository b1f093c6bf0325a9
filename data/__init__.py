"""Data sets: what they are, how each annotation format is read, and how training takes them."""
