"""From folders of published datasets to preprocessed cases. Read find.py first."""
