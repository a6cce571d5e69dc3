"""The built-in weights; reading weights files (torch_file.py), what may be in them (schema.py), and those of others."""
