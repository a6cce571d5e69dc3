"""benchmarks/robustness.py: each perturbation does to a tiny CT what it says; the command runs on a phantom."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))         # as where the script is started
import perturbations
import robustness
from conftest import Patient, write_dataset
from perturbations import (
    BELOW_THE_CHEST,
    PERTURBATIONS,
    NotPossible,
    chest_alone,
    clipped,
    filled,
    flipped,
    half_field_of_view,
    in_a_circle,
    native_shifts,
    noisy,
    one_side,
    orientation_lost,
    scaled,
    shifted,
    slim_chest,
    stored_as,
    stored_values,
    thick_slices,
    turned,
    with_table,
    without_contrast,
)
from robustness import case_lines, differing, score_case, summary_lines
from tools.synthetic.tissues import centre
from uniseg import checkpoint
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import to_ras, write_volume
from uniseg.model import ModelConfig, UniversalModel
from uniseg.phantom import make_phantom


def block(shape=(40, 40, 8), spacing_mm=(5.0, 5.0, 2.5), at=(-100.0, -80.0, 30.0)):
    """A body of 0 HU in air, 20 x 16 voxels wide and deep.

    In it lies a liver of 120 HU, and in the liver an aorta of 300 HU.
    """
    hu = np.full(shape, -1000, np.int16, order="F")
    hu[10:30, 12:28] = 0
    masks = {"liver": np.zeros(shape, bool, order="F"), "aorta": np.zeros(shape, bool, order="F")}
    masks["liver"][14:26, 15:25, 2:6] = True
    masks["aorta"][18:22, 18:22, 2:6] = True
    hu[masks["liver"]], hu[masks["aorta"]] = 120, 300
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = at
    return hu, affine, masks


def world(affine, *index):
    return (affine @ [*index, 1])[:3].tolist()


def test_stored_in_another_order_every_voxel_keeps_its_place_in_the_world():
    hu, affine, masks = block()
    turned, new, new_masks = stored_as(hu, affine, masks, "SLA")                    # axes: head, left, front
    assert turned.shape == (8, 40, 40)
    assert turned[3, 39 - 15, 20] == hu[15, 20, 3] and new_masks["liver"][3, 39 - 15, 20]
    assert world(new, 3, 39 - 15, 20) == world(affine, 15, 20, 3)
    back, back_affine, _ = to_ras(turned, new)
    assert np.array_equal(back, hu) and np.array_equal(back_affine, affine)
    assert differing(hu, affine, turned, new) == 0
    turned = turned.copy()
    turned[0, 0, :2] = 7
    assert differing(hu, affine, turned, new) == 2
    assert differing(hu, affine, hu[:-1], affine) is None


def test_5_mm_slices_are_means_and_the_labels_those_that_cover_half():
    hu, affine, masks = block()                                                    # 8 slices of 2.5 mm
    hu[0, 0] = [-1000, -900, 0, 100, 1, 2, 30, 50]
    masks["aorta"][0, 0] = [False, False, True, False, True, True, False, False]
    thick, new, new_masks = thick_slices(hu, affine, masks)
    assert thick.dtype == np.int16 and thick[0, 0].tolist() == [-950, 50, 2, 40]   # 1.5 to the even number
    assert new_masks["aorta"][0, 0].tolist() == [False, True, True, False]
    assert new.diagonal().tolist() == [5, 5, 5, 1]
    assert world(new, 0, 0, 0) == [-100, -80, (30.0 + 32.5) / 2]                   # the middle of the first two


def test_5_mm_slices_take_parts_of_slices_that_do_not_divide_them():
    hu, affine, masks = block(spacing_mm=(5, 5, 2))  # 16 mm: three slices of 5, the last mm is cut off
    hu[0, 0] = [0, 100, 200, 300, 0, 0, 0, 0]
    thick, new, _ = thick_slices(hu, affine, masks)
    assert thick.shape == (40, 40, 3)
    assert thick[0, 0].tolist() == [(0 * 2 + 100 * 2 + 200) / 5, (200 + 300 * 2) / 5, 0]
    assert world(new, 0, 0, 0)[2] == 30 - 1 + 2.5                                  # from the lower face up


def test_slices_that_are_thick_already_are_left_and_so_is_a_ct_thinner_than_one():
    with pytest.raises(NotPossible, match="5.0 mm already"):
        thick_slices(*block(spacing_mm=(5, 5, 5)))
    with pytest.raises(NotPossible, match="4 mm are no slice of 5 mm"):
        thick_slices(*block(spacing_mm=(5, 5, 0.5)))


def test_half_the_field_of_view_lies_about_the_middle_of_the_body_and_moves_nothing():
    hu, affine, masks = block()
    half, new, new_masks = half_field_of_view(hu, affine, masks)                   # the body: 10 to 30 and 12 to 28
    assert half.shape == (20, 20, 8) and np.array_equal(half, hu[10:30, 10:30])
    assert world(new, 0, 0, 0) == world(affine, 10, 10, 0)
    assert np.array_equal(new_masks["liver"], masks["liver"][10:30, 10:30])
    with pytest.raises(NotPossible, match="no body"):
        half_field_of_view(np.full_like(hu, -1000), affine, masks)


def test_half_the_field_of_view_of_a_body_at_the_edge_does_not_leave_the_ct():
    hu, affine, masks = block()
    # 20 to 40: the middle, 30, is 10 from the edge
    moved, new, _ = half_field_of_view(np.roll(hu, 10, axis=0), affine, masks)
    assert moved.shape == (20, 20, 8) and world(new, 0, 0, 0)[0] == world(affine, 20, 0, 0)[0]


def test_noise_has_its_sd_and_is_the_same_each_time():
    hu, affine, masks = block()
    noise, *_ = noisy(hu, affine, masks, 20)
    inside = (noise - hu)[10:30, 12:28]  # 2560 voxels; in air -1024 is the end
    assert abs(inside.std() - 20) < 1 and abs(inside.mean()) < 1.5
    assert noise.dtype == np.int16 and noise.min() == -1024
    assert np.array_equal(noise, noisy(np.ascontiguousarray(hu), affine, masks, 20)[0])


def test_shifted_hu_are_shifted_exactly_down_to_air():
    hu, affine, masks = block()
    assert np.array_equal(shifted(hu, affine, masks, 20)[0], hu + 20)
    lower = shifted(hu, affine, masks, -40)[0]
    assert lower[14, 15, 2] == 80 and lower[0, 0, 0] == -1024


def test_a_table_lies_below_the_patient_and_changes_nothing_else():
    hu, affine, masks = block()                                                    # 60 mm of air below: room enough
    lain, new, new_masks = with_table(hu, affine, masks)
    assert np.array_equal(new, affine) and new_masks["liver"].sum() == masks["liver"].sum()
    # its sides curve up
    assert np.array_equal(lain[10:30, 12:], hu[10:30, 12:]) and np.array_equal(lain[:, 16:], hu[:, 16:])
    below = lain[20, :12, 0]
    assert (below > -500).any() and (below > -990).sum() >= 4                      # a shell; mattress and foam
    assert (lain == lain[:, :, :1])[:, :12].all()                                  # the same in every slice
    assert np.array_equal(lain, with_table(hu, affine, masks)[0])


def test_a_table_below_a_ct_that_ends_at_the_back_gets_room():
    hu, affine, masks = (a[:, 11:] if isinstance(a, np.ndarray) and a.ndim == 3 else a for a in block())
    masks = {name: mask[:, 11:] for name, mask in masks.items()}
    lain, new, new_masks = with_table(hu, affine, masks)                           # 5 mm of air: 7 rows more make 40
    assert lain.shape == (40, 29 + 7, 8)
    assert world(new, 3, 9, 4) == world(affine, 3, 2, 4)
    assert np.array_equal(lain[10:30, 8:], hu[10:30, 1:]) and np.array_equal(new_masks["liver"][:, 7:], masks["liver"])


def test_without_contrast_each_class_has_its_native_mean_and_its_surroundings_stay():
    hu, affine, masks = block()
    shifts = native_shifts(hu, masks)
    assert shifts == {"liver": round(centre("liver", "native") - 120, 1),
                      "aorta": round(centre("blood", "native") - 300, 1)}
    native, _, _ = without_contrast(hu, affine, masks)  # an edge of 1 mm: 0.2 voxels in the plane
    assert native[16, 17, 4] == round(centre("liver", "native"))
    assert native[20, 20, 4] == round(centre("blood", "native"))  # the vessel overrules the liver around it
    assert np.array_equal(native[:14], hu[:14]) and native.dtype == np.int16


def test_contrast_is_removed_where_there_is_some_and_nothing_is_made_brighter():
    hu, affine, masks = block()
    hu[masks["liver"]], hu[masks["aorta"]] = 30, 300                               # a fatty liver
    assert native_shifts(hu, masks)["liver"] == 0
    native, _, _ = without_contrast(hu, affine, masks)
    assert native[16, 17, 4] == 30
    with pytest.raises(NotPossible, match="no class that enhances"):
        without_contrast(hu, affine, {"colon": masks["liver"]})


def test_a_chest_begins_2_cm_above_the_kidneys_or_where_the_upper_lungs_do():
    hu, affine, masks = block(shape=(40, 40, 60))
    masks["left_kidney"] = np.zeros(hu.shape, bool)
    masks["left_kidney"][12, 14, 3:10] = True  # slices 3 to 9; 8 slices of 2.5 mm are 2 cm
    chest, new, new_masks = chest_alone(hu, affine, masks)
    assert chest.shape == (40, 40, 60 - 18) and world(new, 0, 0, 0) == world(affine, 0, 0, 18)
    assert not new_masks["left_kidney"].any()
    del masks["left_kidney"]
    with pytest.raises(NotPossible, match="neither"):
        chest_alone(hu, affine, masks)
    masks["right_lung"] = np.zeros(hu.shape, bool)
    masks["right_lung"][12, 14, 10:50] = True                                      # 40 slices, of which the upper 24
    assert chest_alone(hu, affine, masks)[0].shape[2] == 60 - 26
    masks["left_kidney"] = np.roll(masks["right_lung"], 1, axis=2)  # to slice 50: 1 slice above 59, nothing left
    with pytest.raises(NotPossible, match="2 mm of chest"):
        chest_alone(hu, affine, masks)


# ----------------------------------------------------------------------------------------------------------- the
# command

CLASSES = ("right_kidney", "left_kidney", "liver", "aorta", "bladder")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained network of 2 channels on a grid of 24 mm, on which a phantom is a single window."""
    torch.manual_seed(0)
    config = ModelConfig(CLASSES, "unet", 2, "independent", 8, text_width=4)
    network = UniversalModel(config, torch.randn(len(CLASSES), 4))
    path = tmp_path_factory.mktemp("weights") / "untrained.pt"
    checkpoint.save(path, network, Preprocessing((24.0,) * 3, window=(16,) * 3, antialias=True))
    return path


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_perturbation_and_writes_the_same_numbers(weights, tmp_path, capsys):
    shown = {"kidneys": ("right_kidney", "left_kidney"), "liver": ("liver",), "spleen": ("spleen",)}
    write_dataset(tmp_path / "root" / "Ward", shown, {"a": Patient(*make_phantom((12.0, 12.0, 12.0)))})
    out = tmp_path / "out.json"
    assert robustness.main([str(tmp_path / "root"), "--weights", str(weights), "--device", "cpu",
                            "--json", str(out)]) == 0
    report, text = json.loads(out.read_text())["Ward/a"], capsys.readouterr().out
    rows = report["rows"]
    assert list(rows) == list(PERTURBATIONS)
    # no spleen offered
    assert "| perturbation | right_kidney | left_kidney | liver | mean | change | voxels that differ |" in text
    rows_of_text = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {cells[0]: cells for cells in rows_of_text}
    plain = rows["unperturbed"]
    assert table["unperturbed"] == ["unperturbed", *(f"{plain['dice'][c]:.3f}" for c in CLASSES[:3]),
                                    f"{plain['mean']:.3f}", "+0.000", "identical"]
    assert plain["mean"] == pytest.approx(np.mean(list(plain["dice"].values())))
    assert all(rows[f"stored as {codes}"]["differing_voxels"] is not None for codes in ("LPS", "SLA"))
    assert rows["stored as LPS"] == rows["stored as LAS"] == plain                 # flips: to the last bit
    assert rows["5 mm slices"] == {"not possible": "slices are 12.0 mm already"}
    assert rows["chest alone"].keys() == {"dice", "mean", "change", "differing_voxels", "outside_ml", "warnings"}
    assert list(rows["chest alone"]["outside_ml"]) == ["right_kidney", "left_kidney", "bladder"]  # no prostate offered
    assert set(report["native_shifts_hu"]) == {"right_kidney", "left_kidney", "liver", "spleen"}
    assert "not labelled here, left as it is: aorta" not in text.split("contrast removed, HU by class")[0]
    assert "not labelled here, left as it is: " in text and "aorta" in text.split("not labelled here")[1]


