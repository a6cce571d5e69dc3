"""layouts.py: every published dataset from a tree as its publisher ships it, drawn from one phantom patient.

File names and label values are written down here by hand, not taken from the table under test. Files that must not be
read hold no NIfTI. Ids like D05: docs/faults.md.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Patient, label_map
from uniseg import taxonomy
from uniseg.datasets import layouts
from uniseg.datasets import masks as masks_module
from uniseg.datasets.cases import prepare
from uniseg.datasets.dataset import DataError
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.bits import drop_bit, get_bit
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import read_ct, write_volume
from uniseg.phantom import make_phantom
from uniseg.train import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"
COARSE = Preprocessing(spacing_mm=(12.0, 12.0, 12.0))
BTCV_13 = ("spleen right_kidney left_kidney gall_bladder esophagus liver stomach aorta postcava "
           "portal_and_splenic_vein pancreas right_adrenal_gland left_adrenal_gland")
PARTIAL = "spleen - left_kidney gall_bladder esophagus liver stomach - - - pancreas - - duodenum"   # of Zenodo 1169361
KIDNEYS, LUNGS = ("right_kidney", "left_kidney"), ("right_lung", "left_lung")
PAIRS = {"kidneys": KIDNEYS, "lungs": LUNGS, "adrenals": ("right_adrenal_gland", "left_adrenal_gland")}

# dataset: folder, what the values 1, 2, ... are ("-": nobody's), {case id: (image, label)}, files that are not cases
SETS = {
    "BTCV": ("01_BTCV", f"{BTCV_13} duodenum", {
        "img0001": ("RawData/Training/img/img0001.nii.gz", "label_btcv_multiorgan/label0001.nii.gz"),
        "img0061": ("RawData/Testing/img/img0061.nii.gz", "label_btcv_multiorgan/label0061.nii.gz")},
        ["RawData/Training/label/label0001.nii.gz", "RawData/Testing/img/img0071.nii.gz"]),
    "BTCV-Synapse": ("Synapse", BTCV_13, {
        "img0001": ("RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz")},
        ["RawData/Testing/img/img0061.nii.gz"]),
    "Pancreas-CT": ("Pancreas-CT", PARTIAL, {
        "PANCREAS_0002": ("data/PANCREAS_0002.nii.gz",
                          "label_tciapancreasct_multiorgan/label_tcia_multiorgan/label0002.nii.gz")},
        ["data/PANCREAS_0001.nii.gz", "TCIA_pancreas_labels-02-05-2017/label0002.nii.gz"]),
    "Pancreas-CT-NIH": ("NIH-Pancreas", "pancreas", {
        "PANCREAS_0001": ("PANCREAS_0001.nii.gz", "TCIA_pancreas_labels-02-05-2017/label0001.nii.gz")}, []),
    "CHAOS": ("03_CHAOS", "liver", {"10_image": ("ct/img/10_image.nii.gz", "ct/liver_label/10_segmentation.nii.gz")},
              []),
    "LiTS": ("LiTS17", "liver liver_tumor", {
        "volume-0": ("Training Batch 1/volume-0.nii", "Training Batch 1/segmentation-0.nii"),
        "volume-30": ("Training Batch 2/volume-30.nii", "segmentations/segmentation-30.nii")},
        ["Test/test-volume-0.nii", "Training Batch 1/._volume-0.nii", ".trash/volume-0.nii"]),
    "KiTS": ("kits21", "kidneys kidney_tumor kidney_cyst", {
        "case_00000": ("data/case_00000/imaging.nii.gz", "data/case_00000/aggregated_OR_seg.nii.gz"),
        "case_00299": ("data/case_00299/imaging.nii.gz", "data/case_00299/aggregated_MAJ_seg.nii.gz")},
        ["data/case_00000/aggregated_AND_seg.nii.gz", "data/case_00000/aggregated_MAJ_seg.nii.gz",
         "data/case_00000/segmentations/kidney_instance-1_annotation-1.nii.gz"]),
    "KiTS19": ("KiTS19", "kidneys kidney_tumor", {
        "case_00000": ("data/case_00000/imaging.nii.gz", "data/case_00000/segmentation.nii.gz")},
        ["data/case_00210/imaging.nii.gz"]),
    "KiTS23": ("KiTS23", "kidneys kidney_tumor kidney_cyst", {
        "case_00588": ("dataset/case_00588/imaging.nii.gz", "dataset/case_00588/segmentation.nii.gz")},
        ["dataset/case_00588/instances/kidney_instance-1_annotation-1.nii.gz"]),
    "WORD": ("WORD-V0.1.0", "liver spleen left_kidney right_kidney stomach gall_bladder esophagus pancreas duodenum "
             "colon intestine adrenals rectum bladder left_head_of_femur right_head_of_femur", {
                 "word_0001": ("imagesVal/word_0001.nii.gz", "labelsVal/word_0001.nii.gz"),
                 "word_0002": ("imagesTr/word_0002.nii.gz", "labelsTr/word_0002.nii.gz")},
                 ["imagesTs/word_0014.nii.gz"]),
    "AbdomenCT-1K": ("AbdomenCT-1K", "liver kidneys spleen pancreas", {
        "Case_00001": ("AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz", "Mask/Case_00001.nii.gz")},
        ["AbdomenCT-1K-ImagePart3/Case_01062_0000.nii.gz"]),
    "AMOS22": ("amos22", "spleen right_kidney left_kidney gall_bladder esophagus liver stomach aorta postcava pancreas "
               "right_adrenal_gland left_adrenal_gland duodenum bladder prostate_or_uterus", {
                   "amos_0001": ("imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz"),
                   "amos_0008": ("imagesVa/amos_0008.nii.gz", "labelsVa/amos_0008.nii.gz")},
               ["imagesTr/amos_0507.nii.gz", "labelsTr/amos_0507.nii.gz", "imagesTr/._amos_0001.nii.gz",
                "imagesTs/amos_0002.nii.gz"]),
    "CT-ORG": ("CT-ORG", "liver bladder lungs kidneys - -", {"volume-0": ("volume-0.nii.gz", "labels-0.nii.gz")}, []),
    "AbdomenCT-12organ": ("13_AbdomenCT-12organ", "liver kidneys spleen pancreas aorta postcava stomach gall_bladder "
                          "esophagus right_adrenal_gland left_adrenal_gland celiac_trunk", {
                              "Organ12_0020": ("img/Organ12_0020_0000.nii.gz", "label/Organ12_0020.nii.gz")}, []),
    "FLARE22": ("FLARE22Train", "liver right_kidney spleen pancreas aorta postcava right_adrenal_gland "
                "left_adrenal_gland gall_bladder esophagus stomach duodenum left_kidney", {
                    "FLARE22_Tr_0001": ("images/FLARE22_Tr_0001_0000.nii.gz", "labels/FLARE22_Tr_0001.nii.gz")},
                ["unlabeled/Case_00001_0000.nii.gz"]),
}
MSD = {3: ("Liver", "liver_0", "liver liver_tumor", {"1": "liver", "2": "cancer"}),
       6: ("Lung", "lung_001", "lung_tumor", {"1": "cancer"}),
       7: ("Pancreas", "pancreas_001", "pancreas pancreatic_tumor", {"1": "pancreas", "2": "cancer"}),
       8: ("HepaticVessel", "hepaticvessel_001", "hepatic_vessel hepatic_vessel_tumor", {"1": "Vessel", "2": "Tumour"}),
       9: ("Spleen", "spleen_2", "spleen", {"1": "spleen"}),
       10: ("Colon", "colon_001", "colon_tumor", {"1": "colon cancer primaries"})}
JSON = {"WORD-V0.1.0": {"labels": {"0": "background", **{str(v): name for v, name in enumerate(
            "liver spleen left_kidney right_kidney stomach gallbladder esophagus pancreas duodenum colon intestine "
            "adrenal rectum bladder Head_of_femur_L Head_of_femur_R".split(), start=1)}}},
        "amos22": {"labels": {"0": "background", **{str(v): name for v, name in enumerate(
            "spleen,right kidney,left kidney,gall bladder,esophagus,liver,stomach,arota,postcava,pancreas,right "
            "adrenal gland,left adrenal gland,duodenum,bladder,prostate/uterus".split(","), start=1)}},
            "training": [{"image": f"./imagesTr/amos_{n}.nii.gz", "label": f"./labelsTr/amos_{n}.nii.gz"}
                         for n in ("0001", "0507")]}}
for number, (organ, case, values, names) in MSD.items():
    folder = f"10_Decathlon/Task{number:02d}_{organ}"
    SETS[f"MSD Task{number:02d} {organ}"] = (folder, values,
                                             {case: (f"imagesTr/{case}.nii.gz", f"labelsTr/{case}.nii.gz")},
                                            [f"imagesTr/._{case}.nii.gz", f"imagesTs/{case}9.nii.gz"])
    JSON[folder] = {"labels": {"0": "background", **names}, "training": [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}]}


@pytest.fixture(scope="session")
def patient():
    """A phantom of 8 mm voxels; tumours that it lacks are parts of their organs."""
    hu, masks, affine = make_phantom((8.0, 8.0, 8.0))
    half = np.arange(hu.shape[2]) % 2 == 0
    for lesion, organ in (("pancreatic_tumor", "pancreas"), ("lung_tumor", "left_lung"), ("colon_tumor", "colon"),
                          ("prostate_or_uterus", "rectum")):
        masks[lesion] = masks[organ] & half
    masks["hepatic_vessel_tumor"] = masks["liver_tumor"]
    return Patient(hu, masks, affine)


def write(path, array, patient):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, array, patient.affine)


def write_set(root, name, patient):
    """One dataset as its publisher ships it; returns its folder."""
    folder, values, cases, others = SETS[name]
    nothing = {"-": ()}
    for case, (image, label) in cases.items():
        shown = PARTIAL if case == "img0061" else values
        shown = {f"{v} {n}": {**PAIRS, **nothing}.get(n, (n,)) for v, n in enumerate(shown.split(), start=1)}
        write(root / folder / image, patient.hu, patient)
        write(root / folder / label, label_map(patient.masks, shown), patient)
    for other in others:
        (root / folder / other).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / other).write_bytes(b"not to be read")
    if folder in JSON:
        (root / folder / "dataset.json").write_text(json.dumps(JSON[folder]))
    return root / folder


def lobes(side, count, patient):
    """A lung cut into lobes from bottom to top, as {file name: mask}."""
    lung = patient.masks[f"{side}_lung"]
    parts = ("lower", "upper") if count == 2 else ("lower", "middle", "upper")
    where = np.array_split(np.arange(lung.shape[2]), count)
    return {f"lung_{part}_lobe_{side}": lung & np.isin(np.arange(lung.shape[2]), at) for part, at in zip(parts, where)}


def write_masks(folder, patient, names, more=()):
    """segmentations/ of TotalSegmentator or AbdomenAtlas. names: {file name: mask's name}, more: {file name: mask}"""
    write(folder / "ct.nii.gz", patient.hu, patient)
    for file, mask in {**{f: patient.masks[n] for f, n in names.items()}, **dict(more)}.items():
        write(folder / "segmentations" / f"{file}.nii.gz", mask.astype(np.uint8), patient)


TOTAL = {"spleen": "spleen", "kidney_right": "right_kidney", "kidney_left": "left_kidney",
         "gallbladder": "gall_bladder",
         "liver": "liver", "stomach": "stomach", "aorta": "aorta", "inferior_vena_cava": "postcava",
         "pancreas": "pancreas",
         "portal_vein_and_splenic_vein": "portal_and_splenic_vein", "adrenal_gland_right": "right_adrenal_gland",
         "adrenal_gland_left": "left_adrenal_gland", "esophagus": "esophagus", "duodenum": "duodenum", "colon": "colon",
         "small_bowel": "intestine", "urinary_bladder": "bladder", "prostate": "prostate_or_uterus",
         "femur_left": "left_head_of_femur", "vertebrae_L1": "liver", "heart": "liver"}
ATLAS = {"aorta": "aorta", "gall_bladder": "gall_bladder", "kidney_left": "left_kidney", "kidney_right": "right_kidney",
         "liver": "liver", "postcava": "postcava", "lung_left": "left_lung", "femur_right": "right_head_of_femur",
         "celiac_trunk": "celiac_trunk"}


def write_total(root, patient):
    """Two cases as published: kidneys without their cysts, lungs by lobe.

    The second has an empty prostate and no lower left lobe.
    """
    cyst, nothing = patient.masks["kidney_cyst"], np.zeros_like(patient.masks["liver"])
    parts = {**lobes("right", 3, patient), **lobes("left", 2, patient), "kidney_cyst_right": cyst,
             "kidney_cyst_left": nothing,
             "kidney_right": patient.masks["right_kidney"] & ~cyst}
    write_masks(root / "Totalsegmentator_dataset_v201" / "s0011", patient, TOTAL, parts)
    del parts["lung_lower_lobe_left"]
    write_masks(root / "Totalsegmentator_dataset_v201" / "s1400", patient, TOTAL, {**parts, "prostate": nothing})
    return root / "Totalsegmentator_dataset_v201"


def write_atlas(root, patient):
    folder = root / "_AbdomenAtlas1.1Mini"
    write_masks(folder / "BDMAP_00000001", patient, ATLAS)
    (folder / "BDMAP_00000001" / "combined_labels.nii.gz").write_bytes(b"not to be read")
    write(folder / "BDMAP_00005196" / "segmentations" / "liver.nii.gz", patient.masks["liver"].astype(np.uint8),
          patient)
    return folder


@pytest.fixture(scope="session")
def assembly(tmp_path_factory, patient):
    """All of them in one folder, beside the Decathlon's MR. Not to be written to."""
    root = tmp_path_factory.mktemp("assembly")
    for name in SETS:
        write_set(root, name, patient)
    write_total(root, patient)
    write_atlas(root, patient)
    (root / "10_Decathlon" / "Task02_Heart" / "imagesTr").mkdir(parents=True)
    (root / "10_Decathlon" / "Task02_Heart" / "imagesTr" / "la_003.nii.gz").write_bytes(b"MR")
    (root / "10_Decathlon" / "Task02_Heart" / "dataset.json").write_text('{"labels": {"1": "left atrium"}}')
    (root / ".cache").mkdir()
    (root / ".cache" / "x.nii.gz").write_bytes(b"hidden")
    return root


@pytest.fixture(scope="session")
def found(assembly):
    notes = []
    return {d.name: d for d in find_datasets(assembly, notes=notes)}, notes


def classes_of(values):
    return {c for name in values.split() if name != "-" for c in PAIRS.get(name, (name,))}


# ---------------------------------------------------------------------------------------------- every dataset at once

@pytest.mark.slow
def test_every_published_dataset_is_recognised_by_its_folder(found):
    assert set(found[0]) == {*SETS, "TotalSegmentator", "AbdomenAtlas"}
    assert {row.name for row in layouts.LAYOUTS} == {*found[0], "3D-IRCADb"}           # which is published as DICOM


@pytest.mark.parametrize("name", SETS)
def test_images_find_their_labels_and_nothing_else_is_a_case(name, found, assembly):
    folder, _, cases, _ = SETS[name]
    here = [(c.id, str(c.image.relative_to(assembly / folder)), str(c.label.relative_to(assembly / folder)))
            for c in found[0][name].cases]
    assert here == sorted((case, *files) for case, files in cases.items())


@pytest.mark.parametrize("name", SETS)
def test_classes_and_masks_are_right_sides_split_tumours_in_their_organs(name, found, patient):
    """The phantom's organs hold their tumours and cysts, as in Section 4.1.1; published label maps do not."""
    dataset = found[0][name]
    values = SETS[name][1]
    assert set(dataset.annotated) == classes_of(values)
    for case in dataset.cases:
        expected = classes_of(PARTIAL if case.id == "img0061" else values)
        masks = dict(case_masks(dataset, case, read_ct(case.image)))
        assert set(masks) == expected == set(dataset.annotated_in(case))
        for organ, mask in masks.items():
            truth = patient.masks[organ]
            if organ == "rectum" or (organ, name) == ("hepatic_vessel", "MSD Task08 HepaticVessel"):
                truth = truth & ~patient.masks["hepatic_vessel_tumor"]
            assert np.array_equal(mask, truth), (case.id, organ)


def test_the_patients_left_kidney_is_on_the_left(found, patient):
    for name in ("KiTS", "CT-ORG", "AMOS22", "WORD", "FLARE22"):
        dataset = found[0][name]
        masks = dict(case_masks(dataset, dataset.cases[0], read_ct(dataset.cases[0].image)))
        x = {side: np.argwhere(masks[side])[:, 0].mean() for side in KIDNEYS}            # RAS+: grows to the right
        assert x["left_kidney"] < patient.hu.shape[0] / 2 < x["right_kidney"], name


def test_tumours_of_msd_task08_are_not_put_into_the_vessels(found):
    dataset = found[0]["MSD Task08 HepaticVessel"]
    masks = dict(case_masks(dataset, dataset.cases[0], read_ct(dataset.cases[0].image)))
    assert masks["hepatic_vessel_tumor"].any() and not (masks["hepatic_vessel"] & masks["hepatic_vessel_tumor"]).any()


def test_d09_late_btcv_cases_annotate_fewer_classes_in_the_cache_too(found, tmp_path):
    dataset = found[0]["BTCV"]
    early, late = (prepare(dataset, case, COARSE, tmp_path) for case in dataset.cases)
    assert len(early.names) == 14 and set(late.names) == classes_of(PARTIAL)
    assert np.array_equal(get_bit(early.bits, early.names.index("duodenum")),
                          get_bit(late.bits, late.names.index("duodenum")))


def test_the_classes_of_a_case_are_part_of_the_caches_key(found, tmp_path):
    dataset = found[0]["BTCV"]
    case = dataset.cases[1]
    assert prepare(dataset, case, COARSE, tmp_path).folder != \
        prepare(dataset, case._replace(annotated=("liver",)), COARSE, tmp_path).folder


def test_what_is_left_out_is_said(found):
    notes = "\n".join(found[1])
    for part in ("amos22: 1 MR images (ids from 500 on) left out", "Task02_Heart: left out, its images are MR",
                 "01_BTCV: 1 images (RawData/Testing/img/img0071.nii.gz) without partner left out, as published",
                 "_AbdomenAtlas1.1Mini: 1 labels (BDMAP_00005196/segmentations) without partner left out",
                 "v201: 1 cases (s1400) lack masks of some classes, which count as not annotated there"):
        assert part in notes
    assert not [note for note in found[1] if "LiTS" in note or "WORD" in note]


# --------------------------------------------------------------------------------------------------- folders of masks

def test_lobes_are_united_cysts_folded_femurs_and_others_dropped(found, patient):
    dataset = found[0]["TotalSegmentator"]
    case = dataset.cases[0]
    masks = dict(case_masks(dataset, case, read_ct(case.image)))
    named = {n for f, n in TOTAL.items() if f not in ("femur_left", "vertebrae_L1", "heart")}
    assert set(masks) == named | {*LUNGS, "kidney_cyst"}
    for name, mask in masks.items():
        assert np.array_equal(mask, patient.masks[name]), name


def test_d09_a_missing_mask_file_and_an_empty_prostate_are_not_annotated(found, tmp_path):
    dataset = found[0]["TotalSegmentator"]
    full, fewer = (prepare(dataset, case, COARSE, tmp_path) for case in dataset.cases)
    assert set(full.names) - set(fewer.names) == {"left_lung", "prostate_or_uterus"}
    for name in fewer.names:                                                   # the other bits are still the right ones
        assert np.array_equal(get_bit(full.bits, full.names.index(name)),
                              get_bit(fewer.bits, fewer.names.index(name))), name
        assert full.voxels[name] == fewer.voxels[name]


@pytest.mark.parametrize("dtype, k", [(np.uint32, 0), (np.uint32, 31), (np.uint64, 5), (np.uint64, 63)])
def test_a_dropped_bit_gives_way_to_those_after_it(dtype, k):
    bits = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 50, dtype, endpoint=True)
    kept = [j for j in range(np.iinfo(dtype).bits) if j != k]
    out = drop_bit(bits, k)
    assert out.dtype == dtype and not get_bit(out, len(kept)).any()
    assert all(np.array_equal(get_bit(out, new), get_bit(bits, old)) for new, old in enumerate(kept))


