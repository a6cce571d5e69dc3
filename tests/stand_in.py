"""Stand-in weights and golden figures: how the tests compare our networks with the released architectures.

The figures under `golden/` were measured on the original networks filled with weights that are a pure function of each
tensor's name and shape. Filling our networks by the same function must give the same figures. See `golden/README.md`.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-3   # of the standard deviation of the golden array, float32


def stand_in(name, shape):
    """Weights of the tensor that released files call `name`, e.g. 'module.swinViT.patch_embed.proj.weight'."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("organ_embedding"):
        z = 0.4 * z
    elif name.endswith("relative_position_bias_table"):
        z = 0.5 * z
    elif len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    else:
        z = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return z.astype(np.float32)


def stand_in_image():
    """The image of every golden figure: (1, 1, 96, 96, 96), uniform in [0, 1)."""
    return torch.from_numpy(np.random.default_rng(0).random((1, 1, 96, 96, 96)).astype(np.float32))


def load_stand_in(module, prefix):
    """Fill `module` with the stand-in weights of the keys prefix + name and set it to eval; returns it.

    Integer buffers keep their own values.
    """
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(stand_in(prefix + name, tuple(tensor.shape))))
    return module.eval()


def golden(file):
    """Arrays of golden/<file>.npz as a dict; `<name>_stride` is the (channel, spatial) stride of array `name`."""
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        return dict(arrays)


def deviation(figures, name, actual):
    """max |actual - golden| / std(golden), with the full tensor `actual` cut down as array `name` of `figures` is.

    figures: what `golden()` returns
    actual:  (1, channels) or (1, channels, 96/s, 96/s, 96/s), the whole output of our network
    """
    expected = figures[name]
    actual = actual.numpy()
    if f"{name}_stride" in figures:
        channel, space = figures[f"{name}_stride"]
        actual = actual[:, ::channel, ::space, ::space, ::space]
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / expected.std())
