"""cases.py: the bytes of a cached case and the number FORMAT belong together.

The folder of a cached case is named by a hash of everything that decides its bytes. What the code decides
(resampling, body mask, crop, which lesion is part of which organ, which voxels are kept) is in that hash as FORMAT
alone. These tests cache two cases that use all of it, and compare their bytes with the hash that belongs to FORMAT.
"""

import hashlib

import numpy as np
import pytest

from conftest import Patient, write_dataset
from uniseg.datasets import cases
from uniseg.datasets.cases import prepare
from uniseg.datasets.find import find_datasets
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import write_volume

# sha256 of the bytes of both cases, by FORMAT. If the test below fails, this code writes other bytes than existing
# caches hold: raise FORMAT in cases.py, and add its number with the new hash here.
# FORMAT 5 has the arrays of 4 and a meta.json with the warnings of the reader.
# FORMAT 6 marks ignored voxels, of which these two cases have none: the arrays are those of 5.
BYTES_OF_FORMAT = {6: "5dec16c51bd3b6f74e39a5c282f2956cbfdb9abc96926415fa96da385d007181"}

AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
SHAPE = (60, 50, 30)


def ball(centre, radius_mm):
    """(D, H, W) bool: voxels within radius_mm of a centre in mm from the first voxel."""
    grid = np.indices(SHAPE).astype(float) * np.array([4.0, 4.0, 5.0])[:, None, None, None]
    return ((grid - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0) <= radius_mm ** 2


def draw():
    """A Patient on a table: body, two lungs, liver with three tumours, two kidneys with a tumour in the left one.

    It is drawn here, not taken from phantom.py, so that only the preprocessing decides the bytes.
    """
    x, y, _ = np.indices(SHAPE)
    body = ((x - 30) / 24) ** 2 + ((y - 26) / 17) ** 2 <= 1
    masks = {"right_lung": ball((160, 100, 110), 30), "left_lung": ball((80, 100, 110), 30),
             "liver": ball((150, 110, 45), 32),
             "right_kidney": ball((160, 60, 40), 16), "left_kidney": ball((80, 60, 40), 16),
             "kidney_tumor": ball((80, 70, 40), 8),
             "liver_tumor": ball((150, 120, 40), 9) | ball((165, 105, 60), 6), "prostate": np.zeros(SHAPE, bool)}
    for block in (np.s_[30:33, 21:24, 4:7], np.s_[33:36, 24:27, 7:10]):      # one lesion: they touch at a corner
        masks["liver_tumor"][block] = True
    hu = np.full(SHAPE, -1000, np.int16)
    hu[body] = 20 + ((7 * x + 11 * y) % 23)[body]              # tissue with texture, so that resampling shows
    hu[:, 4:6] = 150                                           # the table, which the crop leaves out
    for name, value in (("right_lung", -850), ("left_lung", -850), ("liver", 110), ("right_kidney", 180),
                        ("left_kidney", 180),
                        ("kidney_tumor", 60), ("liver_tumor", 40)):
        hu[masks[name]] = value
    hu[30:33, 20:23, :] = 3500                                 # metal, which is clipped
    return Patient(hu, masks, AFFINE)


def write_folder_of_masks(folder, patient):
    """One case in TotalSegmentator's layout; its prostate is empty, so that the class counts as not annotated."""
    (folder / "s0001" / "segmentations").mkdir(parents=True)
    write_volume(folder / "s0001" / "ct.nii.gz", patient.hu, patient.affine)
    files = {"liver": "liver", "kidney_right": "right_kidney", "kidney_left": "left_kidney", "prostate": "prostate",
             "kidney_cyst_left": "kidney_tumor", "kidney_cyst_right": "prostate"}
    for file, name in files.items():
        write_volume(folder / "s0001" / "segmentations" / f"{file}.nii.gz", patient.masks[name].astype(np.uint8),
                     patient.affine)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """(Case from a label map, Case from a folder of masks, averaged where the grid is coarser)."""
    folder = tmp_path_factory.mktemp("cached")
    shown = {"lungs": ("right_lung", "left_lung"), "liver": ("liver",), "kidneys": ("right_kidney", "left_kidney"),
             "kidney tumour": ("kidney_tumor",), "liver tumour": ("liver_tumor",)}
    write_dataset(folder / "data" / "Abdomen", shown, {"a": draw()})
    write_folder_of_masks(folder / "data" / "TotalSegmentator", draw())
    label_map, masks = find_datasets(folder / "data")
    return (prepare(label_map, label_map.cases[0], Preprocessing(spacing_mm=(3.0, 3.0, 3.0)), folder / "cache"),
            prepare(masks, masks.cases[0], Preprocessing(spacing_mm=(6.0, 6.0, 6.0), antialias=True), folder / "cache"))


def bytes_of(case):
    """sha256 over the names, types, shapes and values of a case's arrays, its classes and their voxels.

    No small case has more voxels than FOREGROUND_KEPT, so the number itself is part of it.
    """
    digest = hashlib.sha256(repr((case.names, sorted(case.voxels.items()), case.content,
                                  cases.FOREGROUND_KEPT)).encode())
    for path in sorted(case.folder.glob("*.npy")):
        array = np.load(path)
        digest.update(f"{path.name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest


def test_the_bytes_of_a_cached_case_belong_to_the_format_that_names_its_folder(cached):
    digest = hashlib.sha256(b"".join(bytes_of(case).digest() for case in cached)).hexdigest()
    assert cases.FORMAT in BYTES_OF_FORMAT, f"add FORMAT {cases.FORMAT} and {digest} to BYTES_OF_FORMAT"
    assert digest == BYTES_OF_FORMAT[cases.FORMAT], (
        f"cached cases hold other bytes than FORMAT {cases.FORMAT} stands for. "
        f"Raise FORMAT in uniseg/datasets/cases.py and add its number with {digest} to "
        "BYTES_OF_FORMAT, or undo what changed the bytes.")


def test_the_two_cases_use_all_that_the_code_decides(cached):
    label_map, masks = cached
    assert label_map.bits.shape[1] < 50 < SHAPE[1] * 4 / 3  # cropped: the table is gone
    assert label_map.image.max() == cases.MOST_HU                                            # the metal is clipped
    assert label_map.names == ("right_kidney", "left_kidney", "liver", "right_lung", "left_lung", "kidney_tumor",
                               "liver_tumor")
    kidney, tumour = (label_map.bits >> label_map.names.index(name) & 1 for name in ("left_kidney", "kidney_tumor"))
    assert tumour.any() and not (tumour & ~kidney & 1).any()                                 # put back into its kidney
    assert len(label_map.array("lesions")) == 4  # one of the kidney, three of the liver
    assert "prostate_or_uterus" not in masks.names and "kidney_cyst" in masks.names  # an empty prostate tells nothing


def test_another_format_is_another_folder(cached, monkeypatch, tmp_path):
    label_map, _ = cached
    (dataset,) = find_datasets(label_map.folder.parents[1] / "data" / "Abdomen")
    settings = Preprocessing(spacing_mm=(3.0, 3.0, 3.0))
    same = cases._cache_key(dataset, dataset.cases[0], settings, tmp_path)
    monkeypatch.setattr(cases, "FORMAT", cases.FORMAT + 1)
    assert same == label_map.folder.name != cases._cache_key(dataset, dataset.cases[0], settings, tmp_path)


# ------------------------------------------------------------------------------------------------------ ignored voxels

def prepared(folder, shown, patient, **settings):
    (dataset,) = find_datasets(write_dataset(folder / "data" / "Set", shown, {"a": patient}).parent)
    return prepare(dataset, dataset.cases[0], Preprocessing(spacing_mm=(4.0, 4.0, 5.0), **settings), folder / "cache")


def test_voxels_of_the_label_ignore_have_a_bit_of_their_own_and_no_patch_is_centred_on_them(tmp_path):
    """On the grid of the files: the right lung is ignored, the liver and the left lung are classes."""
    patient = draw()
    case = prepared(tmp_path, {"liver": ("liver",), "left_lung": ("left_lung",), "ignore": ("right_lung",)}, patient)
    assert case.ignored and case.names == ("liver", "left_lung")
    liver, lung, ignored = (case.bits >> np.uint32(k) & 1 for k in range(3))
    assert [int(bit.sum()) for bit in (liver, lung, ignored)] == [
        int(patient.masks[name].sum()) for name in ("liver", "left_lung", "right_lung")]
    assert not (ignored & (liver | lung)).any() and case.bits.max() < 8
    assert not ignored.ravel()[case.array("foreground")].any()


def cut_by_a_circle():
    """The patient above in a circular field of view of 160 mm that cuts it, with a scanner's padding."""
    patient = draw()
    x, y, _ = np.indices(SHAPE)
    patient.hu[patient.hu == -1000] = -1000 + (7 * x + 11 * y)[patient.hu == -1000] % 23    # air has noise
    outside = (x - 30) ** 2 + (y - 26) ** 2 > 20 ** 2
    patient.hu[outside] = -2048
    for mask in patient.masks.values():
        mask[outside] = False
    return patient, outside


@pytest.mark.parametrize("pad", ["edge", "air"])
def test_a_cut_patient_goes_on_as_in_inference_and_what_is_made_up_is_ignored(pad, tmp_path):
    patient, outside = cut_by_a_circle()
    case = prepared(tmp_path, {"liver": ("liver",)}, patient, pad=pad)
    ignored = case.bits >> np.uint32(1) & 1 == 1
    assert case.ignored == ignored.any() == (pad == "edge")
    # The body's box begins at the circle (x = 10), less the margin of the crop; two voxels further left is no patient.
    assert (case.image[1] == -1024).all() == (pad == "air")
    middle = case.image[:4, case.image.shape[1] // 2, :12]                  # the circle's centre, below the lungs
    assert (middle > 0).all() == (pad == "edge")
    assert not pad == "edge" or ignored[:2, case.image.shape[1] // 2].all()
