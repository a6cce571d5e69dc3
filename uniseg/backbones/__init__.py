"""Backbones, the vision branch of the paper (Section 3.2.1): image in, bottleneck F_E and decoder map F_D out.

All three have one interface, so that model.py needs only the dict below:

    bottleneck, features = backbone(image)
    image:       (B, in_channels, D, H, W)                  each of D, H, W a multiple of `size_multiple`
    bottleneck:  (B, bottleneck_channels, D/s, H/s, W/s)    F_E, pooled for Eq. (1); s = `size_multiple`
    features:    (B, decoder_channels, D, H, W)             F_D, read by the class-specific heads of Eq. (2)

`size_multiple` is a class attribute; `in_channels`, `bottleneck_channels` and `decoder_channels` are instance
attributes. `width`, the number of channels at full resolution, scales every layer; its default is the paper's.
Submodules have the names of the released checkpoints, so that their tensors load without renaming once the prefix of
the names is cut.

The paper uses Swin UNETR (Section 4.1.2) and compares all three in Section 4.4.2 and Fig. 3. Read `unet.py` first, then
`segresnet.py`, then `swin_unetr.py`; `build.py` chooses one by its name.
"""

from .segresnet import SegResNet
from .swin_unetr import SwinUNETR
from .unet import UNet

Backbone = SwinUNETR | UNet | SegResNet
BACKBONES: dict[str, type[Backbone]] = {"swin_unetr": SwinUNETR, "unet": UNet, "segresnet": SegResNet}
