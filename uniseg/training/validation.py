"""Validation: the network on whole cases by sliding windows, compared with their labels on the model's grid (Section 4.1.2)."""

import contextlib

import numpy as np
import torch

from ..imaging.volume import scale_hu
from ..machine.device import autocast
from ..machine.processes import any_signal, sum_over_ranks
from ..machine.signals import Stopped
from ..metrics import dice_from_counts
from ..sliding_window import sliding_window
from .report import label_map


@torch.no_grad()
def validate(network, cases, config, place, noted=(), shown=(), draw=None):
    """Voxels of (overlap, prediction, reference) of each class in each case: (N, K, 3) float64, the same on all ranks.

    cases:   N of data.Case, shared among the ranks; 0 where a case does not annotate a class
    place:   (rank, world, device)
    noted:   signals; None is returned where one came meanwhile, on whichever rank
    shown:   cases whose predicted label map, (D, H, W) uint8, is handed to draw(case, label map)
    """
    rank, world, device = place
    network.eval()
    names = network.classes
    counts = torch.zeros(len(cases), len(names), 3, dtype=torch.float64)

    def predict(patches):
        if noted:
            raise Stopped
        with autocast(device, config.amp):
            return network(patches)

    with contextlib.suppress(Stopped):
        for i in range(rank, len(cases), world):
            case = cases[i]
            image, bits = scale_hu(case.image, config.hu_window), case.bits
            predicted = np.zeros(image.shape, np.uint8) if case in shown else None
            for z, logits in sliding_window(image, predict, len(names), config.patch_size, config.overlap, device=device,
                                            pad=config.pad):
                truth = torch.from_numpy(bits[:, :, z:z + logits.shape[3]].astype(np.int64))
                for k, name in enumerate(names):
                    if name in case.names:
                        t, p = ((truth >> case.names.index(name)) & 1).bool(), logits[k] > 0
                        counts[i, k] += torch.stack([(p & t).sum(), p.sum(), t.sum()]).double()
                if predicted is not None:
                    predicted[:, :, z:z + logits.shape[3]] = label_map(logits, names)
            if predicted is not None:
                draw(case, predicted)
    network.train()
    if any_signal(noted, device):
        return None
    return sum_over_ranks(counts.to(device if device.type == "cuda" else "cpu")).cpu().numpy()


def mean_dice(counts, cases, classes):
    """{class: mean Dice over the cases that have it}, of the counts of `validate`."""
    scores = {}
    for k, name in enumerate(classes):
        present = [dice_from_counts(*counts[i, k]) for i, c in enumerate(cases) if name in c.names and counts[i, k, 2] > 0]
        if present:
            scores[name] = float(np.mean(present))
    return scores


def case_scores(counts, cases, classes):
    """{case: {class: {"dice", "predicted", "reference"}}} of the annotated classes, voxels on the model's grid.

    A class that a case annotates and does not have has no Dice (null); "predicted" then counts false voxels.
    """
    return {case.id: {name: {"dice": dice_from_counts(*counts[i, k]) if counts[i, k, 2] else None,
                             "predicted": int(counts[i, k, 1]), "reference": int(counts[i, k, 2])}
                      for k, name in enumerate(classes) if name in case.names}
            for i, case in enumerate(cases)}