def test_abdomen_atlas_is_read_by_file_name(found, patient):
    dataset = found[0]["AbdomenAtlas"]
    [case] = dataset.cases
    masks = dict(case_masks(dataset, case, read_ct(case.image)))
    assert set(masks) == set(ATLAS.values()) - {"right_head_of_femur"}
    assert all(np.array_equal(mask, patient.masks[name]) for name, mask in masks.items())


def test_another_mask_makes_another_case_in_the_cache(patient, tmp_path):
    folder = write_atlas(tmp_path, patient)
    [dataset] = find_datasets(tmp_path)
    first = prepare(dataset, dataset.cases[0], COARSE, tmp_path / "cache")
    write(folder / "BDMAP_00000001" / "segmentations" / "liver.nii.gz", np.zeros(patient.hu.shape, np.uint8), patient)
    again = prepare(dataset, dataset.cases[0], COARSE, tmp_path / "cache")
    assert first.voxels["liver"] > 0 == again.voxels["liver"]


@pytest.mark.parametrize("change, message", [
    (lambda mask, affine: (mask[1:], affine), r"aorta.nii.gz: shape .* differs from the image's"),
    (lambda mask, affine: (mask, affine + np.eye(4, 4, 3)), r"aorta.nii.gz: its affine places voxels up to 1 mm away"),
    (lambda mask, affine: (mask * 2, affine), r"aorta.nii.gz: values from 0 to 2, no mask of 0 and 1"),
], ids=["shape", "affine", "values"])
def test_d06_a_mask_on_another_grid_or_of_other_values_is_refused(change, message, patient, tmp_path):
    folder = write_atlas(tmp_path, patient)
    array, affine = change(patient.masks["aorta"].astype(np.uint8), patient.affine)
    write_volume(folder / "BDMAP_00000001" / "segmentations" / "aorta.nii.gz", array, affine)
    [dataset] = find_datasets(tmp_path)
    with pytest.raises(DataError, match=message):
        prepare(dataset, dataset.cases[0], COARSE, tmp_path / "cache")


