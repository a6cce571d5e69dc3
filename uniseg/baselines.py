"""The methods that Section 5 compares with: a plain network with a softmax, extended by LwF, ILT or PLOP.

The plain network ends in one 1x1x1 convolution to the background and K classes; each voxel has exactly one of them. A
new class is one more output channel of that convolution. All three methods learn from pseudo labels: the class that the
frozen old model predicts for a voxel, overwritten by the labels of the new classes. The terms of their losses are those
of the authors' experiments, as far as their code shows them (https://github.com/MrGiovanni/ContinualLearning at
aa73c28: continue_lwf.py, continue_ilt.py, continue_plop.py):

    lwf    cross-entropy + Dice of the new classes + Dice of the old classes
    ilt    cross-entropy + Dice of the new classes + mean squared difference from the old model's bottleneck
    plop   cross-entropy + Dice of the new classes + local POD, see `pod_distance`

Differs from that code: Dice is taken of the softmax, not of a sigmoid of the same numbers, and all weights have the
same learning rate. Differs from the methods as first published: LwF (Li and Hoiem, https://arxiv.org/abs/1606.09282)
and ILT (Michieli and Zanuttigh, https://arxiv.org/abs/1907.13372) distil soft outputs; PLOP (Douillard et al.,
https://arxiv.org/abs/2011.11390) leaves out uncertain pseudo labels.

Read continual.py first.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones.build import build_backbone, input_channels
from .imaging.merging import merging_order
from .losses import SMOOTH, unpack_bits
from .taxonomy import BY_NAME

POD_FACTOR = 5e-4                       # authors' code
POD_SCALES = (1, 2, 4)                  # number of parts into which an axis is divided
# The modules whose outputs PLOP compares: all levels of encoder and decoder except the last, including the bottleneck.
LEVELS = {
    "swin_unetr": ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10", "decoder5", "decoder4", "decoder3",
                   "decoder2"),
    "unet": ("down_tr64", "down_tr128", "down_tr256", "down_tr512", "up_tr256", "up_tr128"),
    "segresnet": ("down_layers.0", "down_layers.1", "down_layers.2", "down_layers.3", "up_layers.0", "up_layers.1"),
}
BOTTLENECK = {"swin_unetr": "encoder10", "unet": "down_tr512", "segresnet": "down_layers.3"}


# ------------------------------------------------------------------------------------------------------------- targets

def index_map(target: Tensor, classes: Sequence[str], start: Tensor | None = None,
              channels: Collection[int] | None = None) -> Tensor:
    """Overlapping masks -> one class per voxel: (B, D, H, W) int64, 0 for the background, k + 1 for channel k.

    target:   (B, K, D, H, W) of zeros and ones
    classes:  the K names
    start:    an index map of pseudo labels that the masks are laid over (None: background everywhere)
    channels: the channels to paint (None: all)

    The masks are painted in the merging order of Section 4.1.2 (imaging/merging.py): a class never covers a class of a
    later kind. What is painted then covers `start`, since a label is right where a pseudo label of another class is
    wrong. Only what lies inside the painted class stays: a tumour is part of the mask of its organ.
    """
    painted = torch.zeros_like(target[:, 0], dtype=torch.int64)
    for k in merging_order(classes):
        if channels is None or k in channels:
            painted[target[:, k] > 0] = k + 1
    if start is None:
        return painted
    holds = torch.zeros(1 + len(classes), 1 + len(classes), dtype=torch.bool, device=target.device)
    for k, inner in enumerate(classes):
        for outer in BY_NAME[inner].parents if inner in BY_NAME else ():
            if outer in classes:
                holds[classes.index(outer) + 1, k + 1] = True
    return torch.where((painted > 0) & ~holds[painted, start], painted, start)


# ------------------------------------------------------------------------------------------------- terms of the losses

def cross_entropy(scores: Tensor, index: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over all voxels of -log softmax(scores)[index], a 0-d tensor.

    scores: (B, 1 + K, D, H, W), background first; index: (B, D, H, W) int64
    weight: (1 + K,) weight of the voxels of each class (None: 1)
    """
    per_voxel = F.cross_entropy(scores.float(), index, reduction="none")
    return (per_voxel if weight is None else per_voxel * weight[index]).mean()


