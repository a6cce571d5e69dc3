"""New classes without forgetting: Section 3.3, Eq. (5).

    python -m uniseg.train --extend CHECKPOINT --data-root NEW --classes superior_mesenteric_artery

A checkpoint of K classes becomes a network of K + n: the same weights, the text embeddings of n more names, and n more MLPs.
It trains on the new data alone. There, the labels are the targets of the new classes, and the frozen old model's own
prediction is the target of the old ones, so that what it knows is kept while backbone and heads learn. Nothing of the old
data is read, and no feature is distilled (Section 5.1.3).

train.py calls this module; baselines.py holds what the paper compares with.
"""


import torch

from . import checkpoint
from .embeddings import PROMPTS, class_embeddings
from .losses import masked_loss, unpack_bits
from .model import ModelConfig

# --------------------------------------------------------------------------------------------------- a network with more classes


def new_embeddings(content, classes, path=None, seed=0):
    """Text embeddings of the classes that the checkpoint's content lacks, the last of `classes`: (n, T).

    path: of an own table. Raises embeddings.EmbeddingError for a name without one, ValueError for a table of another width.
    """
    old = ModelConfig.of(content["network"])
    if old.encoding not in PROMPTS:                                 # a row belongs to a place in the list
        return torch.from_numpy(class_embeddings(classes, old.encoding, seed=seed)[len(old.classes):])
    rows = class_embeddings(classes[len(old.classes):], old.encoding, path)
    if rows.shape[1] != old.text_width:
        encoder = content["about"].get("embedding", {}).get("encoder", "another encoder")
        raise ValueError(f"{path or 'the shipped embeddings'}: vectors of {rows.shape[1]} numbers, the checkpoint's have "
                         f"{old.text_width} ({encoder}). Make a table with its encoder by tools/make_embeddings.py and give it "
                         "with --embeddings.")
    return torch.from_numpy(rows)


def grow(content, classes, rows, prior=0.5):
    """The network of a checkpoint's content with more classes; what it computes for the old ones is unchanged.

    classes: all names, the checkpoint's own first; rows: (n, T) embeddings of the others
    prior:   probability at which the new sigmoids start

    Every old tensor keeps its place at the front of the new one: MLP k is MLP k, row k of the embedding is row k. One-hot
    vectors get longer, their new elements are 0 for the old classes.
    """
    network = checkpoint.build_network({**content["network"], "classes": classes, "text_width": rows.shape[1]})
    if prior != 0.5:
        network.set_prior(prior)
    state = network.state_dict()
    for name, theirs in content["weights"].items():
        ours = state[name]
        if name.startswith("lpg.controllers.") and ours.shape != theirs.shape:
            ours.zero_()                                            # columns of the new elements of a one-hot vector
        ours[tuple(slice(0, size) for size in theirs.shape)] = theirs.to(ours.dtype)
    if "organ_embedding" in state:
        state["organ_embedding"][len(content["network"]["classes"]):] = rows
    network.load_state_dict(state)
    return network


def freeze_old(network, old):
    """Let only the MLPs of the new classes learn, from channel `old` on: the old classes then stay bit for bit as they are."""
    if network.config.head != "class-specific" or network.config.lpg != "independent":
        raise ValueError("--freeze old: only a network with one MLP a class has weights of the new classes alone. Leave it out.")
    network.requires_grad_(False)
    network.lpg.controllers[old:].requires_grad_(True)


# ------------------------------------------------------------------------------------------------------------- the loss of a batch

class Extension:
    """Eq. (5): targets are the labels for new classes, the frozen old model's prediction for old ones; then Eq. (4).

    teacher: the old network, of the first K classes
    hard:    its thresholded prediction instead of the soft one
    labels:  where the new data label an old class as well, take their labels for it; beyond Eq. (5)
    frozen:  of the network, all but the new classes' MLPs are frozen: old classes then need no target
    """

    def __init__(self, teacher, hard=False, labels=False, frozen=False):
        self.teacher, self.hard, self.labels, self.frozen = teacher, hard, labels, frozen
        self.old = len(teacher.classes)

    def labelled(self, labelled):
        """(B, K + n) bool: which targets there are."""
        known = labelled.clone()
        known[:, :self.old] = not self.frozen
        return known

    def pairs(self, labelled):
        """Number of (sample, class) pairs that count in the loss."""
        return float(self.labelled(labelled).sum())

    @torch.no_grad()
    def targets(self, image, bits, labelled):
        """(B, K + n, D, H, W) float32: M of Eq. (5)."""
        target = unpack_bits(bits, labelled.shape[1])
        if not self.frozen:
            logits = self.teacher(image)                                             # (B, K, D, H, W)
            pseudo = (logits > 0).float() if self.hard else torch.sigmoid(logits.float())
            ours = labelled[:, :self.old] & self.labels                              # (B, K)
            target[:, :self.old] = torch.where(ours[:, :, None, None, None], target[:, :self.old], pseudo)
        return target

    def __call__(self, model, image, bits, labelled, pairs, weight, cast):
        """See train.PartialLabels."""
        with cast():
            target = self.targets(image, bits, labelled)     # first: the teacher's activations are gone before the model's are kept
            logits = model(image)                                                    # (B, K + n, D, H, W)
        return masked_loss(logits, target, self.labelled(labelled), pairs, positive_weight=weight)


def frozen_teacher(content, path, device):
    """The network of a checkpoint's content as it is, in eval mode, without gradients."""
    return checkpoint.load_network(content, path).to(device).requires_grad_(False)


# ----------------------------------------------------------------------------------------------------------------- what it cost