def test_a_mask_is_not_held_with_the_others(found, monkeypatch):
    """Each mask file is read when its class is asked for."""
    dataset = found[0]["TotalSegmentator"]
    read, real = [], masks_module.read_label_map
    monkeypatch.setattr(masks_module, "read_label_map", lambda path: read.append(path.name) or real(path))
    masks = case_masks(dataset, dataset.cases[0], read_ct(dataset.cases[0].image))
    assert next(masks)[0] == "spleen" and read == ["spleen.nii.gz"]
    assert next(masks)[0] == "right_kidney" and read[1:] == ["kidney_right.nii.gz", "kidney_cyst_right.nii.gz"]


# ------------------------------------------------------------------------------------------- which name, which edition

@pytest.mark.parametrize("folder, name", [
    ("04_LiTS", "LiTS"), ("lits", "LiTS"), ("KiTS2023", "KiTS23"), ("Task03_Liver", "MSD Task03 Liver"),
    ("CTORG", "CT-ORG"),
    ("MSD Task10 Colon", "MSD Task10 Colon"), ("amos22", "AMOS22"), ("AbdomenAtlas1.0Mini", "AbdomenAtlas"),
    ("Totalsegmentator_dataset_v201", "TotalSegmentator"), ("3D-IRCADb-01", "3D-IRCADb")])
