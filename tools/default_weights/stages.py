"""The stages from data to default.pt: draw, prepare, train, pseudo, finetune, extend, score, ship.

Beyond the paper. Each is a function of one Work, can be interrupted, and goes on where it stood when it is called
again. plan.py holds the recipe, running.py ends what takes too long, pseudo.py makes the pseudo labels, scoring.py
compares.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools import ship_weights
from tools.synthetic.__main__ import annotated, read_map, read_maps, write_listing
from uniseg import checkpoint, load
from uniseg.datasets.cases import prepare as prepare_case
from uniseg.datasets.find import find_datasets
from uniseg.imaging.file_names import bare
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.machine.console import say, warn
from uniseg.machine.files import atomic_write
from uniseg.segmenter import DEFAULT_WEIGHTS

from .labelled import copy_dataset
from .lesions import find_lesions, lesion_table
from .plan import (
    ADDED,
    FOLDS,
    LABELLED,
    NO_PSEUDO_CTS,
    START,
    START_SHARE,
    UNSEEN,
    Run,
    Size,
    chosen_maps,
    extend_options,
    train_options,
)
from .pseudo import ask, believe, write_pseudo_case
from .running import Clock, call, call_all
from .scoring import NEVER_TRAIN, SHIPPED, Comparison, compare, held_out, join, pages

ROOT = Path(__file__).resolve().parents[2]
PROBE_EPOCHS = 2                     # of a run with a deadline, to learn how fast the machine is
SPARE_S, SPEED_SHARE = 12.0, 0.92    # kept for the last checkpoint; of the measured speed that is counted on
UNSCORED = "learnt from one labelled CT, and never scored"
RUNS = ("train", *FOLDS)
NO_PSEUDO = ("tumor", "cyst", "head_of_femur", "prostate")    # no pseudo labels: too rarely right


class Work(NamedTuple):
    """What all stages need."""

    data: Path                       # DATA: labelmaps, train, unlabelled, validation
    out: Path                        # folder of everything that is made
    size: Size
    device: str
    jobs: int                        # processes that draw and prepare
    start: Path                      # checkpoint that the training goes on from
    clock: Clock                     # of the stage

    @property
    def root(self) -> Path:
        """The datasets that train."""
        return self.out / "data"

    @property
    def pseudo_root(self) -> Path:
        """The same, and those with pseudo labels."""
        return self.out / "data_pseudo"

    def preprocessing(self, run: Run) -> Preprocessing:
        """That of every run."""
        return Preprocessing((self.size.spacing_mm,) * 3, (-1000.0, 1000.0), run.patch_size, True, "edge")


# ---------------------------------------------------------------------------------------------------------------- data

def draw(work: Work) -> None:
    """Draw the synthetic CTs, dataset by dataset, and copy the real labelled CTs beside them."""
    for name in work.size.train.shares:
        if not (work.root / name).is_dir():
            copy_dataset(work.data / "train" / name, work.root / name)
    maps, names = read_maps(work.data / "labelmaps")
    shown = {name: {names[n] for n in np.flatnonzero(np.bincount(read_map(path, names)[0].ravel(order="K"))).tolist()
                    if n} for name, path in maps.items()}
    chosen = {part.name: {name: maps[name] for name in chosen_maps(maps, shown, part.maps)} for part in work.size.draws}
    draws = [part for part in work.size.draws if chosen[part.name]]
    whole = sum(part.cases for part in draws)
    commands = [("tools.synthetic", [
        str(maps_folder(work, part.maps, list(chosen[part.name].values()))), "--out", str(work.root / part.name),
        "--cases", str(part.cases), "--seed", str(part.seed), "--spacing", f"{work.size.spacing_mm:g}",
        "--jobs", str(max(1, round(work.jobs * part.cases / whole))), *part.options]) for part in draws]
    if work.jobs > 1:                                  # all at once: each reads the maps before it draws
        done = call_all(commands, work.clock)
    else:
        parts = [part.cases for part in draws]
        done = [call(*command, work.clock.share(parts[n], sum(parts[n:]))) for n, command in enumerate(commands)]
    for part, complete in zip(draws, done):
        out = work.root / part.name
        if not complete and any(out.glob("labelsTr/*.nii.gz")):
            write_listing(out, annotated(chosen[part.name], names))
            warn(f"{out}: fewer cases than planned, the time was over")


def maps_folder(work: Work, which: str, paths: Sequence[Path]) -> Path:
    """A folder with copies of some label maps and names.json, for tools.synthetic."""
    folder = work.out / "maps" / which
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*paths, work.data / "labelmaps" / "names.json"]:
        if not (folder / path.name).is_file():
            shutil.copyfile(path, folder / path.name)
    return folder


def prepare(work: Work) -> None:
    """Preprocess all cases of both roots into the cache, in several processes."""
    prepare_root(work, work.root)


def prepare_root(work: Work, root: Path) -> None:
    """Preprocess the cases of one root. What the clock does not allow, uniseg.train does alone, in one process."""
    todo = [(root, dataset.name, case.id) for dataset in find_datasets(root) for case in dataset.cases]
    preprocessing = work.preprocessing(work.size.train)
    with ProcessPoolExecutor(work.jobs) as pool:
        jobs = [pool.submit(prepare_one, *job, preprocessing, work.out / "cache") for job in todo]
        for number, job in enumerate(as_completed(jobs), start=1):
            try:
                job.result()
            except (ValueError, OSError) as error:                    # uniseg.train leaves such a case out as well
                warn(str(error))
            if work.clock.left_s() <= 0:
                pool.shutdown(wait=True, cancel_futures=True)
                warn(f"{root}: {number} of {len(todo)} cases are prepared, the time was over")
                return
    say(f"{root}: {len(todo)} cases are prepared")


def prepare_one(root: Path, dataset_name: str, case_id: str, preprocessing: Preprocessing, cache: Path) -> None:
    """Preprocess one case."""
    dataset = next(dataset for dataset in find_datasets(root) if dataset.name == dataset_name)
    prepare_case(dataset, next(case for case in dataset.cases if case.id == case_id), preprocessing, cache)


# ------------------------------------------------------------------------------------------------------------ training

def train(work: Work) -> None:
    """Train on synthetic and labelled CTs, from the checkpoint `start`."""
    run(work, "train", work.size.train, work.start, work.root)


def finetune(work: Work) -> None:
    """Train on with pseudo labels and the labelled CTs beside the rest, from the end of `train`: once without each fold
    of these CTs. The mean of these runs is shipped, and each run is scored on the fold that it has not seen."""
    for name in work.size.finetune.shares:
        if not (work.pseudo_root / name).exists():
            copy_dataset(work.data / "train" / name, work.pseudo_root / name)
    prepare_root(work, work.pseudo_root)
    folds = left_out(work)
    for number, (name, without) in enumerate(folds.items()):
        recipe = work.size.finetune._replace(seed=work.size.finetune.seed + number)
        run(work._replace(clock=work.clock.share(1, len(folds) - number)), name, recipe,
            newest(work.out / "train", work.start), work.pseudo_root, pseudo_names(work), without)


def pseudo_names(work: Work) -> list[str]:
    """The datasets with pseudo labels."""
    return sorted(path.name for path in work.pseudo_root.glob("Pseudo_*") if (path / "dataset.json").is_file())


def extend(work: Work) -> None:
    """Teach the mean of the fine-tuning a class that one labelled CT alone shows; all other classes stay the same."""
    root, out = work.out / "data_added", work.out / "extended"
    source = work.data / "train" / ADDED
    if not source.is_dir():
        warn(f"{source}: not there, so its class is not added")
        return
    root.mkdir(exist_ok=True)
    if not (root / ADDED).exists():
        copy_dataset(source, root / ADDED)
    base = ship_to(work, work.out / "candidate" / "mean", *candidates(work))
    again = ["--resume"] if (out / "last.pt").is_file() else []
    options = extend_options(work.size, root, out, base, work.device, work.jobs)
    call("uniseg.train", [*options, *again], work.clock)


def refuse_seen(start: Path, datasets: Collection[str]) -> None:
    """Raise ValueError where weights were trained on datasets that are to score what goes on from them."""
    seen = {case.partition("/")[0] for case in checkpoint.cases_seen(checkpoint.read(start)["about"])} & set(datasets)
    if seen:
        raise ValueError(f"{start}: was trained on {', '.join(sorted(seen))}, so these CTs cannot score what goes on "
                         "from it. Give weights that have not seen them with --start (docs/weights_history.md).")


def default_start(folder: Path) -> Path:
    """The shipped weights, or, where these were trained on what is to score new ones, those of the commit UNSEEN,
    written to FOLDER/start.pt. Raises ValueError where git does not know this commit."""
    try:
        refuse_seen(DEFAULT_WEIGHTS, LABELLED)
    except ValueError as error:
        shown = subprocess.run(["git", "show", f"{UNSEEN}:uniseg/weights/default.pt"], cwd=ROOT, capture_output=True)
        if shown.returncode:
            raise error from None
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / START) as temporary:
            temporary.write_bytes(shown.stdout)
        return folder / START
    return DEFAULT_WEIGHTS


def left_out(work: Work) -> dict[str, list[str]]:
    """{run: the datasets that it leaves out}, of the folds whose datasets the fine-tuning reads."""
    folds = {name: [one for one in fold if one in work.size.finetune.shares] for name, fold in FOLDS.items()}
    return {name: datasets for name, datasets in folds.items() if datasets}


def run(work: Work, name: str, recipe: Run, start: Path, root: Path, pseudo: Sequence[str] = (),
        without: Sequence[str] = ()) -> None:
    """One training. With a deadline, a short probe tells how many steps the time allows, and the learning rate ends
    there; SIGTERM makes uniseg.train save what it has where even these are too many."""
    present = {path.parent.name for path in root.glob("*/dataset.json")}
    out, settings = work.out / name, work.out / f"{name}.json"

    def options(folder: Path, steps: int) -> list[str]:
        return train_options(work.size, recipe, root, folder, work.out / "cache", start, work.device, work.jobs,
                             steps, present, pseudo, without)

    if settings.is_file():
        steps = json.loads(settings.read_text(encoding="utf-8"))["steps"]
    else:
        steps = recipe.steps
        if work.clock.end is not None:
            probe = work.out / f"{name}_probe"
            shutil.rmtree(probe, ignore_errors=True)
            call("uniseg.train", options(probe, PROBE_EPOCHS * work.size.steps_per_epoch), work.clock)
            steps = min(steps, steps_in_time(probe, work))
        with atomic_write(settings) as temporary:
            temporary.write_text(json.dumps({"steps": steps}) + "\n", encoding="utf-8")
    again = ["--resume"] if (out / "last.pt").is_file() else []
    if not call("uniseg.train", [*options(out, steps), *again], work.clock):
        warn(f"{out}: ended by the clock")


def steps_in_time(probe: Path, work: Work) -> int:
    """The steps that the clock allows, by the seconds between the first and the last epoch of a probe; at least one
    epoch."""
    path = probe / "metrics.jsonl"
    seconds = [json.loads(line)["seconds"] for line in path.read_text().splitlines()] if path.is_file() else []
    if len(seconds) < 2:
        return work.size.steps_per_epoch
    per_step = (seconds[-1] - seconds[0]) / (len(seconds) - 1) / work.size.steps_per_epoch
    return max(work.size.steps_per_epoch, int(SPEED_SHARE * (work.clock.left_s() - SPARE_S) / per_step))


def newest(run_folder: Path, otherwise: Path) -> Path:
    """The last checkpoint of a run, `otherwise` where it has none."""
    return run_folder / "last.pt" if (run_folder / "last.pt").is_file() else otherwise


# ------------------------------------------------------------------------------------------------------- pseudo labels

def pseudo(work: Work) -> None:
    """Pseudo labels of the CTs without labels, by the end of `train`; each becomes a dataset of its own."""
    teacher = newest(work.out / "train", work.start)
    segmenter = load(teacher, work.device)
    names = [name for name in segmenter.classes if not any(part in name for part in NO_PSEUDO)]
    in_pieces = shipped_settings()["in_pieces"]
    work.pseudo_root.mkdir(exist_ok=True)
    for dataset in sorted(path for path in work.root.iterdir() if (path / "dataset.json").is_file()):
        if not (work.pseudo_root / dataset.name).exists():
            (work.pseudo_root / dataset.name).symlink_to(dataset.resolve())
    for path in sorted((work.data / "unlabelled").glob("*.nii.gz")):
        case = bare(path.name)
        folder = work.pseudo_root / f"Pseudo_{case}"
        if case in NO_PSEUDO_CTS or (folder / "dataset.json").is_file() or work.clock.left_s() <= 0:
            continue
        opinion = ask(segmenter, path, names)
        if opinion is None:
            warn(f"{path}: no body found, no pseudo labels")
            continue
        belief = believe(opinion, names, in_pieces)
        say(f"{case}: {len(belief.classes)} of {len(names)} classes; left out: {belief.left_out}")
        if belief.classes:
            write_pseudo_case(folder, case, opinion, belief, {"teacher": checkpoint.file_sha256(teacher)})


# ------------------------------------------------------------------------------------------------------ score and ship

def shipped_settings() -> dict:
    """What the shipped weights say about inference, which new ones keep: experimental, in_pieces, second_view; and
    their classes."""
    content = json.loads(DEFAULT_WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    return {"classes": content["classes"], **{key: content["about"].get(key) or empty for key, empty in
                                              (("experimental", {}), ("in_pieces", []), ("second_view", None))}}


def ship_to(work: Work, folder: Path, sources: Sequence[Path], start: Path | None = None,
            add: Path | None = None) -> Path:
    """The mean weights of some runs as tools/ship_weights.py writes them, with the settings of the shipped ones.

    start: what these runs went on from, to have START_SHARE of the mean
    add:   an extension of this mean
    """
    settings, file = shipped_settings(), work.out / "experimental.json"
    # A class that no case of a run shows is not learned in it at all.
    known = set.intersection(*(set(checkpoint.read(source)["network"]["classes"]) for source in sources))
    known |= set(checkpoint.read(add)["network"]["classes"]) if add else set()
    reasons = {name: why for name, why in settings["experimental"].items() if name in known}
    reasons |= {name: UNSCORED for name in known - set(settings["classes"])}
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(reasons) + "\n", encoding="utf-8")
    ship_weights.ship(sources, file if reasons else None, [name for name in settings["in_pieces"] if name in known],
                      settings["second_view"], folder, Path(__file__).with_name("sources.json"),
                      work.size.window, start, START_SHARE, add)
    return folder / "default.pt"


def candidates(work: Work) -> tuple[list[Path], Path | None]:
    """The runs whose mean is to be shipped, and what has a share in it: those of the fine-tuning and what they went on
    from, else that of `train` alone. Raises ValueError where one of the fine-tuning is missing, or went on from other
    weights."""
    trained = work.out / "train" / "last.pt"
    runs = [work.out / name / "last.pt" for name in left_out(work)]
    if not any(path.is_file() for path in runs) and trained.is_file():
        return [trained], None
    if missing := [path for path in runs if not path.is_file()]:
        raise ValueError(f"{missing[0]}: not there. Run the stage finetune to its end.")
    if trained.is_file():
        return runs, trained
    sha256 = checkpoint.file_sha256(work.start)
    if other := [path for path in runs if checkpoint.read(path)["about"]["init"]["sha256"] != sha256]:
        raise ValueError(f"{other[0]}: went on from other weights than {work.start}. Give these weights with --start.")
    return runs, work.start


def score(work: Work) -> None:
    """Score the new weights on CTs that they, or their run without these CTs (with the same share of the start), were
    not trained on, beside the shipped ones, and count the lesions that both find in CTs without labels; writes
    OUT/score/scores.md. Raises ValueError where a run is missing."""
    runs, start = candidates(work)
    judges = {"mean": (runs, list(NEVER_TRAIN))}
    judges |= {name: ([work.out / name / "last.pt"], datasets) for name, datasets in left_out(work).items()}
    results: dict[str, list[Path]] = {"shipped": [], "new": []}
    for name, (sources, datasets) in judges.items():
        root = held_out(work.data, work.out / "held_out" / name, datasets)
        weights = {"new": ship_to(work, work.out / "candidate" / name, sources, start), "shipped": DEFAULT_WEIGHTS}
        for which in weights if not SHIPPED.is_file() else ("new",):
            folder = work.out / "score" / which / name
            again = ["--overwrite"] if folder.is_dir() else []
            call("uniseg.evaluate", ["--data-root", str(root), "--weights", str(weights[which]), "--out", str(folder),
                                     "--bootstrap", "0", *again], work.clock)
            results[which].append(folder)
    for which, folders in results.items():
        if folders:
            join(folders, work.out / "score" / f"{which}.csv")
    unlabelled = sorted((work.data / "unlabelled").glob("*.nii.gz"))
    lesions = {which: find_lesions(path, unlabelled, work.device) for which, path in (
        ("shipped", DEFAULT_WEIGHTS), ("new", work.out / "candidate" / "mean" / "default.pt"))}
    text = "\n".join([pages(comparison(work)), *lesion_table(lesions), ""])
    with atomic_write(work.out / "score" / "scores.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(text)


def comparison(work: Work) -> Comparison:
    """The shipped weights beside the new ones."""
    return compare(SHIPPED if SHIPPED.is_file() else work.out / "score" / "shipped.csv", work.out / "score" / "new.csv")


def ship(work: Work) -> None:
    """Put the newest weights into the package where they score better. Raises ValueError where they do not, or are not
    scored."""
    if not (work.out / "score" / "new.csv").is_file():
        raise ValueError(f"{work.out / 'score'}: holds no scores. Run the stage score first.")
    if objections := comparison(work).objections:
        raise ValueError(f"{work.out}: the new weights are not shipped: {'; '.join(objections)}.")
    extension = work.out / "extended" / "last.pt"
    ship_to(work, ship_weights.FOLDER, *candidates(work), extension if extension.is_file() else None)
    shutil.copyfile(work.out / "score" / "new.csv", SHIPPED)


def export(work: Work, folder: Path) -> None:
    """Copy what is to come back from a lent machine: eight files at most, of 16 MiB each.

    The weights of each run, without the optimiser and in float16, have the folders that they have in OUT. curves.zip
    holds how many steps each run has, and its curves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUNS:
        source = work.out / name / "last.pt"
        if not source.is_file():
            continue
        content = ship_weights.read_run(source)
        training = {key: content["training"][key] for key in ("step", "config")}
        (folder / name).mkdir(exist_ok=True)
        checkpoint.save(folder / name / "last.pt", checkpoint.load_network(content, source),
                        Preprocessing.from_dict(content["preprocessing"]), content["about"], training, half=True)
    with atomic_write(folder / "curves.zip") as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for file in (f for name in RUNS for f in (f"{name}.json", f"{name}/metrics.jsonl", f"{name}/progress.png")):
            if (work.out / file).is_file():
                packed.write(work.out / file, file)


STAGES: dict[str, Callable[[Work], None]] = {"draw": draw, "prepare": prepare, "train": train, "pseudo": pseudo,
                                             "finetune": finetune, "extend": extend, "score": score,
                                             "ship": ship}
