"""The options of `python -m uniseg.train`, and the TrainConfig that they make.

Each help text ends with the source of the option's default, as in recipe.py: [P, Section ...] the paper, [R] the code
released with it, [U] uniseg's own choice. Read recipe.py first; refusals.py knows which options contradict each other.
"""

import argparse
import math
from dataclasses import fields
from pathlib import Path

from ..embeddings import ENCODINGS
from ..imaging.preprocessing import Preprocessing
from ..machine.about import NOT_A_MEDICAL_DEVICE
from ..machine.choices import BACKBONES, BASELINES, LPGS
from ..machine.command_line import (
    HelpFormatter,
    Parser,
    at_least,
    finite,
    fraction,
    named_folder,
    not_negative,
    positive,
)
from .recipe import TrainConfig
from .refusals import input_windows, refuse_contradictions

DESCRIPTION = ("Train the Universal Model (Section 4.1.2). The help of each option ends with the source of its "
               "default: [P, ...] the paper, with the place in it; [R] the code released with it; [U] uniseg's own "
               "choice.")
EPILOG = ("Exit codes: 0 done; 1 a failure during the work; 2 bad options or data; 130 ended by Ctrl-C, 143 by "
          f"SIGTERM, both after saving. {NOT_A_MEDICAL_DEVICE}")
# The options of --help; the others are shown by --help-all.
FIRST = ("data_root", "val_root", "classes", "out", "resume", "demo", "overfit", "quiet", "device", "init", "extend",
         "backbone", "epochs", "batch_size", "lr", "amp", "folds", "fold")


def build_parser() -> Parser:
    """The command's options, in the order in which --help-all shows them."""
    parser = Parser(prog="python -m uniseg.train", usage="%(prog)s --data-root ROOT [options]", first=FIRST,
                    description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter)
    parser.set_defaults(old=None)                    # content of the checkpoint of --extend: train.parse
    _add_data(parser)
    _add_run(parser)
    _add_start(parser)
    _add_network(parser)
    _add_preprocessing(parser)
    _add_patches(parser)
    _add_loss(parser)
    _add_optimisation(parser)
    _add_extension(parser)
    _add_faults(parser)
    _add_validation(parser)
    return parser


def make_config(args: argparse.Namespace, train_cases: int, world: int) -> TrainConfig:
    """The TrainConfig of a command line, for that many training cases and processes.

    Raises ValueError where options contradict each other.
    """
    values = {field.name: getattr(args, field.name) for field in fields(TrainConfig)}
    values.update(patch_size=tuple(args.patch_size), hu_window=tuple(args.hu_window),
                  input_windows=input_windows(args), dataset_weights=tuple(args.dataset_weights))
    refuse_contradictions(args)
    patches_per_step = args.batch_size * args.accumulate * world
    values["steps_per_epoch"] = args.steps_per_epoch or math.ceil(train_cases / patches_per_step)
    return TrainConfig(**values)


def config_before_cases(args: argparse.Namespace) -> TrainConfig:
    """The TrainConfig of a command line before its cases are counted: all but the steps. Raises as make_config does."""
    return make_config(args, train_cases=1, world=1)


def preprocessing_of(args: argparse.Namespace) -> Preprocessing:
    """The preprocessing of a command line, before its cases are counted. Raises ValueError as make_config does."""
    return config_before_cases(args).preprocessing


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--data-root", type=Path, metavar="ROOT",
                      help="folder with one sub-folder per dataset (docs/datasets.md) [U]")
    data.add_argument("--dataset", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
                      help="one more dataset, under the name of a published one (`python -m uniseg layouts` lists "
                      "them); may be repeated [U]")
    data.add_argument("--val-root", type=Path, help="validate on the datasets in this folder instead of on a fold [U]")
    data.add_argument("--include", nargs="+", metavar="PATTERN",
                      help="train only on these datasets or DATASET/CASEs; * stands for any letters [U]")
    data.add_argument("--exclude", nargs="+", metavar="PATTERN", help="leave out these datasets or DATASET/CASEs [U]")
    data.add_argument("--drop-copies", action="store_true",
                      help="leave out training cases whose CT is also a validation case, instead of stopping [U]")
    data.add_argument("--classes",
                      help="train only these classes, comma-separated, instead of all that are annotated; a class "
                      "beyond Table 2 needs a text embedding [U]")
    data.add_argument("--allow-outside", action="store_true",
                      help="allow links and dataset.json paths that lead out of their dataset's folder [U]")
    data.add_argument("--map", type=Path, help="JSON file {label name: class name, or null to drop the label} [U]")
    data.add_argument("--embeddings", type=Path, help="embeddings file to use instead of the shipped one [U]")
    data.add_argument("--cache", type=Path, help="folder for the preprocessed cases, instead of OUT/cache [U]")


