"""The paper's own numbers: its tables, and the cost of its networks."""
