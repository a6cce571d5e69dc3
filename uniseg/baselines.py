"""What Section 5 compares with: a plain network with a softmax, extended by LwF, ILT or PLOP. Read continual.py first.

The plain network, model.PlainModel, ends in one 1x1x1 convolution to background and K classes, of which a voxel has exactly one.
New classes are new rows of that convolution. All three baselines learn from pseudo labels: the class that the frozen old model gives a voxel,
and over it the labels of the new classes. The terms of their losses are those of the authors' experiments, as far as their
code tells (https://github.com/MrGiovanni/ContinualLearning at aa73c28: continue_lwf.py, continue_ilt.py, continue_plop.py):

    lwf    cross-entropy + Dice of the new classes + Dice of the old ones
    ilt    cross-entropy + Dice of the new classes + mean squared difference of the bottleneck from the old model's
    plop   cross-entropy + Dice of the new classes + local POD, see `pod_distance`

Differs from that code: Dice is taken of the softmax, not of a sigmoid of the same numbers, and one learning rate holds for all
weights. Differs from the methods as first published: LwF (Li and Hoiem, https://arxiv.org/abs/1606.09282) and ILT (Michieli and
Zanuttigh, https://arxiv.org/abs/1907.13372) distil soft outputs; PLOP (Douillard et al., https://arxiv.org/abs/2011.11390)
leaves out uncertain pseudo labels.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import nn

from .backbones.build import build_backbone, input_channels
from .imaging.merging import merging_order, merging_rank
from .losses import SMOOTH, unpack_bits
from .taxonomy import BY_NAME

BASELINES = ("lwf", "ilt", "plop")      # "none" stands for a first training
POD_FACTOR = 5e-4                       # authors' code
POD_SCALES = (1, 2, 4)                  # parts an axis is divided into
# Modules whose outputs PLOP compares: every level of encoder and decoder but the last, the bottleneck among them.
LEVELS = {
    "swin_unetr": ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10", "decoder5", "decoder4", "decoder3", "decoder2"),
    "unet": ("down_tr64", "down_tr128", "down_tr256", "down_tr512", "up_tr256", "up_tr128"),
    "segresnet": ("down_layers.0", "down_layers.1", "down_layers.2", "down_layers.3", "up_layers.0", "up_layers.1"),
}
BOTTLENECK = {"swin_unetr": "encoder10", "unet": "down_tr512", "segresnet": "down_layers.3"}


# --------------------------------------------------------------------------------------------------------------------- targets

def index_map(target, classes, start=None, channels=None):
    """Overlapping masks -> one class a voxel, (B, D, H, W) int64: 0 background, k + 1 for channel k.

    target:   (B, K, D, H, W) of zeros and ones
    start:    index map that the masks are laid over (default: background)
    channels: those that are laid over it (default: all)

    Organs come first, then vessels, then tumours (Section 4.1.2); a class is not laid over one of a later kind.
    """
    rank = torch.tensor([-1] + [merging_rank(name) for name in classes], device=target.device)
    index = torch.zeros_like(target[:, 0], dtype=torch.int64) if start is None else start.clone()
    for k in merging_order(classes):
        if channels is None or k in channels:
            index[(target[:, k] > 0) & (rank[index] <= rank[k + 1])] = k + 1
    return index


# --------------------------------------------------------------------------------------------------------------- terms of the losses

def cross_entropy(scores, index, weight=None):
    """Mean over all voxels of -log softmax(scores)[index]; weight (1 + K) of each class's voxels."""
    each = F.cross_entropy(scores.float(), index, reduction="none")
    return (each if weight is None else each * weight[index]).mean()


def softmax_dice(scores, index, channels):
    """Mean over samples and `channels` of 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), p the softmax, over the patch."""
    p = torch.softmax(scores.float(), dim=1)
    total = p.new_zeros(())
    for k in channels:
        pk, t = p[:, k + 1].flatten(1), (index == k + 1).flatten(1).float()
        total = total + (1 - (2 * (pk * t).sum(1) + SMOOTH) / (pk.sum(1) + t.sum(1) + SMOOTH)).mean()
    return total / len(channels)


