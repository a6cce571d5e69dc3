"""Inference over a whole volume with overlapping windows that are blended with Gaussian weights (Section 4.1.2).

`sliding_window` never holds K classes of the whole volume. It visits the windows from the feet to the head, and yields
the planes that no later window touches at once. Its buffer is one window deep: 32 classes of 266 x 266 x 96 voxels take
830 MiB, where a whole volume of 400 planes would take 3.4 GiB.

Validation (training/validation.py) and inference (segmenter.py) both use it. Read model.py first.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .machine.progress import Progress
from .machine.threads import one_ahead

GAUSSIAN_SIGMA = 0.125   # of the window's size; the usual weighting, and the released code's
WEIGHT_FLOOR = 1e-3      # of the peak; keeps the quotient at a window's corner accurate in float32
SMALL_WINDOW = 80 ** 3   # voxels
SHARE_OF_GPU = 0.5       # of a GPU's free memory that image and sums may take; the network needs the rest
EMPTY_LOGIT = -1e4       # where no window looked: no class, and finite, so that interpolation stays finite

Plan = dict[int, list[tuple[int, int]]]     # z start -> (x start, y start) of its windows


def window_starts(size: int, window: int, overlap: float = 0.5) -> list[int]:
    """The first voxels of the windows along one axis: evenly spread, the first at 0, the last at the end.

    >>> window_starts(200, 96, 0.5), window_starts(50, 96, 0.5)
    ([0, 35, 69, 104], [0])
    """
    if size <= window:
        return [0]
    step = max(1, int(window * (1.0 - overlap) + 1e-9))              # 10 * (1 - 0.8) is 1.9999999999999996
    count = -(-(size - window) // step) + 1                          # rounded up
    last = size - window
    lower = [(2 * last * i + count - 1) // (2 * (count - 1)) for i in range((count + 1) // 2)]  # rounded
    upper = [last - start for start in lower[:count // 2]][::-1]     # the mirror image, so that flips commute
    if count % 2:
        lower[-1] = last // 2
    return lower + upper


def gaussian_weights(window: Sequence[int]) -> Tensor:
    """The weight of each voxel of a window: a Gaussian around its centre with peak 1 and floor WEIGHT_FLOOR.

    returns: (d, h, w) float32. An even window has its centre between two voxels; its largest weight is 1 all the same.
    """
    axes = []
    for n in window:
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2.0
        axes.append(torch.exp(-0.5 * (offset / (GAUSSIAN_SIGMA * n)) ** 2))
    weights = torch.einsum("i,j,k->ijk", *axes)
    return (weights / weights.max()).clamp(min=WEIGHT_FLOOR).float()


def plan_windows(shape: Sequence[int], window: Sequence[int], overlap: float = 0.5,
                 body: np.ndarray | None = None) -> Plan:
    """The starts of all windows, {z start: [(x start, y start), ...]}, ascending, without those that miss the body."""
    xs, ys, zs = (window_starts(n, w, overlap) for n, w in zip(shape, window))

    def needed(x: int, y: int, z: int) -> bool:
        return body is None or bool(body[x:x + window[0], y:y + window[1], z:z + window[2]].any())
    return {z: [(x, y) for x in xs for y in ys if needed(x, y, z)] for z in zs}


def count_windows(plan: Plan) -> int:
    """How many windows a plan has."""
    return sum(map(len, plan.values()))


def windows_at_once(window: Sequence[int], device: str | torch.device) -> int:
    """How many windows go through the network together: two small ones on a CPU, otherwise one.

    For one small image, PyTorch computes a float32 convolution of few channels with a slow loop; for two, with oneDNN
    (the 20480 in https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/Convolution.cpp, use_mkldnn).
    """
    return 2 if torch.device(device).type == "cpu" and np.prod(window) <= SMALL_WINDOW else 1


def place_of_sums(values: int, device: str | torch.device) -> torch.device:
    """Where image and sums lie: on the GPU if they leave enough of it to the network, otherwise on the CPU.

    On the GPU, the volume goes there once and finished planes come back, instead of every window and all its logits.

    values: float32 numbers in image and sums
    """
    device = torch.device(device)
    if device.type == "cuda" and 4 * values <= SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def sliding_window(image: np.ndarray | Tensor, predict: Callable[[Tensor], Tensor], classes: int,
                   window: Sequence[int], overlap: float = 0.5, body: np.ndarray | None = None,
                   device: str | torch.device = "cpu", pad: str = "air",
                   progress: bool | str = False) -> Iterator[tuple[int, Tensor]]:
    """Yield (z start, logits) of finished slabs along axis 2, from the feet to the head. Together they are the volume.

    A GPU makes the next slab while the caller works on the present one.

    image:    (D, H, W) float32, already scaled (imaging/volume.py, scale_hu)
    predict:  the model, (B, 1, d, h, w) -> (B, K, d, h, w) logits, on `device`
    classes:  K
    window:   (d, h, w) voxels
    overlap:  share of a window that two neighbours have in common at least; from 0 to below 1
    body:     (D, H, W) bool or None. Windows without a True voxel are skipped. Voxels without a window get EMPTY_LOGIT.
    pad:      how to pad a volume that is smaller than the window, on both sides: "air", or "edge", which repeats its
              outermost voxels. Beyond the first slice, the last slice and a narrow field of view, the patient goes on.
    progress: whether to show how many windows are done (machine/progress.py); a text stands in front of it
    yields:   z, and logits (K, D, H, dz) float32 on the CPU. They may be a view of the buffer, valid until the next
              slab is asked for. Clone it to keep it; a copy for everyone would double the memory.

    A voxel's logits are sum(weight * logits) / sum(weight) over the windows that cover it, added in an order that does
    not depend on the slabs. Raises ValueError for another overlap or a model with other classes, FloatingPointError
    where the model returns NaN or infinity.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"sliding window: overlap is {overlap}. Choose a value from 0 up to, not including, 1.")
    on_gpu = torch.device(device).type == "cuda"
    slabs = _slabs(image, predict, classes, window, overlap, body, device, pad, progress, copies=on_gpu)
    return one_ahead(slabs) if on_gpu else slabs


