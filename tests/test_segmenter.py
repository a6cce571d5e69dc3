"""segmenter.py: from a CT to masks on its own grid. The network is a stand-in whose true answer is known.

`Bands` calls a voxel liver, spleen, ... by its HU alone, so the right masks are those the CT was painted with. On grids
whose resampling weights are dyadic (4 mm stays 4 mm, 2 mm becomes 4 mm) all arithmetic is exact, and "the same" means
voxel for voxel. Ids like F52 and O15 are those of docs/faults.md.
"""

import itertools
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff

import uniseg
from png import read_png
from uniseg import checkpoint, segmenter, taxonomy
from uniseg.embeddings import class_embeddings
from uniseg.formats.label_table import read_label_table
from uniseg.imaging.anatomy import midsagittal_plane
from uniseg.imaging.bits import bounding_box, get_bit, pack
from uniseg.imaging.body import body_mask
from uniseg.imaging.byte_stream import VolumeError
from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.resampling import resample
from uniseg.imaging.volume import read_ct, scale_hu
from uniseg.inference import plausibility, second_view
from uniseg.inference import result as result_module
from uniseg.inference.native_grid import AT_THRESHOLD, logits_to_bytes
from uniseg.inference.outputs import Outputs
from uniseg.inference.region import BODY_MARGIN, grow_to_window
from uniseg.inference.request import logit
from uniseg.inference.second_view import central_part
from uniseg.model import ModelConfig, UniversalModel
from uniseg.postprocess import postprocess as refine
from uniseg.segmenter import Segmenter
from uniseg.sliding_window import EMPTY_LOGIT, gaussian_weights, plan_windows

PREPROCESSING = Preprocessing((4.0, 4.0, 4.0), window=(16, 16, 16))
AIR, BODY = -1000, 0
# class: middle and half width of its band in HU. The liver's band includes the tumour's: overlap, as in the paper.
BANDS = {"spleen": (130, 10), "liver": (75, 22), "aorta": (170, 10), "liver_tumor": (90, 8)}
PAINT = {"spleen": 130, "liver": 60, "aorta": 170, "liver_tumor": 90}


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """The stand-in's organs are of no adult's size; the warning about that is another test's (test_plausibility.py)."""
    monkeypatch.setattr(plausibility, "ADULT_ML", {})


class Bands(torch.nn.Module):
    """Logit of a class: 8 in the middle of its HU band, 0 at the band's edge, negative beyond. Counts its windows."""

    def __init__(self, bands=None, gain=8.0):
        super().__init__()
        self.bands, self.gain, self.windows = bands or BANDS, gain, 0
        self.classes = tuple(self.bands)
        self.config = ModelConfig(classes=self.classes, backbone="unet")

    def forward(self, image, only=None):
        self.windows += len(image)
        hu = image * 425 - 175
        bands = [self.bands[name] for name in self.classes]
        chosen = bands if only is None else [bands[k] for k in only]
        return torch.cat([self.gain * (1 - (hu - middle).abs() / half) for middle, half in chosen], dim=1)


class Logits(torch.nn.Module):
    """Constant logits, one a class, wherever there is body; for cases in which the logits are all that matters."""

    def __init__(self, logits):
        super().__init__()
        self.values = torch.tensor(list(logits.values()))
        self.classes = tuple(logits)
        self.config = ModelConfig(classes=self.classes, backbone="unet")

    def forward(self, image, only=None):
        values = self.values if only is None else self.values[only]
        return torch.where(image > 0.2, values.view(1, -1, 1, 1, 1), torch.tensor(-9.0))


def stand_in(network=None, **preprocessing):
    return Segmenter(network or Bands(), replace(PREPROCESSING, **preprocessing), torch.device("cpu"),
                     {"file": "stand-in", "sha256": "0" * 64})


