"""From predictions and references to the numbers of Sections 4.2 to 4.7.

    readings.py       where the masks of each case are, in whatever form they are stored: read it first
    numbers.py        what the numbers of label maps mean
    masks.py          a Reading -> its masks
    pairs.py          which prediction is compared with which reference, and which classes are scored
    segment.py        makes the predictions first, with --data-root
    scores.py         masks -> one row per case and class -> means
    rules.py          tolerances of NSD, organs with or without their tumours
    significance.py   confidence intervals and tests
    comparison.py     two evaluations of the same cases
    folds.py          several evaluations as the folds of one cross-validation
    folder.py         the folder of an evaluation: cases.csv and summary.json
    score_tables.py   what the command prints
    figures.py        `python -m uniseg figures`: contours of readers and models, lesions by size
"""
