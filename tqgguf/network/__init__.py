"""A reference forward pass in NumPy."""
