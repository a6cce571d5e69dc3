"""Which CTs `python -m uniseg infer` segments and where each result goes; all of it is checked before any work.

A result never replaces an input, and it replaces a former result only where the user asked for that. No torch and no
numpy here, so that a wrong path is refused at once.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ..imaging.file_names import (
    RESULT,
    SUFFIXES,
    json_path,
    masks_folder,
    other_image,
    stem,
)
from .inputs import Found, find_cts
from .outputs import Outputs


class Job(NamedTuple):
    """A CT and the file of its label map."""

    ct: Path
    result: Path


def plan(inputs: Sequence[Path], output: Path | None, outputs: Outputs = Outputs(), may_exist: bool = False,
         recursive: bool = False, share: Callable[[Sequence[Job]], list[Job]] = list) -> list[Job]:
    """The CTs to segment and their results.

    inputs:    NIfTI files, or folders of them
    output:    the label map of a single input, a folder, or None for the folder of each input
    outputs:   what is written besides label map and JSON
    may_exist: whether there may be former results, which are replaced or, where they are finished, kept
    recursive: whether CTs in folders below count as well; below `output` their results lie in the same folders
    share:     the jobs of this process, where several divide them; the results of the others may exist
    returns:   all jobs, also those of other processes
    Raises ValueError where a path cannot be used.
    """
    jobs = _with_results(find_cts(inputs, recursive), output)
    mine = share(jobs)
    _check_results(jobs, outputs, () if may_exist else mine)
    return jobs


def _with_results(cts: Sequence[Found], output: Path | None) -> list[Job]:
    """Each CT with the name of its result."""
    is_file_name = output is not None and output.name.endswith(SUFFIXES)
    if is_file_name and len(cts) > 1:
        raise ValueError(f"-o {output}: one file for {len(cts)} inputs. Give a folder.")
    if output is not None and not output.is_dir() and other_image(output.name):
        raise ValueError(f"-o {output}: label maps are written as NIfTI. Give a name with .nii.gz, or a folder.")
    if output is not None and not is_file_name and output.exists() and not output.is_dir():
        raise ValueError(f"-o {output}: not a folder, and not a .nii.gz name. Give one of these.")
    if output is not None and is_file_name:
        return [Job(ct, output) for ct, _ in cts]
    return [Job(ct, (output / below if output else ct.parent) / f"{stem(ct)}{RESULT}.nii.gz") for ct, below in cts]


def _check_results(jobs: Sequence[Job], outputs: Outputs, new: Collection[Job]) -> None:
    """Refuse two results of one name, a result that would replace an input or a former one, and a read-only folder.

    new: the jobs whose results must not exist
    """
    must_be_new = frozenset(new)
    taken: dict[Path, Path] = {}
    sources = {_identity(path) for job in jobs for path in (job.ct, job.ct.parent) if path.exists()}
    for ct, result in jobs:
        resolved = result.parent.resolve() / result.name
        if resolved in taken:
            raise ValueError(f"{ct} and {taken[resolved]}: both would be written to {result}. Run them apart.")
        taken[resolved] = ct
        further = [path for paths in outputs.files(result, ()).values() for path in paths]
        for path in (result, json_path(result), *([masks_folder(result)] if outputs.masks else []), *further):
            if path.exists() and _identity(path) in sources:
                raise ValueError(f"{path}: the result would replace the input. Give another -o.")
            if Job(ct, result) in must_be_new and path.exists():
                raise ValueError(f"{path}: exists already. Give --overwrite to replace it, --resume to keep what is "
                                 "complete, or -o for another place.")
        folder = next(p for p in (result.parent, *result.parent.parents) if p.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"{result}: nothing can be written in {folder}. Give another -o.")


def _identity(path: Path) -> tuple[int, int]:
    """The same for two names of one file: links, or upper and lower case where the disk does not tell them apart."""
    return path.stat().st_dev, path.stat().st_ino