def test_folder_names_are_known_whatever_their_case_and_number(folder, name):
    assert [row.name for row in layouts.known_as(folder)] == [name]


@pytest.mark.parametrize("folder", ["Liver", "Task03", "my_LiTS", "LiTS_predictions", "nnUNet_raw", ""])
def test_other_names_are_not_taken_for_published_ones(folder):
    assert layouts.known_as(folder) == ()


def test_no_folder_name_stands_for_two_datasets_but_for_editions_of_one():
    names = [layouts.plain(n) for row in layouts.LAYOUTS for n in {layouts.plain(n) for n in (row.name, *row.folders)}]
    shared = {n for n in names if names.count(n) > 1}
    assert {tuple(row.name for row in layouts.known_as(n)) for n in shared} == {
        ("BTCV", "BTCV-Synapse"), ("Pancreas-CT", "Pancreas-CT-NIH"), ("KiTS", "KiTS19")}


def test_every_layout_has_its_label_values_and_every_set_of_table_1_its_layout():
    assert {row.name for row in layouts.LAYOUTS} == {d.name for d in taxonomy.DATASETS}


@pytest.mark.parametrize("name, edition", [("KiTS", "KiTS"), ("KiTS19", "KiTS19")])
def test_a_folder_kits_is_2021_by_its_aggregated_labels_and_2019_without(name, edition, patient, tmp_path):
    shutil.move(write_set(tmp_path, name, patient), tmp_path / "05_KiTS")
    [dataset] = find_datasets(tmp_path)
    assert dataset.name == edition and ("kidney_cyst" in dataset.annotated) == (edition == "KiTS")


