"""Fast forms of Eq. (2), of Eq. (4) and of layers of the backbones. They compute what the readable forms compute.

The readable forms are in heads.py, losses.py and backbones/. They follow the paper, one line per layer or term, and
autograd computes their gradients. The fast forms of the equations neither repeat feature maps nor store intermediate
results, and their backward passes are written by hand. Those of the layers do the same with fewer passes over the
memory of a CPU. Tests compare the two: results, gradients and every way of grouping classes.

The fast forms run by default. To run the readable ones, set the environment variable `UNISEG_KERNELS=0` before Python
starts, or set `uniseg.kernels.ENABLED = False` later. docs/performance.md says what the fast forms save;
benchmarks/speed.py measures it.
"""

import os

import torch
from torch import Tensor

ENABLED = os.environ.get("UNISEG_KERNELS", "1") != "0"


def on_cpu(x: Tensor) -> bool:
    """Whether a fast form for CPUs takes this tensor."""
    return ENABLED and x.device.type == "cpu"


def on_cpu_without_gradient(x: Tensor) -> bool:
    """Whether a fast form for inference on CPUs takes this tensor: its backward pass would be slower."""
    return on_cpu(x) and not torch.is_grad_enabled()
