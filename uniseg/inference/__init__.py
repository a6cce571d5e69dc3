"""The steps of segmenter.py, and which files `infer` reads and writes. Read segmenter.py first."""
