"""sliding_window.py: coverage, the Gaussian, and a stream that equals the whole volume bit for bit."""

import math

import numpy as np
import pytest
import torch

from uniseg.machine.threads import one_ahead
from uniseg.sliding_window import (
    EMPTY_LOGIT,
    GAUSSIAN_SIGMA,
    WEIGHT_FLOOR,
    _slabs,
    gaussian_weights,
    place_of_sums,
    plan_windows,
    sliding_window,
    window_starts,
)


def stitched(slabs):
    """All slabs as one (K, D, H, W) tensor; checks that they follow each other without gap or overlap."""
    parts, expected = [], 0
    for z, slab in slabs:
        assert z == expected
        expected += slab.shape[-1]
        parts.append(slab.clone())
    return torch.cat(parts, dim=-1)


def whole_volume(image, predict, classes, window, overlap):
    """Section 4.1.2 as written: one sum for the whole volume, no padding, no skipped windows."""
    weights = gaussian_weights(window)
    total, norm = torch.zeros(classes, *image.shape), torch.zeros(image.shape)
    xs, ys, zs = (window_starts(n, w, overlap) for n, w in zip(image.shape, window))
    for z in zs:
        for x in xs:
            for y in ys:
                part = (slice(x, x + window[0]), slice(y, y + window[1]), slice(z, z + window[2]))
                total[(slice(None), *part)] += weights * predict(image[part][None, None])[0]
                norm[part] += weights
    return total / norm


def convolution(classes):
    """A small model whose logits near a window's edge depend on the window, as a real model's do."""
    kernel = torch.randn(classes, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return lambda patches: torch.nn.functional.conv3d(patches.contiguous(), kernel, padding=1)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- Where the windows are

def test_starts_of_an_axis_that_fits_once_twice_and_evenly():
    assert window_starts(96, 96) == [0]
    assert window_starts(50, 96) == [0]
    assert window_starts(144, 96) == [0, 48]
    assert window_starts(192, 96) == [0, 48, 96]
    assert window_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert window_starts(14, 10, 0.8) == [0, 2, 4]


@pytest.mark.parametrize("window", [1, 2, 7, 16, 96])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_every_size_is_covered_from_end_to_end_with_the_overlap_asked_for(window, overlap):
    for size in range(1, 201):
        starts = window_starts(size, window, overlap)
        steps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] == max(0, size - window)
        assert all(1 <= step <= max(1, window * (1 - overlap) + 1e-9) for step in steps)


