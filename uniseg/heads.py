"""The two heads: the language-driven parameter generator, Eq. (1), and the class-specific heads, Eq. (2).

One small MLP a class turns the class's text embedding and the pooled image feature into 153 numbers; these are the
weights and biases of three 1x1x1 convolutions that turn the decoder's feature map into that class's logit map.
Section 3.2.2 and 3.2.3. Read model.py next.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import nn

HEAD_CHANNELS = 8                                       # of the first two layers, Section 3.2.3
SIZES = (64, 64, 8, 8, 8, 1)                            # w1, w2, w3, b1, b2, b3
THETA = sum(SIZES)                                      # 153 parameters a class
POOLED = 256                                            # width of the pooled image feature f (released code)
CHUNK = {"cpu": 1024, "cuda": 1 << 18}                  # voxels at a time: on a CPU 32 classes then stay in its cache
GROUP = {"cuda": 32}                                    # most classes in one matrix product, elsewhere 1: class_logits, classes_in_one


def group_norm(channels):
    """GroupNorm of 16 groups (released code), fewer where a narrow network's channels do not divide by 16."""
    return nn.GroupNorm(math.gcd(16, channels), channels)


def global_average_pooling(channels):
    """f = GAP(F_E): (B, E, d, h, w) -> (B, 256, 1, 1, 1)."""
    return nn.Sequential(group_norm(channels), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Conv3d(channels, POOLED, 1))


def reduce_features(channels):
    """F_D -> the 8 channels all class heads share: (B, C, D, H, W) -> (B, 8, D, H, W)."""
    return nn.Sequential(group_norm(channels), nn.ReLU(), nn.Conv3d(channels, HEAD_CHANNELS, 1))


class IndependentLPG(nn.Module):
    """Eq. (1), theta_cls = MLP_cls(w_cls (+) f), one MLP a class: (256 + T) -> 512 -> 153.

    With the 512-wide CLIP embedding a class costs 472,217 parameters and 943,769 operations, the 9.44e-4 GFLOPs of
    Section 5.4. Classes added later get MLPs of their own and leave these untouched (Section 3.3).
    """

    def __init__(self, classes, text_width, hidden=512):
        super().__init__()
        self.controllers = nn.ModuleList(
            nn.Sequential(nn.Linear(POOLED + text_width, hidden), nn.ReLU(), nn.Linear(hidden, THETA))
            for _ in range(classes))

    def forward(self, pooled, text, only=None):
        """pooled (B, 256), text (K, T), only: channels to compute (default all) -> theta (B, K or len(only), 153)."""
        channels = range(len(self.controllers)) if only is None else only
        thetas = []
        for k in channels:
            w_f = torch.cat([pooled, text[k].expand(len(pooled), -1)], dim=1)  # (B, 256 + T), released order
            thetas.append(self.controllers[k](w_f))                            # (B, 153)
        return torch.stack(thetas, dim=1)                                      # (B, K, 153)

    def last_bias(self):
        """The bias vectors that end up added to theta: a list of (153,)."""
        return [mlp[2].bias for mlp in self.controllers]


class SharedLPG(nn.Module):
    """Eq. (1) as in the ICCV 2023 form and the released weights: one linear layer for all classes."""

    def __init__(self, classes, text_width, hidden=256):
        super().__init__()
        self.classes = classes
        self.text_to_vision = nn.Linear(text_width, hidden)
        self.controller = nn.Linear(POOLED + hidden, THETA)

    def forward(self, pooled, text, only=None):
        """pooled (B, 256), text (K, T), only: channels to compute (default all) -> theta (B, K or len(only), 153)."""
        text = text if only is None else text[list(only)]
        words = F.relu(self.text_to_vision(text))                              # (K, 256)
        w_f = torch.cat([pooled[:, None].expand(-1, len(words), -1),
                         words[None].expand(len(pooled), -1, -1)], dim=2)      # (B, K, 512)
        return self.controller(w_f)                                            # (B, K, 153)

    def last_bias(self):
        return [self.controller.bias]


LPGS = {"independent": IndependentLPG, "shared": SharedLPG}


def class_logits(features, theta, chunk=None, group=None):
    """Class-specific heads, Eq. (2) without its sigmoid (the loss and the thresholds apply it).

    features: (B, 8, D, H, W)  decoder feature map, shared by all K classes
    theta:    (B, K, 153)      parameters of Eq. (1): 64 + 64 + 8 weights, then 8 + 8 + 1 biases; weights are (out, in)
    returns:  (B, K, D, H, W)  one logit map a class

    The three layers run for all classes at once as matrix products over `chunk` voxels at a time; the feature map is
    never repeated and the backward pass computes the hidden layers again instead of keeping them. In float32, whatever
    autocast says; a GPU may multiply in TF32 (runtime.with_tensor_cores). Products of 8 x 8 leave a GPU idle: there up to
    `group` classes share one, their matrices the blocks of its diagonal, and a class that is not finite makes them all so.
    """
    chunk = chunk or CHUNK.get(features.device.type, CHUNK["cuda"])
    group = group or GROUP.get(features.device.type, 1)
    flat = features.float().flatten(2)                                         # (B, 8, N)
    logits = _ClassHeads.apply(flat, theta.float(), chunk, classes_in_one(theta.shape[1], group))  # (B, K, N)
    return logits.unflatten(2, features.shape[2:])                             # (B, K, D, H, W)