def paint(shape=(32, 28, 30), spacing_mm=(4.0, 4.0, 4.0)):
    """A lopsided body, each organ at a place of its own, RAS+: hu (D, H, W) int16, masks, affine."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape, spacing_mm)]
    x, y, z = np.meshgrid(*(s * (np.arange(n) - (n - 1) / 2) for n, s in zip(shape, spacing_mm)), indexing="ij")

    def ball(centre, radii):
        return sum(((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), centre, radii)) <= 1
    body = ball((0, 0, 0), (58, 50, 56))
    masks = {"spleen": ball((-34, -14, 16), (14, 16, 18)), "liver": ball((26, 8, 10), (24, 26, 28)),
             "aorta": ball((-6, -22, 0), (9, 9, 40)), "liver_tumor": ball((30, 12, 14), (9, 10, 11))}
    hu = np.full(shape, AIR, np.int16)
    hu[body] = BODY
    for name, mask in masks.items():
        hu[mask] = PAINT[name]
    masks["aorta"] &= hu == PAINT["aorta"]
    hu += (np.indices(shape).sum(axis=0) % 2).astype(np.int16)      # no scanner gives one value to many neighbours
    return hu, masks, affine


def image(hu, affine):
    """A CT in memory as nibabel has it."""
    picture = nib.Nifti1Image(hu, affine)
    picture.header.set_xyzt_units("mm")
    return picture


def rotated(affine, degrees):
    """The affine turned about an oblique axis."""
    axis = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn @ affine


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def same(result, other):
    """Two results are the same to the last voxel."""
    assert result.classes == other.classes
    assert np.array_equal(result.label_map, other.label_map)
    assert all(np.array_equal(result.mask(n), other.mask(n)) for n in result.classes)


ORIENTATIONS = [np.array(list(zip(axes, flips)), float) for axes in itertools.permutations(range(3))
                for flips in itertools.product((1, -1), repeat=3)]
assert len(ORIENTATIONS) == 48


# --- The picture

def test_the_picture_has_right_on_its_left_whatever_the_axes_of_the_file(tmp_path):
    """The liver is right and in front, the spleen left and behind. The axial slice is the upper left one."""
    hu, _, affine = paint()
    stand_in().segment(image(hu, affine)).preview(tmp_path / "plain.png")
    for orientation in (ORIENTATIONS[6], ORIENTATIONS[29]):                             # LPS, ILA
        stored = image(apply_orientation(hu, orientation), affine @ inv_ornt_aff(orientation, hu.shape))
        stand_in().segment(stored).preview(tmp_path / "stored.png")
        assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "stored.png").read_bytes()
    axial = read_png(tmp_path / "plain.png")[:640, :680]
    row, column = {}, {}
    for name in ("liver", "spleen"):
        rows, columns = np.nonzero((axial == taxonomy.BY_NAME[name].color).all(axis=2))
        row[name], column[name] = rows.mean(), columns.mean()
    assert column["liver"] < column["spleen"] and row["liver"] < row["spleen"]


# --- On the input's own grid

def test_without_resampling_the_masks_are_those_the_ct_was_painted_with():
    hu, masks, affine = paint()
    result = stand_in().segment(image(hu, affine))
    assert result.label_map.shape == hu.shape and result.label_map.dtype == np.uint8
    assert np.array_equal(result.affine, affine)
    for name, mask in masks.items():
        assert mask.any() and np.array_equal(result.mask(name), mask), name


@pytest.mark.parametrize("spacing_mm, degrees, step", [
    ((4, 4, 4), 0, 5), pytest.param((4, 4, 4), 0, 1, marks=pytest.mark.slow),
    pytest.param((2, 2, 4), 20, 1, marks=pytest.mark.slow)], ids=str)
def test_a_ct_stored_in_any_of_the_48_orientations_gives_the_same_masks_voxel_for_voxel(spacing_mm, degrees, step):
    """step: a fifth of them by default, all in the slow tests"""
    shape = [round(n * 4 / s) for n, s in zip((32, 28, 30), spacing_mm)]
    hu, masks, affine = paint(shape, [float(s) for s in spacing_mm])
    affine = rotated(affine, degrees)
    plain = stand_in().segment(image(hu, affine))
    assert dice(plain.mask("liver"), masks["liver"]) > 0.75                  # rims mix; at 4 mm it is 1, see above
    for orientation in ORIENTATIONS[::step]:
        stored = apply_orientation(hu, orientation)
        result = stand_in().segment(image(stored, affine @ inv_ornt_aff(orientation, hu.shape)))
        assert result.label_map.shape == stored.shape
        assert np.array_equal(result.label_map, apply_orientation(plain.label_map, orientation))
        for name in plain.classes:
            assert np.array_equal(result.mask(name), apply_orientation(plain.mask(name), orientation))
            figures = result.stats["classes"][name]
            box = bounding_box(result.mask(name))                            # of the file's own voxels
            assert figures["first_voxel"] == [part.start for part in box]
            assert figures["last_voxel"] == [part.stop - 1 for part in box]
            assert without_box(figures) == without_box(plain.stats["classes"][name])


def without_box(figures):
    return {key: value for key, value in figures.items() if key not in ("first_voxel", "last_voxel")}


@pytest.mark.slow
def test_with_any_voxel_size_flips_and_permuted_axes_are_exact():
    hu, _, affine = paint((50, 47, 16), (2.3, 2.7, 7.7))
    plain = stand_in().segment(image(hu, affine))
    for orientation in ORIENTATIONS[::5]:
        stored = image(apply_orientation(hu, orientation), affine @ inv_ornt_aff(orientation, hu.shape))
        expected = apply_orientation(plain.label_map, orientation)
        assert np.array_equal(stand_in().segment(stored).label_map, expected), orientation


def test_the_place_of_the_patient_in_the_scanner_changes_nothing():
    hu, _, affine = paint()
    plain = stand_in().segment(image(hu, affine))
    for shift in ((512, -256, 64), (0, 0, -2048), (0.1, 0.2, 0.3)):
        moved = affine.copy()
        moved[:3, 3] += shift
        same(stand_in().segment(image(hu, moved)), plain)


@pytest.mark.parametrize("spacing_mm", [
    (1, 1, 5), (5, 1, 1), (1.5, 6, 1.5), (2.9, 2.9, 2.9), (8, 8, 8), (1, 4, 4)], ids=str)
def test_any_voxel_size_is_segmented_on_its_own_grid(spacing_mm):
    """At half a voxel of error along an organ's rim the overlap stays high; a shift of one voxel would show."""
    shape = [max(1, round(n * 4 / s)) for n, s in zip((32, 28, 30), spacing_mm)]
    hu, masks, affine = paint(shape, [float(s) for s in spacing_mm])
    truth = masks["liver"]
    hu = np.where(hu > BODY, BODY, hu)
    hu[truth] = 60
    bright = {"liver": (250, 220)}                                   # above 30 HU: half way from the body to the liver
    result = stand_in(Bands(bright)).segment(image(hu, affine), postprocess=False)
    assert result.label_map.shape == hu.shape
    assert dice(result.mask("liver"), truth) > 0.9
    centre = [np.argwhere(mask).mean(axis=0) * spacing_mm for mask in (result.mask("liver"), truth)]
    assert np.abs(np.subtract(*centre)).max() < (0.3 if max(spacing_mm) < 8 else 1.5)            # mm


@pytest.mark.parametrize("shape", [
    (7, 28, 30), (32, 5, 30), (32, 28, 3), (9, 8, 10), (1, 28, 30), (32, 28, 1)], ids=str)
def test_f52_f53_a_volume_smaller_than_a_window_and_a_single_slice_work(shape):
    """Cut from the body's middle; the stand-in looks at single voxels, so the answer is the same piece of the whole."""
    hu, masks, affine = paint()
    cut = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(hu.shape, shape))
    result = stand_in().segment(image(hu[cut], affine), postprocess=False)
    assert result.label_map.shape == shape
    for name, mask in masks.items():
        assert np.array_equal(result.mask(name), mask[cut]), name


def test_f53_a_single_slice_of_40_by_40_at_another_voxel_size_works():
    hu, masks, affine = paint((40, 40, 30), (3.0, 3.0, 4.0))
    result = stand_in().segment(image(hu[:, :, 15:16], affine))
    assert result.label_map.shape == (40, 40, 1)
    assert dice(result.mask("liver"), masks["liver"][:, :, 15:16]) > 0.85


def test_one_voxel_is_a_volume_too():
    result = stand_in().segment(image(np.full((1, 1, 1), 60, np.int16), np.eye(4)))
    assert result.label_map.shape == (1, 1, 1) and result.stats["empty"]


@pytest.mark.parametrize("side", ["right", pytest.param("left", marks=pytest.mark.slow)])
def test_c10_organs_of_half_a_patient_keep_the_side_that_the_network_gave_them_and_a_warning_says_so(phantom_ct, side):
    """The plane of symmetry of such a half goes through the kidney; that must not exchange the sides."""
    ct = read_ct(phantom_ct.path)
    middle = ct.array.shape[0] // 2
    hu = ct.array[middle:] if side == "right" else ct.array[:middle]
    network = Bands({f"{side}_kidney": (165, 25), f"{'left' if side == 'right' else 'right'}_kidney": (-9000, 1)})
    result = stand_in(network, spacing_mm=(8.0, 8.0, 8.0)).segment(image(np.ascontiguousarray(hu), ct.affine))
    figures = result.stats["classes"]
    assert figures[f"{side}_kidney"]["voxels"] and sum(row["voxels"] > 0 for row in figures.values()) == 1
    assert [text for text in result.stats["warnings"] if "right and left are not checked" in text]