def softmax_dice(scores: Tensor, index: Tensor, channels: Sequence[int]) -> Tensor:
    """The mean over samples and `channels` of the Dice loss, with p the softmax: a 0-d tensor.

    The Dice loss of a patch is 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1). scores and index as in `cross_entropy`.
    """
    p = torch.softmax(scores.float(), dim=1)
    total = p.new_zeros(())
    for k in channels:
        p_k, t = p[:, k + 1].flatten(1), (index == k + 1).flatten(1).float()
        total = total + (1 - (2 * (p_k * t).sum(1) + SMOOTH) / (p_k.sum(1) + t.sum(1) + SMOOTH)).mean()
    return total / len(channels)


def local_pod(x: Tensor) -> Tensor:
    """The local POD embedding of a feature map: (B, C, D, H, W) -> (B, length).

    For every block of every scale, it holds the means along each axis, flattened and joined. Scale s divides each axis
    into s parts. Voxels that remain after an even division are left out, and so is a scale with more parts than an axis
    has voxels.
    """
    parts = []
    for s in POD_SCALES:
        sizes = [n // s for n in x.shape[2:]]
        if 0 in sizes:
            continue
        cut = x[:, :, :sizes[0] * s, :sizes[1] * s, :sizes[2] * s]
        blocks = cut.unflatten(4, (s, -1)).unflatten(3, (s, -1)).unflatten(2, (s, -1))        # (B, C, s, d, s, h, s, w)
        parts += [blocks.mean(axis).flatten(1) for axis in (7, 5, 3)]
    return torch.cat(parts, dim=1)


def pod_distance(new: Sequence[Tensor], old: Sequence[Tensor], current: int, added: int) -> Tensor:
    """PLOP's distance between the feature maps of two networks: a 0-d tensor.

    new, old:       lists of maps (B, C, D, H, W), one per level, with the same shapes
    current, added: number of all classes and of the new classes

    It is the mean over levels and samples of the Euclidean distance between the local POD embeddings of the squared
    maps, times POD_FACTOR, times sqrt(current / added).
    """
    distances = [torch.linalg.vector_norm(local_pod(a.float() ** 2) - local_pod(b.float() ** 2), dim=1).mean()
                 for a, b in zip(new, old)]
    return POD_FACTOR * math.sqrt(current / added) * sum(distances) / len(distances)


@contextlib.contextmanager
def watched(backbone: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, a dict that receives the output of each named module after the backbone's forward pass."""
    outputs: dict[str, Tensor] = {}

    def keep_as(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            outputs[name] = output
        return hook

    hooks = [backbone.get_submodule(name).register_forward_hook(keep_as(name)) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


# -------------------------------------------------------------------------------------------------- the loss of a batch

class Softmax:
    """The loss of a plain network, or of its extension by one of machine/choices.py (see
    training.objective.PartialLabels).

    network: the PlainModel that learns
    teacher: the frozen old network; None for the first training, whose loss is cross-entropy + Dice
    method:  one of machine.choices.BASELINES, or "none" for the first training
    old_weight: of the method's last term, the one that keeps the old classes; 1 as in the authors' code
    """

    def __init__(self, network: "PlainModel", teacher: Any = None, method: str = "none", old_weight: float = 1.0):
        self.network, self.teacher, self.method, self.old_weight = network, teacher, method, old_weight
        self.old = len(teacher.classes) if teacher is not None else 0

    def pairs(self, labelled: Tensor) -> float:
        """The number of samples: with a softmax, a sample has all classes labelled or none."""
        return float(len(labelled))

    def __call__(self, model: nn.Module, image: Tensor, bits: Tensor, labelled: Tensor, pairs: float | Tensor,
                 weight: Tensor | None, cast: Callable[[], contextlib.AbstractContextManager]) -> Tensor:
        """The loss of a batch, a 0-d tensor; arguments as in training.objective.PartialLabels."""
        names, kind = self.network.classes, self.network.config.backbone
        levels = {"ilt": (BOTTLENECK[kind],), "plop": LEVELS[kind]}.get(self.method, ())
        old_index, old_maps = None, {}
        if self.teacher is not None:                        # first, so that its activations are freed
            with torch.no_grad(), cast(), watched(self.teacher.backbone, levels) as old_maps:
                old_index = self.teacher(image, scores=True).argmax(1)
        with cast(), watched(self.network.backbone, levels) as maps:
            scores = model(image, scores=True)
        new = range(self.old, len(names))
        index = index_map(unpack_bits(bits, len(names)), names, old_index, new)
        weight = None if weight is None else torch.cat([weight.new_ones(1), weight[0]])
        loss = cross_entropy(scores, index, weight) + softmax_dice(scores, index, new)
        if self.method == "lwf":
            loss = loss + self.old_weight * softmax_dice(scores, index, range(self.old))
        elif self.method == "ilt":
            loss = loss + self.old_weight * F.mse_loss(maps[levels[0]].float(), old_maps[levels[0]].float())
        elif self.method == "plop":
            distance = pod_distance([maps[n] for n in levels], [old_maps[n] for n in levels], len(names), len(new))
            loss = loss + self.old_weight * distance
        return loss * len(labelled) / pairs


def refuse_unlabelled(cases: Iterable[Any], classes: Sequence[str]) -> None:
    """Raise ValueError unless every case annotates all classes: a softmax counts unlabelled voxels as background."""
    for case in cases:
        if case.ignored:
            raise ValueError(f"{case.id}: nobody says of some voxels what they hold (the label \"ignore\", or, with "
                             "--pad edge, what lies beyond the field of view); a softmax takes them for background. "
                             "Leave the case out, or use the class-specific heads.")
        if missing := [name for name in classes if name not in case.names]:
            raise ValueError(f"{case.id}: does not annotate {', '.join(missing)}; a softmax takes what is unlabelled "
                             "for background. Choose --classes that all cases annotate, or use the class-specific "
                             "heads.")


# --------------------------------------------------------------------------------------------------- the plain network

class PlainModel(nn.Module):
    """A backbone, one 1x1x1 convolution, and a softmax over the background and K classes."""

    def __init__(self, config: Any):
        """config: a model.ModelConfig."""
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.width, config.merging, len(config.input_windows))
        self.out = nn.Conv3d(self.backbone.decoder_channels, 1 + len(config.classes), 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the output channels."""
        return self.config.classes

    def forward(self, image: Tensor, only: Sequence[int] | None = None, scores: bool = False) -> Tensor:
        """image (B, 1, D, H, W) -> margins (B, K or len(only), D, H, W), see `margins`.

        Thresholded at 0 like the logits of the universal model, they give a mask per class, so validation and inference
        treat both networks alike.

        only:   the channels to compute (None: all)
        scores: return the scores (B, 1 + K, D, H, W) instead, background first
        """
        raw = self.out(self.backbone(input_channels(image, self.config.input_windows))[1])
        return raw if scores else margins(raw, self.classes, only)

    def set_prior(self, probability: float) -> None:
        """Start every class near `probability`, and the background near the remaining probability."""
        with torch.no_grad():
            remaining = max(1 - len(self.classes) * probability, probability)
            self.out.get_parameter("bias").zero_()[0] = math.log(remaining / probability)

    def describe(self) -> dict[str, Any]:
        """See ModelConfig.describe."""
        return self.config.describe()


def insiders(classes: Sequence[str]) -> list[list[int]]:
    """For each class, the channels that count as it: its own, and the channels of classes inside it, such as tumours.

    A class that may lie in either of two organs counts as neither of them.
    """
    def inside(inner: str, outer: str) -> bool:
        return inner in BY_NAME and BY_NAME[inner].parents == (outer,)
    return [[k for k, name in enumerate(classes) if name == outer or inside(name, outer)] for outer in classes]


def margins(scores: Tensor, classes: Sequence[str], only: Sequence[int] | None = None) -> Tensor:
    """How far each class wins: its largest score minus the largest score of the others.

    A voxel has a margin above 0 where the class, or a class inside it (`insiders`), has the largest score.

    scores (B, 1 + K, D, H, W), background first -> (B, K or len(only), D, H, W)
    """
    groups, every = insiders(classes), set(range(1 + len(classes)))
    out = []
    for k in range(len(classes)) if only is None else only:
        group = [channel + 1 for channel in groups[k]]
        out.append(scores[:, group].amax(1) - scores[:, sorted(every - set(group))].amax(1))
    return torch.stack(out, dim=1)
