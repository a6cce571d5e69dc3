"""What a change of the code's structure must not change: results, cached cases, trained weights, options of commands.

`tests/golden/pins.json` and `demo_label_map.npz` hold what is expected. A change that is meant to alter one of them
writes both again, and its commit message says why:

    python tests/test_pins.py --write

Label maps and weights are compared by their sha256 first. PyTorch's kernels round differently on another kind of
processor. Where the hash differs, the tests allow a few voxels and a small relative difference of the weights.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
PINS = GOLDEN / "pins.json"
DEMO = GOLDEN / "demo_label_map.npz"
OTHER_PROCESSOR_VOXELS = 20             # of the demonstration's 968,000 voxels


def sha256_of(*arrays):
    """One hash over the types, shapes and values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------ what is pinned

def demo_label_map(folder):
    """The label map of `python -m uniseg.infer --demo --precision float32` as stored, (X, Y, Z)."""
    import nibabel

    from uniseg import infer

    assert infer.main(["--demo", "-o", str(folder), "--device", "cpu", "--precision", "float32"]) == 0
    return np.asarray(nibabel.load(folder / "demo_ct_seg.nii.gz").dataobj)


def cached_case(folder):
    """{file: sha256} of a phantom's cached case: arrays by value, meta.json without the path of the image."""
    from conftest import Patient, write_dataset
    from uniseg.datasets.cases import prepare
    from uniseg.datasets.dataset_json import read_dataset
    from uniseg.imaging.preprocessing import Preprocessing
    from uniseg.phantom import make_phantom

    patient = Patient(*make_phantom((6.0, 6.0, 6.0)))
    root = write_dataset(folder / "set", {"kidneys": ("right_kidney", "left_kidney"), "kidney tumor": ("kidney_tumor",),
                                          "liver": ("liver",)}, {"a": patient})
    dataset = read_dataset(root)
    case = prepare(dataset, dataset.cases[0], Preprocessing(spacing_mm=(5.0, 5.0, 5.0)), folder / "cache")
    found = {file.name: sha256_of(np.load(file)) for file in sorted(case.folder.glob("*.npy"))}
    meta = json.loads((case.folder / "meta.json").read_text())
    del meta["image"]
    return {**found, "meta.json": hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()}


def trained_weights(folder):
    """(sha256 of the weights, {tensor: L2 norm}) after 4 steps on the phantoms of conftest.py, at seed 0."""
    import torch

    from conftest import Patient, write_dataset
    from runs import TINY
    from uniseg import checkpoint, train
    from uniseg.phantom import make_phantom

    torch.set_num_threads(min(2, torch.get_num_threads()))
    patients = {f"p{seed}": Patient(*make_phantom((12.0, 12.0, 12.0), seed=seed)) for seed in range(3)}
    write_dataset(folder / "data" / "set", {"liver": ("liver",), "spleen": ("spleen",)}, patients)
    assert train.main(["--data-root", str(folder / "data"), "--out", str(folder / "run"), *TINY, "--epochs", "2",
                       "--val-every", "2", "--overlays", "0"]) == 0
    weights = checkpoint.read(folder / "run" / "last.pt")["weights"]
    return checkpoint.digest(weights), {name: float(tensor.double().norm()) for name, tensor in weights.items()}


class Caught(Exception):
    """Carries the parser of a command that was about to parse."""


def parser_of(main):
    """The argparse parser that a command's main() builds."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments, **options):
        raise Caught(self)
    argparse.ArgumentParser.parse_args = parse_args
    try:
        main([])
    except Caught as caught:
        return caught.args[0]
    finally:
        argparse.ArgumentParser.parse_args = real
    raise AssertionError("the command does not parse its arguments")


def commands():
    """{name: main} of every command."""
    from tools.synthetic import __main__
    from uniseg import checkpoint, embeddings, evaluate, infer, train
    from uniseg.datasets import check, layouts
    from uniseg.paper import complexity

    return {"infer": infer.main, "train": lambda argv: train.parse(argv), "evaluate": evaluate.main, "data": check.main,
            "embeddings": embeddings.main, "checkpoint": checkpoint.main, "layouts": layouts.main,
            "complexity": complexity.main, "synthetic": __main__.main}


def options_of(parser):
    """{option: how it is given}: flags, number of values, choices, default; help texts may change."""
    found = {}
    for action in parser._actions:
        found[action.dest] = {"flags": list(action.option_strings), "kind": type(action).__name__,
                              "nargs": action.nargs,
                              "choices": None if action.choices is None else [str(c) for c in action.choices],
                              "required": action.required, "default": str(action.default)}
    return found


# ------------------------------------------------------------------------------------------------------------ the tests

@pytest.fixture(scope="module")
def pins():
    return json.loads(PINS.read_text())


@pytest.mark.slow
def test_the_demonstration_gives_the_label_map_that_is_kept(pins, tmp_path):
    found = demo_label_map(tmp_path)
    if sha256_of(found) != pins["demo"]:
        assert np.count_nonzero(found != np.load(DEMO)["labels"]) <= OTHER_PROCESSOR_VOXELS


def test_a_cached_case_holds_the_same_bytes(pins, tmp_path):
    assert cached_case(tmp_path) == pins["cached case"]


def test_a_short_seeded_training_ends_with_the_same_weights(pins, tmp_path):
    digest, norms = trained_weights(tmp_path)
    if digest != pins["training"]["sha256"]:
        # An instance norm cancels a bias right before it: the bias has a gradient of rounding errors alone.
        kept = {name: norm for name, norm in norms.items() if not name.endswith("conv1.bias")}
        assert kept == pytest.approx({name: pins["training"]["norms"][name] for name in kept}, rel=1e-3)


@pytest.mark.parametrize("name", ["infer", "train", "evaluate", "data", "embeddings", "checkpoint", "layouts",
                                  "complexity", "synthetic"])
def test_a_command_has_the_same_options_and_every_one_is_explained(name, pins):
    parser = parser_of(commands()[name])
    assert options_of(parser) == pins["options"][name]
    assert all(action.help for action in parser._actions)
    assert "usage:" in parser.format_help()


def write():
    """Make the pins anew."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("demo", "case", "run")]
        for place in places:
            place.mkdir()
        labels, case, (digest, norms) = demo_label_map(places[0]), cached_case(places[1]), trained_weights(places[2])
    np.savez_compressed(DEMO, labels=labels)
    content = {"demo": sha256_of(labels), "cached case": case, "training": {"sha256": digest, "norms": norms},
               "options": {name: options_of(parser_of(main)) for name, main in commands().items()}}
    PINS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/test_pins.py --write: makes the pins anew")
    write()
