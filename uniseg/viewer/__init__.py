"""A viewer in one HTML file per case, and a page of all cases of a folder. Read view.py first."""
