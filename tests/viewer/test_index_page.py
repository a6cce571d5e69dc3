"""index_page.py: the page of all cases of a folder, from what lies in it."""

import json
import threading
from urllib.parse import unquote

import numpy as np
import pytest

from uniseg.viewer.index_page import INDEX, write_index
from view_cases import ball, page_of, statistics
from view_file import block, read_page

SHAPE = (12, 12, 12)
MASKS = {"liver": ball(SHAPE, (6, 6, 6), 4), "spleen": np.zeros(SHAPE, bool)}


def add_case(folder, name, with_view=True, **more):
    """What infer leaves of a case: the viewer, and the JSON after it."""
    stats = statistics(MASKS, np.eye(4), f"{name}.nii.gz", **more)
    view = folder / f"{name}_view.html"
    if with_view:
        view.write_text(page_of(np.zeros(SHAPE, np.int16), MASKS, np.eye(4), stats), encoding="utf-8")
    files = {f"{name}_seg.nii.gz": {"bytes": 1, "sha256": ""}}
    files |= {view.name: {"bytes": view.stat().st_size, "sha256": ""}} if with_view else {}
    (folder / f"{name}_seg.json").write_text(json.dumps({**stats, "files": files}))
    return stats


def cases(folder):
    return read_page((folder / INDEX).read_text(encoding="utf-8"))["cases"]


def test_it_shows_each_case_with_its_volumes_warnings_thumbnail_and_link(tmp_path):
    stats = add_case(tmp_path, "b", warnings=["the CT ends in the liver"])
    add_case(tmp_path, "a")
    assert write_index(tmp_path) == tmp_path / INDEX
    first, second = cases(tmp_path)
    assert [first["case"], second["case"]] == ["a.nii.gz", "b.nii.gz"]
    assert [first["view"], second["view"]] == ["./a_view.html", "./b_view.html"]
    assert [(one["title"], one["ml"]) for one in second["classes"]] == [("liver", stats["classes"]["liver"]["ml"])]
    assert second["absent"] == 1 and second["warnings"] == ["the CT ends in the liver"] and first["warnings"] == []
    assert second["thumbnail"] == json.loads(block((tmp_path / "b_view.html").read_text(), "thumbnail"))
    assert second["thumbnail"].startswith("data:image/png;base64,iVBOR")


def test_a_case_without_a_viewer_or_with_a_changed_one_is_listed_without_a_link(tmp_path):
    add_case(tmp_path, "a", with_view=False)
    add_case(tmp_path, "b")
    add_case(tmp_path, "c")
    (tmp_path / "b_view.html").unlink()
    (tmp_path / "c_view.html").write_text("something else")
    write_index(tmp_path)
    assert [(one["case"], one["view"], one["thumbnail"]) for one in cases(tmp_path)] == [
        (f"{name}.nii.gz", None, None) for name in "abc"]


def test_one_page_over_a_tree_names_the_folders_of_the_cases_and_links_into_them(tmp_path):
    for folder in ("s 1", "s2"):
        (tmp_path / folder).mkdir()
        add_case(tmp_path / folder, "ct")
    write_index(tmp_path)
    assert [(one["case"], one["view"]) for one in cases(tmp_path)] == [
        ("s 1/ct.nii.gz", "./s%201/ct_view.html"), ("s2/ct.nii.gz", "./s2/ct_view.html")]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"input": "a", "warnings": 3, "classes": {}, "files": {}}',
                                     '{"input": "a", "warnings": [], "classes": {"liver": {"ml": "much"}}}'])
def test_a_damaged_json_is_named_and_does_not_keep_the_others_from_their_page(tmp_path, content):
    add_case(tmp_path, "a")
    (tmp_path / "z_seg.json").write_text(content)
    write_index(tmp_path)
    good, bad = cases(tmp_path)
    assert good["view"] and not bad["view"]
    assert bad["warnings"][-1] == "z_seg.json: cannot be read. Segment this CT again."


def test_a_page_of_somebody_else_stays(tmp_path, capsys):
    add_case(tmp_path, "a")
    (tmp_path / INDEX).write_text("<h1>my pages</h1>")
    assert write_index(tmp_path) is None
    assert (tmp_path / INDEX).read_text() == "<h1>my pages</h1>"
    assert "index.html: is no page of uniseg; it stays" in capsys.readouterr().err


def test_a_folder_without_results_gets_no_page(tmp_path):
    assert write_index(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["</script><script>alert(1)", "javascript:alert(1)", "a b#c?d%41", "\u202efdp",
                                  "<img src=x onerror=alert(1)>", "\u05e9\u05dc\u05d5\u05dd", "\"'"])
def test_no_file_name_can_leave_the_json_or_the_folder(tmp_path, name):
    name = name.replace("/", "\u2215")                                   # no file name has a slash
    add_case(tmp_path, name)
    write_index(tmp_path)
    page = (tmp_path / INDEX).read_text(encoding="utf-8")
    (case,) = cases(tmp_path)
    assert not set("<>&") & set(block(page, "data")) and page.count("<script") == 2
    assert case["view"].startswith("./") and not set("<>\"'#?: ") & set(case["view"])
    assert (tmp_path / unquote(case["view"])).is_file()
    assert case["case"].isprintable()


def test_a_thumbnail_that_is_no_png_is_left_out(tmp_path):
    add_case(tmp_path, "a")
    view = tmp_path / "a_view.html"
    text = view.read_text(encoding="utf-8")
    shown = json.loads(block(text, "thumbnail"))
    view.write_text(text.replace(shown, shown.replace("data:image/png;base64,", "data:text/html;base64,")))
    stats = json.loads((tmp_path / "a_seg.json").read_text())
    stats["files"]["a_view.html"]["bytes"] = view.stat().st_size
    (tmp_path / "a_seg.json").write_text(json.dumps(stats))
    write_index(tmp_path)
    assert cases(tmp_path)[0]["thumbnail"] is None and cases(tmp_path)[0]["view"]


def test_where_two_runs_add_cases_at_once_the_page_has_all_of_them(tmp_path):
    def run(names):
        for name in names:
            add_case(tmp_path, name)
            write_index(tmp_path)

    runs = [threading.Thread(target=run, args=([f"{letter}{n}" for n in range(4)],)) for letter in "ab"]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert [one["case"] for one in cases(tmp_path)] == [f"{letter}{n}.nii.gz" for letter in "ab" for n in range(4)]
    assert not list(tmp_path.glob(".*"))