# --- Label map and masks

def test_the_numbers_of_the_label_map_are_those_of_table_2():
    hu, masks, affine = paint()
    result = stand_in().segment(image(hu, affine))
    expected = np.zeros(hu.shape, np.uint8)
    for name, number in (("spleen", 1), ("liver", 6), ("aorta", 8), ("liver_tumor", 27)):
        assert taxonomy.BY_NAME[name].index == number == result.stats["classes"][name]["label"]
        expected[masks[name]] = number
    assert np.array_equal(result.label_map, expected)


def test_classes_beyond_table_2_get_numbers_from_33_on_in_the_models_order():
    hu, masks, affine = paint()
    network = Bands({"new_organ": BANDS["spleen"], "liver": BANDS["liver"], "another": BANDS["aorta"]})
    result = stand_in(network).segment(image(hu, affine))
    assert set(np.unique(result.label_map)) == {0, 6, 33, 34}
    for value, name in ((33, "spleen"), (34, "aorta")):
        assert np.array_equal(result.label_map == value, masks[name])


def test_masks_keep_the_overlap_that_the_label_map_cannot_show():
    hu, masks, affine = paint()
    result = stand_in().segment(image(hu, affine))
    tumour = result.mask("liver_tumor")
    assert tumour.any() and result.mask("liver")[tumour].all()              # the tumour is liver, Section 4.1.1
    assert (result.label_map[tumour] == 27).all()
    assert result.stats["classes"]["liver"]["voxels"] == np.count_nonzero(result.label_map == 6) + tumour.sum()


def test_organs_come_first_then_vessels_then_tumours_however_sure_the_earlier_ones_are():
    hu, _, affine = paint()
    for least_sure, number in (("liver", 6), ("aorta", 8), ("liver_tumor", 27)):
        order = ("liver", "aorta", "liver_tumor")
        chosen = order[:order.index(least_sure) + 1]
        for names in (chosen, chosen[::-1]):                                # the model's order does not matter
            logits = {n: 0.5 if n == least_sure else 3.5 for n in names}
            result = stand_in(Logits(logits)).segment(image(hu, affine), postprocess=False)
            assert set(np.unique(result.label_map)) == {0, number}


def test_among_organs_that_overlap_the_higher_confidence_wins():
    hu, _, affine = paint()
    for liver, spleen, winner in ((1.0, 2.0, 1), (2.0, 1.0, 6), (-1.0, 0.1, 1)):
        for names in (("liver", "spleen"), ("spleen", "liver")):
            logits = {"liver": liver, "spleen": spleen}
            network = Logits({n: logits[n] for n in names})
            result = stand_in(network).segment(image(hu, affine), postprocess=False)
            assert set(np.unique(result.label_map)) == {0, winner}


def test_confidence_counts_from_each_class_own_threshold():
    hu, _, affine = paint()
    network = Logits({"liver": 2.0, "spleen": 1.0})
    result = stand_in(network).segment(image(hu, affine), threshold={"liver": 0.85}, postprocess=False)  # logit 1.73
    assert result.mask("liver").any() and set(np.unique(result.label_map)) == {0, 1}


# C15
def test_the_higher_confidence_wins_beyond_four_logits_too_where_the_bytes_of_both_classes_end():
    hu, _, affine = paint()
    for names in (("liver", "spleen"), ("spleen", "liver")):
        logits = {"liver": 6.0, "spleen": 9.0}
        result = stand_in(Logits({n: logits[n] for n in names})).segment(image(hu, affine), postprocess=False)
        assert set(np.unique(result.label_map)) == {0, 1} and result.mask("liver").sum() == result.mask("spleen").sum()


def test_a_threshold_may_differ_by_class():
    hu, _, affine = paint()
    network = Logits({"liver": 0.5, "spleen": 0.5, "aorta": 0.5})            # probability 0.62
    result = stand_in(network).segment(image(hu, affine), threshold={"liver": 0.6, "spleen": 0.7}, postprocess=False)
    assert result.mask("liver").any() and not result.mask("spleen").any() and result.mask("aorta").any()
    for threshold, found in ((0.6, True), (0.7, False)):
        stats = stand_in(network).segment(image(hu, affine), threshold=threshold).stats
        assert stats["empty"] is not found and stats["settings"]["threshold"] == threshold


def test_a_threshold_by_class_takes_aliases_and_refuses_what_the_weights_do_not_offer():
    hu, _, affine = paint()
    network = Logits({"liver": 0.5, "postcava": 0.5})
    result = stand_in(network).segment(image(hu, affine), threshold={"IVC": 0.7}, postprocess=False)
    assert result.mask("liver").any() and not result.mask("postcava").any()
    with pytest.raises(ValueError, match="class spleen is not in these weights.* They offer liver, postcava"):
        stand_in(network).segment(image(hu, affine), threshold={"spleen": 0.7})
    with pytest.raises(ValueError, match="unknown class name 'livr'. Did you mean liver"):
        stand_in(network).segment(image(hu, affine), threshold={"livr": 0.7})


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 2, float("nan"), {"liver": 1.0}], ids=str)
def test_a_threshold_that_is_no_probability_is_refused_before_any_work(threshold):
    with pytest.raises(ValueError, match="choose a probability between 0 and 1"):
        stand_in().segment("there is no such file.nii.gz", threshold=threshold)


@pytest.mark.parametrize("threshold", [0.5, 0.01, 0.37, 0.999])
def test_a_byte_is_above_128_exactly_where_the_logit_is_above_the_limit(threshold):
    limit = logit(threshold, "liver")
    edge = np.float32(limit)
    near = np.concatenate([[edge, np.nextafter(edge, np.float32(np.inf)), np.nextafter(edge, np.float32(-np.inf))],
                           edge + np.linspace(-0.05, 0.05, 1001), np.linspace(-50, 50, 4001),
                           [EMPTY_LOGIT, 1e30, -1e30]])
    logits = near.astype(np.float32).reshape(1, 1, -1)
    values = logits_to_bytes(logits.copy(), limit)
    assert values.dtype == np.uint8 and values.shape == logits.shape
    assert np.array_equal(values > AT_THRESHOLD, logits > edge) and not (values == AT_THRESHOLD).any()
    order = np.argsort(logits.ravel(), kind="stable")
    assert (np.diff(values.ravel()[order].astype(int)) >= 0).all()        # monotone: interpolation and confidence hold
    inner = np.abs(logits - limit) < 3.9
    assert np.abs((values[inner].astype(float) - AT_THRESHOLD) / 32 - (logits[inner] - limit)).max() < 1.5 / 32


