"""Turn a run's checkpoint into the weights inside the package: float16, without optimiser, with a JSON file beside
them.

    python tools/ship_weights.py runs/default/last.pt [more/last.pt ...] [--experimental FILE.json]
                                 [--in-pieces colon ...] [--second-view 0.7] [--start CHECKPOINT --start-share 0.5]

Writes uniseg/weights/default.pt and uniseg/weights/default.json; the latter can be read without torch. Of several
checkpoints the mean of the weights is shipped ("model soup", Wortsman et al. 2022, https://arxiv.org/abs/2203.05482):
they are runs that continued from one checkpoint in different ways. With --start, that checkpoint itself has a share in
the mean, which keeps what a fine-tuning on few cases would lose (Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903). FILE.json names the classes that are not offered by default and says why:
{"pancreatic_tumor": "learnt from drawn lesions only"}. MODEL_CARD.md says which run is shipped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from uniseg import checkpoint
from uniseg.datasets.dataset import in_order
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.machine.console import fail
from uniseg.machine.files import atomic_write

FOLDER = Path(__file__).resolve().parents[1] / "uniseg" / "weights"


def read_experimental(path: Path, classes: Collection[str]) -> dict[str, str]:
    """The {class: reason} of a JSON file.

    Raises ValueError if the file has another form, names an unknown class, or names all classes.
    """
    try:
        reasons = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Mend it.") from None
    if not isinstance(reasons, dict) or not all(isinstance(reason, str) and reason for reason in reasons.values()):
        raise ValueError(f"{path}: not {{class: reason in a few words}}. "
                         'Give a file like {"colon": "Dice 0.12 on unseen CT"}.')
    if unknown := [name for name in reasons if name not in classes]:
        raise ValueError(f"{path}: {', '.join(unknown)}: no class of the network. It has {', '.join(classes)}.")
    if len(reasons) == len(classes):
        raise ValueError(f"{path}: names every class, nothing would be offered. Leave some out.")
    return reasons


def by_dataset(data: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Sum up the training data of a checkpoint for the JSON file.

    data:    {"DATASET/case": classes}
    returns: {DATASET: {"cases": number, "classes": classes of any of its cases}}
    """
    names: dict[str, list[Sequence[str]]] = {}
    for case, classes in data.items():
        names.setdefault(case.partition("/")[0], []).append(classes)
    return {name: {"cases": len(lists), "classes": in_order({c for classes in lists for c in classes})}
            for name, lists in names.items()}


def read_run(source: Path) -> dict[str, Any]:
    """A run's own checkpoint, with its steps and recipe. Raises ValueError for another file. See `read_judged`."""
    content = read_judged(source)
    if "training" not in content:
        raise ValueError(f"{source}: not a run's own checkpoint, its steps and recipe are not in it. "
                         "Give a run's last.pt.")
    return content


def read_judged(source: Path) -> dict[str, Any]:
    """A checkpoint; of a run with --ema, with the averaged weights, which its validation judged."""
    content = checkpoint.read(source)
    average = content.get("training", {}).get("average") or {}
    judged = {name.removeprefix("module."): tensor for name, tensor in average.items() if name.startswith("module.")}
    return {**content, "weights": judged or content["weights"]}