def classes_in_one(classes, most):
    """How many classes share a matrix product: the largest divisor of their number up to `most`.

    >>> [classes_in_one(classes, 32) for classes in (6, 32, 34, 37)]        # 37 have no divisor: each has its own, which is slower
    [6, 32, 17, 1]
    """
    return max(n for n in range(1, most + 1) if classes % n == 0)


def _layers(theta, group):
    """theta (K, 153) of one image, G classes in a group -> w1 (8K, 8), w2 (K/G, 8G, 8G), w3 (K/G, G, 8G), b1 (8K, 1), b2 (K/G, 8G, 1),
    b3 (K/G, G, 1)."""
    w1, w2, w3, b1, b2, b3 = theta.split(SIZES, dim=1)
    groups = len(theta) // group
    return (w1.reshape(-1, 8), _blocks(w2.reshape(-1, 8, 8), group), _blocks(w3.reshape(-1, 1, 8), group),
            b1.reshape(-1, 1), b2.reshape(groups, -1, 1), b3.reshape(groups, -1, 1))


def _blocks(matrices, group):
    """(K, a, b) -> (K/G, G a, G b): the matrices of G classes as blocks of one diagonal, 0 elsewhere."""
    classes, rows, columns = matrices.shape
    wide = matrices.new_zeros(classes // group, group, rows, group, columns)
    _diagonal(wide).copy_(matrices.unflatten(0, (-1, group)))
    return wide.flatten(3, 4).flatten(1, 2)


def _of_blocks(wide, rows, columns):
    """The inverse, whatever stands beside the blocks: (K/G, G rows, G columns) -> (K, rows, columns)."""
    return _diagonal(wide.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))).flatten(0, 1)


def _diagonal(wide):
    """The blocks of (K/G, G, a, G, b) as a view (K/G, G, a, b)."""
    return wide.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _hidden(x, w1, w2, b1, b2):
    """The two hidden layers of all classes for the voxels x (8, n): (K/G, 8G, n) twice."""
    h1 = torch.addmm(b1, w1, x).relu_().view(len(w2), -1, x.shape[1])          # phi(F * theta_1)
    h2 = torch.baddbmm(b2, w2, h1).relu_()                                     # phi(... * theta_2)
    return h1, h2


def _where_positive(gradient, hidden):
    """The gradient behind a ReLU, in place: 0 where its output `hidden` is 0. One pass, where a product with a mask takes three."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)


def _without_autocast(device):
    """Turns autocast off; on devices that have none, the meta device for one, there is nothing to turn off."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class _ClassHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, theta, chunk, group):
        """features (B, 8, N), theta (B, K, 153) -> logits (B, K, N)."""
        ctx.save_for_backward(features, theta)
        ctx.chunk, ctx.group = chunk, group
        logits = features.new_empty(features.shape[0], theta.shape[1], features.shape[2])
        with _without_autocast(features.device.type):
            for image, parameters, out in zip(features, theta, logits):
                w1, w2, w3, b1, b2, b3 = _layers(parameters, group)
                for i in range(0, image.shape[1], chunk):
                    _, h2 = _hidden(image[:, i:i + chunk], w1, w2, b1, b2)
                    out[:, i:i + chunk] = torch.baddbmm(b3, w3, h2).flatten(0, 1)  # ... * theta_3
        return logits

    @staticmethod
    def backward(ctx, grad_logits):
        features, theta = ctx.saved_tensors
        grad_features, grad_theta = torch.zeros_like(features), torch.zeros_like(theta)
        with _without_autocast(features.device.type):
            for b, (image, parameters) in enumerate(zip(features, theta)):
                layers = w1, w2, _, b1, b2, _ = _layers(parameters, ctx.group)
                w2_t, w3_t = w2.transpose(1, 2).contiguous(), parameters.split(SIZES, dim=1)[2][..., None].contiguous()
                sums = [torch.zeros_like(part) for part in layers]
                g_w1, g_w2, g_w3, g_b1, g_b2, g_b3 = sums
                for i in range(0, image.shape[1], ctx.chunk):
                    x = image[:, i:i + ctx.chunk]
                    g = grad_logits[b, :, i:i + ctx.chunk]                     # (K, n)
                    grouped = g.unflatten(0, (-1, ctx.group))                  # (K/G, G, n)
                    h1, h2 = _hidden(x, w1, w2, b1, b2)
                    g_w3 += torch.bmm(grouped, h2.transpose(1, 2))
                    g_b3 += grouped.sum(2, keepdim=True)
                    g_h2 = _where_positive((w3_t * g[:, None]).view_as(h2), h2)  # (K/G, 8G, n)
                    g_w2 += torch.bmm(g_h2, h1.transpose(1, 2))
                    g_b2 += g_h2.sum(2, keepdim=True)
                    g_h1 = _where_positive(torch.bmm(w2_t, g_h2), h1).view(-1, x.shape[1])  # (8K, n)
                    g_w1 += (x @ g_h1.T).T
                    g_b1 += g_h1.sum(1, keepdim=True)
                    grad_features[b, :, i:i + ctx.chunk] = w1.T @ g_h1
                sums[1], sums[2] = _of_blocks(g_w2, 8, 8), _of_blocks(g_w3, 1, 8)
                grad_theta[b] = torch.cat([part.reshape(len(parameters), -1) for part in sums], dim=1)
        return grad_features, grad_theta, None, None
