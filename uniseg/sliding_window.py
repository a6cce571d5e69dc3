"""Inference over a whole volume by overlapping windows, blended with Gaussian weights, slab by slab (Section 4.1.2).

`sliding_window` never holds K classes x the whole volume: windows are visited from the feet to the head, and the planes
that no later window touches are handed on at once. The buffer is one window deep (32 classes of 266 x 266 x 96 voxels are
830 MiB; a volume 400 planes high would be 3.4 GiB).
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

GAUSSIAN_SIGMA = 0.125   # of the window; the usual weighting, and that of the released code
WEIGHT_FLOOR = 1e-3      # of the peak: a voxel at a window's corner still has a sure quotient in float32
SMALL_WINDOW = 80 ** 3   # voxels
EMPTY_LOGIT = -1e4       # where no window looked: surely no class, and finite, so that interpolation stays finite


def window_starts(size, window, overlap=0.5):
    """First voxels of the windows along one axis: evenly spread, the first at 0, the last at the end.

    >>> window_starts(200, 96, 0.5), window_starts(50, 96, 0.5)
    ([0, 35, 69, 104], [0])
    """
    if size <= window:
        return [0]
    step = max(1, int(window * (1.0 - overlap) + 1e-9))                # 10 * (1 - 0.8) is 1.9999999999999996
    count = -(-(size - window) // step) + 1                          # ceil
    last = size - window
    lower = [(2 * last * i + count - 1) // (2 * (count - 1)) for i in range((count + 1) // 2)]  # rounded
    upper = [last - start for start in lower[:count // 2]][::-1]     # the mirror image, so that flips commute
    if count % 2:
        lower[-1] = last // 2
    return lower + upper


def gaussian_weights(window):
    """Weight of each voxel of a window: a Gaussian about its centre, peak 1, floor WEIGHT_FLOOR; (d, h, w) float32.

    With an even window the centre lies between two voxels; the peak is scaled to 1 all the same.
    """
    axes = []
    for n in window:
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2.0
        axes.append(torch.exp(-0.5 * (offset / (GAUSSIAN_SIGMA * n)) ** 2))
    weights = torch.einsum("i,j,k->ijk", *axes)
    return (weights / weights.max()).clamp(min=WEIGHT_FLOOR).float()


def plan_windows(shape, window, overlap=0.5, body=None):
    """Starts of all windows, as {z start: [(x start, y start), ...]}, ascending, without those that miss the body."""
    xs, ys, zs = (window_starts(n, w, overlap) for n, w in zip(shape, window))

    def needed(x, y, z):
        return body is None or bool(body[x:x + window[0], y:y + window[1], z:z + window[2]].any())
    return {z: [(x, y) for x in xs for y in ys if needed(x, y, z)] for z in zs}


def windows_at_once(window, device):
    """How many windows go through the network together: two small ones on a CPU, else one.

    PyTorch leaves a float32 convolution of few channels over one small image to a slow loop and takes oneDNN for two (the
    20480 in https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/Convolution.cpp, use_mkldnn).
    """
    return 2 if torch.device(device).type == "cpu" and np.prod(window) <= SMALL_WINDOW else 1


@torch.no_grad()
def sliding_window(image, predict, classes, window, overlap=0.5, batch_size=None, body=None, device="cpu", pad_value=0.0,
                   pad="air", progress=False):
    """Yield (z start, logits) of finished slabs along axis 2, from the feet to the head; together they are the volume.

    image:    (D, H, W) float32, numpy or torch, already scaled (volume.scale_hu)
    predict:  (B, 1, d, h, w) -> (B, K, d, h, w) logits, on `device`; K = `classes`
    window:   (d, h, w) voxels; `overlap` is the share two neighbours have in common at least
    batch_size: windows at once (None: windows_at_once)
    body:     (D, H, W) bool or None; windows without a True voxel are skipped, and voxels no window covers get EMPTY_LOGIT
    yields:   z, (K, D, H, dz) float32 on the CPU: a view of the sums, valid until the next slab is asked for; clone it to
              keep it (a copy would double the memory)

    Each voxel's logits are sum(weight * logits) / sum(weight) over the windows that cover it, added in the same order
    however the volume is cut into slabs. A volume smaller than the window is padded on both sides with `pad_value` (air), or,
    with pad "edge", with its outermost voxels: beyond the first and last slice and a narrow field of view the patient goes on.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"sliding window: overlap is {overlap}. Choose a value from 0 up to, not including, 1.")
    batch_size = batch_size or windows_at_once(window, device)
    image = torch.as_tensor(image)
    size = image.shape
    before = [max(0, w - n) // 2 for n, w in zip(size, window)]
    after = [max(0, w - n) - b for n, w, b in zip(size, window, before)]
    if any(before) or any(after):
        pads = [p for pair in list(zip(before, after))[::-1] for p in pair]     # F.pad begins with the last axis
        if pad == "edge":
            image = F.pad(image[None, None], pads, mode="replicate")[0, 0]
        else:
            image = F.pad(image, pads, value=pad_value)
        body = None if body is None else np.pad(body, list(zip(before, after)))
    depth, height, length = image.shape
    plan = plan_windows(image.shape, window, overlap, body)
    weights = gaussian_weights(window)

    total = torch.zeros(classes, depth, height, window[2])                     # (K, D, H, w) sum of weight * logits
    norm = torch.zeros(depth, height, window[2])                               # (D, H, w)    sum of weights
    weighted = torch.empty(*window)
    batch = torch.empty(batch_size, 1, *window)
    bar = tqdm(total=sum(map(len, plan.values())), desc="windows", file=sys.stderr, disable=None if progress else True)

    starts = list(plan)
    for z, following in zip(starts, [*starts[1:], length]):
        corners = plan[z]
        for first in range(0, len(corners), batch_size):
            some = corners[first:first + batch_size]
            for b, (x, y) in enumerate(some):
                batch[b, 0] = image[x:x + window[0], y:y + window[1], z:z + window[2]]
            logits = predict(batch[:len(some)].to(device)).float().cpu()        # (B, K, d, h, w)
            if logits.shape != (len(some), classes, *window):
                raise ValueError(f"sliding window: the model returned {tuple(logits.shape)} for windows {tuple(window)}. "
                                 f"Expected {(len(some), classes, *window)}: check `classes` and the model's padding.")
            for b, (x, y) in enumerate(some):
                if not torch.isfinite(logits[b].sum()):
                    _refuse_nan(logits[b], (x, y, z))
                for one_class, values in zip(total, logits[b]):
                    # Product and sum are rounded apart (no fused multiply-add): the result is the same in any layout.
                    one_class[x:x + window[0], y:y + window[1]] += torch.mul(values, weights, out=weighted)
                norm[x:x + window[0], y:y + window[1]] += weights
            bar.update(len(some))

        finished = following - z                                               # planes no later window reaches
        _divide(total[..., :finished], norm[..., :finished])
        low, high = max(z, before[2]), min(following, before[2] + size[2])      # without the padding
        if high > low:
            slab = total[:, before[0]:before[0] + size[0], before[1]:before[1] + size[1], low - z:high - z]
            yield low - before[2], slab
        if following < length:
            _shift(total, finished)
            _shift(norm[None], finished)
    bar.close()


def _divide(total, norm):
    """Sums (K, D, H, dz) become logits, in place, class by class; EMPTY_LOGIT where the sum of weights is 0."""
    unseen = norm == 0
    norm.masked_fill_(unseen, 1.0)
    for one_class in total:
        one_class.div_(norm)
        if unseen.any():
            one_class.masked_fill_(unseen, EMPTY_LOGIT)


def _shift(buffer, planes):
    """Move the last axis to its beginning by `planes` and clear what becomes free; one class is copied at a time."""
    kept = buffer.shape[-1] - planes
    for one_class in buffer:
        one_class[..., :kept] = one_class[..., planes:].clone()
        one_class[..., kept:] = 0.0


def _refuse_nan(logits, corner):
    if not torch.isfinite(logits).all():                                       # a sum of finite numbers may overflow
        raise FloatingPointError(f"the model returned NaN or infinity for the window at voxel {corner}. Check the "
                                 "checkpoint and the image; with --precision bf16 or fp16 try float32.")
