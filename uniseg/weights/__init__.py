"""The built-in weights, and how weights that others have published are read."""