@pytest.mark.parametrize("name, other, value", [("KiTS23", "KiTS19", 3), ("BTCV", "BTCV-Synapse", 14)])
def test_d07_the_richer_edition_taken_for_the_poorer_is_refused_at_its_first_case(name, other, value, patient,
                                                                                  tmp_path):
    """Never the other way round: a class would count as annotated and absent."""
    folder = write_set(tmp_path, name, patient)
    if name == "BTCV":
        shutil.rmtree(folder / "RawData" / "Training" / "label")
        (folder / "label_btcv_multiorgan").rename(folder / "label")
    [dataset] = find_datasets(None, named=[(other, folder)])
    words = rf"label values {value} \(\d+ voxels\) are not those of {other}, 0 to {value - 1}. Ano"
    with pytest.raises(DataError, match=words):
        prepare(dataset, dataset.cases[0], COARSE, tmp_path / "cache")


def test_a_name_given_with_dataset_wins_over_the_folders_and_may_be_any_for_a_dataset_json(patient, phantom_root,
                                                                                           tmp_path):
    shutil.move(write_set(tmp_path, "CT-ORG", patient), tmp_path / "whatever")
    notes = []
    named = [("ct-org", tmp_path / "whatever"), ("Mine", phantom_root / "Chest")]
    datasets = find_datasets(None, named=named, notes=notes)
    assert [d.name for d in datasets] == ["CT-ORG", "Mine"] and notes == []
    both = find_datasets(phantom_root, named=named)
    assert [d.name for d in both] == ["Abdomen", "Chest", "Vessels", "CT-ORG", "Mine"]


