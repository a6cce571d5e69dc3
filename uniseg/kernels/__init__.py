"""Fast forms of Eq. (2) and Eq. (4). They compute the same numbers as the readable forms in heads.py and losses.py.

The readable forms follow the paper, one line per layer or term, and autograd computes their gradients. The fast forms
neither repeat feature maps nor store intermediate results, and their backward passes are written by hand. Tests compare
the two: results, gradients and every way of grouping classes.

The fast forms run by default. To run the readable ones, set the environment variable `UNISEG_KERNELS=0` before Python
starts, or set `uniseg.kernels.ENABLED = False` later. docs/performance.md says what the fast forms save;
benchmarks/speed.py measures it.
"""

import os

ENABLED = os.environ.get("UNISEG_KERNELS", "1") != "0"