def test_a_mask_is_found_by_an_alias_and_a_pair_gives_both_sides():
    hu, masks, affine = paint()
    result = stand_in(Bands({"right_kidney": BANDS["liver"], "left_kidney": BANDS["spleen"]})).segment(
        image(hu, affine), postprocess=False)
    assert np.array_equal(result.mask("r_kidney"), result.mask("right_kidney"))
    assert np.array_equal(result.mask("kidneys"), masks["spleen"] | masks["liver"])
    with pytest.raises(ValueError, match="no class liver in this result. It has right_kidney, left_kidney"):
        result.mask("liver")
    with pytest.raises(ValueError, match="unknown class name"):
        result.mask("lievr")


# --- Streaming: slabs, bytes and boxes change nothing

def whole_volume(network, ct, preprocessing, threshold=0.5, overlap=0.5, postprocess=True):
    """Section 4.1.2 as it reads, each step on whole arrays: one sum of all windows, no slab, no box but the body's.

    returns: masks (K bool arrays) and the label map, both RAS+ on the native grid
    """
    names, window = network.classes, preprocessing.window
    hu, affine = resample(ct.array, ct.affine, preprocessing.spacing_mm, antialias=preprocessing.antialias)
    body = body_mask(hu, voxel_size_mm(affine))
    box = bounding_box(body, BODY_MARGIN)
    scaled, body = torch.as_tensor(scale_hu(hu[box], preprocessing.hu_window)), body[box]
    assert all(n >= w for n, w in zip(scaled.shape, window)), "padding is not part of this reference"

    weights = gaussian_weights(window)
    total, norm = torch.zeros(len(names), *scaled.shape), torch.zeros(scaled.shape)
    for z, corners in plan_windows(scaled.shape, window, overlap, body).items():
        for x, y in corners:
            part = (slice(x, x + window[0]), slice(y, y + window[1]), slice(z, z + window[2]))
            with torch.no_grad():
                total[(slice(None), *part)] += weights * network(scaled[part][None, None])[0]
            norm[part] += weights
    logits = torch.where(norm > 0, total / norm, torch.tensor(EMPTY_LOGIT)).numpy()

    limit = np.log(threshold / (1 - threshold))
    fields = np.zeros((len(names), *hu.shape), np.uint8)
    for field, values in zip(fields, logits):
        field[box] = np.where(body, logits_to_bytes(values, limit), 0)             # no organ outside the body
    bits = pack([np.asfortranarray(field > 128) for field in fields])
    if postprocess:
        bits, _ = refine(bits, list(names), affine, midsagittal_plane(hu, affine))

    masks, label_map, sure = [], np.zeros(ct.array.shape, int), np.zeros(ct.array.shape)
    for k, field in enumerate(fields):
        kept = get_bit(bits, k)
        field = np.asfortranarray(np.where(kept, np.maximum(field, 129), np.minimum(field, 127)))
        native, _ = resample(field, affine, voxel_size_mm(ct.affine), shape=ct.array.shape)
        masks.append((native > 128, np.rint(native)))
    for kind in (taxonomy.ORGAN, taxonomy.VESSEL, taxonomy.TUMOUR):
        sure[:] = 0
        for name, (mask, confidence) in zip(names, masks):
            if taxonomy.BY_NAME[name].kind == kind:
                wins = mask & (confidence > sure)
                label_map[wins], sure[wins] = taxonomy.BY_NAME[name].index, confidence[wins]
    return [mask for mask, _ in masks], label_map


def small_network(classes, seed=0):
    """A real network of random weights, each class's logits spread about 0 inside the body."""
    torch.manual_seed(seed)
    config = ModelConfig(tuple(classes), "unet", width=4, lpg_hidden=8, text_width=384)
    network = UniversalModel(config, class_embeddings(classes)).eval()
    window = torch.as_tensor(scale_hu(paint()[0][8:24, 6:22, 7:23]))[None, None]
    with torch.no_grad():
        for bias in network.lpg.last_bias():
            bias.normal_()
        for bias, logits in zip(network.lpg.last_bias(), network(window)[0]):
            bias[-1] -= logits.median()                                     # b3 of Eq. (2)
    return network


STREAMED = {
    "stand-in, 4 mm": (Bands(), (4.0, 4.0, 4.0), {}),
    "stand-in, 2.3 x 2.7 x 3.9 mm": (Bands(), (2.3, 2.7, 3.9), {}),
    "random network": (small_network(["spleen", "right_kidney", "left_kidney", "liver", "aorta", "liver_tumor"]),
                       (3.1, 3.1, 5.0), {}),
    "random network, low threshold, not post-processed": (small_network(["liver", "postcava", "kidney_cyst"], seed=1),
                                                          (2.0, 3.0, 4.0), {"threshold": 0.3, "postprocess": False}),
    "random network, other overlap": (small_network(["colon", "rectum"], seed=2), (4.4, 4.0, 2.2), {"overlap": 0.6}),
}


@pytest.mark.parametrize("case", STREAMED)
def test_the_streamed_result_equals_that_of_whole_arrays_to_the_last_voxel(case):
    network, spacing_mm, options = STREAMED[case]
    hu, _, affine = paint([round(n * 4 / s) for n, s in zip((32, 28, 30), spacing_mm)], spacing_mm)
    result = stand_in(network).segment(image(hu, affine), **options)
    masks, label_map = whole_volume(network, read_ct(image(hu, affine)), PREPROCESSING, **options)
    classes = result.stats["classes"].items()
    assert all(figures["voxels"] for name, figures in classes if name != "aorta"), "nothing to compare"
    for name, expected in zip(network.classes, masks):
        assert np.array_equal(result.mask(name), expected), (name, np.count_nonzero(result.mask(name) ^ expected))
    assert np.array_equal(result.label_map, label_map)


def test_a_finer_ct_is_averaged_where_the_checkpoint_says_that_its_network_was_trained_so():
    hu, _, affine = paint((64, 56, 60), (2.0, 2.0, 2.0))
    hu = hu + np.random.default_rng(0).integers(-60, 60, hu.shape).astype(np.int16)
    found = []
    for antialias in (False, True):
        result = stand_in(antialias=antialias).segment(image(hu, affine), postprocess=False)
        preprocessing = replace(PREPROCESSING, antialias=antialias)
        masks, _ = whole_volume(Bands(), read_ct(image(hu, affine)), preprocessing, postprocess=False)
        assert all(np.array_equal(result.mask(name), mask) for name, mask in zip(result.classes, masks))
        found.append(result.mask("liver"))
    assert found[0].any() and not np.array_equal(*found)