def test_the_data_root_may_itself_be_a_published_dataset(assembly, monkeypatch):
    monkeypatch.chdir(assembly / "CT-ORG")
    assert [d.name for d in find_datasets(".")] == ["CT-ORG"]
    assert [d.name for d in find_datasets(assembly / "LiTS17")] == ["LiTS"]
    assert [d.name for d in find_datasets(assembly / "10_Decathlon")] == [n for n in sorted(SETS)
                                                                          if n.startswith("MSD")]


# --------------------------------------------------------------------------------------------- dataset.json or preset

def test_a_dataset_json_of_ones_own_wins_over_the_folders_name(patient, tmp_path):
    folder = write_set(tmp_path, "LiTS", patient)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "spleen", "2": "pancreas"}, "training": [
        {"image": "Training Batch 1/volume-0.nii", "label": "Training Batch 1/segmentation-0.nii"}]}))
    [dataset] = find_datasets(tmp_path)
    assert dataset.annotated == ("spleen", "pancreas") and [c.id for c in dataset.cases] == ["volume-0"]


def test_the_publishers_dataset_json_says_which_cases_not_what_they_mean(patient, tmp_path):
    folder = write_set(tmp_path, "MSD Task06 Lung", patient)
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(folder / kind / "lung_001.nii.gz", folder / kind / "lung_003.nii.gz")
    notes = []
    [dataset] = find_datasets(folder.parent, notes=notes)
    assert dataset.annotated == ("lung_tumor",) and [c.id for c in dataset.cases] == ["lung_001"]
    assert notes == [f"{folder}: 1 cases left out that its dataset.json does not list"]
    (folder / "dataset.json").unlink()
    [dataset] = find_datasets(folder.parent)
    assert dataset.annotated == ("lung_tumor",) and [c.id for c in dataset.cases] == ["lung_001", "lung_003"]


