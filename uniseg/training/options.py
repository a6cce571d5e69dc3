"""The options of `python -m uniseg.train`, and the TrainConfig that they make."""

import argparse
import math
import os
import shutil
from dataclasses import fields
from pathlib import Path

from ..backbones import BACKBONES
from ..backbones.build import PAPER_WIDTH
from ..baselines import BASELINES
from ..datasets.find import named_folder
from ..embeddings import ENCODINGS
from ..heads import LPGS
from ..machine.about import NOT_A_MEDICAL_DEVICE
from ..machine.console import Parser
from ..machine.device import choose_device
from .recipe import TrainConfig


def build_parser():
    """The command's options, in the order in which --help shows them."""
    parser = Parser(prog="python -m uniseg.train", description="Train the Universal Model (Section 4.1.2).",
                    epilog=NOT_A_MEDICAL_DEVICE, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(old=None)                    # content of the checkpoint of --extend: train.parse
    _add_data(parser)
    _add_network(parser, TrainConfig)
    _add_optimisation(parser, TrainConfig)
    _add_faults_and_validation(parser, TrainConfig)
    return parser


def _add_data(parser):
    parser.add_argument("--data-root", type=Path, help="folder with one sub-folder per dataset (docs/datasets.md)")
    parser.add_argument("--dataset", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
                        help="one more dataset, by the name of a published one (`python -m uniseg layouts`); may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/uniseg"), help="run folder")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt of the run folder")
    parser.add_argument("--init", type=Path, metavar="WEIGHTS",
                        help="start from a checkpoint or a released file (Section 4.6); classes both know keep their MLPs")
    parser.add_argument("--anew", metavar="CLASSES", help="with --init: these classes' MLPs start at random and at --prior all the same, "
                        "comma-separated; for classes that the file never learned (probability 0)")
    parser.add_argument("--extend", type=Path, metavar="CHECKPOINT",
                        help="teach it the classes it lacks from new data alone, Section 3.3; its network and grid are kept, other "
                        "defaults are then those of Section 5.1.3")
    parser.add_argument("--partial", action="store_true", help="with --init: take what fits, although entries are missing")
    parser.add_argument("--val-root", type=Path, help="validate on the datasets of this folder instead of a fold")
    parser.add_argument("--include", nargs="+", metavar="PATTERN", help="train on these datasets or DATASET/CASEs only; * for any")
    parser.add_argument("--exclude", nargs="+", metavar="PATTERN", help="leave these datasets or DATASET/CASEs out")
    parser.add_argument("--drop-copies", action="store_true", help="leave out training cases whose CT also validates")
    parser.add_argument("--classes", help="train these classes only, comma-separated (default: all that are annotated); may name "
                        "classes beyond Table 2 that have a text embedding")
    parser.add_argument("--allow-outside", action="store_true",
                        help="allow links and dataset.json paths to files outside their dataset's folder")
    parser.add_argument("--map", type=Path, help="JSON file {label name: class name, or null to drop the label}")
    parser.add_argument("--embeddings", type=Path, help="own embeddings file (default: the shipped one)")
    parser.add_argument("--cache", type=Path, help="folder of preprocessed cases (default: OUT/cache)")
    parser.add_argument("--overfit", type=_at_least(1), metavar="N", help="sanity run: train and validate on the first N cases")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--workers", type=_at_least(0), default=2, help="processes that draw patches")