def test_starts_are_the_same_from_the_other_end_as_far_as_integers_allow():
    for size in range(97, 400):
        starts = window_starts(size, 96)
        mirrored = [size - 96 - s for s in starts][::-1]
        unlike = [i for i, pair in enumerate(zip(starts, mirrored)) if pair[0] != pair[1]]
        assert unlike in ([], [len(starts) // 2])                   # only the middle one may be half a voxel off
        assert all(abs(starts[i] - mirrored[i]) == 1 for i in unlike)


def test_windows_outside_the_body_are_not_planned():
    body = np.zeros((8, 4, 4), bool)
    body[7, 0, 0] = True
    assert plan_windows((8, 4, 4), (4, 4, 4), 0.5, body) == {0: [(4, 0)]}
    assert plan_windows((8, 4, 4), (4, 4, 4), 0.5) == {0: [(0, 0), (2, 0), (4, 0)]}


# --- Their weights

@pytest.mark.parametrize("window", [(5, 4, 3), (8, 8, 8), (1, 2, 9)])
def test_weights_are_the_gaussian_written_as_a_loop(window):
    weights = gaussian_weights(window)
    peak = max(value(i, j, k, window) for i in range(window[0]) for j in range(window[1]) for k in range(window[2]))
    for i in range(window[0]):
        for j in range(window[1]):
            for k in range(window[2]):
                expected = max(WEIGHT_FLOOR, value(i, j, k, window) / peak)
                assert math.isclose(weights[i, j, k], expected, rel_tol=1e-6)


def value(i, j, k, window):
    return math.exp(-sum((p - (n - 1) / 2) ** 2 / (2 * (GAUSSIAN_SIGMA * n) ** 2) for p, n in zip((i, j, k), window)))


def test_weights_peak_at_one_stay_above_the_floor_and_are_symmetric():
    weights = gaussian_weights((96, 96, 96))
    assert weights.shape == (96, 96, 96) and weights.dtype == torch.float32
    assert weights.max() == 1 and weights.min() == np.float32(WEIGHT_FLOOR)
    assert torch.equal(weights, weights.flip(0, 1, 2)) and torch.equal(weights, weights.transpose(0, 2))


# --- The blend

@pytest.mark.parametrize("shape", [(9, 8, 21), (8, 8, 8), (3, 20, 5), (1, 1, 1), (13, 3, 40)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_an_identity_model_returns_its_input(shape, overlap):
    image = noise(*shape)
    logits = stitched(sliding_window(image, lambda x: torch.cat([x, -x], 1), 2, (8, 6, 8), overlap))
    assert logits.shape == (2, *shape) and logits.dtype == torch.float32
    assert torch.allclose(logits[0], image, atol=1e-5) and torch.allclose(logits[1], -image, atol=1e-5)


@pytest.mark.parametrize("shape, window", [((23, 19, 31), (7, 5, 9)), ((20, 16, 40), (16, 16, 16)),
                                           ((12, 15, 29), (11, 13, 7))])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_stream_equals_the_whole_volume_bit_for_bit(shape, window, batch_size, monkeypatch):
    monkeypatch.setattr("uniseg.sliding_window.windows_at_once", lambda window, device: batch_size)
    image, model = noise(*shape), convolution(3)
    one_by_one = lambda patches: torch.cat([model(p[None]) for p in patches])  # noqa: E731  a batch may round otherwise
    logits = stitched(sliding_window(image, one_by_one, 3, window, 0.5))
    assert torch.equal(logits, whole_volume(image, model, 3, window, 0.5))


def test_two_overlapping_windows_are_the_weighted_mean_of_their_logits():
    weights = gaussian_weights((1, 1, 4)).ravel()
    answers = iter([1.0, 4.0])                                       # the first window says 1 everywhere, the second 4
    logits = stitched(sliding_window(torch.zeros(1, 1, 6), lambda x: torch.full_like(x, next(answers)), 1,
                                     (1, 1, 4))).ravel()
    assert logits[:2].tolist() == [1, 1] and logits[4:].tolist() == [4, 4]
    for here, first, second in ((2, 2, 0), (3, 3, 1)):
        expected = (weights[first] * 1 + weights[second] * 4) / (weights[first] + weights[second])
        assert math.isclose(logits[here], expected, rel_tol=1e-6)


def test_a_slab_ends_where_the_next_row_of_windows_begins():
    slabs = [(z, slab.shape) for z, slab in sliding_window(noise(4, 4, 10), lambda x: x, 1, (4, 4, 4))]
    assert slabs == [(0, (1, 4, 4, 2)), (2, (1, 4, 4, 2)), (4, (1, 4, 4, 2)), (6, (1, 4, 4, 4))]


def test_a_slab_is_the_buffer_itself_and_what_its_reader_does_to_it_changes_no_later_one():
    image, places = noise(4, 4, 12), []
    straight = stitched(sliding_window(image, lambda x: x, 1, (4, 4, 4)))
    for z, slab in sliding_window(image, lambda x: x, 1, (4, 4, 4)):
        assert torch.equal(slab, straight[..., z:z + slab.shape[-1]])
        places.append(slab.data_ptr())
        slab.fill_(7.0)
    assert len(places) == 5 and len(set(places)) == 1                 # no copy, however many slabs


def test_slabs_for_a_caller_who_reads_them_late_are_copies():
    """As on a GPU, where the next slab is made meanwhile."""
    image = noise(4, 4, 12)
    of_volume = dict(predict=lambda x: x, classes=1, window=(4, 4, 4), overlap=0.5, body=None, device="cpu", pad="air",
                     progress=False)
    late = list(one_ahead(_slabs(image, **of_volume, copies=True)))
    assert torch.equal(stitched(late), stitched(sliding_window(image, lambda x: x, 1, (4, 4, 4))))
    assert not torch.equal(stitched(list(_slabs(image, **of_volume, copies=False))), stitched(late))


def test_image_and_sums_lie_on_a_gpu_that_has_twice_the_room_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))         # bytes: free, in all
    assert place_of_sums(125, "cuda:1") == torch.device("cuda:1")
    assert place_of_sums(126, "cuda:1") == torch.device("cpu")
    assert place_of_sums(125, "cpu") == torch.device("cpu")


def test_flipped_volumes_give_flipped_logits():
    image = noise(10, 12, 14)                                         # even steps: 10 - 4, 12 - 4 and 14 - 4 are even
    pointwise = lambda x: torch.cat([x ** 2, x - 1], 1)              # noqa: E731  knows no direction
    straight = stitched(sliding_window(image, pointwise, 2, (4, 4, 4)))
    flipped = stitched(sliding_window(image.flip(0, 1, 2), pointwise, 2, (4, 4, 4)))
    assert torch.allclose(flipped.flip(1, 2, 3), straight, atol=1e-5)


def test_small_volumes_are_padded_on_both_sides_with_air():
    seen = []
    list(sliding_window(torch.ones(2, 4, 4), lambda x: seen.append(x.clone()) or x, 1, (4, 4, 4)))
    assert seen[0][0, 0, :, 0, 0].tolist() == [0, 1, 1, 0]                # 0 is the lower end of the HU window


def test_with_pad_edge_a_small_volume_goes_on_as_its_outermost_voxels():
    seen = []
    image = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])                # two voxels wide, one deep, two slices high
    logits = stitched(sliding_window(image, lambda x: seen.append(x.clone()) or x, 1, (3, 3, 5), pad="edge"))
    first, second = [1, 1, 2, 2, 2], [3, 3, 4, 4, 4]                  # (5 - 2) // 2 = 1 below, 2 above
    assert seen[0][0, 0].tolist() == [[first] * 3, [second] * 3, [second] * 3]
    assert logits.flatten().tolist() == [1, 2, 3, 4]                  # what was added is no part of the result