def read_sources(path: Path, data: Collection[str]) -> list[dict[str, str]]:
    """The [{"what", "licence", "source"}] of a JSON file, for the weights' own description.

    data: {"DATASET/case"} of the run. A row that names cases, before a colon, is kept if one of them is among these.
    Raises ValueError if the file has another form.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Mend it.") from None
    keys = {"what", "licence", "source"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == keys for row in rows):
        raise ValueError(f'{path}: not [{{"what": ..., "licence": ..., "source": ...}}]. Mend it.')

    def used(what: str) -> bool:
        cases = [name.strip() for name in what.partition(":")[0].split(",")] if ":" in what else []
        return not cases or any(name in case for name in cases for case in data)
    return [row for row in rows if used(row["what"])]


def mean_of(sources: Sequence[Path], start: Path | None = None, share: float = 0.5) -> dict[str, Any]:
    """One checkpoint's content with the mean weights of several runs.

    start: the checkpoint that all of them went on from, to have a share in the mean of the classes that it knows
    share: this share, between 0 and 1

    A class that only some of the runs know is left out: its MLP does not fit the mean of the backbones. `about` is that
    of the first run, with the data of all runs and "mean_of", the command and steps of each. Raises ValueError if the
    networks differ in anything but their classes, or if their preprocessing differs.
    """
    runs = [read_run(source) for source in sources]
    first = runs[0]
    for source, run in zip(sources[1:], runs[1:]):
        for part in ("network", "preprocessing"):
            if without_classes(run[part]) != without_classes(first[part]):
                raise ValueError(f"{source}: another {part} than {sources[0]}. "
                                 "Only runs of one network and one grid have a mean.")
    classes = [name for name in first["network"]["classes"]
               if all(name in run["network"]["classes"] for run in runs)]
    network = {**first["network"], "classes": classes}
    states = [weights_for(network, run, source) for run, source in zip(runs, sources)]
    weights = {name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(tensor.dtype)
               for name, tensor in states[0].items()}
    if start is not None:
        weights |= {name: ((1 - share) * weights[name].float() + share * tensor.float()).to(tensor.dtype)
                    for name, tensor in weights_for(network, read_judged(start), start).items()}
    data: dict[str, Sequence[str]] = {}
    for run in runs:
        data |= run["about"].get("data", {})
    parts = [{"command": run["about"].get("command"), "steps": run["training"]["step"]} for run in runs]
    about = {**first["about"], "data": data, "mean_of": parts}
    if start is not None:
        about["start_share"] = share
    if "init" in about:
        seen = {case for run in runs for case in checkpoint.cases_seen(run["about"])}
        about["init"] = {**about["init"], "cases": sorted(seen - set(data))}
    return {**first, "network": network, "weights": weights, "about": about}


def weights_for(network: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that belong into a network with these classes, by the names that they have there."""
    embedding = content["weights"].get("organ_embedding")
    if embedding is not None:
        known = dict(zip(content["network"]["classes"], embedding))
        embedding = torch.stack([known.get(name, torch.zeros_like(embedding[0])) for name in network["classes"]])
    renamed = checkpoint.build_network(network, embedding)
    own_start = checkpoint.initialise(renamed, content, path)
    return {name: tensor for name, tensor in renamed.state_dict().items()
            if name not in own_start and name != "organ_embedding"} | (
        {} if embedding is None else {"organ_embedding": embedding})


def without_folders(command: str) -> str:
    """A command in which absolute paths, which are those of one machine, have become their last parts.

    >>> without_folders("python -m uniseg.train --data-root /a/b/data --out=/a/b/run --lr 1e-4")
    'python -m uniseg.train --data-root data --out=run --lr 1e-4'
    """
    return re.sub(r"(?<=[ =])/(?:[^\s/]+/)*([^\s/]+)/?", r"\1", command)


def with_added(content: Mapping[str, Any], extension: Path) -> dict[str, Any]:
    """A checkpoint's content with the new classes of an extension of it, in which the old ones were frozen.

    Raises ValueError where the extension has other old weights than these, up to the rounding to float16.
    """
    added = read_run(extension)
    new = [name for name in added["network"]["classes"] if name not in content["network"]["classes"]]
    network = {**content["network"], "classes": [*content["network"]["classes"], *new]}
    weights = weights_for(network, added, extension)
    for name, tensor in weights_for(content["network"], added, extension).items():
        if not torch.equal(tensor.half(), content["weights"][name].half()):
            raise ValueError(f"{extension}: no extension of these weights, as its old ones differ. Train it anew with "
                             "--extend and --freeze old.")
    of_old = {name: tensor for name, tensor in content["weights"].items() if name != "organ_embedding"}
    parts = {"command": added["about"].get("command"), "steps": added["training"]["step"], "classes": new}
    about = {**content["about"], "added": parts, "data": {**content["about"].get("data", {}), **added["about"]["data"]}}
    return {**content, "network": network, "weights": {**weights, **of_old}, "about": about}


def without_classes(part: Mapping[str, Any]) -> dict[str, Any]:
    """A network's description without its classes, which may differ where each class has an MLP of its own."""
    return {key: value for key, value in part.items() if key != "classes" or part.get("lpg") != "independent"}