class Painter:
    """In place of a Segmenter: calls "liver" what is above 100 HU and "bladder" the uppermost slice in RAS."""

    classes = ("liver", "bladder")

    def segment(self, image):
        hu, affine = np.asarray(image.dataobj), image.affine
        found = {"liver": hu > 100, "bladder": np.zeros(hu.shape, bool)}
        to_ras(found["bladder"], affine)[0][:, :, -1] = True                       # a view
        ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        return type("Result", (), {
            "classes": self.classes, "affine": affine, "label_map": found["liver"] * 6, "mask": staticmethod(found.get),
            "stats": {"warnings": [], "classes": {c: {"ml": float(m.sum() * ml)} for c, m in found.items()}}})


def test_scores_of_a_model_that_thresholds_are_those_to_expect():
    hu, affine, masks = block(shape=(40, 40, 48))
    masks = {"liver": np.zeros(hu.shape, bool, order="F"), "right_kidney": np.zeros(hu.shape, bool, order="F")}
    hu[10:30, 12:28] = 0
    masks["liver"][14:26, 15:25, 30:40] = True
    masks["right_kidney"][14, 15, 2:6] = True
    hu[masks["liver"]] = 115
    rows = score_case(Painter(), hu, affine, masks)
    assert rows["unperturbed"]["mean"] == rows["HU + 20"]["mean"] == rows["half the field of view"]["mean"] == 1
    assert all(rows[f"stored as {codes}"]["differing_voxels"] == 0 for codes in ("LPS", "LAS", "ASR", "PIR", "SLA"))
    assert rows["HU - 20"]["mean"] == 0 and rows["HU - 20"]["change"] == -1        # 95 HU: not found
    assert rows["HU - 20"]["differing_voxels"] == masks["liver"].sum()
    assert rows["contrast removed"]["mean"] == 0
    assert 0.7 < rows["noise, sd 20 HU"]["mean"] < 0.95                            # 77 % are still above 100 HU
    assert rows["chest alone"]["dice"] == {"liver": 1}
    assert rows["chest alone"]["outside_ml"] == {"bladder": pytest.approx(40 * 40 * 0.0625)}
    lines = "\n".join(case_lines(rows))
    assert "| HU - 20 | 0.000 | 0.000 | -1.000 | 1200 |" in lines
    assert "chest alone, ml found of what this CT does not show: bladder 100.0" in lines
    other = {**rows, "HU - 20": {"not possible": "made up"}}
    summary = list(summary_lines({"A/a": {"rows": rows}, "B/b": {"rows": other}}))
    assert "| HU - 20 | 0.000 (-1.000) | - | -1.000 |" in summary


