"""What stands around a slice: letters, scale bar, legend. Nothing of it lies over the slice."""

import numpy as np
import pytest

from uniseg.pictures import blocks
from uniseg.pictures.blocks import CAPTION, LETTER, Entry, below, beside, framed, legend, paragraph, shortened
from uniseg.pictures.canvas import INK, text_width


def ink(part):
    """Whether something dark is drawn in this part of a picture."""
    return bool((part < 128).any())


@pytest.fixture
def slice_of_noise():
    return np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.float32)


def test_a_slice_keeps_every_pixel_and_has_a_letter_on_each_side(slice_of_noise):
    block = framed(slice_of_noise, "RLAP", "axial", 0.5)
    assert np.array_equal(block[LETTER:LETTER + 200, LETTER:LETTER + 300], slice_of_noise.astype(np.uint8))
    sides = {"left": (slice(LETTER, LETTER + 200), slice(0, LETTER)),
             "right": (slice(LETTER, LETTER + 200), slice(LETTER + 300, None)),
             "top": (slice(0, LETTER), slice(None)), "bottom": (slice(LETTER + 200, 2 * LETTER + 200), slice(None))}
    for place, part in sides.items():
        assert ink(block[part]), place
        letters = "RLAP".replace("RLAP"[list(sides).index(place)], " ")
        assert not ink(framed(slice_of_noise, letters, "axial", 0.5)[part]), place


@pytest.mark.parametrize("mm_per_pixel, length_mm", [(0.5, 50), (0.25, 20), (1.0, 100), (2.0, 100), (0.01, 1)])
def test_a_scale_bar_of_n_pixels_is_n_pixels_long(slice_of_noise, mm_per_pixel, length_mm):
    """300 pixels; at most 0.4 of them, and the right end is that of the slice."""
    assert blocks.scale_bar_mm(300, mm_per_pixel) == length_mm
    captions = framed(slice_of_noise, "RLAP", "axial", mm_per_pixel)[-CAPTION:]
    line = max((captions == INK).all(axis=2), key=lambda row: row.sum())
    pixels = round(length_mm / mm_per_pixel)
    assert line[LETTER + 300 - pixels:LETTER + 300].all()
    assert not line[LETTER + 300 - pixels - 1] and not line[LETTER + 300:].any()


def test_a_narrow_slice_gets_its_scale_bar_below_its_name():
    wide, narrow = (framed(np.zeros((200, n, 3), np.float32), "RLAP", "coronal 12/345", 0.5) for n in (400, 40))
    assert len(narrow) == len(wide) + CAPTION and narrow.shape[1] < 250


def test_ticks_stand_where_the_other_planes_cut(slice_of_noise):
    block, plain = (framed(slice_of_noise, "    ", "", 0.5, marks) for marks in (([100.5], [50.5]), ((), ())))
    rows, columns = np.nonzero((block != plain).any(axis=2))
    assert set(columns[(rows < LETTER) | (rows >= LETTER + 200)]) == {LETTER + 100}
    assert set(rows[(columns < LETTER) | (columns >= LETTER + 300)]) == {LETTER + 50}


def test_blocks_stand_beside_and_below_each_other_on_white():
    small, large = np.zeros((2, 3, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)
    row, column = beside([small, large], 10), below([small, large], 10)
    assert row.shape == (5, 17, 3) and column.shape == (17, 4, 3)
    assert (row[:, 3:13] == 255).all() and (row[2:, :3] == 255).all() and (row == 0).sum() == 3 * (2 * 3 + 5 * 4)


def test_a_legend_has_a_patch_of_each_colour_in_as_many_columns_as_there_is_room_for():
    entries = [Entry(f"class_{i}", (10 * i, 200, 0), "12.3 ml") for i in range(10)]
    one, many = legend(entries, 200), legend(entries, 1000)
    assert len(one) == 10 * blocks.ROW and len(many) < len(one) and many.shape[1] <= 1000
    for block in (one, many):
        for entry in entries:
            assert (block == entry.color).all(axis=2).sum() == 18 * 12
    hollow = legend([entries[0]._replace(filled=False)], 200)
    assert 0 < (hollow == entries[0].color).all(axis=2).sum() < 18 * 12
    assert legend([], 500).size == 3


def test_a_long_name_keeps_its_beginning_and_its_end():
    """Both can tell patients apart. The width is kept."""
    name = "TCIA_Colorectal-Liver-Metastases_CRLM-CT-1006_portal_venous_phase_0001"
    short = shortened(name, 300, 2.0)
    assert short.startswith("TCIA_Colo") and short.endswith("_0001") and "..." in short
    assert text_width(short, 2.0) <= 300 and shortened("ct", 300, 2.0) == "ct"


def test_a_paragraph_is_no_wider_and_no_longer_than_allowed():
    words = "liver spleen " * 20 + "a_word_without_any_space_" * 3
    for most in (1, 3, 20):
        block = paragraph(words, 250, 1.5, most=most)
        assert block.shape[1] == 250 and len(block) <= most * 18 and not ink(block[:, 246:])
