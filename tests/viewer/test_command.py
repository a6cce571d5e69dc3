"""`infer --view` as a user runs it: the files, the page of all cases, --resume, --overwrite, and what is refused."""

import json

import numpy as np
import pytest

from test_infer import CLASSES, save_weights
from uniseg.imaging.volume import read_ct, read_label_map, write_volume
from uniseg.infer import main
from uniseg.phantom import make_phantom
from view_file import at_mm, read_hu, read_mask, read_page, read_voxels


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with weights that find something everywhere, and two CTs of 15 mm; not to be written to."""
    folder = tmp_path_factory.mktemp("shared")
    save_weights(folder / "tiny.pt", CLASSES)
    (folder / "in").mkdir()
    hu, _, affine = make_phantom((15.0, 15.0, 15.0))
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine                  # stored as scanners do: LPS
    write_volume(folder / "in" / "a.nii.gz", hu, affine)
    write_volume(folder / "in" / "b.nii.gz", hu, flipped)
    return folder


@pytest.fixture
def infer(shared, tmp_path, capsys):
    """Run the command on the two CTs: (exit code, stderr)."""
    def run(*arguments, ct=shared / "in"):
        code = main(["--device", "cpu", "--weights", str(shared / "tiny.pt"), "-o", str(tmp_path), str(ct), *arguments])
        return code, capsys.readouterr().err
    return run


def names(folder):
    """The files of a folder but the table of a whole run."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".csv")


def test_each_case_gets_a_viewer_with_the_masks_and_volumes_of_its_result_and_all_get_a_page(infer, shared, tmp_path):
    assert infer("--view")[0] == 0
    assert names(tmp_path) == ["a_seg.json", "a_seg.nii.gz", "a_view.html", "b_seg.json", "b_seg.nii.gz", "b_view.html",
                               "index.html"]
    for name in "ab":
        stats = json.loads((tmp_path / f"{name}_seg.json").read_text())
        page = (tmp_path / f"{name}_view.html").read_text(encoding="utf-8")
        data = read_page(page)
        assert {one["title"]: one["ml"] for one in data["classes"]} == {
            of_class.replace("_", " "): figures["ml"] for of_class, figures in stats["classes"].items()
            if figures["voxels"]}
        assert data["case"] == f"{name}.nii.gz" and data["warnings"] == stats["warnings"]
        assert set(stats["files"]) == {f"{name}_seg.nii.gz", f"{name}_view.html"}
        labels, ct = read_label_map(tmp_path / f"{name}_seg.nii.gz"), read_ct(shared / "in" / f"{name}.nii.gz")
        shown, hu = np.zeros(labels.array.shape, int), read_hu(page)
        for one in data["classes"]:
            on_top = [those[:1] == [data["classes"].index(one)] for those in data["combinations"]]
            label = stats["classes"][one["title"].replace(" ", "_")]["label"]
            shown[np.array(on_top)[read_voxels(page)[1]]] = label
            assert read_mask(page, one["title"]).sum() == one["voxels"]
        assert np.array_equal(shown, labels.array) and np.abs(hu - ct.array).max() <= 32
        for index in np.random.default_rng(0).integers(0, labels.array.shape, (5, 3)):
            assert np.allclose(at_mm(page, (labels.affine @ [*index, 1])[:3]), index)
    cases = read_page((tmp_path / "index.html").read_text(encoding="utf-8"))["cases"]
    assert [one["view"] for one in cases] == ["./a_view.html", "./b_view.html"]


def test_a_tree_of_cts_gets_one_page_at_its_top(infer, shared, tmp_path):
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "ct.nii.gz").write_bytes((shared / "in" / f"{name}.nii.gz").read_bytes())
    assert infer("--view", "--recursive", ct=tmp_path / "in")[0] == 0
    assert [path.parent for path in tmp_path.rglob("index.html")] == [tmp_path]
    cases = read_page((tmp_path / "index.html").read_text(encoding="utf-8"))["cases"]
    assert [one["view"] for one in cases] == ["./a/ct_view.html", "./b/ct_view.html"]


def test_resume_makes_the_viewers_that_are_missing_and_a_page_of_all_cases(infer, tmp_path):
    assert infer("--view")[0] == 0
    kept = (tmp_path / "a_view.html").stat().st_mtime_ns
    for name in ("b_view.html", "b_seg.json", "index.html"):
        (tmp_path / name).unlink()
    code, err = infer("--view", "--resume")
    assert code == 0 and "1 of 2 results are complete" in err
    assert (tmp_path / "a_view.html").stat().st_mtime_ns == kept
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert [one["case"] for one in read_page(page)["cases"]] == ["a.nii.gz", "b.nii.gz"]
    (tmp_path / "index.html").unlink()
    assert "2 of 2 results are complete" in infer("--view", "--resume")[1]         # nothing to segment
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page


def test_a_result_without_a_viewer_is_made_again_and_one_without_the_option_loses_it(infer, tmp_path):
    assert infer()[0] == 0 and "index.html" not in names(tmp_path)
    assert "without a view" in infer("--view", "--resume")[1]
    assert "a_view.html" in names(tmp_path)
    assert infer("--overwrite")[0] == 0
    assert not [name for name in names(tmp_path) if name.endswith("_view.html")]      # it would show another result


def test_a_single_ct_gets_a_viewer_and_no_page_of_all_cases(infer, shared, tmp_path):
    assert infer("--view", ct=shared / "in" / "a.nii.gz")[0] == 0
    assert names(tmp_path) == ["a_seg.json", "a_seg.nii.gz", "a_view.html"]
    code, err = infer("--view", ct=shared / "in" / "a.nii.gz")
    assert code == 2 and "exists already" in err


def test_a_bad_case_and_a_page_of_somebody_else_cost_the_other_cases_nothing(infer, shared, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "in" / name).write_bytes((shared / "in" / name).read_bytes())
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no image")
    (tmp_path / "index.html").write_text("mine")
    code, err = infer("--view", ct=tmp_path / "in")
    assert code == 1 and "index.html: is no page of uniseg; it stays" in err
    assert (tmp_path / "index.html").read_text() == "mine" and "b_view.html" in names(tmp_path)