def _add_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, default=Path("runs/uniseg"), help="run folder [U]")
    run.add_argument("--resume", action="store_true",
                     help="go on with the run in --out, whose other options need not be repeated [U]")
    run.add_argument("--demo", action="store_true",
                     help="make a few synthetic datasets, each with labels of other organs, train a small network on "
                     "them and try it on a patient it has not seen: a few minutes on two cores [U]")
    run.add_argument("--overfit", type=at_least(1), metavar="N",
                     help="sanity run: train and validate on the first N cases, without augmentation [U]")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 [U]")
    run.add_argument("--workers", type=at_least(0), default=2,
                     help="processes that preprocess cases, as many as fit into memory, and then draw patches; 0: the "
                     "training process does both [U]")
    run.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only [U]")


def _add_start(parser: argparse.ArgumentParser) -> None:
    start = parser.add_argument_group("starting weights (random by default)")
    start.add_argument("--init", type=Path, metavar="WEIGHTS",
                       help="start from a checkpoint or a released file; classes that both have keep their MLPs "
                       "[P, Section 4.6]")
    start.add_argument("--partial", action="store_true",
                       help="with --init: take what fits, even if entries are missing [U]")
    start.add_argument("--anew", metavar="CLASSES",
                       help="with --init: classes to re-initialise instead of loading from --init, for classes it "
                       "never learned (probability 0); comma-separated [U]")
    start.add_argument("--extend", type=Path, metavar="CHECKPOINT",
                       help="teach this checkpoint new classes from new data alone; its network and grid are kept, and "
                       "the other defaults are those of Section 5.1.3 [P, Section 3.3]")


def _add_network(parser: argparse.ArgumentParser) -> None:
    net, default = parser.add_argument_group("network"), TrainConfig
    net.add_argument("--backbone", choices=BACKBONES, default=default.backbone,
                     help="image encoder and decoder [P, Section 3.2.1]")
    net.add_argument("--width", type=at_least(0), default=default.width,
                     help="channels at the first level; 0: the paper's, which are 48 (swin_unetr), 64 (unet) and 16 "
                     "(segresnet) [P, Fig. 3]")
    net.add_argument("--lpg", choices=LPGS, default=default.lpg,
                     help="independent: one MLP per class; shared: one for all, the form of the ICCV 2023 paper "
                     "[P, Eq. (1)]")
    net.add_argument("--lpg-hidden", type=at_least(0), default=default.lpg_hidden,
                     help="hidden width of the MLPs; 0: that of the released code, 512 (independent) or 256 (shared) "
                     "[R]")
    net.add_argument("--encoding", choices=ENCODINGS, default=default.encoding,
                     help="prompt of the text embeddings, or vectors without language [P, Table 7]")
    net.add_argument("--head", choices=("class-specific", "softmax"), default=default.head,
                     help="softmax: the plain network of Section 5's baselines, one class per voxel [P, Section 3.2.3]")
    net.add_argument("--prior", type=fraction, default=default.prior,
                     help="probability at which every sigmoid starts; 0.5 leaves the heads as they are initialised [U]")
    net.add_argument("--head-start", choices=("torch", "he"), default=default.head_start,
                     help="random start of the generated heads: as torch starts a linear layer, or as He et al. start "
                     "layers before a ReLU; beyond the paper [U]")


def _add_preprocessing(parser: argparse.ArgumentParser) -> None:
    pre, default = parser.add_argument_group("preprocessing"), TrainConfig
    pre.add_argument("--spacing", type=positive, default=default.spacing, metavar="MM",
                     help="isotropic voxel size of the network's grid, in mm [P, Section 4.1.2]")
    pre.add_argument("--hu-window", type=finite, nargs=2, default=default.hu_window, metavar="HU",
                     help="HU are clipped to this window and scaled to [0, 1] [P, Section 4.1.2]")
    pre.add_argument("--input-windows", type=finite, nargs="+", default=default.input_windows, metavar="HU",
                     help="low and high end of each of several HU windows, which the network sees as channels; they "
                     "lie within --hu-window; without them it sees the one window [P, Section 4.1.2]")
    pre.add_argument("--antialias", action="store_true",
                     help="average when the grid gets coarser, instead of interpolating linearly; beyond the paper [R]")
    pre.add_argument("--pad", choices=("air", "edge"), default=default.pad,
                     help="how to pad a case smaller than the patch: air (the authors' code), or repeat its edge "
                     "voxels [R]")


