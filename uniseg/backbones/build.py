"""Building a backbone by its name: its width and its input channels. Read __init__.py first."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import BACKBONES, Backbone

# Channels at full resolution. They give the parameter counts of Fig. 3: 62.19 M, 19.08 M and 4.7 M.
PAPER_WIDTH = {"swin_unetr": 48, "unet": 64, "segresnet": 16}


def input_channels(image: Tensor, windows: Sequence[tuple[float, float]]) -> Tensor:
    """Beyond the paper: one input channel per intensity window.

    image:   (B, 1, D, H, W), scaled to [0, 1]
    windows: parts (low, high) of the range [0, 1]; each is clipped and scaled to [0, 1] in a channel of its own
    returns: (B, len(windows), D, H, W); without windows, the image itself

    The paper's single window, -175 to 250 HU, shows neither lungs nor bone. With an image of a wider range, several
    windows show all three (--input-windows).
    """
    if not windows:
        return image
    return torch.cat([((image - low) / (high - low)).clamp(0, 1) for low, high in windows], dim=1)


def build_backbone(name: str, width: int, merging: str, windows: int) -> Backbone:
    """A backbone with random weights.

    name:    a key of BACKBONES
    width:   channels at full resolution; 0 is the paper's
    merging: order of the corners in Swin UNETR's patch merging (swin_unetr.CORNERS); the others have none
    windows: number of intensity windows, see `input_channels`
    """
    more: dict[str, Any] = {"merging": merging} if name == "swin_unetr" else {}
    return BACKBONES[name](in_channels=max(1, windows), width=width or PAPER_WIDTH[name], **more)
