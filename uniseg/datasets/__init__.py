"""From folders of published datasets to preprocessed cases, Sections 3.1 and 4.1.

    layouts.py        how the publishers of Table 1 name their folders and files
    dataset.py        what a dataset is: its labels, its cases, the classes that it annotates
    dataset_json.py   a dataset described by a dataset.json
    channels.py       which channel of its images is the CT
    case_files.py     the files of its cases, and an id for each
    published.py      a dataset as its publisher ships it
    find.py           all datasets of a folder: read it first
    masks.py          the labels of one case -> one mask per class
    placement.py      whether the labels lie where the image shows their organs
    cases.py          a case, preprocessed and cached on disk
    check.py          `python -m uniseg.data`: finds what training would refuse before it starts
    check_table.py    prints the result of check.py
    augment.py        how patches are changed before training sees them
"""