def _add_patches(parser: argparse.ArgumentParser) -> None:
    patches, default = parser.add_argument_group("patches and augmentation"), TrainConfig
    patches.add_argument("--patch-size", type=at_least(8), nargs=3, default=default.patch_size, metavar="VOXELS",
                         help="of the grid, D H W [P, Section 4.1.2]")
    patches.add_argument("--dataset-weights", type=_named_weight, nargs="+", default=default.dataset_weights,
                         metavar="NAME=W",
                         help="draw W times as often from this dataset as from one that is not named; beyond the "
                         "paper, where all have the same probability [P, Section 4.1.2]")
    patches.add_argument("--foreground", type=fraction, default=default.foreground,
                         help="share of patches centred on the foreground; the rest are centred on the background "
                         "[P, Section 4.1.2]")
    patches.add_argument("--background", choices=("anywhere", "tissue"), default=default.background,
                         help="where the background centres lie: anywhere in the case, air included, or above the "
                         "lower end of --hu-window, as in the released code [P, Section 4.1.2]")
    patches.add_argument("--balance", type=fraction, default=default.balance,
                         help="share of the foreground centres that are drawn class by class [U]")
    patches.add_argument("--lesions", type=fraction, default=default.lesions,
                         help="share of the foreground centres that are drawn lesion by lesion [U]")
    patches.add_argument("--rotate-probability", type=fraction, default=default.rotate_probability,
                         help="of a rotation by 90, 180 or 270 degrees in the axial plane [P, Section 4.1.2]")
    patches.add_argument("--shift-probability", type=fraction, default=default.shift_probability,
                         help="of an intensity shift [P, Section 4.1.2]")
    patches.add_argument("--augment", choices=("paper", "strong", "contrast"), default=default.augment,
                         help="strong: also small rotations, zoom, contrast, blur and noise; contrast: strong, with "
                         "another grey value for each organ [P, Section 4.1.2]")


def _add_loss(parser: argparse.ArgumentParser) -> None:
    loss, default = parser.add_argument_group("loss"), TrainConfig
    loss.add_argument("--reduction", choices=("mean", "sum"), default=default.reduction,
                      help="of the loss over a patch's annotated classes; sum: Eq. (4) as printed [R]")
    loss.add_argument("--weight-positives", action="store_true",
                      help="weigh the voxels of a class in the BCE by (10000 / class voxels)^0.6, from 1 to 12 [U]")
    loss.add_argument("--balance-loss", type=fraction, default=default.balance_loss, metavar="POWER",
                      help="like --weight-positives, but (patch voxels / class voxels)^POWER, without the cap of 12 "
                      "[U]")
    loss.add_argument("--dice-present", action="store_true",
                      help="take the Dice loss only of classes that the patch shows; the others have the BCE alone; "
                      "beyond the paper [P, Eq. (4)]")


def _add_optimisation(parser: argparse.ArgumentParser) -> None:
    opt, default = parser.add_argument_group("optimisation"), TrainConfig
    opt.add_argument("--epochs", type=at_least(1), default=default.epochs, help="epochs of the whole run [R]")
    opt.add_argument("--warmup-epochs", type=at_least(0), default=default.warmup_epochs,
                     help="epochs of linear warm-up before the cosine [P, Section 4.1.2]")
    opt.add_argument("--steps-per-epoch", type=at_least(0), default=default.steps_per_epoch,
                     help="0: as many as draw each training case once on average [U]")
    opt.add_argument("--batch-size", type=at_least(1), default=default.batch_size,
                     help="patches per process and forward pass [P, Section 4.1.2]")
    opt.add_argument("--accumulate", type=at_least(1), default=default.accumulate,
                     help="forward passes per optimiser step [U]")
    opt.add_argument("--lr", type=positive, default=default.lr,
                     help="peak learning rate of AdamW; the paper's digit is lost in print [R]")
    opt.add_argument("--weight-decay", type=not_negative, default=default.weight_decay,
                     help="of AdamW [P, Section 4.1.2]")
    opt.add_argument("--beta1", type=fraction, default=default.beta1,
                     help="of AdamW: the paper's momentum [P, Section 4.1.2]")
    opt.add_argument("--amp", choices=("off", "bf16", "fp16"), default=default.amp,
                     help="automatic mixed precision; fp16 on GPUs only [U]")
    opt.add_argument("--ema", type=fraction, default=default.ema, metavar="DECAY",
                     help="average the weights with this decay, 0.999 for example; validation and best.pt use the "
                     "average [U]")
    opt.add_argument("--freeze", choices=("nothing", "backbone", "old"), default=default.freeze,
                     help="backbone, with --init or --extend: train the heads only; old, with --extend: train the MLPs "
                     "of the new classes only, so that the old classes stay bit for bit [P, Section 4.6]")
    opt.add_argument("--activation-checkpointing", action="store_true",
                     help="Swin UNETR: recompute activations in the backward pass; same numbers, less memory [U]")
    opt.add_argument("--seed", type=at_least(0), default=default.seed, help="of the weights and the patches [U]")


