"""The built-in weights, weights of others (released.py), and the text about a weights file (description.py)."""