@torch.no_grad()
def _slabs(image: np.ndarray | Tensor, predict: Callable[[Tensor], Tensor], classes: int, window: Sequence[int],
           overlap: float, body: np.ndarray | None, device: str | torch.device, pad: str, progress: bool | str,
           copies: bool) -> Iterator[tuple[int, Tensor]]:
    """`sliding_window`, one slab after the other. copies: whether a slab stays valid when the next one is made."""
    image = torch.as_tensor(image)
    size = image.shape
    image, body, before = _padded(image, body, window, pad)
    depth, height, length = image.shape
    plan = plan_windows(image.shape, window, overlap, body)
    place = place_of_sums(image.numel() + (classes + 1) * depth * height * window[2], device)
    image, weights = image.to(place), gaussian_weights(window).to(place)
    batch = torch.empty(windows_at_once(window, device), 1, *window, device=place)
    total = torch.zeros(classes, depth, height, window[2], device=place)       # (K, D, H, w) sum of weight * logits
    norm = torch.zeros(depth, height, window[2], device=place)                 # (D, H, w)    sum of weights
    windows = count_windows(plan)
    bar = Progress(f"{progress}: windows" if isinstance(progress, str) else "windows", windows, shown=bool(progress))

    starts = list(plan)
    for z, following in zip(starts, [*starts[1:], length]):
        for corners, logits in _predictions(image, plan[z], z, predict, batch, classes, device):
            _add(logits, corners, weights, total, norm)
            bar.update(len(corners))
        finished = following - z                                               # planes that no later window reaches
        _divide(total[..., :finished], norm[..., :finished])
        low, high = max(z, before[2]), min(following, before[2] + size[2])     # without the padding
        if high > low:
            slab = total[:, before[0]:before[0] + size[0], before[1]:before[1] + size[1], low - z:high - z]
            yield low - before[2], slab.to("cpu", copy=copies)                 # or the view of the sums itself
        if following < length:
            _shift(total, finished)
            _shift(norm[None], finished)
    bar.close()


