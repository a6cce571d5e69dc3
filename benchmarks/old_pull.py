"""What do the old classes ask for when an extension starts, where student and teacher are equal? Eq. (5) in numbers.

    python benchmarks/old_pull.py runs/continual/runs/body-ours-text-seed0-step1/last.pt \\
        --data runs/continual/body/step2 --classes stomach,colon,intestine [--at WEIGHTS] [--batches 16]

takes the gradient of each term of the loss in the backbone, which all classes share, on the patches that the extension
would draw: the new classes' loss, and the Dice (linear or squared) and the BCE of the old classes, whose targets are
the teacher's soft predictions. Each term is weighed as in Eq. (4). The table has the mean length of the gradient of a
batch, the length of the mean gradient, which is what remains when the batches are put together, and its cosine with
that of the new classes: below 0, a step that helps the new classes makes this term worse. --at looks at another moment,
the weights of an extension that is under way.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from continual import EXTEND
from torch import Tensor

from uniseg import checkpoint, train
from uniseg.continual import Extension
from uniseg.losses import masked_sum
from uniseg.machine.processes import start_processes
from uniseg.training.batches import make_patches
from uniseg.training.learner import make_learner
from uniseg.training.objective import class_weights, make_objective
from uniseg.training.options import make_config
from uniseg.training.split import choose_classes, gather_cases


def terms(logits: Tensor, target: Tensor, old: int, weight: Tensor | None) -> dict[str, Tensor]:
    """{name: term of Eq. (4), a 0-d tensor} for a batch whose first `old` classes have the teacher's targets.

    logits, target: (B, K + n, D, H, W); weight: (B, K + n) of positive voxels in the BCE, or None
    """
    is_old = (torch.arange(logits.shape[1]) < old).expand(logits.shape[:2])

    def loss(group: Tensor, dice: str) -> Tensor:
        return masked_sum(logits, target, group, weight, dice=dice)[0] / group.numel()

    bce = loss(is_old, "none")
    return {"new classes": loss(~is_old, "linear"), "old, linear Dice": loss(is_old, "linear") - bce,
            "old, squared Dice": loss(is_old, "squared") - bce, "old, BCE": bce}


def gradients(args: argparse.Namespace) -> dict[str, Tensor]:
    """{term: its gradient in the backbone (batches, parameters)}."""
    options = train.parse(["--data-root", str(args.data), "--extend", str(args.start), "--classes", args.classes,
                           "--cache", str(args.cache), *EXTEND, "--amp", "off"])
    process = start_processes("cpu", options.timeout)
    cases, _, _ = gather_cases(options, 0, 1)
    classes = choose_classes(options, cases, options.old["network"]["classes"])
    config = make_config(options, len(cases), 1)
    torch.manual_seed(config.seed)
    network = make_learner(options, config, classes, process).network
    if args.at:
        network.load_state_dict(checkpoint.read(args.at)["weights"])
    objective = make_objective(options, config, network, cases, process.device)
    assert isinstance(objective, Extension)
    weights, patches = class_weights(config, cases, network.classes), make_patches(cases, network.classes, config)
    shared = list(network.backbone.parameters())
    found: dict[str, list[Tensor]] = {}
    for number in range(args.batches):
        drawn = [patches[config.batch_size * number + i] for i in range(config.batch_size)]
        image, bits, labelled = (torch.stack([torch.as_tensor(one[key]) for one in drawn])
                                 for key in ("image", "bits", "labelled"))
        target = objective.targets(image, bits, objective.labelled(labelled))
        weight = None if weights is None else weights.expand_as(labelled)
        for name, term in terms(network(image), target, objective.old, weight).items():
            parts = torch.autograd.grad(term, shared, retain_graph=True, allow_unused=True)
            found.setdefault(name, []).append(torch.cat([part.flatten() for part in parts if part is not None]))
    return {name: torch.stack(rows) for name, rows in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path, help="checkpoint of class-specific heads that is extended")
    parser.add_argument("--data", type=Path, required=True, help="folder of datasets with the new classes")
    parser.add_argument("--classes", required=True, help="the new classes, with commas")
    parser.add_argument("--at", type=Path, help="checkpoint of the extension at which to look (default: its start)")
    parser.add_argument("--batches", type=int, default=16, help="of two patches (default %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/continual/cache"), help="of preprocessed cases")
    by_term = gradients(parser.parse_args(argv))
    cosine = functools.partial(torch.nn.functional.cosine_similarity, by_term["new classes"].mean(0), dim=0)
    print("| term | length for a batch | of the mean gradient | cosine with that of the new classes |\n|--|--|--|--|")
    for name, rows in by_term.items():
        print(f"| {name} | {rows.norm(dim=1).mean():.4f} | {rows.mean(0).norm():.4f} | {cosine(rows.mean(0)):+.2f} |")


if __name__ == "__main__":
    main()
