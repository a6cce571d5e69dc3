"""The paper's own numbers beside ours: its tables (tables.py) and the cost of its networks (complexity.py)."""