def _add_network(parser, d):
    net = parser.add_argument_group("network (paper's by default)")
    net.add_argument("--backbone", choices=list(PAPER_WIDTH), default=d.backbone, help="Fig. 3")
    net.add_argument("--width", type=_at_least(0), default=d.width, help="first-level channels; 0: the paper's 48, 64, 16")
    net.add_argument("--lpg", choices=list(LPGS), default=d.lpg, help="Eq. (1); shared: the ICCV 2023 form")
    net.add_argument("--lpg-hidden", type=_at_least(0), default=d.lpg_hidden, help="hidden width of the LPG; 0: released code's")
    net.add_argument("--encoding", choices=ENCODINGS, default=d.encoding, help="prompt of the embeddings, Table 7")
    net.add_argument("--head", choices=("class-specific", "softmax"), default=d.head,
                     help="softmax: the plain network of Section 5's baselines, one class a voxel")
    net.add_argument("--prior", type=_fraction, default=d.prior, help="probability at which every sigmoid starts")
    pre = parser.add_argument_group("preprocessing and patches (paper's by default)")
    pre.add_argument("--spacing", type=_positive, default=d.spacing, help="mm, isotropic")
    pre.add_argument("--hu-window", type=float, nargs=2, default=d.hu_window, help="clipped and scaled to [0, 1]")
    pre.add_argument("--input-windows", type=float, nargs="+", default=d.input_windows, metavar="HU",
                     help="low and high of each of several HU windows that the network sees as channels, within --hu-window; "
                     "beyond the paper")
    pre.add_argument("--antialias", action="store_true", help="average when the grid gets coarser; beyond the paper")
    pre.add_argument("--pad", choices=("air", "edge"), default=d.pad, help="what a case (a CT about its body) smaller than the patch is filled up with; "
                     "edge: its outermost voxels, beyond the paper")
    pre.add_argument("--patch-size", type=_at_least(8), nargs=3, default=d.patch_size, help="voxels, D H W")
    pre.add_argument("--dataset-weights", type=_named_weight, nargs="+", default=d.dataset_weights, metavar="NAME=W",
                     help="draw from this dataset W times as often as from another (1); beyond the paper")
    pre.add_argument("--foreground", type=_fraction, default=d.foreground, help="share of patches centred on foreground (2:1)")
    pre.add_argument("--balance", type=_fraction, default=d.balance, help="share of those drawn class by class; beyond the paper")
    pre.add_argument("--lesions", type=_fraction, default=d.lesions, help="share of those drawn lesion by lesion; beyond the paper")
    pre.add_argument("--rotate-probability", type=_fraction, default=d.rotate_probability, help="of a 90 degree axial rotation")
    pre.add_argument("--shift-probability", type=_fraction, default=d.shift_probability, help="of an intensity shift")
    pre.add_argument("--augment", choices=("paper", "strong", "contrast"), default=d.augment,
                     help="strong: also small rotation, zoom, contrast, blur, noise; contrast: strong with a phase for each organ")
    pre.add_argument("--deform", type=_at_least_zero, default=d.deform, metavar="MM",
                     help="smooth random deformation by up to so many mm; beyond the paper")
    pre.add_argument("--weight-positives", action="store_true", help="weigh rare classes' voxels in the BCE; beyond the paper")
    pre.add_argument("--balance-loss", type=_fraction, default=d.balance_loss, metavar="POWER", help="instead of --weight-positives: by "
                     "(voxels of a patch / voxels of the class)^POWER, for grids on which the former's at most 12 is too little")
    pre.add_argument("--dice-present", action="store_true", help="take Dice of the classes that a patch shows alone, the others have their "
                     "cross-entropy; beyond the paper")


