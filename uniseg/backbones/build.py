"""Building a backbone from a configuration: its width, and its input channels."""

import torch

from . import BACKBONES

PAPER_WIDTH = {"swin_unetr": 48, "unet": 64, "segresnet": 16}


def input_channels(image, windows):
    """Beyond the paper: one channel a window, each a part (low, high) of the image's range, clipped and scaled to [0, 1].

    image (B, 1, D, H, W) in [0, 1] -> (B, len(windows), D, H, W); without windows the image itself. The one window of the
    paper, -175 to 250 HU, shows neither lungs nor bone; with a wide image several windows show all three (--input-windows).
    """
    if not windows:
        return image
    return torch.cat([((image - low) / (high - low)).clamp(0, 1) for low, high in windows], dim=1)


def build_backbone(config):
    """The backbone of a ModelConfig: image, or its input_channels -> (F_E, F_D)."""
    more = {"merging": config.merging} if config.backbone == "swin_unetr" else {}
    return BACKBONES[config.backbone](in_channels=max(1, len(config.input_windows)), width=config.width or PAPER_WIDTH[config.backbone], **more)
