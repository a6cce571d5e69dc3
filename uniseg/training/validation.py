"""Validation: the network segments whole cases by sliding windows, and its masks are compared with the labels.

All of it happens on the model's grid (Section 4.1.2). Read sliding_window.py and metrics.py first.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..datasets.cases import Case
from ..imaging.volume import scale_hu
from ..machine.device import autocast
from ..machine.processes import Process, any_signal, sum_over_ranks
from ..machine.signals import Stopped
from ..metrics import dice_from_counts
from ..sliding_window import sliding_window
from .network import Network
from .recipe import TrainConfig
from .report import label_map


@torch.no_grad()
def validate(network: Network, cases: Sequence[Case], config: TrainConfig, process: Process,
             signals: Sequence[int] = (), shown: Sequence[Case] = (),
             draw: Callable[[Case, np.ndarray], None] | None = None) -> np.ndarray | None:
    """Voxels of (overlap, prediction, reference) of each class in each case: (N, K, 3) float64, the same on all ranks.

    cases:   the N cases, shared among the ranks; the counts of a class that a case does not annotate are 0
    signals: those that this process received so far; None is returned as soon as any rank has received one
    shown:   cases whose predicted label map, (D, H, W) uint8, is handed to draw(case, label map)
    """
    rank, world, device = process
    network.eval()
    names = network.classes
    counts = torch.zeros(len(cases), len(names), 3, dtype=torch.float64)

    def predict(patches: torch.Tensor) -> torch.Tensor:
        if signals:
            raise Stopped
        with autocast(device, config.amp):
            return network(patches)

    with contextlib.suppress(Stopped):
        for i in range(rank, len(cases), world):
            case = cases[i]
            image, bits = scale_hu(case.image, config.hu_window), case.bits
            predicted = np.zeros(image.shape, np.uint8) if case in shown else None
            slabs = sliding_window(image, predict, len(names), config.patch_size, config.overlap, device=device,
                                   pad=config.pad)
            for z, logits in slabs:                                                # (K, D, H, dz), from z to z + dz
                slab = np.s_[:, :, z:z + logits.shape[3]]
                counts[i] += _count(logits, names, bits[slab], case)
                if predicted is not None:
                    predicted[slab] = label_map(logits, names)
            if predicted is not None and draw is not None:
                draw(case, predicted)
    network.train()
    if any_signal(signals, device):
        return None
    return sum_over_ranks(counts.to(device if device.type == "cuda" else "cpu")).cpu().numpy()


def _count(logits: torch.Tensor, names: Sequence[str], bits: np.ndarray, case: Case) -> torch.Tensor:
    """(K, 3) float64 voxels of overlap, prediction and reference; 0 for classes that are not annotated.

    logits: (K, D, H, dz) of the classes `names`; bits: (D, H, dz) of the case. Ignored voxels are not counted.
    """
    annotated = case.names
    counts = torch.zeros(len(names), 3, dtype=torch.float64)
    truth = torch.from_numpy(bits.astype(np.int64))
    judged = (truth >> len(annotated)) & 1 == 0 if case.ignored else torch.ones(1, dtype=torch.bool)
    for k, name in enumerate(names):
        if name in annotated:
            t, p = ((truth >> annotated.index(name)) & 1).bool() & judged, (logits[k] > 0) & judged
            counts[k] = torch.stack([(p & t).sum(), p.sum(), t.sum()]).double()
    return counts


def mean_dice(counts: np.ndarray, cases: Sequence[Case], classes: Sequence[str]) -> dict[str, float]:
    """{class: mean Dice over the cases that have it}, from the counts of `validate`."""
    scores = {}
    for k, name in enumerate(classes):
        present = [dice_from_counts(*counts[i, k]) for i, case in enumerate(cases)
                   if name in case.names and counts[i, k, 2] > 0]
        if present:
            scores[name] = float(np.mean(present))
    return scores


def case_scores(counts: np.ndarray, cases: Sequence[Case], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{case: {class: {"dice", "predicted", "reference"}}} of the annotated classes, in voxels of the model's grid.

    A class that a case annotates but does not have has no Dice (None); "predicted" then counts false positive voxels.
    """
    return {case.id: {name: {"dice": dice_from_counts(*counts[i, k]) if counts[i, k, 2] else None,
                             "predicted": int(counts[i, k, 1]), "reference": int(counts[i, k, 2])}
                      for k, name in enumerate(classes) if name in case.names}
            for i, case in enumerate(cases)}
