"""Fast forms of Eq. (2) and Eq. (4). They compute the same numbers as the readable forms in heads.py and losses.py.

The readable form is what the paper says, one line a layer, and autograd makes its gradient. The fast form avoids repeated
feature maps and stored intermediate results, and its backward pass is written by hand. The tests hold the two together:
results, gradients and every way of grouping classes.

The fast forms are used by default. To run the readable ones, set the environment variable `UNISEG_KERNELS=0` before Python
starts, or set `uniseg.kernels.ENABLED = False` afterwards. docs/design.md says what the fast forms save.
"""

import os

ENABLED = os.environ.get("UNISEG_KERNELS", "1") != "0"
