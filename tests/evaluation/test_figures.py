"""figures.py: contours of several readings on one CT, and lesions from small to large; what is drawn and where."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uniseg.evaluation import figures
from uniseg.evaluation.figures import COLORS, PANEL, PEN, contour, main
from uniseg.taxonomy import BY_NAME

RIGHT, LEFT = COLORS[0], COLORS[1]
SHAPE, AFFINE = (40, 30, 12), np.diag([4.0, 4.0, 6.0, 1.0])                  # RAS+: the first axis grows to the right


def save(path, array, affine=AFFINE, axes="RAS"):
    """Write an array of RAS+ axes as a file whose axes point to `axes`."""
    image = nib.Nifti1Image(array, affine)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A CT, and two readers: one sees the spleen near one side, the other at the other side."""
    monkeypatch.chdir(tmp_path)
    save(Path("ct.nii.gz"), np.random.default_rng(0).normal(40, 5, SHAPE).astype(np.int16))
    for name, part in (("high", slice(26, 34)), ("low", slice(6, 14))):
        labels = np.zeros(SHAPE, np.uint8)
        labels[part, 10:18, 3:9] = BY_NAME["spleen"].index
        save(Path(f"{name}.nii.gz"), labels)
    return tmp_path


def columns_of(picture, color):
    """Columns in which a colour is drawn, whatever the grey below it."""
    like = (np.abs(picture.astype(int) - color) < 30).all(axis=2)
    return np.flatnonzero(like[2 * figures.TITLE:].any(axis=0))


@pytest.fixture
def drawn(monkeypatch):
    """What a command would write: the list of its pictures."""
    pictures = []
    monkeypatch.setattr(figures, "write_png", lambda path, picture: pictures.append(picture))
    return pictures


def test_a_contour_runs_where_the_mask_is_half_and_nowhere_else():
    share = np.repeat([[0.0] * 5 + [0.25, 0.75] + [1.0] * 5], 12, axis=0)          # 1/2 lies between columns 5 and 6
    found = contour(share)[6]
    assert found[5] == found[6] > 0.5 and (found[:4] == 0).all() and (found[8:11] == 0).all()
    assert PEN / 2 < found.sum() < 2 * PEN


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_the_patients_right_is_on_the_left_however_the_file_is_stored(here, drawn, axes):
    """RAS+ index 26 to 34 of 40 lies at the patient's right: in the left half of the panel."""
    for name in ("ct", "high", "low"):
        image = nib.load(f"{name}.nii.gz")
        save(Path(f"turned/{name}.nii.gz"), np.asarray(image.dataobj), axes=axes)
    code = main(["contours", "turned/ct.nii.gz", "--of", "spleen", "--slices", "1", "--reading", "A=turned/high.nii.gz",
                 "--reading", "B=turned/low.nii.gz"])
    assert code == 0
    [picture] = drawn
    assert picture.shape == (2 * figures.TITLE + PANEL, PANEL, 3) and picture.dtype == np.uint8
    assert columns_of(picture, RIGHT).max() < PANEL / 2 < columns_of(picture, LEFT).min()


def test_lesions_stand_from_small_to_large_and_say_who_found_them(here, monkeypatch, capsys):
    """Three lesions of 2, 8 and 18 voxels of 0.096 ml; the model has one voxel of the middle one."""
    truth, model = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    value = BY_NAME["liver_tumor"].index
    for x, size in ((5, (3, 3, 2)), (15, (2, 1, 1)), (25, (2, 2, 2))):
        truth[x:x + size[0], 8:8 + size[1], 4:4 + size[2]] = value
    model[25, 8, 4] = value
    save(Path("truth.nii.gz"), truth)
    save(Path("model.nii.gz"), model)
    seen = {}
    real = figures.grid_of
    monkeypatch.setattr(figures, "grid_of", lambda rows, titles, heads: seen.update(titles=titles, heads=heads)
                        or real(rows, titles, heads))
    command = ["lesions", "ct.nii.gz", "--of", "liver_tumor", "--truth", "truth.nii.gz", "--reading", "AI=model.nii.gz"]
    assert main(command) == 0
    assert seen["titles"] == ["0.19 ml, AI missed", "0.77 ml, AI found", "1.73 ml, AI missed"]
    assert [name for name, _ in seen["heads"]] == ["truth", "AI"] and Path("lesions.png").stat().st_size > 1000
    assert main(command) == 2 and "lesions.png: exists already. Give --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--most", "2"]) == 0
    assert seen["titles"][0].startswith("0.19") and seen["titles"][1].startswith("1.73")
    assert "2 of 3 lesions are shown" in capsys.readouterr().err


@pytest.mark.parametrize("options, code, message", [
    (("contours", "--of", "spleen"), 2, "nothing to draw. Give --reading NAME=PATH."),
    (("contours", "--of", "spleeen", "--reading", "A=high.nii.gz"), 2, "Did you mean spleen"),
    (("contours", "--of", "spleen", "--reading", "A=high.nii.gz", "--truth", "low.nii.gz"), 2, "contours has none"),
    (("lesions", "--of", "spleen", "--reading", "A=high.nii.gz"), 2, "lesions needs --truth"),
    (("lesions", "--of", "kidneys", "--truth", "high.nii.gz"), 2, "lesions are of one class"),
    (("contours", "--of", "liver", "--reading", "A=high.nii.gz"), 1, "no reading shows liver."),
    (("contours", "--of", "spleen", "--reading", "A=nowhere.nii.gz"), 1, "nowhere.nii.gz: no such file or folder."),
    (("contours", "--of", "spleen", "--reading", "A=other.nii.gz"), 1, "other.nii.gz")])
def test_what_cannot_be_drawn_is_refused_in_one_line(here, capsys, options, code, message):
    save(Path("other.nii.gz"), np.ones((9, 9, 9), np.uint8))                                   # another grid
    figure, *rest = options
    assert main([figure, "ct.nii.gz", *rest]) == code
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line and not list(here.glob("*.png"))