@pytest.mark.parametrize("content, message", [
    ({"labels": {"1": "spleen"}},
     r"label 'spleen' is \[1\], in the published MSD Task06 Lung it is not. Rename the folder"),
    ({"labels": {"1": "cancer", "2": "edema"}}, "its labels are not the 1 to 1 of the published MSD Task06 Lung"),
    ({"labels": {"1": "cancer"}, "training": [{"image": "../../etc/x.nii.gz", "label": "labelsTr/lung_001.nii.gz"}]},
     "'../../etc/x.nii.gz' leads out of the dataset's folder"),
    ({"labels": {"1": "cancer"}, "training": [{"image": "imagesTr/lung_9.nii.gz",
                                               "label": "labelsTr/lung_001.nii.gz"}]},
     "1 files it needs are missing: .*lung_9.nii.gz"),
], ids=["other meaning", "other values", "out of the folder", "missing"])
def test_d02_a_dataset_json_that_does_not_fit_the_published_dataset_is_refused(content, message, patient, tmp_path):
    folder = write_set(tmp_path, "MSD Task06 Lung", patient)
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        find_datasets(folder.parent)


# ----------------------------------------------------------------------------------------------------------- refusals

def refusal(root, **options):
    with pytest.raises(DataError) as error:
        find_datasets(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_d05_images_and_labels_without_partner_are_listed_all_at_once(tmp_path):
    touch(tmp_path / "LiTS", *(f"volume-{n}.nii" for n in range(8)), "segmentation-0.nii", "segmentation-99.nii")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'LiTS'}: 7 images (volume-1.nii, volume-2.nii, volume-3.nii, volume-4.nii, volume-5.nii, ...) "
        "without label; 1 labels (segmentation-99.nii) without image. "
        "Add what is missing or move them away, or leave them out with --skip-bad.")


def test_d05_on_request_they_are_left_out_with_a_note(tmp_path):
    touch(tmp_path / "LiTS", "volume-0.nii", "segmentation-0.nii", "volume-1.nii")
    notes = []
    [dataset] = find_datasets(tmp_path, notes=notes, allow=("missing",))
    assert [case.id for case in dataset.cases] == ["volume-0"]
    assert notes == [f"{tmp_path / 'LiTS'}: 1 images (volume-1.nii) without label, left out by --skip-bad"]


def test_d05_only_the_side_that_is_published_without_partner_may_lack_it(tmp_path):
    touch(tmp_path / "KiTS19", "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz",
          "case_00001/segmentation.nii.gz",
          "case_00210/imaging.nii.gz")
    assert "KiTS19: 1 labels (case_00001/segmentation.nii.gz) without image" in refusal(tmp_path)


def test_two_files_of_one_id_are_refused(tmp_path):
    touch(tmp_path / "LiTS", "a/volume-1.nii", "b/volume-01.nii", "segmentation-1.nii")
    assert "2 files (a/volume-1.nii, b/volume-01.nii) share their ids" in refusal(tmp_path)
    touch(tmp_path / "other" / "LiTS", "volume-1.nii", "segmentation-1.nii", "segmentation-1.nii.gz")
    assert "2 files (segmentation-1.nii, segmentation-1.nii.gz) share their ids" in refusal(tmp_path / "other")


def test_a_folder_of_nifti_files_that_nobody_knows_is_refused_not_passed_over(phantom_root, tmp_path):
    (tmp_path / "Chest").symlink_to(phantom_root / "Chest")
    touch(tmp_path / "Mystery" / "deep" / "er", "x.nii.gz")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'Mystery'}: holds NIfTI files, but no dataset.json")
    assert "--dataset NAME=FOLDER" in message


def test_folders_without_nifti_files_and_hidden_ones_are_passed_over(phantom_root, tmp_path):
    (tmp_path / "Chest").symlink_to(phantom_root / "Chest")
    touch(tmp_path, "cache/image.npy", ".hidden/x.nii.gz", "papers/._x.nii.gz")
    assert [d.name for d in find_datasets(tmp_path)] == ["Chest"]


@pytest.mark.parametrize("folder, files, message", [
    ("Pancreas-CT", ["img/PANCREAS_0001.nii.gz", "label/label0001.nii.gz"],       # spleen or pancreas? both call it 1
     "no label like label_tcia_multiorgan/label{id}.nii.gz or multiorgan_label/label{id}.nii.gz or "
     "TCIA_pancreas_labels-02-05-2017/label{id}.nii.gz in it"),
    ("LiTS", ["img/liver_0.nii.gz"], "taken for LiTS, but there is no label like segmentation-{id}.nii.gz in it"),
    ("3D-IRCADb", ["PATIENT_DICOM/x.nii.gz"], "taken for 3D-IRCADb, but there is no label like any known in it"),
    ("AMOS22", ["imagesTr/amos_0507.nii.gz", "labelsTr/amos_0507.nii.gz"], "no case of AMOS22 is left to use"),
    ("TotalSegmentator", ["s0000/ct.nii.gz", "s0000/segmentations/vertebrae_L1.nii.gz"],
     "s0000/segmentations: no mask of a known class")])