def test_nothing_to_do_and_no_data_are_refused_in_one_line(weights, tmp_path, capsys):
    assert robustness.main([]) == 2
    assert capsys.readouterr().err == "uniseg: error: nothing to segment. Give DATA_ROOT, CTs, or --head CT.\n"
    assert robustness.main([str(tmp_path), "--weights", str(weights)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_head_is_reported_by_what_is_wrongly_found(weights, tmp_path, capsys):
    hu, affine, _ = block()
    write_volume(tmp_path / "head.nii.gz", hu, affine)
    assert robustness.main(["--head", str(tmp_path / "head.nii.gz"), "--weights", str(weights), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "head, ml found: " in out and "warnings: " in out
    assert robustness.main(["--head", str(tmp_path / "no.nii.gz"), "--weights", str(weights)]) == 2
    assert "no.nii.gz" in capsys.readouterr().err


def test_what_is_below_the_chest_are_classes():
    from uniseg.taxonomy import NAMES
    assert set(BELOW_THE_CHEST) | set(perturbations.ENHANCING) <= set(NAMES)


# ------------------------------------------------------------------------- what cannot be seen in the header

def test_fields_of_view_and_fills_keep_every_voxel_where_it_is():
    hu, affine, masks = block()
    side, new, cut = one_side(hu, affine, masks, share=0.5)                 # the body is 20 voxels wide, from 10 to 30
    assert side.shape[0] == 20 and np.array_equal(side, hu[20:]) and world(new, 0, 0, 0) == world(affine, 20, 0, 0)
    assert np.array_equal(cut["liver"], masks["liver"][20:])
    circle, _, inside = in_a_circle(hu, affine, masks, diameter_mm=100, value=7)      # 20 voxels across
    assert circle[20, 20, 4] == hu[20, 20, 4] and (circle[:9] == 7).all() and (circle[10:30, 19:21] != 7).all()
    assert np.array_equal(inside["liver"], masks["liver"] & (circle != 7))
    big, new, padded = filled(hu, affine, masks, value=0)
    assert big.shape == (53, 53, 8) and (big[:13] == 0).all() and np.array_equal(big[13:, 13:], hu)
    assert world(new, 13, 13, 0) == world(affine, 0, 0, 0) and padded["liver"].sum() == masks["liver"].sum()
    with pytest.raises(NotPossible, match="smaller"):
        in_a_circle(hu, affine, masks, diameter_mm=1000)


def test_values_that_are_no_hu():
    hu, affine, masks = block()
    hu[0] = -1024
    assert clipped(hu, affine, masks, low=-250)[0].min() == -250
    raw = stored_values(hu, affine, masks)[0]
    assert (raw[0] == -2000).all() and np.array_equal(raw[1:], hu[1:] + 1024)


def test_orientation_and_units_are_lost_without_a_trace_in_the_header():
    hu, affine, masks = block()
    for axis in range(3):
        array, same, moved = flipped(hu, affine, masks, axis)
        assert np.array_equal(np.flip(array, axis), hu) and np.array_equal(same, affine)
        assert np.array_equal(moved["aorta"], array == 300)
    array, bare, moved = turned(hu, affine, masks)
    assert array.shape == (40, 40, 8) and np.array_equal(np.rot90(array, -1), hu)
    assert np.array_equal(moved["aorta"], array == 300) and np.array_equal(bare, np.diag([5.0, 5.0, 2.5, 1.0]))
    array, bare, moved = orientation_lost(hu, affine, masks)
    assert np.array_equal(bare, np.diag([5.0, 5.0, 2.5, 1.0])) and np.array_equal(moved["aorta"], array == 300)
    assert np.allclose(scaled(hu, affine, masks, 0.1)[1][:3], affine[:3] / 10)


def test_a_slim_chest_keeps_its_lungs_and_6_mm_of_wall():
    hu, masks, affine = make_phantom((4.0, 4.0, 12.0), seed=1)
    masks = {name: masks[name] for name in ("right_lung", "left_lung", "liver")}
    thin, _, kept = slim_chest(hu, affine, masks)
    assert all(kept[name].sum() > 0.98 * masks[name].sum() for name in ("right_lung", "left_lung"))
    row = np.flatnonzero(masks["right_lung"].any(axis=(1, 2)))[-1]          # the lung's outermost voxel
    k = int(np.argmax(masks["right_lung"][row].any(axis=0)))
    assert (thin[row + 3:, :, k] == -1000).all() and (hu[row + 3:, :, k] > -300).any()
