"""The built-in weights; reading weights files (torch_file.py, schema.py), also of others (released.py, description.py)."""