# --- Air

def test_voxels_that_no_window_covers_are_surely_empty():
    body = np.zeros((4, 4, 24), bool)
    body[:, :, 9] = True
    seen = []
    logits = stitched(sliding_window(torch.ones(4, 4, 24), lambda x: seen.append(0) or x, 1, (4, 4, 4), body=body))
    assert len(seen) == 2                                             # windows at 6 and 8 hold plane 9
    assert (logits[..., 6:12] == 1).all()
    assert (logits[..., :6] == EMPTY_LOGIT).all() and (logits[..., 12:] == EMPTY_LOGIT).all()


def test_without_any_body_the_model_is_not_asked():
    logits = stitched(sliding_window(np.zeros((3, 9, 9), np.float32), None, 2, (4, 4, 4),
                                     body=np.zeros((3, 9, 9), bool)))
    assert logits.shape == (2, 3, 9, 9) and (logits == EMPTY_LOGIT).all()


# --- Inputs and errors

def test_a_fortran_ordered_numpy_image_will_do():
    image = np.asfortranarray(noise(9, 7, 6).numpy())
    assert np.allclose(stitched(sliding_window(image, lambda x: x, 1, (4, 4, 4)))[0].numpy(), image, atol=1e-5)


def test_half_precision_logits_are_added_in_float32():
    logits = stitched(sliding_window(noise(6, 6, 6), lambda x: x.bfloat16(), 1, (4, 4, 4)))
    assert logits.dtype == torch.float32


def test_a_nan_is_reported_with_the_window_it_came_from():
    image = torch.zeros(4, 4, 8)
    image[0, 0, 7] = 1.0
    with pytest.raises(FloatingPointError, match=r"NaN or infinity for the window at voxel \(0, 0, 4\)"):
        list(sliding_window(image, lambda x: x / (1 - x), 1, (4, 4, 4)))


def test_a_model_with_the_wrong_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"returned \(1, 1, 4, 4, 4\).*Expected \(1, 3, 4, 4, 4\)"):
        list(sliding_window(torch.zeros(4, 4, 4), lambda x: x, 3, (4, 4, 4)))


def test_an_overlap_of_one_is_refused():
    with pytest.raises(ValueError, match="overlap is 1.0"):
        list(sliding_window(torch.zeros(4, 4, 4), lambda x: x, 1, (4, 4, 4), overlap=1.0))
