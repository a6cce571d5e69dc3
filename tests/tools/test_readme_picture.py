"""tools/readme_picture.py: the CT alone on the left, on the right the same slice with the result, the names below."""

import numpy as np

from tools.readme_picture import PANEL_WIDTH, PICTURES, side_by_side
from uniseg import taxonomy
from uniseg.pictures import blocks

LIVER, SPLEEN = (taxonomy.BY_NAME[name] for name in ("liver", "spleen"))


def test_the_picture_has_the_ct_on_the_left_the_coloured_result_on_the_right_and_the_names_below(monkeypatch):
    written = []
    monkeypatch.setattr(blocks, "text", lambda picture, x, y, string, *more, **options: written.append(string))
    hu = np.full((60, 50, 5), -1024, np.int16)
    hu[8:52, 8:42] = 60
    labels = np.zeros(hu.shape, np.uint8)
    labels[34:48, 15:35] = LIVER.index
    labels[10:20, 15:35, 4] = SPLEEN.index                                             # in another slice
    rgb = side_by_side(hu, labels, np.diag([4.0, 4, 4, 1]), {"liver": 6, "spleen": 1}, at=2)
    left, right = rgb[:450, :PANEL_WIDTH + 40].astype(int), rgb[:450, PANEL_WIDTH + 70:].astype(int)
    assert (np.ptp(left, axis=2) == 0).all()                                           # grey alone
    outline = (right == LIVER.color).all(axis=2)
    assert outline.any() and np.nonzero(outline)[1].mean() < right.shape[1] / 2        # the patient's right
    assert "liver" in written and "spleen" not in written
    assert {"CT", "uniseg", "R", "L", "A", "P"} <= set(written)


def test_the_cts_of_the_pictures_may_be_shown():
    """Those of TCIA under CC BY 4.0 or 3.0; MODEL_CARD.md names them."""
    assert set(PICTURES) == {"readme", "overlay", "overlay_chest", "overlay_slab"}
    assert all(picture.ct.startswith(("crlm", "acrin_flt")) for picture in PICTURES.values())
