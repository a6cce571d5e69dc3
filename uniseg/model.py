"""The Universal Model, Fig. 1: a backbone, a text embedding a class, and the heads that join them.

Read heads.py and a backbone first, losses.py next.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn

from .backbones import BACKBONES
from .backbones.build import build_backbone, input_channels
from .heads import LPGS, class_logits, global_average_pooling, reduce_features


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to build the network again; plain values, stored in every checkpoint."""

    classes: tuple                      # names, in the order of the output channels
    backbone: str = "swin_unetr"        # Section 4.1.2; unet and segresnet as in Fig. 3
    width: int = 0                      # first-level channels; 0: the paper's (48, 64, 16)
    lpg: str = "independent"            # Eq. (1); `shared` is the form of the released weights
    lpg_hidden: int = 0                 # hidden width of the LPG; 0: the released code's (512 independent, 256 shared)
    merging: str = "standard"           # Swin patch merging: order of the eight corners; v090 for released weights
    text_width: int = 512               # T, of the text embedding
    encoding: str = "v3"                # which embedding: prompt v1, v2, v3 (Section 4.4.1), one-hot, random
    head: str = "class-specific"        # Section 3.2.3; softmax: the plain network of the baselines (baselines.py)
    input_windows: tuple = ()           # beyond the paper: parts of the image's range [0, 1], see input_channels

    def describe(self):
        """Plain dict, for checkpoints and JSON."""
        return {**asdict(self), "classes": list(self.classes), "input_windows": [list(w) for w in self.input_windows]}

    @classmethod
    def of(cls, description):
        """The configuration of such a dict; what an older one does not say has its default."""
        windows = tuple(map(tuple, description.get("input_windows", ())))
        return cls(**{**description, "classes": tuple(description["classes"]), "input_windows": windows})


class UniversalModel(nn.Module):
    """image (B, 1, D, H, W) scaled to [0, 1] -> logits (B, K, D, H, W), one per class; sizes multiples of 8 or 32.

    embedding: (K, T) float32, row k the text embedding of config.classes[k]; fixed, but learned for encoding `random`.
    """

    def __init__(self, config, embedding):
        super().__init__()
        expected = (len(config.classes), config.text_width)
        if tuple(embedding.shape) != expected:
            raise ValueError(f"text embedding has shape {tuple(embedding.shape)}, the model wants {expected}: "
                             "one row a class. Build it with uniseg.embeddings.class_embeddings.")
        if config.backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {config.backbone!r}. Choose one of {', '.join(BACKBONES)}.")
        if config.lpg not in LPGS:
            raise ValueError(f"unknown lpg {config.lpg!r}. Choose one of {', '.join(LPGS)}.")
        self.config = config
        self.backbone = build_backbone(config)
        # These names are the released files' own.
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
    def classes(self):
        return self.config.classes

    def forward(self, image, only=None):
        """only: channels to compute, a list of ints (default: all classes); other heads then cost nothing."""
        image = input_channels(image, self.config.input_windows)
        bottleneck, features = self.backbone(image)           # F_E (B, E, d, h, w), F_D (B, C, D, H, W)
        pooled = self.GAP(bottleneck).flatten(1)              # f (B, 256)
        theta = self.lpg(pooled, self.organ_embedding, only)  # Eq. (1): (B, K, 153)
        shared = self.precls_conv(features)                   # (B, 8, D, H, W)
        return class_logits(shared, theta)                    # Eq. (2): (B, K, D, H, W)

    def set_prior(self, probability):
        """Start every sigmoid near `probability`: the last bias of theta becomes its log-odds.

        Differs from the paper, which starts at one half; small classes then leave their plateau sooner.
        """
        with torch.no_grad():
            for bias in self.lpg.last_bias():
                bias[-1] = torch.logit(torch.tensor(probability))

    def describe(self):
        """See ModelConfig."""
        return self.config.describe()


def build(description, embedding=None):
    """The UniversalModel of a `describe()` dict. Without an embedding its rows are 0, to be filled by load_state_dict.

    checkpoint.build_network also makes the plain networks of the baselines.
    """
    config = ModelConfig.of(description)
    if embedding is None:
        embedding = torch.zeros(len(config.classes), config.text_width)
    return UniversalModel(config, embedding)
