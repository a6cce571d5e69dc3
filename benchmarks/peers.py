"""What uniseg is measured beside: MONAI's networks, windows, transforms and scores, with the obvious heads and loss.

MONAI has neither the heads of Eq. (2) nor the loss of Eq. (3)-(4). Here they are in the form that one writes first: the
feature map is repeated for each class before grouped convolutions, and the loss is a loop over the classes. Everything
else is MONAI's own, set as the released code sets it, or as its tutorials do. parity_monai.py shows that both sides
compute the same numbers. Nothing in uniseg needs MONAI: `pip install monai einops`.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniseg.backbones.build import PAPER_WIDTH
from uniseg.heads import SIZES
from uniseg.machine.device import autocast
from uniseg.model import UniversalModel

PATCH = (96, 96, 96)
Outputs = tuple[Tensor, Tensor]                            # bottleneck F_E, decoder F_D


def available() -> bool:
    """Whether MONAI can be imported."""
    return importlib.util.find_spec("monai") is not None


# ------------------------------------------------------------------------------------------------ heads, loss

def repeated_class_logits(features: Tensor, theta: Tensor) -> Tensor:
    """Eq. (2), one group of channels per class: features (B, 8, D, H, W), theta (B, K, 153) -> (B, K, D, H, W)."""
    logits = []
    for image, parameters in zip(features, theta):
        classes = len(parameters)
        w1, w2, w3, b1, b2, b3 = parameters.split(SIZES, dim=1)
        x = image[None].repeat(1, classes, 1, 1, 1)                                                 # (1, 8K, D, H, W)
        x = F.relu(F.conv3d(x, w1.reshape(8 * classes, 8, 1, 1, 1), b1.flatten(), groups=classes))  # (1, 8K, D, H, W)
        x = F.relu(F.conv3d(x, w2.reshape(8 * classes, 8, 1, 1, 1), b2.flatten(), groups=classes))  # (1, 8K, D, H, W)
        logits.append(F.conv3d(x, w3.reshape(classes, 8, 1, 1, 1), b3.flatten(), groups=classes))   # (1, K, D, H, W)
    return torch.cat(logits)


def looped_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """Eq. (4), averaged over the annotated pairs: Dice loss and cross-entropy of one class after the other."""
    total, pairs = logits.new_zeros(()), labelled.nonzero().tolist()
    for b, k in pairs:
        x, t = logits[b, k], target[b, k].to(logits.dtype)
        p = torch.sigmoid(x)
        dice_loss = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        total = total + dice_loss + F.binary_cross_entropy_with_logits(x, t)
    return total / len(pairs)


# ------------------------------------------------------------------------------------------------ networks

class MonaiUNet(nn.Module):
    """The Models Genesis U-Net of MONAI's blocks, with batch normalisation over the current batch as in the released
    code; its parameters are in the order of uniseg's."""

    def __init__(self, width: int) -> None:
        from monai.networks.blocks import Convolution

        super().__init__()

        def conv(i: int, o: int) -> nn.Module:
            return Convolution(3, i, o, act="RELU", norm=("BATCH", {"track_running_stats": False}))

        c = width
        self.down = nn.ModuleList(nn.Sequential(conv(i, m), conv(m, o)) for i, m, o in
                                  ((1, c // 2, c), (c, c, 2 * c), (2 * c, 2 * c, 4 * c), (4 * c, 4 * c, 8 * c)))
        self.up = nn.ModuleList(nn.ModuleList((
            Convolution(3, i, i, strides=2, kernel_size=2, padding=0, output_padding=0, is_transposed=True,
                        conv_only=True),
            nn.Sequential(conv(i + s, s), conv(s, s))))
            for i, s in ((8 * c, 4 * c), (4 * c, 2 * c), (2 * c, c)))

    def forward(self, x: Tensor) -> Outputs:
        """(B, 1, D, H, W) -> bottleneck and decoder features"""
        skips = []
        for level, down in enumerate(self.down):
            x = down(x if level == 0 else F.max_pool3d(x, 2))
            skips.append(x)
        bottleneck = skips.pop()
        x = bottleneck
        for grow, convolve in self.up:
            x = convolve(torch.cat([grow(x), skips.pop()], dim=1))
        return bottleneck, x


class WithBottleneck(nn.Module):
    """A MONAI network without its output layer, which also returns the output of one of its modules."""

    def __init__(self, network: nn.Module, output_layer: str, bottleneck: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.kept: list[Tensor] = []
        setattr(network, output_layer, nn.Identity())
        bottleneck.register_forward_hook(lambda module, inputs, output: self.kept.append(output))

    def forward(self, x: Tensor) -> Outputs:
        """(B, 1, D, H, W) -> bottleneck and decoder features"""
        decoder = self.network(x)
        return self.kept.pop(), decoder


def monai_backbone(name: str, width: int = 0, downsample: Any = "merging") -> nn.Module:
    """MONAI's network of this name: image -> (bottleneck, decoder). width 0: the paper's"""
    from monai.networks.nets import SegResNet, SwinUNETR

    width = width or PAPER_WIDTH[name]
    if name == "unet":
        return MonaiUNet(width)
    if name == "segresnet":
        network = SegResNet(init_filters=width, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
        return WithBottleneck(network, "conv_final", network.down_layers[-1])
    network = SwinUNETR(1, 2, feature_size=width, downsample=downsample)
    return WithBottleneck(network, "out", network.encoder10)


def share_weights(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """MONAI's network, with the weights of ours of the same name and width."""
    if isinstance(theirs, MonaiUNet):
        with torch.no_grad():
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                other.copy_(mine)
    else:
        theirs.get_submodule("network").load_state_dict(ours.state_dict())
    return theirs


class PeerModel(UniversalModel):
    """The same model with MONAI's backbone and the repeated feature map."""

    @classmethod
    def like(cls, model: UniversalModel) -> PeerModel:
        """A peer of this model, with its weights."""
        peer = cls(model.config, model.organ_embedding)
        peer.load_state_dict(model.state_dict())
        theirs = monai_backbone(model.config.backbone, model.config.width)
        setattr(peer, "backbone", share_weights(model.backbone, theirs))
        return peer

    def forward(self, image: Tensor, only: Sequence[int] | None = None) -> Tensor:
        """image (B, 1, D, H, W) -> logits (B, K, D, H, W)"""
        bottleneck, features = self.backbone(image)
        theta = self.lpg(self.GAP(bottleneck).flatten(1), self.organ_embedding, only)
        return repeated_class_logits(self.precls_conv(features), theta)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, target: Tensor, labelled: Tensor,
             precision: str = "float32") -> None:
    """One training step as one writes it; target (B, K, D, H, W), labelled (B, K)."""
    optimizer.zero_grad(set_to_none=True)
    with autocast(image.device, precision):
        logits = model(image)
    looped_loss(logits.float(), target, labelled).backward()
    optimizer.step()


# ------------------------------------------------------------------------------------------------ transforms

def patches_chain(samples: int, keep_indices: bool = False, patch: Sequence[int] = PATCH) -> Any:
    """The released code's transforms (https://github.com/ljwztc/CLIP-Driven-Universal-Model, dataset/dataloader.py).

    Its AddChanneld is replaced by its present form, EnsureChannelFirstd.
    keep_indices: keep the voxels that a crop may centre on as well, which the released code does not do
    """
    from monai import transforms as t

    warnings.simplefilter("ignore", FutureWarning)         # about a default that the released code uses
    both, seen = ["image", "label"], {"image_key": "image", "image_threshold": 0}
    crop = {"label_key": "label", "spatial_size": patch, "pos": 2, "neg": 1, "num_samples": samples, **seen}
    if keep_indices:
        crop |= {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
    return t.Compose([
        *_preparing(both), t.SpatialPadd(both, spatial_size=patch),
        *([t.FgBgToIndicesd("label", **seen)] if keep_indices else []), t.RandCropByPosNegLabeld(both, **crop),
        t.RandRotate90d(both, prob=0.1, max_k=3), t.RandShiftIntensityd("image", offsets=0.1, prob=0.2),
        t.ToTensord(both, track_meta=False)])


def _preparing(keys: Sequence[str]) -> list[Any]:
    """Reading, orientation, resampling to 1.5 mm, scaling, cropping to what is not air: training and inference."""
    from monai import transforms as t

    modes = ("bilinear", "nearest")[:len(keys)]
    return [t.LoadImaged(keys), t.EnsureChannelFirstd(keys), t.Orientationd(keys, axcodes="RAS"),
            t.Spacingd(keys, pixdim=(1.5, 1.5, 1.5), mode=modes),
            t.ScaleIntensityRanged("image", a_min=-175, a_max=250, b_min=0, b_max=1, clip=True),
            t.CropForegroundd(keys, source_key="image")]


def patches_data(files: Sequence[dict[str, str]], cached: bool = False, tuned: bool = False,
                 patch: Sequence[int] = PATCH) -> Any:
    """A MONAI Dataset of {"image", "label"} files, or a filled CacheDataset; tuned: see `patches_chain`, and the cached
    volume is not copied for each patch."""
    from monai.data import CacheDataset, Dataset

    chain = patches_chain(1, tuned, patch)
    return CacheDataset(files, chain, progress=False, copy_cache=not tuned) if cached else Dataset(files, chain)


def patches(data: Any, samples: int, tuned: bool = False, patch: Sequence[int] = PATCH) -> Iterator[dict[str, Any]]:
    """Endless batches of `samples` patches, all of a batch from one volume, as in the released code."""
    from monai.data import DataLoader, list_data_collate

    data = copy.copy(data)                                 # the same cache for every number of samples
    data.transform = patches_chain(samples, tuned, patch)
    while True:
        yield from DataLoader(data, batch_size=1, shuffle=True, collate_fn=list_data_collate)


# ------------------------------------------------------------------------------------------------ inference, scores

def windows(image: Tensor, model: nn.Module, window: Sequence[int], at_once: int = 1) -> Tensor:
    """Logits (1, K, D, H, W) of a volume (1, 1, D, H, W): half an overlap, Gaussian weights."""
    from monai.inferers import sliding_window_inference

    return sliding_window_inference(image, window, at_once, model, overlap=0.5, mode="gaussian")


@torch.inference_mode()
def segment(ct: Path, out: Path, model: nn.Module, window: Sequence[int] = PATCH, precision: str = "float32",
            device: torch.device = torch.device("cpu"), at_once: int = 1) -> None:
    """From a CT to a label map on its own grid, without post-processing.

    The masks are merged on the network's grid, and one label map is brought back: MONAI's usual `Invertd` of 32 masks
    takes minutes one by one, and some 30 GiB all at once.
    """
    from monai import transforms as t

    chain = t.Compose(_preparing(["image"]))
    data = chain({"image": str(ct)})
    image = data["image"]
    with autocast(device, precision):
        logits = windows(image[None].as_tensor().to(device), model, window, at_once)[0]
    merged = image.clone()
    merged.data = torch.zeros(image.shape)
    for k, of_class in enumerate(logits):
        merged.data[0, torch.sigmoid(of_class.float()).cpu() > 0.5] = k + 1
    back = t.Invertd("merged", chain, orig_keys="image", nearest_interp=True, to_tensor=True)
    labels = back({**data, "merged": merged})["merged"][0].numpy().astype(np.uint8)
    source: Any = nibabel.load(ct)
    nibabel.save(nibabel.Nifti1Image(labels, source.affine), out)


def scores(predicted: Path, reference: Path, values: Sequence[int],
           tolerance_mm: float = 2.0) -> dict[int, list[float]]:
    """{value in the label maps: Dice, surface Dice, HD95} of one case, class by class."""
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    maps: list[Any] = [nibabel.load(path) for path in (predicted, reference)]
    arrays = [torch.from_numpy(np.asarray(one.dataobj)) for one in maps]
    spacing = [float(mm) for mm in maps[0].header.get_zooms()]
    found = {}
    for value in values:
        y_pred, y = ((array == value)[None, None] for array in arrays)
        found[value] = [
            compute_dice(y_pred, y).item(),
            compute_surface_dice(y_pred, y, [tolerance_mm], include_background=True, spacing=spacing).item(),
            compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing).item()]
    return found
