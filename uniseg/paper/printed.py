"""The numbers of the paper's Tables 3, 4, 5, 6 and 8 as printed: every method, in per cent.

A block of text is a table, a line is its row: the method, a bar, its numbers in the order of the paper's columns; N/A
is what the paper leaves out. Where the paper contradicts itself, docs/paper_to_code.md has the misprint. Read tables.py
next: it prints them with a row for ours below.
"""

from __future__ import annotations

OURS = "Universal Model"          # the paper's own row
Printed = dict[str, tuple[float | None, ...]]     # method -> its numbers


def read(block: str) -> Printed:
    """{method: numbers} of a block, in its order.

    >>> read("nnU-Net | 95.92 N/A")
    {'nnU-Net': (95.92, None)}
    """
    rows = [line.split("|") for line in block.strip().splitlines()]
    return {name.strip(): tuple(None if n == "N/A" else float(n) for n in numbers.split()) for name, numbers in rows}


# Table 3, test set of the Decathlon. Of each task: DSC of organ, tumour and their mean, then NSD of the same.
TASK03_AND_07 = read("""
Kim et al.      | 94.25 72.96 83.61 96.76 88.58 92.67 80.61 51.75 66.18 95.83 73.09 84.46
Trans VW        | 95.18 76.90 86.04 97.86 92.03 94.95 81.42 51.08 66.25 96.07 70.13 83.10
C2FNAS          | 94.98 72.89 83.94 98.38 89.15 93.77 80.76 54.41 67.59 96.16 75.58 85.87
Models Gen.     | 95.72 77.50 86.61 98.48 91.92 95.20 81.36 50.36 65.86 96.16 70.02 83.09
nnU-Net         | 95.75 75.97 85.86 98.55 90.65 94.60 81.64 52.78 67.21 96.14 71.47 83.81
DiNTS           | 95.35 74.62 84.99 98.69 91.02 94.86 81.02 55.35 68.19 96.26 75.90 86.08
Swin UNETR      | 95.35 75.68 85.52 98.34 91.59 94.97 81.85 58.21 70.71 96.57 79.10 87.84
Universal Model | 95.42 79.35 87.39 98.18 93.42 95.80 82.84 62.33 72.59 96.65 82.86 89.76
""")
# Task08 as above; then DSC and NSD of the tumour of Task06, of the organ of Task09, of the tumour of Task10.
TASK08_06_09_10 = read("""
Kim et al.      | 62.34 68.63 65.49 83.22 78.43 80.83 63.10 62.51 91.92 94.83 49.32 62.21
Trans VW        | 65.80 71.44 68.62 84.01 80.15 82.08 74.54 76.22 97.35 99.87 51.47 60.53
C2FNAS          | 64.30 71.00 67.65 83.78 80.66 82.22 70.44 72.22 96.28 97.66 58.90 72.56
Models Gen.     | 65.80 71.44 68.62 84.01 80.15 82.08 74.54 76.22 97.35 99.87 51.47 60.53
nnU-Net         | 66.46 71.78 69.12 84.43 80.72 82.58 73.97 76.02 97.43 99.89 58.33 68.43
DiNTS           | 64.50 71.76 68.13 83.98 81.03 82.51 74.75 77.02 96.98 99.83 59.21 70.34
Swin UNETR      | 65.69 72.20 68.95 84.83 81.62 83.23 76.60 77.40 96.99 99.84 59.45 70.89
Universal Model | 67.15 75.86 71.51 84.84 85.23 85.04 80.01 81.25 97.27 99.87 63.14 75.15
""")

# Table 4, BTCV: spleen, kidneys (right, left), gall bladder, esophagus, liver, stomach, aorta, IVC, veins, pancreas,
# adrenal glands, mean. Trained on BTCV alone, and on several datasets.
TABLE_4_SPECIFIC = read("""
TransUNet       | 94.10 90.22 88.84 65.49 73.19 93.24 80.85 87.47 80.48 71.47 74.26 64.76 79.16
CoTr            | 95.51 88.03 89.19 68.49 75.83 95.93 81.84 89.01 82.32 73.39 75.12 65.78 80.48
TransBTS        | 94.59 89.23 90.47 68.50 75.59 96.14 83.72 88.85 82.28 74.25 75.12 66.74 80.94
nnFormer        | 94.51 88.49 93.39 65.51 74.49 96.10 83.83 88.91 80.58 75.94 77.71 68.19 81.22
UNETR           | 94.91 92.10 93.12 76.98 74.01 96.17 79.98 89.74 81.20 75.05 80.12 62.60 81.43
nnU-Net         | 95.92 88.28 92.62 66.58 75.71 96.49 86.05 88.33 82.72 78.31 79.17 67.99 82.01
Swin UNETR      | 95.44 93.38 93.40 77.12 74.14 96.39 80.12 90.02 82.93 75.08 81.02 64.98 82.06
""")
TABLE_4_AGNOSTIC = read("""
TransUNet       | 94.90 90.89 90.45 70.82 80.31 95.01 90.11 91.30 84.21 74.53 83.21 71.27 84.75
Swin UNETR      | 91.04 86.93 86.83 67.73 77.87 95.14 86.77 89.92 84.34 73.88 82.27 65.34 82.33
Multi-Talent    | 93.61 90.89 90.47 72.12 79.28 96.23 92.83 91.60 87.31 77.58 84.92 72.16 85.75
UniSeg          | 96.99 94.11 92.21 68.13 78.15 96.43 85.93 89.78 86.69 76.12 83.39 72.39 85.02
Universal Model | 95.82 94.28 94.11 79.52 76.55 97.05 92.59 91.63 86.00 77.54 83.17 70.52 86.13
""")