def local_pod(x):
    """The local POD embedding of a feature map (B, C, D, H, W) -> (B, length): of every block of every scale, the means along
    each axis, flattened and joined. A scale s divides each axis into s; where it does not divide evenly the rest is left out,
    and a scale with more parts than an axis has voxels is left out.
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


def pod_distance(new, old, current, added):
    """PLOP's distance of two lists of feature maps (B, C, D, H, W), level by level of the same shapes: a 0-d tensor.

    Mean over levels and samples of the Euclidean distance of the local POD embeddings of the squared maps, times POD_FACTOR,
    times sqrt(current / added): numbers of all classes and of the new ones.
    """
    distances = [torch.linalg.vector_norm(local_pod(a.float() ** 2) - local_pod(b.float() ** 2), dim=1).mean() for a, b in zip(new, old)]
    return POD_FACTOR * math.sqrt(current / added) * sum(distances) / len(distances)


@contextlib.contextmanager
def watched(backbone, names):
    """Within the block, a dict that holds the output of each named module of the backbone after its forward pass."""
    seen, hooks = {}, []
    for name in names:
        hooks.append(backbone.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out})))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# ------------------------------------------------------------------------------------------------------------- the loss of a batch

class Softmax:
    """The loss of a plain network, and with a method's name that of its extension; see train.PartialLabels.

    network: the PlainModel that learns; teacher: the frozen old one, or None for a first training (cross-entropy + Dice)
    """

    def __init__(self, network, teacher=None, method="none"):
        self.network, self.teacher, self.method = network, teacher, method
        self.old = len(teacher.classes) if teacher is not None else 0

    def pairs(self, labelled):
        """Number of samples: a softmax labels every class or none."""
        return float(len(labelled))

    def __call__(self, model, image, bits, labelled, pairs, weight, cast):
        names, kind = self.network.classes, self.network.config.backbone
        levels = {"ilt": (BOTTLENECK[kind],), "plop": LEVELS[kind]}.get(self.method, ())
        index, before = None, {}
        if self.teacher is not None:                        # first: its activations are gone before the learner's are kept
            with torch.no_grad(), cast(), watched(self.teacher.backbone, levels) as before:
                index = self.teacher(image, scores=True).argmax(1)
        with cast(), watched(self.network.backbone, levels) as maps:
            scores = model(image, scores=True)
        new = range(self.old, len(names))
        index = index_map(unpack_bits(bits, len(names)), names, index, new)
        weight = None if weight is None else torch.cat([weight.new_ones(1), weight[0]])
        loss = cross_entropy(scores, index, weight) + softmax_dice(scores, index, new)
        if self.method == "lwf":
            loss = loss + softmax_dice(scores, index, range(self.old))
        elif self.method == "ilt":
            loss = loss + F.mse_loss(*(m[levels[0]].float() for m in (maps, before)))
        elif self.method == "plop":
            loss = loss + pod_distance([maps[n] for n in levels], [before[n] for n in levels], len(names), len(new))
        return loss * len(labelled) / pairs


def refuse_unlabelled(cases, classes):
    """Raises ValueError unless every case annotates all the classes: a softmax would take what is unlabelled for background."""
    for case in cases:
        if missing := [name for name in classes if name not in case.names]:
            raise ValueError(f"{case.id}: does not annotate {', '.join(missing)}; a softmax takes what is unlabelled for background. "
                             "Choose --classes that all cases annotate, or use the class-specific heads.")


class PlainModel(nn.Module):
    """A backbone, one 1x1x1 convolution, a softmax over background and K classes.

    forward: image (B, 1, D, H, W) -> margins (B, K, D, H, W), above 0 where the class, or one that lies inside it, has the
             largest of a voxel's K + 1 scores; so that validation and inference treat it as they do the universal model
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.out = nn.Conv3d(self.backbone.decoder_channels, 1 + len(config.classes), 1)

    @property
    def classes(self):
        return self.config.classes

    def forward(self, image, only=None, scores=False):
        """only: channels to compute (default all); scores: return the scores (B, 1 + K, D, H, W) instead, background first."""
        raw = self.out(self.backbone(input_channels(image, self.config.input_windows))[1])
        return raw if scores else margins(raw, self.classes, only)

    def set_prior(self, probability):
        """Start every class near `probability`, the background at what is left."""
        with torch.no_grad():
            left = max(1 - len(self.classes) * probability, probability)
            self.out.bias.zero_()[0] = math.log(left / probability)

    def describe(self):
        """See ModelConfig."""
        return self.config.describe()


def insiders(classes):
    """For each class the channels that count for it: its own and those of the classes inside it (a tumour in its organ).

    A class that may lie in either of two organs counts for neither.
    """
    def inside(inner, outer):
        return inner in BY_NAME and BY_NAME[inner].parents == (outer,)
    return [[k for k, name in enumerate(classes) if name == outer or inside(name, outer)] for outer in classes]


def margins(scores, classes, only=None):
    """(B, 1 + K, D, H, W) scores, background first -> (B, K or len(only), D, H, W): a class's largest score less the others'."""
    groups, every = insiders(classes), set(range(1 + len(classes)))
    out = []
    for k in range(len(classes)) if only is None else only:
        own = [channel + 1 for channel in groups[k]]
        out.append(scores[:, own].amax(1) - scores[:, sorted(every - set(own))].amax(1))
    return torch.stack(out, dim=1)
