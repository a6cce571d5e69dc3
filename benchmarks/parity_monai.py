"""Compare uniseg with MONAI item by item: the same weights, images and masks through both, and the largest difference.

    pip install monai einops && python benchmarks/parity_monai.py [--size 96]

Backbones: outputs of bottleneck F_E and decoder F_D with shared random weights, as a fraction of their standard
deviation. MONAI has no U-Net of the Models Genesis form; peers.py builds it from MONAI's blocks, with batch
normalisation over the current batch as in the released code. MONAI's Swin UNETR merges patches in the order of its
current version; the order of version 0.9.0, which the released weights need, is given to it as a module. Exit code 1 if
an item differs by more than its bound. NSD and HD95 are not compared, because MONAI counts surface voxels and uniseg
weighs surface elements by their area; see parity_surface_distance.py.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from peers import monai_backbone, share_weights
from torch import nn

from uniseg.backbones import SegResNet, SwinUNETR, UNet
from uniseg.backbones.swin_unetr import CORNERS
from uniseg.metrics import dice
from uniseg.sliding_window import GAUSSIAN_SIGMA, gaussian_weights, sliding_window

try:
    import monai
    from monai.data.utils import compute_importance_map
    from monai.inferers import sliding_window_inference
    from monai.metrics import compute_dice
    from monai.networks.nets.swin_unetr import PatchMergingV2
except ImportError:
    sys.exit("parity_monai.py: MONAI is not installed. pip install monai einops")

BOUND = 2e-3            # of a standard deviation, as for tests/golden

Item = tuple[str, str, float, float | None, str]           # name, size, largest difference, bound, unit

NOTES = """
(a) The smallest weight is 1e-3 of the peak in uniseg and 1e-3 itself in MONAI. In windows of an even size the peak lies
between two voxels and is less than 1. (b) uniseg spreads the windows evenly, so that results commute with flips. MONAI
keeps the step and moves the last window back. Both matter most at the edges of windows and for a random network."""


class MergingOf090(PatchMergingV2):
    """MONAI's patch merging with the corners of version 0.9.0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W, C) -> (B, D/2, H/2, W/2, 2 C)"""
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in CORNERS["v090"]], dim=-1)))


def shaken(network: nn.Module) -> nn.Module:
    """The network in eval mode, with noise on the parameters of its norms.

    At their initial values of 1 and 0 the comparison would not show whether they are applied.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def backbone_pairs() -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(name, ours, theirs), each image -> (bottleneck, decoder); each pair shares its random weights."""
    torch.manual_seed(0)
    for merging, downsample in (("standard", "merging"), ("v090", MergingOf090)):
        ours, theirs = shaken(SwinUNETR(merging=merging)), monai_backbone("swin_unetr", downsample=downsample)
        yield f"Swin UNETR, {merging} merging", ours, share_weights(ours, theirs).eval()
    for name, title, network in (("unet", "U-Net, batch statistics", UNet), ("segresnet", "SegResNet", SegResNet)):
        ours = shaken(network())
        theirs = share_weights(ours, monai_backbone(name))
        yield title, ours, theirs if name == "unet" else theirs.eval()


def compare_backbones(size: int) -> Iterator[Item]:
    """Bottleneck and decoder of each backbone on one random image of size^3."""
    image = torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
    for name, ours, theirs in backbone_pairs():
        with torch.inference_mode():
            pairs = zip(("bottleneck", "decoder"), ours(image), theirs(image))
        for part, a, b in pairs:
            difference = ((a - b).abs().max() / b.std()).item()
            yield f"{name}: {part}", f"{size}^3", difference, BOUND, "of a standard deviation"


def compare_weights() -> Iterator[Item]:
    """The Gaussian weights of a sliding window."""
    for window in ((96, 96, 96), (64, 96, 33)):
        theirs = compute_importance_map(window, mode="gaussian", sigma_scale=GAUSSIAN_SIGMA)
        # MONAI's smallest weight is 1e-3, ours is 1e-3 of the peak; the peak of a window without middle voxel is below
        # 1.
        difference = (gaussian_weights(window) - theirs / theirs.max()).abs().max().item()
        yield "Gaussian importance map, peak 1", " x ".join(map(str, window)), difference, 1e-5, "absolute"


def compare_windows() -> Iterator[Item]:
    """Sliding windows with MONAI's weights and with uniseg's, where both place the windows alike and where not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv3d(4, 3, 5, padding=2)).eval()
    window = (32, 32, 32)
    for size, places, own_weights, bound in (((64, 48, 80), "same places, same weights", False, 1e-4),
                                             ((20, 40, 32), "padded, one window or two, same weights", False, 1e-4),
                                             ((64, 48, 80), "same places, MONAI's floor (a)", True, None),
                                             ((61, 75, 90), "other places (b)", True, None)):
        image = torch.rand(size)
        with torch.inference_mode():
            theirs = sliding_window_inference(
                image[None, None], window, 1, network, overlap=0.5, mode="gaussian", sigma_scale=GAUSSIAN_SIGMA,
                roi_weight_map=None if own_weights else gaussian_weights(window))[0]
        ours = torch.cat([logits.clone() for _, logits in sliding_window(image, network, 3, window, 0.5)], dim=3)
        yield f"sliding window, {places}", " x ".join(map(str, size)), \
            ((ours - theirs).abs().max() / theirs.std()).item(), bound, "of a standard deviation"


def compare_dice() -> Iterator[Item]:
    """Dice of random masks of different density."""
    rng = np.random.default_rng(0)
    pairs = [rng.random((2, 40, 36, 24)) < share for share in np.linspace(0.001, 0.999, 21)]
    as_batches = [[torch.from_numpy(mask)[None, None].float() for mask in pair] for pair in pairs]
    worst = max(abs(dice(*pair) - compute_dice(*batches).item()) for pair, batches in zip(pairs, as_batches))
    yield "Dice", f"{len(pairs)} pairs of masks", worst, 1e-5, "absolute"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96,
                        help="voxels along each axis for the backbones, a multiple of 32 from 64 (default %(default)s)")
    args = parser.parse_args(argv)
    print(f"MONAI {monai.__version__}, torch {torch.__version__}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads, CPU\n")
    print("| item | on | largest difference | |\n|--|--|--|--|")
    failed = 0
    for items in (compare_backbones(args.size), compare_weights(), compare_windows(), compare_dice()):
        for name, on, difference, bound, unit in items:
            too_far = bound is not None and not difference <= bound
            failed += too_far
            note = f", MORE THAN {bound:g}" if too_far else ""
            print(f"| {name} | {on} | {difference:.1e} | {unit}{note} |", flush=True)
    print(NOTES)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