def _padded(image: Tensor, body: np.ndarray | None, window: Sequence[int],
            pad: str) -> tuple[Tensor, np.ndarray | None, list[int]]:
    """The image and the body, padded to at least one window, and the voxels that were added before each axis."""
    before = [max(0, w - n) // 2 for n, w in zip(image.shape, window)]
    after = [max(0, w - n) - b for n, w, b in zip(image.shape, window, before)]
    if not any(before) and not any(after):
        return image, body, before
    pads = [p for pair in list(zip(before, after))[::-1] for p in pair]        # F.pad begins with the last axis
    if pad == "edge":
        image = F.pad(image[None, None], pads, mode="replicate")[0, 0]
    else:
        image = F.pad(image, pads, value=0.0)                                  # 0 is the window's lower end: air
    return image, None if body is None else np.pad(body, list(zip(before, after))), before


def _predictions(image: Tensor, corners: list[tuple[int, int]], z: int, predict: Callable[[Tensor], Tensor],
                 batch: Tensor, classes: int,
                 device: str | torch.device) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Run the model on the windows that start at plane z: yield (some corners, their logits (B, K, d, h, w) float32).

    batch: (B, 1, d, h, w), a buffer for the windows that go through the network together, where image and sums lie
    """
    window = tuple(batch.shape[2:])
    for first in range(0, len(corners), len(batch)):
        some = corners[first:first + len(batch)]
        for b, (x, y) in enumerate(some):
            batch[b, 0] = image[x:x + window[0], y:y + window[1], z:z + window[2]]
        logits = predict(batch[:len(some)].to(device)).float().to(batch.device)
        if logits.shape != (len(some), classes, *window):
            raise ValueError(f"sliding window: the model returned {tuple(logits.shape)} for windows {window}. "
                             f"Expected {(len(some), classes, *window)}: check `classes` and the model's padding.")
        for one_window, (x, y) in zip(logits, some):
            _refuse_nan(one_window, (x, y, z))
        yield some, logits


def _add(logits: Tensor, corners: list[tuple[int, int]], weights: Tensor, total: Tensor, norm: Tensor) -> None:
    """Add the weighted logits (B, K, d, h, w) of windows to total (K, D, H, w), their weights to norm (D, H, w)."""
    weighted = torch.empty_like(weights)
    for one_window, (x, y) in zip(logits, corners):
        box = slice(x, x + len(weights)), slice(y, y + weights.shape[1])
        for one_class, values in zip(total, one_window):
            # Product and sum are rounded apart (no fused multiply-add): the result is the same in any memory layout.
            one_class[box] += torch.mul(values, weights, out=weighted)
        norm[box] += weights


def _divide(total: Tensor, norm: Tensor) -> None:
    """Turn sums (K, D, H, dz) into logits, in place, class by class: EMPTY_LOGIT where the sum of weights is 0."""
    unseen = norm == 0
    norm.masked_fill_(unseen, 1.0)
    for one_class in total:
        one_class.div_(norm)
        if unseen.any():
            one_class.masked_fill_(unseen, EMPTY_LOGIT)


def _shift(buffer: Tensor, planes: int) -> None:
    """Move the last axis towards its beginning by `planes` and clear the end, copying one class at a time."""
    remaining = buffer.shape[-1] - planes
    for one_class in buffer:
        one_class[..., :remaining] = one_class[..., planes:].clone()
        one_class[..., remaining:] = 0.0


def _refuse_nan(logits: Tensor, corner: tuple[int, int, int]) -> None:
    """Raise FloatingPointError if the logits (K, d, h, w) of the window at `corner` are not finite."""
    # The sum is quick to check, but a sum of finite numbers may overflow.
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise FloatingPointError(f"the model returned NaN or infinity for the window at voxel {corner}. Check the "
                                 "checkpoint and the image; with --precision bf16 or fp16 try float32.")