def ship(sources: Sequence[Path], experimental: Path | None, in_pieces: Sequence[str] = (),
         second_view: float | None = None, folder: Path | None = None, sources_file: Path | None = None,
         window: Sequence[int] | None = None, start: Path | None = None, start_share: float = 0.5,
         add: Path | None = None) -> None:
    """Write the weights of the package, or such files into another folder. Raises ValueError.

    sources:      checkpoints of runs
    experimental: JSON file of the classes that are not offered by default
    in_pieces:    classes of which inference keeps all components, not the largest alone
    second_view:  share of the body's width and depth that inference runs a second time
    folder:       instead of the package's own
    sources_file: JSON file of the data's licences and sources
    window:       voxels of the sliding window, D H W, where training saw smaller patches
    start:        the checkpoint that all runs went on from, to have a share in the mean
    start_share:  this share
    add:          an extension of what is shipped without it, by new classes whose MLPs alone were trained
    """
    if not 0 < start_share < 1:
        raise ValueError(f"--start-share {start_share}: choose a share between 0 and 1.")
    content = read_run(sources[0]) if len(sources) == 1 and start is None else mean_of(sources, start, start_share)
    if add is not None:
        content = with_added(content, add)
    if window is not None:
        content = {**content, "preprocessing": {**content["preprocessing"], "window": [int(n) for n in window]}}
    network = checkpoint.load_network(content, sources[0])
    about = {**content["about"], "steps": content["training"]["step"], "recipe": content["training"]["config"]}
    for part in (about, *about.get("mean_of", ()), about.get("added", {})):
        if part.get("command"):
            part["command"] = without_folders(part["command"])
    if experimental is not None:
        about["experimental"] = read_experimental(experimental, network.classes)
    if unknown := [name for name in in_pieces if name not in network.classes]:
        raise ValueError(f"--in-pieces {unknown[0]}: no class of the network. It has {', '.join(network.classes)}.")
    if in_pieces:
        about["in_pieces"] = list(in_pieces)
    if second_view is not None:
        if not 0.3 <= second_view < 1:
            raise ValueError(f"--second-view {second_view}: choose a share from 0.3 up to, not including, 1.")
        about["second_view"] = second_view
    if sources_file is not None:
        about["sources"] = read_sources(sources_file, checkpoint.cases_seen(about))
    folder = folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "default.pt"
    preprocessing = Preprocessing.from_dict(content["preprocessing"])
    checkpoint.save(target, network, preprocessing, about, half=True)
    shown = {**about, "data": by_dataset(about.get("data", {}))}
    if "init" in about:
        cases = [case.partition("/")[0] for case in about["init"].get("cases", ())]
        shown["init"] = {**about["init"], "cases": {name: cases.count(name) for name in sorted(set(cases))}}
    sidecar = {"classes": list(network.classes), "sha256": checkpoint.file_sha256(target),
               "network": network.describe(), "preprocessing": content["preprocessing"], "about": shown}
    with atomic_write(folder / "default.json") as temporary:
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {len(network.classes)} classes, "
          f"{len(about.get('experimental', {}))} of them experimental")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python tools/ship_weights.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT",
                        help="last.pt of a run of uniseg.train; of several, the mean is shipped")
    parser.add_argument("--experimental", type=Path, metavar="FILE.json",
                        help="{class: why it is not offered by default}")
    parser.add_argument("--in-pieces", nargs="+", default=(), metavar="CLASS",
                        help="classes of which inference keeps all components, not the largest alone")
    parser.add_argument("--second-view", type=float, metavar="SHARE",
                        help="share of the body's width and depth that inference runs a second time, by itself")
    parser.add_argument("--window", type=int, nargs=3, metavar="VOXELS",
                        help="of the sliding window, D H W, where training saw smaller patches")
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT",
                        help="what the runs went on from, to have a share in the mean")
    parser.add_argument("--start-share", type=float, default=0.5, metavar="SHARE",
                        help="of --start (default %(default)s)")
    parser.add_argument("--add", type=Path, metavar="CHECKPOINT",
                        help="last.pt of an extension of what is shipped without it (--extend, --freeze old)")
    parser.add_argument("--sources", type=Path, metavar="FILE.json",
                        help='[{"what", "licence", "source"}] of the data, for the weights\' own description')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for input that cannot be used."""
    args = build_parser().parse_args(argv)
    try:
        ship(args.checkpoints, args.experimental, args.in_pieces, args.second_view, sources_file=args.sources,
             window=args.window, start=args.start, start_share=args.start_share, add=args.add)
    except (ValueError, OSError) as error:
        return fail(error, 2, verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
