"""New classes without forgetting the old ones: Section 3.3, Eq. (5).

    python -m uniseg train --extend CHECKPOINT --data-root NEW --classes superior_mesenteric_artery

A checkpoint of K classes becomes a network of K + n classes: the same weights, the text embeddings of n more names, and
n more MLPs. It trains on the new data only. For the new classes, the labels are the targets. For the old classes, the
predictions of the frozen old model are the targets, so that the network keeps what it knows while backbone and heads
learn. The old data are not read, and no features are distilled (Section 5.1.3).

Read losses.py and model.py first. training/extension.py has the options of the command; baselines.py holds the methods
that the paper compares with.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .baselines import PlainModel
from .embeddings import PROMPTS, class_embeddings
from .losses import masked_loss, masked_sum, unpack_bits, without_ignored
from .model import ModelConfig, UniversalModel

Content = Mapping[str, Any]      # of a checkpoint, see checkpoint.read


# --------------------------------------------------------------------------------------- a network with more classes

def new_embeddings(content: Content, classes: Sequence[str], path: str | Path | None = None, seed: int = 0) -> Tensor:
    """The text embeddings of the classes that a checkpoint lacks: (n, T).

    content: the content of the checkpoint
    classes: all names, the checkpoint's own first
    path:    a table of your own (None: the shipped table); seed: for the encoding `random`

    Raises embeddings.EmbeddingError for a name without a row, ValueError for a table of another width.
    """
    old = ModelConfig.of(content["network"])
    if old.encoding not in PROMPTS:                              # the vector depends on the position in the list
        return torch.from_numpy(class_embeddings(classes, old.encoding, seed=seed)[len(old.classes):])
    rows = class_embeddings(classes[len(old.classes):], old.encoding, path)
    if rows.shape[1] != old.text_width:
        encoder = content["about"].get("embedding", {}).get("encoder", "another encoder")
        raise ValueError(f"{path or 'the shipped embeddings'}: vectors of {rows.shape[1]} numbers, the checkpoint's "
                         f"have {old.text_width} ({encoder}). Make a table with its encoder by "
                         "tools/make_embeddings.py and give it with --embeddings.")
    return torch.from_numpy(rows)


def grow(content: Content, classes: Sequence[str], rows: Tensor, prior: float = 0.5,
         head_start: str = "torch") -> UniversalModel | PlainModel:
    """The network of a checkpoint with more classes. Its logits for the old classes are unchanged.

    content: the content of the checkpoint
    classes: all names, the checkpoint's own first
    rows:    (n, T) embeddings of the new classes
    prior:   probability at which the sigmoids of the new classes start
    head_start: "he" starts the heads of the new classes by UniversalModel.start_heads

    Every old tensor is the front part of the new one: MLP k stays MLP k, row k of the embedding stays row k. One-hot
    vectors get longer; their new elements are 0 for the old classes.
    """
    network = checkpoint.build_network({**content["network"], "classes": classes, "text_width": rows.shape[1]})
    if head_start == "he" and isinstance(network, UniversalModel):
        network.start_heads()
    if prior != 0.5:
        network.set_prior(prior)
    state = network.state_dict()
    for name, old_tensor in content["weights"].items():
        new_tensor = state[name]
        if name.startswith("lpg.controllers.") and new_tensor.shape != old_tensor.shape:
            new_tensor.zero_()                                   # columns for the new elements of one-hot vectors
        new_tensor[tuple(slice(0, size) for size in old_tensor.shape)] = old_tensor.to(new_tensor.dtype)
    if "organ_embedding" in state:
        state["organ_embedding"][len(content["network"]["classes"]):] = rows
    network.load_state_dict(state)
    return network


def freeze_old(network: Any, old: int) -> None:
    """Train only the MLPs of the new classes, from channel `old` on. The old classes then stay bit for bit as they are.

    Raises ValueError for a network whose classes share weights.
    """
    if network.config.head != "class-specific" or network.config.lpg != "independent":
        raise ValueError("--freeze old: only a network with one MLP per class has weights of the new classes alone. "
                         "Leave it out.")
    network.requires_grad_(False)
    network.lpg.controllers[old:].requires_grad_(True)


def frozen_teacher(content: Content, path: str | Path, device: str | torch.device) -> Any:
    """The old network of a checkpoint in eval mode, without gradients. path: of the checkpoint, for error messages."""
    return checkpoint.load_network(content, path).to(device).requires_grad_(False)


# -------------------------------------------------------------------------------------------------- the loss of a batch

class Extension:
    """Eq. (5): the labels are the targets of new classes, the old model's predictions those of old classes.

    Eq. (4) is the loss. training/objective.py has the other objectives, with the same methods.

    teacher: the frozen old network, of the first K classes
    hard:    use its thresholded predictions instead of its probabilities
    labels:  beyond Eq. (5): where the new data label an old class, use these labels as its targets
    frozen:  only the MLPs of the new classes learn, so the old classes need no targets
    reduction: "mean" over all pairs of sample and class, or "sum" over the classes of each sample (Eq. (4) as printed)
    old_weight: beyond the paper, if not 0: the loss of a sample is the mean over its new classes plus this times the
               mean over the old ones. In Eq. (4) the groups weigh as their numbers of classes: 13 to 1 in Table 10
    old_dice: beyond the paper, the kind of Dice of the old classes, see losses.masked_loss
    """

    def __init__(self, teacher: Any, hard: bool = False, labels: bool = False, frozen: bool = False,
                 reduction: str = "mean", old_weight: float = 0.0, old_dice: str = "linear"):
        self.teacher, self.hard, self.labels, self.frozen = teacher, hard, labels, frozen
        self.reduction, self.old_weight, self.old_dice = reduction, old_weight, old_dice
        self.old = len(teacher.classes)

    def labelled(self, labelled: Tensor) -> Tensor:
        """Which (sample, class) pairs have a target: (B, K + n) bool, from the data's own (B, K + n) bool."""
        with_targets = labelled.clone()
        with_targets[:, :self.old] = not self.frozen
        return with_targets

    def pairs(self, labelled: Tensor) -> float:
        """What the batch's sum is divided by: the number of (sample, class) pairs that count, or of samples."""
        of_samples = self.reduction == "sum" or self.old_weight > 0
        return float(len(labelled) if of_samples else self.labelled(labelled).sum())

    @torch.no_grad()
    def targets(self, image: Tensor, bits: Tensor, labelled: Tensor) -> Tensor:
        """M of Eq. (5): (B, K + n, D, H, W) float32.

        image (B, 1, D, H, W), bits (B, D, H, W) int64 with one bit per class, labelled (B, K + n) bool
        """
        target = unpack_bits(bits, labelled.shape[1])
        if not self.frozen:
            logits = self.teacher(image)                                             # (B, K, D, H, W)
            pseudo = (logits > 0).float() if self.hard else torch.sigmoid(logits.float())
            from_labels = labelled[:, :self.old] & self.labels                       # (B, K)
            target[:, :self.old] = torch.where(from_labels[:, :, None, None, None], target[:, :self.old], pseudo)
        return target

    def __call__(self, model: nn.Module, image: Tensor, bits: Tensor, labelled: Tensor, pairs: float | Tensor,
                 weight: Tensor | None, cast: Callable[[], AbstractContextManager]) -> Tensor:
        """The loss of a batch, a 0-d tensor; arguments as in training.objective.PartialLabels."""
        with cast():
            target = self.targets(image, bits, labelled)     # first, so that the teacher's activations are freed
            logits = model(image)                                                    # (B, K + n, D, H, W)
        logits, target = without_ignored(logits, target, bits)
        labelled = self.labelled(labelled)
        if not self.old_weight and self.old_dice == "linear":
            return masked_loss(logits, target, labelled, pairs, positive_weight=weight)
        return self.by_groups(logits, target, labelled, weight) / pairs

    def by_groups(self, logits: Tensor, target: Tensor, labelled: Tensor, weight: Tensor | None) -> Tensor:
        """The loss with `old_weight` and `old_dice`, summed over the batch: 0-d. labelled: (B, K + n), with targets."""
        is_old = torch.arange(labelled.shape[1], device=labelled.device) < self.old
        total = logits.new_zeros((), dtype=torch.float32)
        for group, dice, share in ((~is_old, "linear", 1.0), (is_old, self.old_dice, self.old_weight)):
            if not self.old_weight:
                total = total + masked_sum(logits, target, labelled & group, weight, dice=dice)[0]
                continue
            for b in range(len(labelled)):                       # the mean over the sample's classes of this group
                one = slice(b, b + 1)
                total = total + share * masked_loss(logits[one], target[one], labelled[one] & group, dice=dice,
                                                    positive_weight=None if weight is None else weight[one])
        return total