def _add_optimisation(parser, d):
    opt = parser.add_argument_group("optimisation (paper's by default)")
    opt.add_argument("--epochs", type=_at_least(1), default=d.epochs, help="released code's")
    opt.add_argument("--warmup-epochs", type=_at_least(0), default=d.warmup_epochs, help="linear warm-up before the cosine")
    opt.add_argument("--steps-per-epoch", type=_at_least(0), default=d.steps_per_epoch, help="0: each case once on average")
    opt.add_argument("--batch-size", type=_at_least(1), default=d.batch_size, help="patches per process and forward pass")
    opt.add_argument("--accumulate", type=_at_least(1), default=d.accumulate, help="forward passes per optimiser step")
    opt.add_argument("--lr", type=_positive, default=d.lr, help="peak learning rate of AdamW")
    opt.add_argument("--weight-decay", type=float, default=d.weight_decay, help="of AdamW")
    opt.add_argument("--beta1", type=_fraction, default=d.beta1, help="of AdamW; the paper's momentum")
    opt.add_argument("--amp", choices=("off", "bf16", "fp16"), default=d.amp, help="automatic mixed precision; fp16 on GPUs only")
    opt.add_argument("--ema", type=_fraction, default=d.ema, metavar="DECAY",
                     help="average the weights (0.999, say); validation and best.pt use the average; beyond the paper")
    opt.add_argument("--freeze", choices=("nothing", "backbone", "old"), default=d.freeze,
                     help="with --init or --extend, backbone: leave it as it is, train the heads (Section 4.6); with --extend, old: train "
                     "the new classes' MLPs alone, old classes stay bit for bit")
    opt.add_argument("--activation-checkpointing", action="store_true",
                     help="Swin UNETR: recompute activations in the backward pass to save memory; the same numbers")
    opt.add_argument("--compile", action="store_true", help="torch.compile; takes minutes at the start, needs a C++ compiler on a CPU")
    opt.add_argument("--seed", type=_at_least(0), default=d.seed, help="of weights and patches")
    more = parser.add_argument_group("extension by new classes (with --extend)")
    more.add_argument("--hard-pseudo", action="store_true", help="pseudo labels of 0 and 1 for the old classes; paper: soft")
    more.add_argument("--old-labels", action="store_true",
                      help="where the new data label an old class, learn from that instead; beyond Eq. (5)")
    more.add_argument("--baseline", choices=("none", *BASELINES), default=d.baseline, help="extend a softmax by this method (Section 5.1.2)")


def _add_faults_and_validation(parser, d):
    fault = parser.add_argument_group("faults (ours)")
    fault.add_argument("--skip-bad", action="store_true", help="leave out cases that are incomplete or cannot be read, instead of stopping")
    fault.add_argument("--max-skipped", type=_at_least(0), default=3, metavar="N",
                       help="skip a step whose loss or gradient is not finite, at most N in a row")
    fault.add_argument("--on-save-error", choices=("stop", "continue"), default="stop", help="when the disk is full")
    fault.add_argument("--timeout", type=_positive, default=30.0, metavar="MINUTES",
                       help="of several processes: how long one waits for the slowest, e.g. at preprocessing (torch: 30, 10 on GPUs)")
    val = parser.add_argument_group("validation")
    val.add_argument("--folds", type=_at_least(1), default=d.folds, help="1: train on every case")
    val.add_argument("--fold", type=_at_least(0), default=d.fold, help="the fold that validates")
    val.add_argument("--val-every", type=_at_least(1), default=d.val_every, help="epochs")
    val.add_argument("--overlays", type=_at_least(0), default=2, metavar="N", help="pictures of N cases at each; 0: none")
    val.add_argument("--overlap", type=_fraction, default=d.overlap, help="of the sliding window")


