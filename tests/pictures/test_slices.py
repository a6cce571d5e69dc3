"""Slices as pixels: every voxel lands where it belongs, its right on the left, whatever the file's axes are."""

import nibabel as nib
import numpy as np
import pytest

from uniseg.imaging.volume import read_ct, read_label_map
from uniseg.pictures.slices import AXIAL, CORONAL, FILL, NO_CT, PLANES, SAGITTAL, Case, make_case, slice_picture
from uniseg.taxonomy import CLASSES

KIDNEY, TUMOUR = 2, 26
COLOR = {value: np.array(CLASSES[value - 1].color, float) for value in (KIDNEY, TUMOUR)}


def whole(labels, spacing=(1.0, 1.0, 1.0), at=None, hu=-1024):
    """A Case that shows the whole volume of one HU."""
    at = tuple(n // 2 for n in labels.shape) if at is None else at
    return Case(np.full(labels.shape, hu, np.int16), labels, np.array(spacing), at,
                tuple(slice(0, n) for n in labels.shape), (-160.0, 240.0))


def coloured(picture):
    """Which pixels are not grey."""
    return np.ptp(picture, axis=2) > 1


@pytest.fixture(scope="module")
def box():
    """100 voxels of 1 mm along each axis: x 70 to 89 (right), y 20 to 39 (behind), z 60 to 79 (above)."""
    labels = np.zeros((100, 100, 100), np.uint8)
    labels[70:90, 20:40, 60:80] = KIDNEY
    return labels


# A pixel is a voxel. The right of the patient is left: x 70 to 89 are columns 29 to 10. Anterior is above: y 20 to 39
# are rows 79 to 60, or columns of the sagittal slice, whose left is anterior. z 60 to 79 are rows 39 to 20.
@pytest.mark.parametrize("plane, rows, columns", [(AXIAL, (60, 80), (10, 30)), (CORONAL, (20, 40), (10, 30)),
                                                  (SAGITTAL, (20, 40), (60, 80))], ids=lambda p: getattr(p, "name", ""))
def test_a_box_lands_on_its_pixels_with_a_line_inside_its_edge_and_a_light_fill(box, plane, rows, columns):
    picture = slice_picture(whole(box, at=(80, 30, 70)), plane, 1.0)
    expected = np.zeros((100, 100), bool)
    expected[slice(*rows), slice(*columns)] = True
    found = coloured(picture)
    assert (expected & ~found).sum() <= 4 and not (found & ~expected).any()           # corners may be rounded
    middle = sum(rows) // 2
    assert np.allclose(picture[middle, columns[0] + 1], COLOR[KIDNEY], atol=1)        # the line
    assert np.allclose(picture[middle, columns[1] - 2], COLOR[KIDNEY], atol=1)
    assert np.allclose(picture[middle, sum(columns) // 2], FILL * COLOR[KIDNEY], atol=8)
    plain = slice_picture(whole(box, at=(80, 30, 70)), plane, 1.0, labels=False)
    assert not coloured(plain).any()


def test_the_centre_of_every_voxel_has_the_colour_of_its_own_label():
    """Random labels, 5 pixels a voxel: smoothing rounds edges and moves none beyond a voxel's centre."""
    labels = (np.random.default_rng(0).random((24, 20, 3)) < 0.4).astype(np.uint8) * KIDNEY
    picture = slice_picture(whole(labels, at=(0, 0, 1)), AXIAL, 0.2)
    centres = coloured(picture)[2::5, 2::5]
    assert centres.shape == (20, 24) and np.array_equal(centres, labels[::-1, ::-1, 1].T > 0)


def test_thick_slices_leave_no_stairs():
    """The edge of a wedge moves 4 mm from one 5 mm slice to the next: in between it lies in between."""
    labels = np.zeros((100, 8, 10), np.uint8)
    for k in range(10):
        labels[:20 + 4 * k, :, k] = KIDNEY
    picture = coloured(slice_picture(whole(labels, (1, 1, 5)), CORONAL, 0.5))
    edge = 200 - picture[::-1].argmax(axis=1) * 1.0                  # pixels from the left of the patient, upwards
    slope = np.diff(edge[10:90])
    assert np.abs(slope - 0.8).max() <= 1.3 and np.abs(edge[10:90] - edge[10] - 0.8 * np.arange(80)).max() < 3


def test_areas_are_true_to_scale_whatever_the_voxels():
    labels = np.zeros((60, 50, 12), np.uint8)
    labels[10:50, 15:35, 3:9] = KIDNEY                                # 40 x 20 x 6 voxels of 0.8 x 1.1 x 5 mm
    case = whole(labels, (0.8, 1.1, 5.0), (30, 25, 6))
    for plane, area in ((AXIAL, 32 * 22), (CORONAL, 32 * 30), (SAGITTAL, 22 * 30)):
        for mm in (0.4, 0.9):
            picture = slice_picture(case, plane, mm)
            assert coloured(picture).sum() * mm ** 2 == pytest.approx(area, rel=0.06)
            assert picture.shape[:2] == tuple(round(n / mm) for n in case.extent_mm(plane)[::-1])


def test_a_single_voxel_is_seen_and_a_tumour_is_drawn_over_its_organ():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:30, 10:30, 10:30], labels[20, 20, 20] = KIDNEY, TUMOUR
    for plane in PLANES:
        picture = slice_picture(whole(labels), plane, 0.5)
        assert (picture[..., 1] - picture[..., 0]).max() > 60                           # green, in red brown
        assert np.abs(picture - COLOR[KIDNEY]).max(axis=2).min() < 1


def test_a_class_at_the_end_of_the_volume_has_no_line_there():
    """The line would say that the organ ends where only the CT does."""
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:, :, 25:] = KIDNEY
    picture = slice_picture(whole(labels), CORONAL, 0.5)
    assert np.allclose(picture[0], FILL * COLOR[KIDNEY], atol=8)
    assert np.allclose(picture[28, 40], COLOR[KIDNEY], atol=1)      # but where it ends, row 2 * 15 - 1


def test_without_a_ct_labels_stand_on_one_grey():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:30, 10:30, 10:30] = KIDNEY
    case = make_case(None, labels, np.eye(4))
    picture = slice_picture(case, AXIAL, 0.5)
    assert (picture[0] == NO_CT).all() and picture.shape == (72, 72, 3)               # 20 mm and 8 mm on each side


