"""What speed.py and gpu.py measure on both sides: a window, a training step, a CT, on args.device, in args' sizes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import inputs
import peers
import torch
from measuring import Work

from uniseg import infer
from uniseg.losses import unpack_bits
from uniseg.machine.device import autocast
from uniseg.machine.processes import Process
from uniseg.paper.complexity import count, meta_network, total
from uniseg.taxonomy import NAMES
from uniseg.training.learner import Learner, make_learner
from uniseg.training.recipe import TrainConfig
from uniseg.training.steps import all_finite, training_step

BACKBONES = {"Swin UNETR": "swin_unetr", "U-Net": "unet", "SegResNet": "segresnet"}
LABELLED = 14                                              # classes that the patches of a training step annotate

FULL: Mapping[str, Any] = {"window": (96, 96, 96), "classes": NAMES, "widths": {}, "ct_shape": (512, 512, 119),
                           "coarse_shape": (128, 128, 100), "share": 1.0}
TINY: Mapping[str, Any] = {"window": (32, 32, 64), "classes": NAMES[:6], "ct_shape": (64, 64, 32),
                           "widths": {"swin_unetr": 12, "unet": 8, "segresnet": 8},
                           "coarse_shape": (40, 40, 30), "share": 0.1}


def model_of(args: argparse.Namespace, backbone: str, peer: bool = False) -> torch.nn.Module:
    """The network, of the paper's width and with 32 classes unless args are tiny, or its peer."""
    model = inputs.untrained(backbone, args.widths.get(backbone, 0), len(args.classes))
    return (peers.PeerModel.like(model) if peer else model).to(args.device)


def gflops(args: argparse.Namespace, backbone: str) -> float:
    """Floating-point operations of one window, in 10^9, as `python -m uniseg complexity` counts them."""
    network = meta_network(backbone, classes=len(args.classes), width=args.widths.get(backbone, 0), text_width=384)
    return total(count(network, args.window)).flops / 1e9


def forward(args: argparse.Namespace, model: torch.nn.Module, precision: str, at_once: int = 1) -> Work:
    """`at_once` windows through a model."""
    image, model = torch.rand(at_once, 1, *args.window, device=args.device), model.eval()

    def work() -> None:
        with torch.inference_mode(), autocast(args.device, precision):
            model(image)
    return work


# ------------------------------------------------------------------------------------------------ a training step

def random_batch(args: argparse.Namespace, samples: int = 1) -> dict[str, Any]:
    """A batch as data.PatchDataset makes it, of random voxels; LABELLED classes are annotated."""
    random, labelled = torch.Generator().manual_seed(0), torch.arange(len(args.classes)) < LABELLED
    return {"image": torch.rand(samples, 1, *args.window, generator=random),
            "bits": torch.randint(0, 2 ** len(args.classes), (samples, *args.window), generator=random),
            "labelled": labelled.expand(samples, -1), "case": ["random"] * samples}


def learner_of(args: argparse.Namespace, backbone: str, precision: str) -> tuple[Learner, TrainConfig]:
    """What `uniseg.train` makes of its options, and these."""
    config = TrainConfig(backbone=backbone, width=args.widths.get(backbone, 0), patch_size=args.window,
                         amp="off" if precision == "float32" else precision)
    options = argparse.Namespace(old=None, init=None, embeddings=None)
    learner = make_learner(options, config, args.classes, Process(0, 1, args.device))
    learner.network.train()
    return learner, config


def one_step(learner: Learner, config: TrainConfig, batch: dict[str, Any]) -> None:
    """A step as in train.loop."""
    learner.optimizer.zero_grad(set_to_none=True)
    loss = training_step(learner.network, [batch], config).item()
    if all_finite(loss, learner.network):
        learner.take_step()


def our_step(args: argparse.Namespace, backbone: str, precision: str, samples: int = 1) -> Work:
    """uniseg's training step."""
    learner, config = learner_of(args, backbone, precision)
    batch = random_batch(args, samples)
    return lambda: one_step(learner, config, batch)


def peer_of(args: argparse.Namespace, backbone: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The peer's network and optimiser."""
    model = model_of(args, backbone, True).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)


def peer_step(args: argparse.Namespace, backbone: str, precision: str, samples: int = 1) -> Work:
    """The peer's training step."""
    model, optimizer = peer_of(args, backbone)
    batch = random_batch(args, samples)
    target = unpack_bits(batch["bits"], len(args.classes))

    def work() -> None:
        peers.one_step(model, optimizer, *(x.to(args.device) for x in (batch["image"], target, batch["labelled"])),
                       precision)
    return work


# ------------------------------------------------------------------------------------------------ a CT

def ct_of(args: argparse.Namespace) -> Path:
    """--ct, or a synthetic CT of 512 x 512 x 119 voxels."""
    return args.ct or inputs.made(args.work / "ct.nii.gz", inputs.make_ct, args.ct_shape, (0.74, 0.74, 1.6))


def our_ct(args: argparse.Namespace, backbone: str, precision: str) -> Work:
    """`python -m uniseg.infer` with untrained weights; its result is seg.nii.gz in args.work."""
    weights = inputs.made(args.work / f"{backbone}.pt", inputs.make_weights, backbone, args.widths.get(backbone, 0),
                          len(args.classes), args.window)
    command = [str(ct_of(args)), "--weights", str(weights), "-o", str(args.work / "seg.nii.gz"), "--overwrite",
               "--precision", precision, "--device", str(args.device), "--quiet"]
    return lambda: infer.main(command)


def peer_ct(args: argparse.Namespace, backbone: str, precision: str) -> Work:
    """The same with MONAI, without post-processing; its result is peer.nii.gz in args.work."""
    model, ct = model_of(args, backbone, True).eval(), ct_of(args)
    return lambda: peers.segment(ct, args.work / "peer.nii.gz", model, args.window, precision, args.device)