@pytest.mark.parametrize("pad", ["air", "edge", None])
def test_a_thin_ct_is_filled_up_as_the_checkpoint_says_and_with_air_where_it_does_not_say(pad):
    hu, _, affine = paint()
    hu, seen = hu[:, :, 10:16], []                                          # 6 slices in windows of 16

    class Watched(Bands):
        def forward(self, patches, only=None):
            seen.append(patches.clone())
            return super().forward(patches, only)

    stand_in(Watched(), **({} if pad is None else {"pad": pad})).segment(image(hu, affine))
    ends = torch.cat([seen[0][..., :5] - seen[0][..., 5:6], seen[0][..., 11:] - seen[0][..., 10:11]], -1)
    assert bool(ends.any()) == (pad != "edge")
    assert (seen[0][..., :5] == 0).all() == (pad != "edge")


@pytest.mark.parametrize("box, shape, expected", [
    ((2, 5), 20, (0, 8)), ((15, 19), 20, (12, 20)), ((8, 12), 20, (6, 14)), ((3, 6), 7, (0, 7)),
    ((4, 16), 20, (4, 16))])
def test_a_box_smaller_than_a_window_grows_to_its_size_as_far_as_the_volume_goes(box, shape, expected):
    """A window of 8, along one axis."""
    assert grow_to_window((slice(*box),), (8,), (shape,)) == (slice(*expected),)


def test_the_middle_of_the_smallest_body_is_not_empty():
    for n in range(1, 9):
        for share in (0.3, 0.5, 0.9):
            part, _ = central_part(np.ones((n, 3, 1), bool), share)
            assert 0 <= part.start < part.stop <= n and part.start + part.stop == n


def test_windows_show_what_the_ct_has_around_a_body_smaller_than_they_are():
    hu = np.full((30, 30, 30), AIR, np.int16)
    hu[11:19, 13:17, 12:18] = BODY                                          # with its margin 16 x 12 x 14
    hu[15, 22] = 90        # beside it, at a side that has 12 voxels: seen all the same
    seen = []

    class Watched(Bands):
        def forward(self, patches, only=None):
            seen.append(patches.clone())
            return super().forward(patches, only)

    stand_in(Watched(), pad="edge").segment(image(hu, np.diag([4.0, 4, 4, 1])))
    assert len(seen) == 1
    expected = torch.as_tensor(scale_hu(hu[7:23, 7:23, 7:23], PREPROCESSING.hu_window))
    assert torch.equal(seen[0][0, 0], expected)


def test_a_narrow_field_of_view_goes_on_as_its_edge_where_the_checkpoint_says_so():
    hu, _, affine = paint()
    narrow, seen = hu[10:22, 8:20], []        # 12 x 12 in windows of 16, the body cut on all sides

    class Watched(Bands):
        def forward(self, patches, only=None):
            seen.append(patches.clone())
            return super().forward(patches, only)

    result = stand_in(Watched(), pad="edge").segment(image(narrow, affine), postprocess=False)
    first = seen[0][0, 0]
    assert torch.equal(first[:2], first[2:3].expand(2, -1, -1))
    assert torch.equal(first[:, -2:], first[:, -3:-2].expand(-1, 2, -1))
    inside = np.s_[10:22, 8:20]
    whole = stand_in().segment(image(hu, affine), postprocess=False)
    for name in whole.classes:        # Bands looks at each voxel alone: nothing may change
        assert np.array_equal(result.mask(name), whole.mask(name)[inside]), name


class Swayed(torch.nn.Module):
    """Logit 3 everywhere in a window that shows air, another in one that shows none."""

    classes = ("liver",)
    config = ModelConfig(classes=classes, backbone="unet")

    def __init__(self, without_air):
        super().__init__()
        self.without_air = without_air

    def forward(self, image, only=None):
        values = [3.0 if (patch == 0).any() else self.without_air for patch in image]
        return torch.tensor(values).reshape(-1, 1, 1, 1, 1).expand_as(image).clone()


@pytest.mark.parametrize("without_air, within, at_its_sides", [
    (-1.0, True, True), (-5.0, False, True), (-13.0, False, False)])
def test_with_a_second_view_logits_in_the_middle_of_the_body_are_the_mean_of_both(
        monkeypatch, without_air, within, at_its_sides):
    """3 and -1, -5, -13: half and half they are 1, -1, -5; at the sides, with a quarter of the second, 2, 1, -1."""
    monkeypatch.setattr(second_view, "FADE", 1)
    hu = np.full((16, 16, 16), AIR, np.int16)                               # one window of 16
    body = np.zeros(hu.shape, bool)
    body[2:14, 4:12] = True
    hu[body] = BODY + np.indices(hu.shape).sum(axis=0)[body] % 2
    weights = {"file": "stand-in", "sha256": "0" * 64}
    model = Segmenter(Swayed(without_air), PREPROCESSING, torch.device("cpu"), weights, second_view=0.5)
    result = model.segment(image(hu, np.diag([4.0, 4, 4, 1])), postprocess=False)
    expected = body.copy()
    expected[5:11, 6:10] = at_its_sides        # half of 12, half of 8, all the height: no air there
    expected[6:10, 7:9] = within
    assert np.array_equal(result.mask("liver"), expected)
    assert result.stats["settings"]["second_view"] == 0.5

    thin = model.segment(image(hu[:, :, 4:], np.diag([4.0, 4, 4, 1])), postprocess=False)     # smaller than a window
    assert np.array_equal(thin.mask("liver"), body[:, :, 4:]) and thin.stats["settings"]["second_view"] is None


def test_the_second_view_changes_nothing_for_a_network_that_looks_at_each_voxel_alone():
    hu, _, affine = paint((48, 40, 36))
    weights = {"file": "stand-in", "sha256": "0" * 64}
    once, twice = (Segmenter(Bands(), PREPROCESSING, torch.device("cpu"), weights, second_view=share)
                   .segment(image(hu, affine)) for share in (None, 0.7))
    assert twice.stats["settings"]["second_view"] == 0.7 and np.array_equal(once.label_map, twice.label_map)
    assert all(np.array_equal(once.mask(name), twice.mask(name)) for name in once.classes)


def test_a_mask_at_the_edge_of_the_volume_comes_back_up_to_the_edge():
    """The box of a class ends at the volume's edge; beyond it the edge voxel is repeated, as in `resample`."""
    hu, _, affine = paint()
    hu = hu[8:24, 8:22, 8:22]                                               # body in every voxel
    assert (hu > -300).all()
    result = stand_in(Logits({"liver": 3.0}), spacing_mm=[7.0, 3.0, 4.4]).segment(image(hu, affine), postprocess=False)
    assert result.mask("liver").all()


# --- Only what is asked for

