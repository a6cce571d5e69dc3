"""What segmenter.py is made of. Read segmenter.py first."""
