"""Options of `python -m uniseg.train` that contradict each other, each with the one line that refuses them.

What is wrong with a single number is refused by its type (machine/command_line.py). Read options.py first.
"""

import argparse
from collections.abc import Iterator

Refusal = tuple[bool, str]          # (whether it applies, the line for the user)


def refuse_contradictions(args: argparse.Namespace) -> None:
    """Raises ValueError with the first refusal that applies."""
    for refusals in (_patches, _start, _heads_and_loss, _training):
        for applies, line in refusals(args):
            if applies:
                raise ValueError(line)


def input_windows(args: argparse.Namespace) -> tuple[tuple[float, float], ...]:
    """The (low, high) HU of --input-windows. Raises ValueError for pairs that are incomplete, reversed or too wide."""
    flat, (lowest, highest) = tuple(args.input_windows), args.hu_window
    pairs = tuple(zip(flat[::2], flat[1::2]))
    if len(flat) % 2 or not all(lowest <= low < high <= highest for low, high in pairs):
        raise ValueError(f"--input-windows {' '.join(f'{hu:g}' for hu in flat)}: give low and high of each window, in "
                         f"this order, within --hu-window {lowest:g} {highest:g}.")
    return pairs


def _patches(args: argparse.Namespace) -> Iterator[Refusal]:
    """Patch size, precision and HU window."""
    from ..backbones import BACKBONES  # imports torch, which --help must not wait for
    from ..machine.device import choose_device

    multiple = BACKBONES[args.backbone].size_multiple
    yield (any(n % multiple for n in args.patch_size),
           f"--patch-size {' '.join(map(str, args.patch_size))}: {args.backbone} needs multiples of {multiple}.")
    on_cpu = args.amp != "off" and choose_device(args.device).type != "cuda"
    yield (on_cpu and args.amp == "fp16",
           "--amp fp16 needs a GPU. Use --amp bf16 or off on a CPU.")
    # oneDNN's bfloat16 weight gradient of a 3x3x3 convolution reads unset memory where D is 2 (PyTorch 2.13).
    yield (on_cpu and args.patch_size[0] <= 2 * multiple,
           f"--amp bf16 on a CPU: gradients are wrong for patches of D {2 * multiple} or less. Use --amp off.")
    yield (args.hu_window[0] >= args.hu_window[1],
           f"--hu-window {args.hu_window[0]:g} {args.hu_window[1]:g}: give the lower end first.")


def _start(args: argparse.Namespace) -> Iterator[Refusal]:
    """Starting weights, and what only an extension has."""
    yield (args.init is not None and args.extend is not None,
           "--init and --extend: the network starts from one of them. Leave one out.")
    for option, unused in (("hard_pseudo", False), ("old_labels", False), ("baseline", "none"), ("old_weight", 0.0),
                           ("old_dice", "linear")):
        yield (getattr(args, option) != unused and args.extend is None,
               f"--{option.replace('_', '-')} without --extend: there is no old model. Give --extend CHECKPOINT.")
    yield (args.head == "softmax" and (args.hard_pseudo or args.old_labels),
           "--hard-pseudo and --old-labels are for class-specific heads; the baselines' pseudo labels are hard. Leave "
           "them out.")
    yield (args.head == "softmax" and args.old_dice != "linear",
           "--old-dice is for class-specific heads. Leave it out.")
    yield (args.old_weight > 0 and args.reduction == "sum",
           "--old-weight and --reduction sum: the weight is that of a mean. Leave one out.")
    yield (args.freeze == "old" and (args.old_weight > 0 or args.old_dice != "linear"),
           "--freeze old: the old classes have no loss. Leave out --old-weight and --old-dice.")
    yield (args.freeze == "old" and args.extend is None,
           "--freeze old without --extend: there are no old classes. Give --extend CHECKPOINT.")


def _heads_and_loss(args: argparse.Namespace) -> Iterator[Refusal]:
    """Heads that start again, and weights of the loss."""
    yield (args.anew is not None and args.init is None,
           "--anew without --init: every class starts anew. Leave --anew out, or give --init WEIGHTS.")
    yield (args.head_start != "torch" and args.head == "softmax",
           "--head-start: a softmax has no generated heads. Leave it out.")
    yield (args.head_start != "torch" and args.lpg == "shared" and args.extend is not None,
           "--head-start with --lpg shared: the layer that gives the heads is the old model's. Leave it out.")
    yield (args.head == "softmax" and args.reduction == "sum",
           "--reduction sum: Eq. (4) is the loss of class-specific heads. Leave it out.")
    one_layer = "--head softmax" if args.head == "softmax" else "--lpg shared"
    yield (args.anew is not None and (args.lpg == "shared" or args.head == "softmax"),
           f"--anew with {one_layer}: one layer serves all classes, none can start alone. Leave one of the two out.")
    yield (args.weight_positives and args.balance_loss > 0,
           "--weight-positives and --balance-loss: both weigh the same voxels. Leave one out.")
    yield (args.dice_present and (args.extend is not None or args.head == "softmax"),
           "--dice-present: the losses of --extend and --head softmax know no absent classes. Leave it out.")


def _training(args: argparse.Namespace) -> Iterator[Refusal]:
    """What would learn nothing, save nothing or never end; two divisions of the cases."""
    yield (args.split is not None and (args.val_root is not None or args.overfit is not None),
           "--split: --val-root and --overfit choose the validation cases too. Leave one out.")
    yield (args.freeze != "nothing" and args.init is None and args.extend is None,
           "--freeze backbone without --init: a random backbone would stay random. Give --init WEIGHTS.")
    yield (args.activation_checkpointing and args.backbone != "swin_unetr",
           f"--activation-checkpointing: the {args.backbone} has no Swin blocks. Leave it out.")
    yield (args.ema == 1, "--ema 1: the average would never change. Use less than 1, e.g. 0.999.")
    yield (args.overlap == 1, "--overlap 1: windows would never move on. Use less than 1.")