@pytest.mark.slow
def test_classes_are_computed_on_their_own_and_are_the_same_as_in_the_full_run():
    names = ["spleen", "liver", "aorta", "kidney_cyst", "right_lung"]
    network = small_network(names)
    hu, _, affine = paint()
    full = stand_in(network).segment(image(hu, affine), postprocess=False)
    calls = []
    for k, mlp in enumerate(network.lpg.controllers):
        mlp.register_forward_hook(lambda *_, k=k: calls.append(k))
    part = stand_in(network).segment(image(hu, affine), classes=["aorta", "liver"], postprocess=False)
    assert set(calls) == {1, 2}                                             # no other class's MLP ran, Eq. (1)
    assert part.classes == ("liver", "aorta") == tuple(part.stats["classes"])  # in the model's order
    for name in part.classes:
        assert full.mask(name).any() and np.array_equal(part.mask(name), full.mask(name))
    assert set(np.unique(part.label_map)) <= {0, 6, 8}


def test_a_pair_or_an_alias_selects_the_models_own_names_in_its_order():
    names = ("left_kidney", "right_kidney", "postcava")
    chooser = stand_in(Bands({n: (60, 10) for n in names}))
    assert chooser.select(["IVC", "kidneys"]) == names
    assert chooser.select(["Right Kidney", "right_kidney"]) == ("right_kidney",)
    with pytest.raises(ValueError, match="class liver is not in these weights .stand-in.. They offer left_kidney"):
        chooser.select(["liver"])
    with pytest.raises(ValueError, match="unknown class name 'kidny'. Did you mean"):
        chooser.select(["kidny"])
    with pytest.raises(ValueError, match="no class to segment"):
        chooser.segment("unread.nii.gz", classes=[])


def test_windows_without_body_are_skipped_and_the_result_stays_the_same():
    """A body shaped like an L: the box around it has an empty quarter, the volume twice as much air again."""
    hu = np.full((80, 80, 24), AIR, np.int16)
    hu[8:16, 8:72, 4:20] = BODY
    hu[8:72, 8:16, 4:20] = BODY
    hu[20:60, 9:15, 6:18] = PAINT["liver"]
    network = Bands()
    result = stand_in(network).segment(image(hu, np.diag([4.0, 4, 4, 1])))
    assert np.array_equal(result.mask("liver"), hu == PAINT["liver"])
    box = (72, 72, 24)        # 64 + 2 x 4 of margin; z is cut at the volume
    everywhere = sum(map(len, plan_windows(box, (16, 16, 16)).values()))
    assert 0 < network.windows < everywhere / 2


def test_there_is_no_organ_outside_the_body_whatever_the_network_says():
    hu, _, affine = paint()
    everywhere = Bands({"liver": (0, 5000)})
    result = stand_in(everywhere).segment(image(hu, affine), postprocess=False)
    assert np.array_equal(result.mask("liver"), body_mask(hu, (4.0, 4.0, 4.0)))


def test_windows_lie_over_the_trunk_and_nothing_is_found_in_an_arm_beside_it():
    hu, _, affine = paint((64, 28, 30))                                     # 72 mm of air on each side of the patient
    arm = np.zeros(hu.shape, bool)
    arm[46:57, 10:18] = True        # 44 x 32 mm, all the way up, touching the side
    hu[arm] = BODY
    assert body_mask(hu, (4.0, 4.0, 4.0))[arm].mean() > 0.9
    network, whole = Bands({"liver": (0, 5000)}), Bands({"liver": (0, 5000)})
    found = stand_in(network).segment(image(hu, affine), postprocess=False).mask("liver")
    assert found[18:46].any(axis=(1, 2)).all() and not found[52:57].any()
    hu[arm] = AIR
    stand_in(whole).segment(image(hu, affine), postprocess=False)
    assert network.windows <= whole.windows + 2 * 3                         # no row of windows for the arm


# --- Nothing found, nothing silent

@pytest.mark.parametrize("value", [AIR, -1024, 60], ids=["air", "the lowest value", "the same value all over"])
def test_f51_a_volume_without_a_body_gives_an_empty_result_and_a_warning(value, tmp_path):
    network = Bands()
    result = stand_in(network).segment(image(np.full((20, 21, 22), value, np.int16), np.diag([4.0, 4, 4, 1])))
    assert network.windows == 0 and not result.label_map.any() and result.label_map.shape == (20, 21, 22)
    assert "no body found in this volume; the result is empty" in result.stats["warnings"]
    assert result.stats["empty"] is True
    assert all(c["voxels"] == 0 and c["ml"] == 0 and not c["touches_border"] for c in result.stats["classes"].values())
    result.save(tmp_path / "empty.nii.gz", tmp_path / "masks")
    assert not np.asarray(nib.load(tmp_path / "empty.nii.gz").dataobj).any()
    assert len(list((tmp_path / "masks").iterdir())) == len(result.classes)


def test_o17_a_body_in_which_nothing_is_found_is_empty_with_a_warning():
    hu, _, affine = paint()
    stats = stand_in(Logits({"liver": -3.0})).segment(image(hu, affine)).stats
    [warning] = stats["warnings"]
    assert stats["empty"] is True and warning.startswith("nothing found. Check that the CT")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_w13_nan_logits_are_an_error_never_an_empty_mask(bad):
    class Broken(Bands):
        def forward(self, image, only=None):
            logits = super().forward(image, only)
            logits[0, 0, 3, 3, 3] = bad
            return logits
    hu, _, affine = paint()
    with pytest.raises(FloatingPointError, match="NaN or infinity for the window at voxel .* try float32"):
        stand_in(Broken()).segment(image(hu, affine))