# Table 5, MOTS: liver, its tumour, kidney, its tumour, hepatic vessel, its tumour, pancreas, its tumour, colon tumour,
# lung tumour, spleen, mean. "*": trained on MOTS alone.
TABLE_5 = read("""
Multi-Nets       | 96.54 63.90 96.52 78.07 62.85 71.56 83.18 56.17 42.39 61.68 94.37 73.38
Cond-Input       | 96.67 65.61 96.97 83.17 65.14 74.98 84.24 63.32 46.03 69.67 95.15 76.45
Multi-Head       | 96.77 64.33 96.84 82.39 65.21 74.62 84.59 64.11 46.65 68.63 95.47 76.33
Cond-Dec         | 96.23 65.25 96.43 83.43 65.38 72.26 83.86 62.97 50.67 63.77 94.33 75.87
TAL              | 96.21 64.10 96.01 78.87 64.64 73.87 83.39 60.93 45.14 67.59 94.72 75.04
DoDNet           | 96.86 65.99 97.31 83.45 65.80 77.07 85.39 60.22 47.66 72.65 93.94 76.94
TGNet            | 96.83 63.84 96.17 81.05 62.59 74.65 83.30 60.71 47.37 61.69 94.18 74.76
CCQ              | 96.71 64.32 96.68 79.82 62.50 76.94 83.18 60.54 54.77 70.51 94.57 76.41
TransDoDNet      | 97.01 66.27 97.03 83.57 65.43 76.78 84.88 64.63 58.64 70.82 95.82 78.26
Universal Model* | 96.93 67.14 96.09 82.34 64.39 76.31 84.42 64.68 59.49 70.31 95.31 77.95
Universal Model  | 96.81 70.18 96.96 87.87 66.15 76.45 85.16 67.21 63.92 69.63 96.84 79.74
""")

# Table 6: sensitivity, specificity and their harmonic mean of liver, kidney and pancreatic tumours.
TABLE_6 = read("""
nnU-Net         | 94.44 75.00 83.60 96.88 85.00 90.55 95.18 88.75 91.85
UNet++          | 94.44 80.00 86.62 N/A N/A N/A N/A N/A N/A
UNETR           | 86.11 95.00 90.34 93.75 95.00 94.37 90.36 81.25 85.56
Swin UNETR      | 91.67 85.00 88.21 97.91 70.00 81.63 97.59 87.50 92.26
Universal Model | 88.89 95.00 91.84 91.67 95.00 93.31 93.98 91.25 92.59
""")

# Table 8, 3D-IRCADb: spleen, kidneys (right, left), gall bladder, liver, stomach, pancreas, lungs (right, left), the
# mean of the first seven, the mean of all.
TABLE_8_IRCADB = read("""
SegResNet       | 94.08 80.01 91.60 69.59 95.62 89.53 79.19 N/A N/A 85.66 N/A
nnFormer        | 93.75 88.20 90.11 62.22 94.93 87.93 78.90 N/A N/A 85.14 N/A
UNesT           | 94.02 84.90 94.95 68.58 95.10 89.28 79.94 N/A N/A 86.68 N/A
TransBTS        | 91.33 76.22 88.87 62.50 94.42 85.87 63.90 N/A N/A 80.44 N/A
TransUNet       | 94.09 82.07 89.92 63.07 95.55 89.12 79.53 N/A N/A 84.76 N/A
UNETR           | 92.23 91.28 94.19 56.20 94.25 86.73 72.56 91.56 93.31 83.92 85.81
Swin UNETR      | 93.51 66.34 90.63 61.05 94.73 87.37 73.77 93.72 92.17 81.05 83.69
Universal Model | 95.76 94.99 94.42 88.79 97.03 89.36 80.99 97.71 96.72 91.62 92.86
""")
# JHH: spleen, kidneys, gall bladder, liver, stomach, pancreas, aorta, IVC, veins, mean.
TABLE_8_JHH = read("""
SegResNet       | 93.11 89.92 87.84 74.62 95.37 87.90 76.33 84.05 79.36 57.13 82.56
nnFormer        | 86.71 87.03 84.28 63.37 91.64 73.18 71.88 84.73 78.61 55.31 77.67
UNesT           | 93.82 90.42 89.04 76.40 95.30 89.65 78.97 84.36 79.61 59.70 83.73
TransBTS        | 85.47 81.58 82.00 60.58 92.50 72.29 63.25 83.47 75.07 55.38 75.16
TransUNet       | 94.63 89.86 89.61 77.28 95.85 88.95 79.98 85.06 81.02 59.76 84.20
UNETR           | 91.89 89.07 87.60 66.97 91.48 83.18 70.56 82.92 75.20 57.53 79.64
Swin UNETR      | 92.23 84.34 82.95 74.06 94.91 82.28 71.17 85.50 79.18 55.11 80.17
Universal Model | 93.94 91.53 90.21 84.15 96.25 92.51 82.72 77.35 79.64 57.10 84.54
""")
