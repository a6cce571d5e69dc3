"""The two heads: the language-driven parameter generator (LPG), Eq. (1), and the class-specific heads, Eq. (2).

For each class, one small MLP turns the class's text embedding and the pooled image feature into 153 numbers. These
are the weights and biases of three 1x1x1 convolutions, which turn the decoder's feature map into the logit map of the
class.

Sections 3.2.2 and 3.2.3. Read embeddings.py first, model.py next.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .backbones.layers import GroupNorm
from .kernels import class_heads
from .machine.device import without_autocast

HEAD_CHANNELS = 8                  # output channels of the first two layers, Section 3.2.3
SIZES = (64, 64, 8, 8, 8, 1)       # number of values in w1, w2, w3, b1, b2, b3
THETA = sum(SIZES)                 # 153 parameters per class
POOLED = 256                       # width of the pooled image feature f (released code)


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with 16 groups (released code), or with fewer where 16 does not divide a narrow network's channels."""
    return GroupNorm(math.gcd(16, channels), channels)


def global_average_pooling(channels: int) -> nn.Sequential:
    """f = GAP(F_E), Section 3.2.2: (B, E, d, h, w) -> (B, 256, 1, 1, 1).

    The norm, the ReLU and the convolution to 256 channels around the pooling are those of the released code.
    """
    return nn.Sequential(group_norm(channels), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Conv3d(channels, POOLED, 1))


def reduce_features(channels: int) -> nn.Sequential:
    """F_D -> the 8 channels that all class heads share: (B, C, D, H, W) -> (B, 8, D, H, W). From the released code."""
    return nn.Sequential(group_norm(channels), nn.ReLU(), nn.Conv3d(channels, HEAD_CHANNELS, 1))


class IndependentLPG(nn.Module):
    """Eq. (1), theta_cls = MLP_cls(w_cls (+) f), with one MLP per class: (256 + T) -> 512 -> 153.

    With CLIP's embeddings (T = 512), each class costs 472,217 parameters and 943,769 operations: the 9.44e-4 GFLOPs of
    Section 5.4. Classes that are added later get MLPs of their own and leave these untouched (Section 3.3).

    hidden: width of the hidden layer; 512 is the released code's
    """

    def __init__(self, classes: int, text_width: int, hidden: int = 512):
        super().__init__()
        self.controllers = nn.ModuleList(
            nn.Sequential(nn.Linear(POOLED + text_width, hidden), nn.ReLU(), nn.Linear(hidden, THETA))
            for _ in range(classes))

    def forward(self, pooled: Tensor, text: Tensor, only: Sequence[int] | None = None) -> Tensor:
        """f and w of Eq. (1) -> theta.

        pooled: (B, 256); text: (K, T); only: the channels to compute (None: all)
        returns: (B, K, 153), or (B, len(only), 153)
        """
        channels = range(len(self.controllers)) if only is None else only
        thetas = []
        for k in channels:
            w_f = torch.cat([pooled, text[k].expand(len(pooled), -1)], dim=1)  # (B, 256 + T), f first: released code
            thetas.append(self.controllers[k](w_f))                            # (B, 153)
        return torch.stack(thetas, dim=1)                                      # (B, K, 153)

    def last_bias(self) -> list[Tensor]:
        """The biases of the layer that gives theta: a list of K tensors (153,)."""
        return [mlp.get_parameter("2.bias") for mlp in self.controllers]


class SharedLPG(nn.Module):
    """Eq. (1) as in the ICCV 2023 paper and the released weights: one linear layer for all classes (see Fig. 1).

    hidden: width to which the text embedding is mapped first; 256 is the released code's
    """

    def __init__(self, classes: int, text_width: int, hidden: int = 256):
        super().__init__()
        self.classes = classes
        self.text_to_vision = nn.Linear(text_width, hidden)
        self.controller = nn.Linear(POOLED + hidden, THETA)

    def forward(self, pooled: Tensor, text: Tensor, only: Sequence[int] | None = None) -> Tensor:
        """Arguments and result are those of `IndependentLPG.forward`."""
        text = text if only is None else text[list(only)]
        w = F.relu(self.text_to_vision(text))                                  # (K, 256)
        w_f = torch.cat([pooled[:, None].expand(-1, len(w), -1),
                         w[None].expand(len(pooled), -1, -1)], dim=2)          # (B, K, 512)
        return self.controller(w_f)                                            # (B, K, 153)

    def last_bias(self) -> list[Tensor]:
        """The bias of the layer that gives theta, which all classes share: a list of one tensor (153,)."""
        return [self.controller.bias]


LPGS: dict[str, type[IndependentLPG] | type[SharedLPG]] = {"independent": IndependentLPG, "shared": SharedLPG}


def class_logits(features: Tensor, theta: Tensor) -> Tensor:
    """Class-specific heads, Eq. (2) without its sigmoid, which the loss and the thresholds apply.

    features: (B, 8, D, H, W)  decoder feature map, shared by all K classes
    theta:    (B, K, 153)      parameters of Eq. (1): 64 + 64 + 8 weights, then 8 + 8 + 1 biases; weights are (out, in)
    returns:  (B, K, D, H, W)  one logit map per class, float32 whatever autocast says

    By default kernels/class_heads.py computes these numbers faster. `UNISEG_KERNELS=0` runs the readable form below.
    """
    if kernels.ENABLED:
        return class_heads.class_logits(features, theta, SIZES)
    with without_autocast(features.device.type):
        return plain_class_logits(features.float(), theta.float())


def plain_class_logits(features: Tensor, theta: Tensor) -> Tensor:
    """Eq. (2) as in the paper, one line per layer, with phi = ReLU. Shapes are those of `class_logits`."""
    w1, w2, w3, b1, b2, b3 = theta.split(SIZES, dim=2)
    w1, w2 = w1.unflatten(2, (8, 8)), w2.unflatten(2, (8, 8))                        # (B, K, 8 out, 8 in)
    b1, b2, b3 = (b[..., None, None, None] for b in (b1, b2, b3))                    # (B, K, 8 or 1, 1, 1, 1)
    x = F.relu(torch.einsum("bkoi,bidhw->bkodhw", w1, features) + b1)                # (B, K, 8, D, H, W)
    x = F.relu(torch.einsum("bkoi,bkidhw->bkodhw", w2, x) + b2)                      # (B, K, 8, D, H, W)
    return torch.einsum("bki,bkidhw->bkdhw", w3, x) + b3.squeeze(2)                  # (B, K, D, H, W)
