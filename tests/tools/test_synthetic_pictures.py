"""tools/synthetic_pictures.py: rows of slices line up, whatever the shape of the CT, and words stand over them."""

import numpy as np
import pytest

from tools import synthetic_pictures
from tools.synthetic_pictures import HEIGHT, SOFT, WIDTH, case_of, three_slices
from uniseg.pictures import blocks
from uniseg.pictures.blocks import CAPTION, LETTER


@pytest.mark.parametrize("shape", [(100, 80, 60), (30, 30, 150)], ids=["flat", "tall"])
def test_three_slices_stand_in_columns_of_one_width_under_their_words(shape, monkeypatch):
    written = []
    monkeypatch.setattr(blocks, "text", lambda picture, x, y, string, *more, **options: written.append(string))
    hu = np.random.default_rng(0).normal(40, 20, shape).astype(np.int16)
    block = three_slices(case_of(hu, 0.5, SOFT), "Synthetic, portal phase")
    assert block.shape[1] == 3 * (WIDTH + 2 * LETTER) + 2 * 12
    assert len(block) <= HEIGHT + 2 * LETTER + 2 * CAPTION + 30
    assert {"Synthetic, portal phase", "axial", "coronal", "sagittal"} <= set(written)


def test_every_row_has_a_real_ct_with_its_words():
    assert all(words and real for words, _, real, _, _ in synthetic_pictures.ROWS)