# ---------------------------------------------------------------------------------------- what is shown, and from where

def patient():
    """A body in air above a thin table, with a kidney at the right, behind, above; 2 x 2 x 3 mm."""
    hu, labels = np.full((100, 90, 60), -1000, np.int16), np.zeros((100, 90, 60), np.uint8)
    hu[20:80, 30:75], hu[5:95, 20:22] = np.random.default_rng(0).normal(40, 10, (60, 45, 60)), 0
    labels[60:72, 36:48, 30:45] = KIDNEY
    return hu, labels, np.diag([2.0, 2.0, 3.0, 1.0])


def test_the_body_is_shown_without_table_and_air_and_the_slices_go_where_labels_are():
    case = make_case(*patient())
    assert [(part.start, part.stop) for part in case.box] == [(16, 84), (26, 79), (0, 60)]     # 8 mm around
    assert all(low <= i < high for i, (low, high) in zip(case.at, ((60, 72), (36, 48), (30, 45))))


def test_labels_outside_the_body_are_shown_too():
    hu, labels, affine = patient()
    labels[2, 40, 35] = TUMOUR
    case = make_case(hu, labels, affine, at=(65, 40, 35))
    assert case.box[0].start == 0


def test_a_single_labelled_voxel_is_found():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10, 7, 11] = TUMOUR
    assert make_case(np.zeros(labels.shape, np.int16), labels, np.eye(4)).at == (10, 7, 11)


def test_the_slices_go_where_most_is_seen():
    """Two kidneys: the sagittal slice goes through one of them, not between them."""
    labels = np.zeros((80, 40, 40), np.uint8)
    labels[10:20, 10:20, 10:20], labels[60:72, 12:24, 12:24] = 3, KIDNEY
    x, y, z = make_case(None, labels, np.eye(4)).at
    assert 60 <= x < 72 and 12 <= y < 20 and 12 <= z < 20


@pytest.mark.parametrize("axes", ["LPS", "LAS", "RPI", "SAL", "PIR", "IRP"])
def test_a_file_with_any_axes_gives_the_same_picture(axes):
    hu, labels, affine = patient()

    def stored(array):
        image = nib.Nifti1Image(array, affine)
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
        return image.as_reoriented(turn)
    ct, label_map = read_ct(stored(hu)), read_label_map(stored(labels))
    assert "".join(nib.aff2axcodes(ct.geometry.affine)) == axes
    case, straight = make_case(ct.array, label_map.array, ct.affine), make_case(hu, labels, affine)
    for plane in PLANES:
        picture = slice_picture(case, plane, 1.0)
        assert np.array_equal(picture, slice_picture(straight, plane, 1.0))
        assert plane is SAGITTAL or np.nonzero(coloured(picture))[1].mean() < picture.shape[1] / 2    # right is left


def test_an_oblique_ct_is_shown_on_its_own_axes():
    """Turned by 20 degrees about z: the same picture as without the turn."""
    hu, labels, affine = patient()
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    turned = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ affine
    ct = read_ct(nib.Nifti1Image(hu, turned))
    for plane in PLANES:
        assert np.array_equal(slice_picture(make_case(ct.array, labels, ct.affine), plane, 1.0),
                              slice_picture(make_case(hu, labels, affine), plane, 1.0))
