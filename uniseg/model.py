"""The Universal Model of Fig. 1, Section 3.2: a backbone, one text embedding per class, and the heads that join them.

`UniversalModel.forward` is the figure: the vision branch gives F_E and F_D (Section 3.2.1), the language branch turns
text embeddings and F_E into parameters (Eq. (1)), and the class-specific heads apply these to F_D (Eq. (2)).

Read embeddings.py, heads.py and one backbone first, losses.py next.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .backbones import BACKBONES
from .backbones.build import build_backbone, input_channels
from .heads import HEAD_CHANNELS, LPGS, SIZES, THETA, class_logits, global_average_pooling, reduce_features
from .machine.device import without_autocast


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a network again. The values are plain, and every checkpoint stores them."""

    classes: tuple[str, ...]            # names, in the order of the output channels
    backbone: str = "swin_unetr"        # the paper's (Section 4.1.2); unet and segresnet: Section 4.4.2, Fig. 3
    width: int = 0                      # channels at full resolution; 0 is the paper's, see backbones/build.py
    lpg: str = "independent"            # form of Eq. (1); `shared` is the form of the released weights
    lpg_hidden: int = 0                 # hidden width of the LPG; 0 is the released code's: 512, or 256 if shared
    merging: str = "standard"           # order of the eight corners in Swin's patch merging; v090 for released weights
    text_width: int = 512               # T, the width of the text embeddings
    encoding: str = "v3"                # prompt v1, v2 or v3 (Section 4.4.1), one-hot or random; see embeddings.py
    head: str = "class-specific"        # Section 3.2.3; `softmax` is the plain network of baselines.py
    input_windows: tuple[tuple[float, float], ...] = ()  # beyond the paper: intensity windows, see input_channels

    def describe(self) -> dict[str, Any]:
        """The configuration as a plain dict, for checkpoints and JSON."""
        return {**asdict(self), "classes": list(self.classes), "input_windows": [list(w) for w in self.input_windows]}

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that `describe` gave. Values that an older description lacks have their defaults."""
        windows = tuple((low, high) for low, high in description.get("input_windows", ()))
        return cls(**{**description, "classes": tuple(description["classes"]), "input_windows": windows})


class UniversalModel(nn.Module):
    """The network of Fig. 1: image (B, 1, D, H, W), scaled to [0, 1], -> logits (B, K, D, H, W), one map per class.

    config:    what to build. D, H and W must be multiples of the backbone's `size_multiple` (8, or 32 for Swin UNETR).
    embedding: (K, T) float32; row k is the text embedding of config.classes[k]. Only `random` embeddings are learned.

    Raises ValueError for an embedding of another shape and for an unknown backbone or LPG.
    """

    organ_embedding: Tensor             # w of Eq. (1) for all classes, (K, T)

    def __init__(self, config: ModelConfig, embedding: Tensor | np.ndarray):
        super().__init__()
        expected = (len(config.classes), config.text_width)
        if tuple(embedding.shape) != expected:
            raise ValueError(f"text embedding has shape {tuple(embedding.shape)}, the model wants {expected}: "
                             "one row per class. Build it with uniseg.embeddings.class_embeddings.")
        if config.backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {config.backbone!r}. Choose one of {', '.join(BACKBONES)}.")
        if config.lpg not in LPGS:
            raise ValueError(f"unknown lpg {config.lpg!r}. Choose one of {', '.join(LPGS)}.")
        self.config = config
        self.backbone = build_backbone(config.backbone, config.width, config.merging, len(config.input_windows))
        # The names GAP, precls_conv and organ_embedding are those of the released files.
        self.GAP = global_average_pooling(self.backbone.bottleneck_channels)
        self.precls_conv = reduce_features(self.backbone.decoder_channels)
        hidden = {"hidden": config.lpg_hidden} if config.lpg_hidden else {}
        self.lpg = LPGS[config.lpg](len(config.classes), config.text_width, **hidden)
        embedding = torch.as_tensor(embedding, dtype=torch.float32).clone()
        if config.encoding == "random":
            self.organ_embedding = nn.Parameter(embedding)
        else:
            self.register_buffer("organ_embedding", embedding)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the output channels."""
        return self.config.classes

    def forward(self, image: Tensor, only: Sequence[int] | None = None) -> Tensor:
        """image (B, 1, D, H, W) -> logits (B, K, D, H, W), or (B, len(only), D, H, W).

        only: the channels to compute (None: all); the heads of other classes then cost nothing
        """
        image = input_channels(image, self.config.input_windows)
        bottleneck, features = self.backbone(image)           # F_E (B, E, d, h, w), F_D (B, C, D, H, W): Section 3.2.1
        with without_autocast(image.device.type):                     # the heads cost little: always in float32
            pooled = self.GAP(bottleneck.float()).flatten(1)          # f (B, 256):                       Section 3.2.2
            theta = self.lpg(pooled, self.organ_embedding, only)      # (B, K, 153):                      Eq. (1)
            shared = self.precls_conv(features.float())               # (B, 8, D, H, W)
            return class_logits(shared, theta)                        # (B, K, D, H, W):                  Eq. (2)

    def set_prior(self, probability: float) -> None:
        """Start every sigmoid near `probability`: the last bias in theta becomes its log-odds.

        Differs from the paper, whose sigmoids start near one half. With a low prior, small classes learn sooner.
        """
        with torch.no_grad():
            for bias in self.lpg.last_bias():
                bias[-1] = torch.logit(torch.tensor(probability))

    def start_heads(self) -> None:
        """Start the heads of all classes as He et al. do (https://arxiv.org/abs/1502.01852), beyond the paper.

        Torch starts theta's weights near 0.04, so that three layers of 8 channels pass hardly any signal. Here the
        biases that give theta start normal: the weights before a ReLU with a variance of 2 / 8, the last with 1 / 8,
        the biases at 0.
        """
        deviations = torch.cat([torch.full((n,), value) for n, value in
                                zip(SIZES, (0.5, 0.5, math.sqrt(1 / HEAD_CHANNELS), 0.0, 0.0, 0.0))])
        with torch.no_grad():
            for bias in self.lpg.last_bias():
                bias.copy_(torch.randn(THETA) * deviations)

    def describe(self) -> dict[str, Any]:
        """See ModelConfig.describe."""
        return self.config.describe()


def build(description: Mapping[str, Any], embedding: Tensor | np.ndarray | None = None) -> UniversalModel:
    """The UniversalModel that a `describe()` dict describes.

    embedding: (K, T); without it, all rows are 0 until load_state_dict fills them

    checkpoint.build_network also builds the plain networks of baselines.py.
    """
    config = ModelConfig.of(description)
    if embedding is None:
        embedding = torch.zeros(len(config.classes), config.text_width)
    return UniversalModel(config, embedding)