def test_f54_warnings_about_the_input_reach_the_result():
    grey = np.clip(paint()[0] // 4 + 100, 0, 255).astype(np.int16)
    warnings = stand_in().segment(image(grey, paint()[2])).stats["warnings"]
    assert any("look like a grey picture" in w for w in warnings)


def test_what_cannot_be_used_is_refused_by_its_name(tmp_path):
    bad = tmp_path / "ct.nii.gz"
    bad.write_bytes(b"")
    with pytest.raises(VolumeError, match="ct.nii.gz: empty file"):
        stand_in().segment(bad)


# --- The figures

def test_ml_is_voxels_times_the_determinant_of_the_affine_also_when_sheared_or_mirrored():
    """A gantry tilted by 4 degrees: the product of the voxel's edges would be 0.24 % too large."""
    hu, masks, affine = paint()
    tilt = np.radians(4)
    sheared = affine.copy()
    sheared[:3, 2] = [0, 4 * np.sin(tilt), 4 * np.cos(tilt)]
    mirrored = sheared @ np.diag([-1.0, 1, 1, 1])
    for given, data in ((affine, hu), (sheared, hu), (mirrored, hu)):
        counted = stand_in().segment(image(data, given), postprocess=False).stats["classes"]["spleen"]
        assert counted["voxels"] > 100
        assert counted["ml"] == pytest.approx(counted["voxels"] * abs(np.linalg.det(given[:3, :3])) / 1000, abs=6e-4)
    assert abs(np.linalg.det(sheared[:3, :3])) == pytest.approx(64 * np.cos(tilt)) != pytest.approx(64, rel=1e-3)


def test_ml_of_anisotropic_voxels():
    hu, masks, affine = paint((64, 28, 15), (2.0, 4.0, 8.0))
    counted = stand_in(spacing_mm=[2.0, 4.0, 8.0]).segment(image(hu, affine)).stats["classes"]["spleen"]
    assert counted["voxels"] == masks["spleen"].sum() and counted["ml"] == pytest.approx(counted["voxels"] * 0.064)


def test_touches_border_says_which_organ_the_field_of_view_cuts():
    hu, masks, affine = paint()
    top = np.flatnonzero(masks["spleen"].any(axis=(0, 1)))[-1]              # the spleen's highest plane
    for planes, touched in ((top + 2, False), (top + 1, True)):
        stats = stand_in().segment(image(hu[:, :, :planes], affine)).stats["classes"]
        assert stats["spleen"]["touches_border"] is touched and stats["aorta"]["touches_border"] is True
    whole = stand_in().segment(image(hu, affine)).stats["classes"]
    assert not any(found["touches_border"] for found in whole.values())


def test_o15_the_json_is_strict_and_says_how_the_result_came_about(tmp_path):
    hu, _, affine = paint()
    source = tmp_path / "patient 1.nii.gz"
    nib.save(image(apply_orientation(hu, ORIENTATIONS[10]), affine @ inv_ornt_aff(ORIENTATIONS[10], hu.shape)), source)
    result = stand_in().segment(source, threshold={"liver": 0.4})
    result.save(tmp_path / "out.nii.gz")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")
    stats = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert stats == result.stats
    assert stats["disclaimer"] == uniseg.NOT_A_MEDICAL_DEVICE
    assert stats["versions"]["uniseg"] == uniseg.__version__ and stats["versions"]["torch"] == torch.__version__
    assert stats["input"] == "patient 1.nii.gz" and stats["shape"] == list(result.label_map.shape)
    assert stats["weights"] == {"file": "stand-in", "sha256": "0" * 64} and stats["backbone"] == "unet"
    assert stats["preprocessing"] == PREPROCESSING.to_dict()
    assert stats["settings"] == {"overlap": 0.5, "threshold": {"liver": 0.4}, "postprocess": True, "in_pieces": [],
                                 "second_view": None, "fast": False, "focus": True, "focused_on": None,
                                 "precision": "float32", "numbers": "table2", "device": "cpu"}
    assert list(stats["preprocessing"]) == ["pad", "spacing_mm", "hu_window", "window", "antialias"]
    assert list(stats["classes"]["liver"]) == ["label", "voxels", "ml", "mean_hu", "sd_hu", "centre_mm", "first_voxel",
                                               "last_voxel", "touches_border"]
    assert list(stats["seconds"]) == ["read", "resample", "network", "post-processing", "native grid", "measures",
                                      "total"]
    assert_plain(result.stats)
    assert 50 < stats["peak_memory_mib"] < 100_000
    assert stats["warnings"] == [] and isinstance(stats["postprocessing"], list)


def test_a_ct_that_changes_while_the_network_runs_has_no_hu_and_says_so(tmp_path):
    hu, _, affine = paint()
    source = tmp_path / "ct.nii.gz"
    nib.save(image(hu, affine), source)

    class Meanwhile(Bands):
        def forward(self, patches, only=None):
            nib.save(image(hu + np.int16(1), affine), source)
            return super().forward(patches, only)
    stats = stand_in(Meanwhile()).segment(source).stats
    assert stats["classes"]["liver"]["voxels"] > 0 and stats["classes"]["liver"]["mean_hu"] is None
    assert [w for w in stats["warnings"] if "no HU of the classes" in w and "has changed since it was segmented" in w]
    assert stats["input_file"] is None


def test_with_the_numbers_of_others_a_class_without_one_leaves_no_hole_in_what_it_covers(tmp_path):
    """The tumour lies in the liver. LiTS numbers both, MSD Task09 the spleen alone, CHAOS the liver alone."""
    hu, _, affine = paint()
    results = {numbers: stand_in().segment(image(hu, affine), numbers=numbers)
               for numbers in ("table2", "LiTS", "chaos", "msd:Task09")}
    plain = results["table2"]
    liver, tumour = plain.mask("liver"), plain.mask("liver_tumor")
    assert (liver & tumour).any() and plain.numbers == {"spleen": 1, "liver": 6, "aorta": 8, "liver_tumor": 27}
    lits = results["LiTS"].label_map
    assert np.array_equal(lits == 2, plain.label_map == 27) and np.array_equal(lits == 1, plain.label_map == 6)
    assert np.array_equal(results["chaos"].label_map == 1, liver)                     # whole, where the tumour is too
    assert results["msd:Task09"].numbers == {"spleen": 1, "liver": None, "aorta": None, "liver_tumor": None}
    for numbers, result in results.items():
        for name in plain.classes:                                                    # masks and figures stay the same
            assert np.array_equal(result.mask(name), plain.mask(name))
            assert result.stats["classes"][name]["ml"] == plain.stats["classes"][name]["ml"]
        assert result.stats["settings"]["numbers"] == {"LiTS": "lits"}.get(numbers, numbers)


def test_the_saved_files_carry_names_and_equal_results_are_equal_bytes(tmp_path):
    hu, masks, affine = paint()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        result = stand_in().segment(image(hu, affine), numbers="lits")
        result.save_if(lambda: None, tmp_path / name / "ct_seg.nii.gz", Outputs(masks=True, viewer_files=True))
    files = [f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*") if f.is_file()]
    assert len(files) == 1 + 1 + 4 + 6
    for file in files:
        if file.suffix != ".json" or "niivue" in file.name:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    table = read_label_table(tmp_path / "a" / "ct_seg.nii.gz")
    assert (table.names, table.numbers) == ({1: "liver", 2: "liver_tumor"}, "lits")
    assert read_label_table(tmp_path / "a" / "ct_seg" / "aorta.nii.gz").names == {1: "aorta"}
    liver = result.stats["classes"]["liver"]
    assert liver["mean_hu"] == pytest.approx(hu[result.mask("liver")].mean(), abs=0.01)
    assert liver["centre_mm"] == pytest.approx((affine @ [*np.argwhere(result.mask("liver")).mean(axis=0), 1])[:3],
                                               abs=0.01)


def assert_plain(value):
    """Nothing but Python's own types, so that a user of `stats` never meets np.float64(1333.0)."""
    assert type(value) in (dict, list, str, int, float, bool, type(None)), (type(value), value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        assert_plain(item)


def test_o15_a_figure_that_is_nan_is_never_written(tmp_path):
    hu, _, affine = paint()
    result = stand_in().segment(image(hu, affine))
    result.stats["classes"]["liver"]["ml"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        result.save(tmp_path / "out.nii.gz")
    assert [f.name for f in tmp_path.iterdir()] == ["out.nii.gz"]


def test_the_voxel_size_of_the_json_is_in_mm_and_in_the_order_of_the_file():
    hu, _, affine = paint((64, 28, 15), (2.0, 4.0, 8.0))
    orientation = ORIENTATIONS[-1]                                          # axes reversed, all flipped
    stored = image(apply_orientation(hu, orientation), affine @ inv_ornt_aff(orientation, hu.shape))
    assert stand_in().segment(stored).stats["spacing_mm"] == [8.0, 4.0, 2.0]
    metres = image(hu, np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine)              # F48
    metres.header.set_xyzt_units("meter")
    result = stand_in().segment(metres)
    assert result.stats["spacing_mm"] == [2.0, 4.0, 8.0] and not result.stats["empty"]


def test_the_notes_of_the_post_processing_say_what_it_changed():
    hu, _, affine = paint()
    hu[20:22, 4:6, 14:16] = PAINT["spleen"]                                  # a second, smaller spleen
    result, raw = (stand_in().segment(image(hu, affine), postprocess=p) for p in (True, False))
    removed = np.count_nonzero(raw.mask("spleen")) - np.count_nonzero(result.mask("spleen"))
    assert removed == 8
    assert any("spleen" in note and "8" in note for note in result.stats["postprocessing"])
    assert raw.stats["postprocessing"] == []


# --- In and out

@pytest.mark.slow
def test_a_path_a_string_and_a_nibabel_image_give_the_same_result(tmp_path):
    hu, _, affine = paint()
    nib.save(image(hu, affine), tmp_path / "ct.nii.gz")
    path = tmp_path / "ct.nii.gz"
    results = [stand_in().segment(source) for source in (image(hu, affine), path, str(path), nib.load(path))]
    for result in results[1:]:
        same(result, results[0])
    assert [r.stats["input"] for r in results] == ["image in memory", "ct.nii.gz", "ct.nii.gz", "image in memory"]


def test_the_callers_image_is_not_changed():
    hu, _, affine = paint()
    hu[0, 0, 0] = -3024                                                     # padding that is read as air
    picture, before = image(hu, affine), hu.copy()
    stand_in().segment(picture)
    assert np.array_equal(np.asarray(picture.dataobj), before)


def test_what_is_saved_lies_on_the_grid_of_the_ct(tmp_path):
    hu, _, affine = paint()
    orientation = ORIENTATIONS[13]
    stored = image(apply_orientation(hu, orientation), rotated(affine, 20) @ inv_ornt_aff(orientation, hu.shape))
    nib.save(stored, tmp_path / "ct.nii")
    result = stand_in().segment(tmp_path / "ct.nii")
    result.save(tmp_path / "ct_seg.nii.gz", tmp_path / "ct_seg")
    saved = nib.load(tmp_path / "ct_seg.nii.gz")
    assert np.array_equal(np.asarray(saved.dataobj), result.label_map) and saved.get_data_dtype() == np.uint8
    assert np.array_equal(saved.affine, nib.load(tmp_path / "ct.nii").affine)
    assert sorted(f.name for f in (tmp_path / "ct_seg").iterdir()) == sorted(f"{n}.nii.gz" for n in result.classes)
    for name in result.classes:
        assert np.array_equal(np.asarray(nib.load(tmp_path / "ct_seg" / f"{name}.nii.gz").dataobj), result.mask(name))


def test_the_json_is_written_last_so_that_it_marks_a_complete_result(tmp_path, monkeypatch):
    written = []
    label_map, atomic = result_module.write_label_map, result_module.atomic_write
    monkeypatch.setattr(result_module, "write_label_map",
                        lambda path, *a: (written.append(path.name), label_map(path, *a)))
    monkeypatch.setattr(result_module, "atomic_write", lambda path: (written.append(path.name), atomic(path))[1])
    hu, _, affine = paint()
    stand_in(Bands({"liver": (75, 22)})).segment(image(hu, affine)).save(tmp_path / "a.nii.gz", tmp_path / "a")
    assert written == ["a.nii.gz", "liver.nii.gz", "a.json"]


def test_two_runs_write_the_same_bytes(tmp_path):
    hu, _, affine = paint()
    for name in ("one.nii.gz", "two.nii.gz"):
        stand_in().segment(image(hu, affine)).save(tmp_path / name)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


@pytest.mark.slow
def test_a_checkpoint_is_loaded_with_its_own_classes_and_preprocessing(tmp_path):
    network = small_network(["liver", "spleen"])
    checkpoint.save(tmp_path / "tiny.pt", network, replace(PREPROCESSING, window=(24, 16, 16)))
    loaded = uniseg.load(tmp_path / "tiny.pt", device="cpu")
    assert loaded.classes == ("liver", "spleen") and loaded.preprocessing.window == (24, 16, 16)
    assert loaded.weights == {"file": "tiny.pt", "sha256": checkpoint.file_sha256(tmp_path / "tiny.pt")}
    hu, _, affine = paint()
    same(loaded.segment(image(hu, affine)), stand_in(network, window=[24, 16, 16]).segment(image(hu, affine)))


@pytest.mark.slow
def test_lower_precision_gives_nearly_the_same_masks():
    network = small_network(["liver", "spleen"])
    hu, _, affine = paint()
    exact, rough = (stand_in(network).segment(image(hu, affine), precision=p) for p in ("float32", "bf16"))
    assert all(dice(exact.mask(n), rough.mask(n)) > 0.9 for n in exact.classes)
    with pytest.raises(ValueError, match="precision fp8.*auto, float32, bf16, fp16"):
        stand_in(network).segment(image(hu, affine), precision="fp8")


def test_without_a_name_the_built_in_weights_are_loaded_and_are_those_their_sidecar_describes():
    """What they find in the phantom: test_infer.py, the demonstration."""
    assert segmenter.DEFAULT_WEIGHTS.is_file(), "the package ships uniseg/weights/default.pt"
    sidecar = json.loads(segmenter.DEFAULT_WEIGHTS.with_suffix(".json").read_text())
    loaded = uniseg.load(device="cpu")
    assert list(loaded.classes) == sidecar["classes"] and set(loaded.classes) <= set(taxonomy.NAMES)
    assert loaded.weights == {"file": "default.pt", "sha256": sidecar["sha256"]}
    assert loaded.preprocessing.to_dict() == sidecar["preprocessing"]