def test_a_published_name_over_other_files_is_refused(folder, files, message, tmp_path):
    touch(tmp_path / folder, *files)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("name, image, label, link", [
    ("LiTS", "volume-1.nii", "segmentation-1.nii", "volume-1.nii"),
    ("TotalSegmentator", "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz", "s0001/segmentations/liver.nii.gz")])
def test_d02_a_link_that_leads_out_of_the_folder_is_refused(name, image, label, link, tmp_path):
    folder = tmp_path / name
    touch(folder, image, label)
    (tmp_path / "outside.nii").touch()
    (folder / link).unlink()
    (folder / link).symlink_to(tmp_path / "outside.nii")
    assert "leads out of the dataset's folder" in refusal(tmp_path)


def test_d02_a_case_behind_a_linked_folder_is_refused_not_passed_over(patient, tmp_path):
    folder = write_atlas(tmp_path / "root", patient)
    shutil.copytree(folder / "BDMAP_00000001", tmp_path / "BDMAP_00000002")
    (folder / "BDMAP_00000002").symlink_to(tmp_path / "BDMAP_00000002")
    assert "'BDMAP_00000002/ct.nii.gz' leads out of the dataset's folder" in refusal(tmp_path / "root")
    (folder / "BDMAP_00000002").unlink()
    (folder / "loop").symlink_to(folder)
    assert [c.id for c in find_datasets(tmp_path / "root")[0].cases] == ["BDMAP_00000001"]


def test_names_and_folders_that_do_not_exist_are_refused(tmp_path):
    touch(tmp_path / "x", "a.nii.gz")
    message = refusal(None, named=[("LiTSS", tmp_path / "x")])
    assert "--dataset LiTSS=" in message and "prints the names" in message
    assert "no such folder" in refusal(None, named=[("LiTS", tmp_path / "y")])


def test_one_dataset_twice_is_refused(assembly):
    message = refusal(assembly / "LiTS17", named=[("LiTS", assembly / "LiTS17")])
    assert 'both have the "name" LiTS. Change one dataset.json, or leave one of them out' in message


# ---------------------------------------------------------------------------------------------------- from end to end

TINY = ["--backbone", "unet", "--width", "2", "--lpg-hidden", "8", "--spacing", "12", "--patch-size", "16", "16", "16",
        "--batch-size", "2", "--steps-per-epoch", "1", "--epochs", "1", "--warmup-epochs", "0", "--folds", "1",
        "--workers", "0",
        "--device", "cpu"]


@pytest.mark.slow
def test_a_run_over_several_layouts_and_one_named_dataset(assembly, phantom_root, tmp_path, capsys):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("01_BTCV", "kits21", "amos22", "Totalsegmentator_dataset_v201", "10_Decathlon"):
        (root / name).symlink_to(assembly / name)
    (root / "Chest").symlink_to(phantom_root / "Chest")
    named = f"ct-org={assembly / 'CT-ORG'}"
    assert main(["--data-root", str(root), "--dataset", named, "--out", str(tmp_path / "run"), *TINY]) == 0
    assert "uniseg: " in (said := capsys.readouterr().err) and "MR images (ids from 500 on) left out" in said
    about = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["about"]["data"]
    assert len(about) == 2 + 2 + 2 + 2 + 6 + 2 + 1
    assert set(about["BTCV/img0061"]) == classes_of(PARTIAL)
    assert set(about["CT-ORG/volume-0"]) == classes_of("liver bladder lungs kidneys")
    assert about["MSD Task06 Lung/lung_001"] == ["lung_tumor"] and "left_lung" not in about["TotalSegmentator/s1400"]
    classes = json.loads((tmp_path / "run" / "config.json").read_text())["classes"]
    assert classes[:3] == ["spleen", "right_kidney", "left_kidney"] and classes[-1] == "kidney_cyst"


@pytest.mark.parametrize("options, message", [
    ([], "no data: give --data-root ROOT, --dataset NAME=FOLDER, or both."),
    (["--dataset", "LiTS=nowhere"], "--dataset LiTS=nowhere: no such folder. Give the folder that holds the dataset.")])
def test_a_run_without_data_is_refused_in_one_line(options, message, tmp_path, capsys):
    assert main([*options, "--out", str(tmp_path / "run"), *TINY]) == 2
    assert capsys.readouterr().err.strip() == f"uniseg: error: {message}"


@pytest.mark.parametrize("given", ["LiTS", "=x", "LiTS="])
def test_an_option_dataset_without_name_or_folder_is_refused(given, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--dataset", given, "--out", str(tmp_path / "run")])
    assert end.value.code == 2 and "is not NAME=FOLDER" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- the page

def test_the_page_holds_the_table(capsys):
    assert layouts.main(["--markdown"]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 2 + len(layouts.LAYOUTS)
    assert table in PAGE.read_text(encoding="utf-8"), \
        "run `python -m uniseg layouts --markdown` and put it into docs/datasets.md"


def test_the_printed_table_names_every_dataset(capsys):
    assert layouts.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line and not line.startswith(" ")] == [row.name for row in layouts.LAYOUTS]