def _at_least(least):
    def integer(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value
    return integer


def _positive(text):
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number below 1e9")
    return value


def _at_least_zero(text):
    return 0.0 if float(text) == 0 else _positive(text)


def _named_weight(text):
    """(dataset, weight) of the text of --dataset-weights; argparse shows the error."""
    name, equals, weight = text.rpartition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WEIGHT, as in LiTS=2")
    return name, _positive(weight)


def _fraction(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _pairs(args):
    """The (low, high) HU of --input-windows. Raises ValueError."""
    flat, (lowest, highest) = tuple(args.input_windows), args.hu_window
    pairs = tuple(zip(flat[::2], flat[1::2]))
    if len(flat) % 2 or not all(lowest <= low < high <= highest for low, high in pairs):
        raise ValueError(f"--input-windows {' '.join(f'{hu:g}' for hu in flat)}: give low and high of each window, in this order, "
                         f"within --hu-window {lowest:g} {highest:g}.")
    return pairs


def make_config(args, train_cases, world):
    """The TrainConfig of a command line, for that many training cases and processes. Raises ValueError."""
    values = {f.name: getattr(args, f.name) for f in fields(TrainConfig)}
    values["patch_size"], values["hu_window"] = tuple(values["patch_size"]), tuple(values["hu_window"])
    values["input_windows"], values["dataset_weights"] = _pairs(args), tuple(args.dataset_weights)
    per_step = args.batch_size * args.accumulate * world
    values["steps_per_epoch"] = args.steps_per_epoch or math.ceil(train_cases / per_step)
    multiple = BACKBONES[args.backbone].size_multiple
    if any(n % multiple for n in args.patch_size):
        raise ValueError(f"--patch-size {' '.join(map(str, args.patch_size))}: {args.backbone} needs multiples of {multiple}.")
    if args.amp != "off" and choose_device(args.device).type != "cuda":
        if args.amp == "fp16":
            raise ValueError("--amp fp16 needs a GPU. Use --amp bf16 or off on a CPU.")
        # oneDNN's bfloat16 weight gradient of a 3x3x3 convolution is made of unset memory where D is 2 (PyTorch 2.13).
        if args.patch_size[0] <= 2 * multiple:
            raise ValueError(f"--amp bf16 on a CPU: gradients are wrong for patches of D {2 * multiple} or less. Use --amp off.")
    if args.hu_window[0] >= args.hu_window[1]:
        raise ValueError(f"--hu-window {args.hu_window[0]:g} {args.hu_window[1]:g}: give the lower end first.")
    if args.compile and choose_device(args.device).type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError("--compile: no C++ compiler found. Install g++, or set CXX to yours, or leave it out.")
    if args.init is not None and args.extend is not None:
        raise ValueError("--init and --extend: the network starts from one of them. Leave one out.")
    for option in ("hard_pseudo", "old_labels", "baseline"):
        if getattr(args, option) not in (False, "none") and args.extend is None:
            raise ValueError(f"--{option.replace('_', '-')} without --extend: there is no old model. Give --extend CHECKPOINT.")
    if args.head == "softmax" and (args.hard_pseudo or args.old_labels):
        raise ValueError("--hard-pseudo and --old-labels are for class-specific heads; the baselines' pseudo labels are hard. Leave them out.")
    if args.baseline != "none" and args.compile:
        raise ValueError("--compile: the baselines look into the network. Leave one of the two out.")
    if args.freeze == "old" and args.extend is None:
        raise ValueError("--freeze old without --extend: there are no old classes. Give --extend CHECKPOINT.")
    if args.anew is not None and args.init is None:
        raise ValueError("--anew without --init: every class starts anew. Leave --anew out, or give --init WEIGHTS.")
    if args.anew is not None and (args.lpg == "shared" or args.head == "softmax"):
        one = "--head softmax" if args.head == "softmax" else "--lpg shared"
        raise ValueError(f"--anew with {one}: one layer serves all classes, none can start alone. Leave one of the two out.")
    if args.weight_positives and args.balance_loss:
        raise ValueError("--weight-positives and --balance-loss: both weigh the same voxels. Leave one out.")
    if args.dice_present and (args.extend is not None or args.head == "softmax"):
        raise ValueError("--dice-present: the losses of --extend and --head softmax know no absent classes. Leave it out.")
    if args.freeze != "nothing" and args.init is None and args.extend is None:
        raise ValueError("--freeze backbone without --init: a random backbone would stay random. Give --init WEIGHTS.")
    if args.activation_checkpointing and args.backbone != "swin_unetr":
        raise ValueError(f"--activation-checkpointing: the {args.backbone} has no Swin blocks. Leave it out.")
    if args.ema == 1:
        raise ValueError("--ema 1: the average would never change. Use less than 1, e.g. 0.999.")
    if args.overlap == 1:
        raise ValueError("--overlap 1: windows would never move on. Use less than 1.")
    return TrainConfig(**values)
