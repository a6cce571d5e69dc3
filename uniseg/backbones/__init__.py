"""Backbones: image in, bottleneck F_E and decoder map F_D out (the "vision branch" of the paper, Section 3.2).

All three keep one contract, so that `uniseg/model.py` needs only the dict below:

    bottleneck, features = backbone(image)
    image:       (B, in_channels, D, H, W)                  each of D, H, W a multiple of `size_multiple`
    bottleneck:  (B, bottleneck_channels, D/s, H/s, W/s)    F_E, pooled by the GAP of Eq. (1); s = `size_multiple`
    features:    (B, decoder_channels, D, H, W)             F_D, what the class-specific heads of Eq. (2) read

`size_multiple` is a class attribute, `bottleneck_channels` and `decoder_channels` are instance attributes. `width`, the
channels at full resolution, scales every layer; its default is the paper's. Sub-module names are those of the released
checkpoints, so that a state dict loads without renaming once its prefix is cut.

Read `unet.py` first, then `segresnet.py`, then `swin_unetr.py`.
"""

from .segresnet import SegResNet
from .swin_unetr import SwinUNETR
from .unet import UNet

BACKBONES = {"swin_unetr": SwinUNETR, "unet": UNet, "segresnet": SegResNet}