def _add_extension(parser: argparse.ArgumentParser) -> None:
    more, default = parser.add_argument_group("extension by new classes (with --extend)"), TrainConfig
    more.add_argument("--hard-pseudo", action="store_true",
                      help="pseudo labels of 0 and 1 for the old classes instead of soft ones [P, Section 3.3]")
    more.add_argument("--old-labels", action="store_true",
                      help="where the new data label an old class, learn from that label; beyond the paper, where all "
                      "old classes have pseudo labels [P, Eq. (5)]")
    more.add_argument("--old-weight", type=not_negative, default=default.old_weight, metavar="W",
                      help="mean loss of the new classes plus W times that of the old ones, however many they are, "
                      "or W times the --baseline's term for old classes; 0: all classes weigh alike, or this term "
                      "once as in the authors' code [P, Eq. (4)]")
    more.add_argument("--old-dice", choices=("linear", "squared", "none"), default=default.old_dice,
                      help="Dice loss of the old classes: linear is not least where student and soft pseudo label are "
                      "equal, squared is; none: their BCE alone [P, Eq. (4)]")
    more.add_argument("--baseline", choices=("none", *BASELINES), default=default.baseline,
                      help="extend a network with a softmax by this method [P, Section 5.1.2]")


def _add_faults(parser: argparse.ArgumentParser) -> None:
    fault = parser.add_argument_group("faults")
    fault.add_argument("--skip-bad", action="store_true",
                       help="leave out cases that are incomplete or cannot be read, instead of stopping [U]")
    fault.add_argument("--max-skipped", type=at_least(0), default=3, metavar="N",
                       help="skip a step whose loss or gradient is not finite, at most N in a row [U]")
    fault.add_argument("--on-save-error", choices=("stop", "continue"), default="stop",
                       help="what to do when a file cannot be written, on a full disk for example [U]")
    fault.add_argument("--timeout", type=positive, default=30.0, metavar="MINUTES",
                       help="how long one of several processes waits for the slowest, at preprocessing for example "
                       "(torch: 30, on GPUs 10) [U]")


def _add_validation(parser: argparse.ArgumentParser) -> None:
    val, default = parser.add_argument_group("validation"), TrainConfig
    val.add_argument("--folds", type=at_least(1), default=default.folds,
                     help="folds of the cross-validation; 1: train on every case [P, Section 4.1.2]")
    val.add_argument("--fold", type=at_least(0), default=default.fold, help="the fold that validates, from 0 [U]")
    val.add_argument("--split", type=Path, metavar="JSON",
                     help='instead of folds: {"training": [...], "validation": [...]}, lists of datasets or '
                     "DATASET/CASEs; * stands for any letters [U]")
    val.add_argument("--val-every", type=at_least(1), default=default.val_every, metavar="EPOCHS",
                     help="epochs from one validation to the next [U]")
    val.add_argument("--overlays", type=at_least(0), default=2, metavar="N",
                     help="cases of which each validation draws a picture; 0: none [U]")
    val.add_argument("--overlap", type=fraction, default=default.overlap,
                     help="share that neighbouring windows have in common [P, Section 4.1.2]")


def _named_weight(text: str) -> tuple[str, float]:
    """(dataset, weight) of a value of --dataset-weights."""
    name, equals, weight = text.rpartition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WEIGHT, as in LiTS=2")
    return name, positive(weight)
