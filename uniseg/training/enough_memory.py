"""Whether a training fits into memory, asked before any work: the kernel kills what does not, without a word.

The network is built on PyTorch's meta device, whose tensors have shapes but no values, and what autograd keeps for the
backward pass is counted (paper/complexity.py). Read recipe.py first.
"""

import math
import os

import torch

from ..backbones import SwinUNETR
from ..backbones.build import PAPER_WIDTH
from ..checkpoint import build_network
from ..machine.console import warn
from ..machine.device import imitates_bf16
from ..machine.memory import free_memory_bytes
from ..paper.complexity import activation_bytes
from .recipe import TrainConfig

# Peak of a step divided by what `step_bytes` counts. CPU, one patch of 96^3: measured 1.5 for a U-Net of 16 channels
# and a SegResNet of 16, 2.2 for a Swin UNETR of 12. GPU: not measured, a guess.
PEAK = {"cpu": 1.5, "cuda": 1.2}
PER_LOGIT = 12                     # bytes a voxel and class: logits, their gradient, the target, float32 each
PER_PARAMETER = 16                 # bytes: the weight, its gradient, two averages of AdamW, float32 each
MOST_MAPS = 40                      # maps of the first level that any backbone keeps for a step; counted: at most 30
HALF = 0.6                         # of the activations, where --amp stores most of them in 16 bits


def check_memory(config: TrainConfig, classes: int, device: torch.device) -> None:
    """Warn where a step of this training probably needs more memory than is free, refuse where it surely does.

    classes: the number of the model's classes, or the least that it will be
    Raises ValueError. Nothing is said where the system does not tell what is free.
    """
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], f"{device} has"
    else:
        of_machine = free_memory_bytes()
        if device.type != "cpu" or of_machine is None:
            return
        free, where = of_machine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "this process can have"
    peak = PEAK[device.type]
    if peak * rough_bytes(config, classes) < free:
        return
    least = step_bytes(config, classes)
    text = (f"a step of {config.backbone} with --batch-size {config.batch_size} and --patch-size "
            f"{' '.join(map(str, config.patch_size))} needs about {peak * least / 2 ** 30:.1f} GiB, {where} "
            f"{free / 2 ** 30:.1f} GiB. Give one or several of {', '.join(remedies(config, device))}.")
    if least > free:
        raise ValueError(text)
    if peak * least > free:
        warn(text)


def rough_bytes(config: TrainConfig, classes: int) -> int:
    """An upper bound of `step_bytes` that takes no time; the parameters of small networks count little beside it."""
    width = config.width or PAPER_WIDTH[config.backbone]
    voxels = config.batch_size * math.prod(config.patch_size)
    return voxels * (4 * MOST_MAPS * width + PER_LOGIT * classes) + (1 << 30)


def step_bytes(config: TrainConfig, classes: int) -> int:
    """Bytes that one training step takes at the very least: what autograd keeps, logits, weights and optimiser."""
    description = {"classes": [f"class {k}" for k in range(classes)], "backbone": config.backbone,
                   "width": config.width, "lpg": config.lpg, "lpg_hidden": config.lpg_hidden, "head": config.head}
    with torch.device("meta"):
        network = build_network(description)
    parameters = sum(p.numel() for p in network.parameters())
    network.backbone.requires_grad_(config.freeze != "backbone")
    if config.activation_checkpointing and isinstance(network.backbone, SwinUNETR):
        network.backbone.checkpoint_activations()
    activations = activation_bytes(network, config.patch_size, config.batch_size)
    if config.amp != "off":
        activations = round(HALF * activations)
    logits = config.batch_size * math.prod(config.patch_size) * classes * PER_LOGIT
    return activations + logits + (PER_PARAMETER + 4 * (config.ema > 0)) * parameters


def remedies(config: TrainConfig, device: torch.device) -> list[str]:
    """What makes a step smaller, the least change of the recipe first."""
    smaller = max(1, config.batch_size // 4)
    found = []
    if config.batch_size > 1:
        found.append(f"--batch-size {smaller} --accumulate {config.accumulate * (config.batch_size // smaller)}")
    if config.backbone == "swin_unetr" and not config.activation_checkpointing:
        found.append("--activation-checkpointing")
    if config.amp == "off" and not imitates_bf16(device):
        found.append("--amp bf16")
    if max(config.patch_size) > 64:
        found.append("--patch-size 64 64 64")
    if config.backbone != "segresnet":
        found.append("--backbone segresnet")
    return found or ["a smaller --width"]
