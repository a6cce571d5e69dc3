"""`python -m uniseg.evaluate --data-root`: segments the cases first and keeps the predictions beside the scores."""

import json
import sys

from ..datasets.dataset import DataError
from ..datasets.find import find_datasets
from ..imaging import file_names
from ..imaging.file_names import RESULT, SUFFIXES, complete, masks_folder
from ..machine.console import fail, say
from .readings import in_folder, predictions, safe, stem


def segmented(args, segmenter, wanted, about):
    """({name: prediction} of the wanted cases, predictions of the healthy), made in --out and kept there. Raises ValueError."""
    folder, healthy = args.out / "predictions", args.out / "healthy"
    jobs = [(r.name, r.source[1].image, folder / safe(r.dataset) / f"{r.case}{RESULT}.nii.gz") for r in wanted if r.source]
    if len(jobs) < len(wanted):
        raise DataError(f"{args.data_root}: holds labels without CTs. Give datasets, or --pred with --ref.")
    if args.healthy:
        jobs += [(case, ct, healthy / f"{case}{RESULT}.nii.gz") for case, ct in healthy_cts(args.healthy)]
    about["weights"] = segmenter.weights
    if segmenter.experimental:
        about["notes"].append(f"experimental in these weights, computed all the same: {', '.join(segmenter.experimental)}")
    left = [job for job in jobs if not is_made(job[2], segmenter, args)]
    if len(left) < len(jobs):
        say(f"uniseg: {len(jobs) - len(left)} of {len(jobs)} predictions are complete and stay as they are", sys.stderr)
    failed = set()
    for name, ct, result in left:
        try:
            segmentation = segmenter.segment(ct, postprocess=not args.no_postprocess, progress=True, experimental=True)
            result.parent.mkdir(parents=True, exist_ok=True)
            segmentation.save(result, masks_folder(result))
        except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            fail(error, 1, args.verbose, ct)
            failed.add(masks_folder(result))
            about["failed"].append(name)
    made = predictions(folder, wanted) if folder.is_dir() else {}
    without = list(in_folder(healthy).values()) if args.healthy and healthy.is_dir() else []
    return {name: r for name, r in made.items() if r.path not in failed}, [r for r in without if r.path not in failed]


def healthy_cts(folder):
    """[(case, CT)] of a folder of CTs, or of datasets, whose labels are not read. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"--healthy {folder}: no such folder. Give the one with CTs of patients without tumour.")
    files = [f for f in sorted(folder.iterdir()) if f.name.endswith(SUFFIXES) and not f.name.startswith(".")
             and not file_names.stem(f).endswith(RESULT)]
    if files and not (folder / "dataset.json").is_file():
        return [(stem(f.name), f) for f in files]
    return [(safe(f"{d.name}_{case.id}"), case.image) for d in find_datasets(folder) for case in d.cases]


def is_made(result, segmenter, args):
    """Whether a former run finished this prediction with these weights. Raises ValueError for others, unless --overwrite."""
    if not complete(result, masks=True):
        return False
    try:
        stats = json.loads(result.with_name(f"{file_names.stem(result)}.json").read_text(encoding="utf-8"))
        same = stats["weights"] == segmenter.weights and stats["settings"]["postprocess"] is not args.no_postprocess
    except (ValueError, KeyError, TypeError):                  # of another program
        same = False
    if not same and not args.overwrite:
        raise ValueError(f"{result}: was made with other weights or settings. Give --overwrite to replace it, or another --out.")
    return same
