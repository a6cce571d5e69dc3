"""Turn a run's checkpoint into the weights inside the package: no optimiser, float16, and a sidecar that needs no torch.

    python tools/ship_weights.py runs/default/last.pt [--experimental FILE.json] [--in-pieces colon ...]

Writes uniseg/weights/default.pt and uniseg/weights/default.json. FILE.json names classes that are not to be offered by default,
and says why: {"pancreatic_tumor": "learnt from drawn lesions only"}. MODEL_CARD.md says how the shipped run was made.
"""

import argparse
import json
import sys
from pathlib import Path

from uniseg import checkpoint, datasets
from uniseg.infer import fail
from uniseg.volume import atomic_write

FOLDER = Path(__file__).resolve().parents[1] / "uniseg" / "weights"


def read_experimental(path, classes):
    """The {class: reason} of a JSON file. Raises ValueError where it is none, or not of these classes, or of all of them."""
    try:
        reasons = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Mend it.") from None
    if not isinstance(reasons, dict) or not all(isinstance(reason, str) and reason for reason in reasons.values()):
        raise ValueError(f"{path}: not {{class: reason in a few words}}. Give a file like {{\"colon\": \"Dice 0.12 on unseen CT\"}}.")
    if unknown := [name for name in reasons if name not in classes]:
        raise ValueError(f"{path}: {', '.join(unknown)}: no class of the network. It has {', '.join(classes)}.")
    if len(reasons) == len(classes):
        raise ValueError(f"{path}: names every class, nothing would be offered. Leave some out.")
    return reasons


def by_dataset(data):
    """{"DATASET/case": classes} of a checkpoint's `about` -> {DATASET: {"cases": how many, "classes": those of any}}, to be read."""
    names = {}
    for case, classes in data.items():
        names.setdefault(case.partition("/")[0], []).append(classes)
    return {name: {"cases": len(lists), "classes": datasets.in_order({c for classes in lists for c in classes})}
            for name, lists in names.items()}


def ship(source, experimental, in_pieces=()):
    """source: checkpoint of a run; experimental: path of a JSON file, or None; in_pieces: classes. Raises ValueError."""
    content = checkpoint.read(source)
    if "training" not in content:
        raise ValueError(f"{source}: not a run's own checkpoint, its steps and recipe are not in it. Give a run's last.pt.")
    network = checkpoint.load_network(content, source)
    about = {**content["about"], "steps": content["training"]["step"], "recipe": content["training"]["config"]}
    if experimental is not None:
        about["experimental"] = read_experimental(experimental, network.classes)
    if unknown := [name for name in in_pieces if name not in network.classes]:
        raise ValueError(f"--in-pieces {unknown[0]}: no class of the network. It has {', '.join(network.classes)}.")
    if in_pieces:
        about["in_pieces"] = list(in_pieces)
    FOLDER.mkdir(exist_ok=True)
    target = FOLDER / "default.pt"
    checkpoint.save(target, network, content["preprocessing"], about, half=True)
    with atomic_write(FOLDER / "default.json") as temporary:
        temporary.write_text(json.dumps({"classes": list(network.classes), "sha256": checkpoint.file_sha256(target),
                                         "network": network.describe(), "preprocessing": content["preprocessing"],
                                         "about": {**about, "data": by_dataset(about.get("data", {}))}}, indent=1) + "\n")
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {len(network.classes)} classes, "
          f"{len(about.get('experimental', {}))} of them experimental")


def main(argv=None):
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python tools/ship_weights.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="last.pt of a run of uniseg.train")
    parser.add_argument("--experimental", type=Path, metavar="FILE.json", help="{class: why it is not offered by default}")
    parser.add_argument("--in-pieces", nargs="+", default=(), metavar="CLASS",
                        help="classes of which inference keeps all components, not the largest alone")
    args = parser.parse_args(argv)
    try:
        ship(args.checkpoint, args.experimental, args.in_pieces)
    except (ValueError, OSError) as error:
        return fail(error, 2, verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
