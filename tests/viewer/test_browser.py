"""The viewer and the page of all cases in a real browser, Debian's chromium without a window."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from tools.chromium import PATH, Browser
from uniseg.phantom import make_phantom
from uniseg.taxonomy import spoken
from uniseg.viewer.index_page import write_index
from view_cases import ball, page_of, statistics
from view_file import read_voxels

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    PATH is None, reason="no chromium on this machine, so the viewer is not tried (apt-get install chromium)")]

NAME = "ct <img src=x onerror=pwned=1></script><script>pwned=1</script> \"'\u202e.nii.gz"
WARNINGS = ["the CT ends in the liver & the colon </script><script>pwned=1</script>",
            "\u05e9\u05dc\u05d5\u05dd <b>bold</b>"]
READY = "document.body.classList.contains('ready')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


class Case:
    """A phantom of 6 mm, 55 x 40 x 55 voxels, in RAS+ with its viewer; a coin of metal lies in its right side."""

    def __init__(self, folder: Path) -> None:
        self.hu, masks, self.affine = make_phantom((6.0, 6.0, 6.0))
        self.hu = self.hu.copy()
        self.coin = (44, 30, 40)                               # right of the middle, in front of it, above it
        self.hu[self.coin[0] - 1:self.coin[0] + 2, 29:32, 39:42] = 3000
        self.masks = {**masks, "<img src=x onerror=pwned=1>": ball(self.hu.shape, (20, 20, 20), 2)}
        self.stats = statistics(self.masks, self.affine, NAME, warnings=WARNINGS)
        self.stats["classes"]["pancreas"]["experimental"] = "Dice 0.1"
        self.path = folder / "ct_view.html"
        self.page = page_of(self.hu, self.masks, self.affine, self.stats)
        self.path.write_text(self.page, encoding="utf-8")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def opened(browser, case):
    browser.size(1280, 900)
    browser.open(case.path, READY)
    browser.painted()
    return browser


PIXELS = """(canvas => {
  const bytes = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let text = "";
  for (let n = 0; n < bytes.length; n += 30000) text += String.fromCharCode.apply(null, bytes.subarray(n, n + 30000));
  return [canvas.width, canvas.height, btoa(text)];
})"""


def pixels(browser, plane):
    """The picture of a plane, (rows, columns, 3)."""
    width, height, values = browser.evaluate(f"{PIXELS}(document.querySelector('#{plane} canvas'))")
    return np.frombuffer(base64.b64decode(values), np.uint8).reshape(height, width, 4)[..., :3].astype(int)


def screen(browser, plane, index):
    """Where a voxel lies in the window, in pixels."""
    left, top, x, y = browser.evaluate(
        f"(() => {{ const p = planes.find(p => p.name === '{plane}'); const b = p.canvas.getBoundingClientRect(); "
        f"return [b.left, b.top, ...p.toScreen({json.dumps(list(map(int, index)))})]; }})()")
    return left + x, top + y


def text(browser, selector):
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent)")


def test_it_loads_without_an_error_and_asks_for_nothing_but_itself(opened, case):
    assert opened.errors() == []
    assert opened.requests() == [case.path.resolve().as_uri()]
    assert opened.evaluate("document.getElementById('message').hidden")
    assert opened.evaluate("typeof pwned") == "undefined"
    assert opened.evaluate("document.querySelectorAll('img').length") == 0


def test_the_policy_of_the_page_stops_the_network_and_any_script_but_its_own(opened):
    with pytest.raises(AssertionError, match="Failed to fetch"):
        opened.evaluate("fetch('https://localhost/')")
    opened.evaluate("document.head.append(Object.assign(document.createElement('script'), {textContent: 'pwned = 1'}))")
    opened.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"pwned = 1\">')")
    opened.painted()
    assert opened.evaluate("typeof pwned") == "undefined"
    refused = [event["params"]["entry"]["text"] for event in opened.errors() if event["method"] == "Log.entryAdded"]
    assert len(refused) >= 3 and all("Content Security Policy" in line for line in refused), refused


def test_names_volumes_and_warnings_are_those_of_the_json(opened, case):
    found = {name: of_class for name, of_class in case.stats["classes"].items() if of_class["voxels"]}
    names = text(opened, "#classes li bdi")
    volumes = [float(ml.removesuffix(" ml").replace(",", "")) for ml in text(opened, "#classes li .ml")]
    shown = {spoken(name).replace("_", " "): of_class for name, of_class in found.items()}
    assert sorted(names) == sorted(shown)
    for name, ml in zip(names, volumes):
        exact = shown[name]["ml"]
        assert ml == pytest.approx(exact, abs=0.5 if exact >= 100 else 0.05 if exact >= 1 else 0.0005)
    assert text(opened, "#warnings li") == WARNINGS and text(opened, "#warned") == ["2 warnings"]
    assert text(opened, "#case") == [NAME.replace("\u202e", "\\u202e")] == [opened.evaluate("document.title")]
    assert text(opened, "#classes .mark") == ["experimental"] and text(opened, "#classes .remark") == ["Dice 0.1"]


def test_the_browser_unpacks_the_very_voxels(opened, case):
    bytes_, codes = read_voxels(case.page)
    assert np.array_equal(opened.evaluate("Array.from(volume.ct)"), bytes_.ravel(order="F"))
    assert np.array_equal(opened.evaluate("Array.from(volume.codes)"), codes.ravel(order="F"))


@pytest.mark.parametrize("shape", [(12, 10, 11), (40, 33, 1), (1, 40, 33)])
def test_more_than_255_combinations_are_unpacked_from_two_bytes_also_of_a_single_slice(browser, tmp_path, shape):
    bits = np.random.default_rng(0).integers(0, 1024, shape)
    masks = {f"class {k}": (bits >> k & 1).astype(bool) for k in range(10)}
    page = page_of(np.zeros(bits.shape, np.int16), masks, np.eye(4))
    (tmp_path / "a_view.html").write_text(page, encoding="utf-8")
    browser.open(tmp_path / "a_view.html", READY)
    codes = read_voxels(page)[1]
    assert codes.max() > 255
    assert np.array_equal(browser.evaluate("Array.from(volume.codes)"), codes.ravel(order="F"))


def test_the_patients_right_is_on_the_left_and_the_front_and_the_head_are_up(opened, case):
    opened.evaluate(f"view.crosshair = false; view.hidden = new Set(data.classes.keys()); moveTo({list(case.coin)})")
    opened.evaluate("setWindow(2000, 1000)")
    opened.painted()
    for plane, across, up in (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)):
        picture = pixels(opened, plane)
        rows, columns = picture.shape[:2]
        inner = picture[rows // 8:-rows // 8, columns // 8:-columns // 8, 0]     # without letters and scale bar
        row, column = np.argwhere(inner > 250).mean(axis=0)
        shape = case.hu.shape
        left_of_middle = case.coin[across] > (shape[across] - 1) / 2
        above_middle = case.coin[up] > (shape[up] - 1) / 2
        assert (column < inner.shape[1] / 2) == left_of_middle and (row < inner.shape[0] / 2) == above_middle, plane
        assert abs(column - inner.shape[1] / 2) > 10 and abs(row - inner.shape[0] / 2) > 10
    assert opened.evaluate("data.grid.letters") == [["L", "R"], ["P", "A"], ["I", "S"]]


def test_the_pictures_show_the_ct_and_the_masks_in_colour(opened):
    for plane in ("axial", "coronal", "sagittal"):
        picture = pixels(opened, plane)
        grey = (picture.max(axis=2) - picture.min(axis=2) < 4) & (picture.max(axis=2) > 40)
        coloured = picture.max(axis=2) - picture.min(axis=2) > 25
        assert grey.mean() > 0.1 and coloured.mean() > 0.05, plane


def test_a_click_moves_the_other_planes_and_names_what_is_there(opened, case):
    (liver,) = [one for one in opened.evaluate("data.classes") if one["title"] == "liver"]
    opened.click(*screen(opened, "coronal", [30, 0, 30]))
    opened.painted()
    before = [pixels(opened, plane) for plane in ("axial", "sagittal")]
    y = opened.evaluate("view.at[1]")
    opened.click(*screen(opened, "coronal", [liver["middle"][0], y, liver["middle"][2]]))
    opened.painted()
    at = opened.evaluate("view.at")
    assert at == [liver["middle"][0], y, liver["middle"][2]]
    for picture, plane in zip(before, ("axial", "sagittal")):
        assert (pixels(opened, plane) != picture).mean() > 0.05, plane
    assert text(opened, "#axial .enlarge")[0].startswith(f"Axial {at[2] + 1}/55")
    mm = case.affine @ [*at, 1]
    shown = " ".join(text(opened, "#mm-here")[0].split())
    assert shown == " ".join(f"{'LPI'[a] if mm[a] < 0 else 'RAS'[a]} {abs(mm[a]):.1f}" for a in range(3))
    assert text(opened, "#voxel-here") == [", ".join(map(str, at))]
    number, error = text(opened, "#hu-here")[0].removeprefix("about ").removesuffix(")").split(" HU (±")
    assert abs(int(case.hu[tuple(at)]) - int(number)) <= int(error)
    here = [name for name, mask in case.masks.items() if mask[tuple(at)]]
    assert sorted(text(opened, "#classes-here")[0].split(", inside ")) == sorted(n.replace("_", " ") for n in here)


def test_the_cursor_is_told_apart_from_the_crosshair_and_names_both_of_two_overlapping_classes(opened, case):
    both = np.argwhere(case.masks["liver_tumor"] & case.masks["liver"])
    at = both[len(both) // 2]
    opened.evaluate(f"moveTo([{at[0]}, {at[1]}, 2])")
    opened.evaluate(f"moveAlong(2, {at[2] - 2})")
    opened.painted()
    opened.mouse("mouseMoved", *screen(opened, "axial", at))
    assert text(opened, "#where") == ["Under the cursor"]
    assert text(opened, "#classes-here") == ["liver tumor, inside liver"]
    opened.mouse("mouseMoved", 1200, 880)
    assert text(opened, "#where") == ["At the crosshair"]


def test_a_click_on_a_name_goes_to_the_middle_of_the_class_and_its_box_hides_it(opened, case):
    titles = text(opened, "#classes li bdi")
    for title in ("spleen", "<img src=x onerror=pwned=1>", "aorta", "liver"):
        opened.evaluate(f"document.querySelectorAll('#classes .jump')[{titles.index(title)}].click()")
        at = opened.evaluate("view.at")
        assert case.masks[title][tuple(at)], title
    opened.painted()
    before = pixels(opened, "axial")
    opened.evaluate(f"document.querySelectorAll('#classes input')[{titles.index('liver')}].click()")
    opened.painted()
    assert opened.evaluate("[...view.hidden]") == [titles.index("liver")]
    assert (pixels(opened, "axial") != before).any(axis=2).mean() > 0.01
    for key, hidden in (("h", 0), ("h", len(titles)), ("h", 0)):
        opened.key(key)
        opened.painted()
        assert opened.evaluate("view.hidden.size") == hidden
    assert opened.evaluate("typeof pwned") == "undefined"


def test_wheel_slider_keys_and_buttons_do_what_the_help_says(opened):
    at = opened.evaluate("view.at")
    opened.mouse("mouseWheel", *screen(opened, "axial", at), deltaX=0, deltaY=-100)
    assert opened.evaluate("view.at") == [at[0], at[1], at[2] + 1] and opened.evaluate("view.active") == "axial"
    for key, axis, step in (("ArrowLeft", 0, 1), ("ArrowUp", 1, 1), (",", 2, -1), ("ArrowRight", 0, -1)):
        before = opened.evaluate("view.at")
        opened.key(key)
        before[axis] += step
        assert opened.evaluate("view.at") == before, key
    opened.evaluate("(s => { s.value = 5; s.dispatchEvent(new Event('input')); })"
                    "(document.querySelector('#coronal .slice'))")
    assert opened.evaluate("view.at[1]") == 5
    opened.evaluate("moveTo(data.start)")
    opened.painted()
    for key, window in (("l", [-600, 1500]), ("b", [400, 1800]), ("s", [40, 400])):
        opened.key(key)
        opened.painted()
        assert opened.evaluate("view.window") == window
        pressed = text(opened, "#windows button[aria-pressed=true]")
        assert pressed == [{"l": "Lung", "b": "Bone", "s": "Soft tissue"}[key]]
    opened.evaluate("(i => { i.value = 90; i.dispatchEvent(new Event('change')); })(byId('window-centre'))")
    assert opened.evaluate("view.window") == [90, 400]
    for mode in ("fill", "outline", "both"):
        before = pixels(opened, "coronal")
        opened.key("m")
        opened.painted()
        assert opened.evaluate("view.mode") == mode and (pixels(opened, "coronal") != before).any()
    opened.key("2")
    opened.painted()
    sizes = opened.evaluate("planes.map(p => p.width * p.height)")
    assert sizes[1] > 2 * max(sizes[0], sizes[2])
    opened.key("+")
    assert opened.evaluate("view.zoom") == 1.25
    opened.evaluate("goTo(0)")
    middles = opened.evaluate("data.classes.map(one => one.middle)")
    for middle in middles[1:] + middles[:1]:                     # n goes through all of them, also where they overlap
        opened.key("n")
        assert opened.evaluate("view.at") == middle
    opened.key("p")
    assert opened.evaluate("view.at") == middles[-1]
    before = opened.evaluate("view.centre = view.centre.map((c, a) => c + [20, 0, 0][a])")      # the crosshair is away
    opened.key(".")
    assert opened.evaluate("view.centre[0]") == before[0]
    opened.key("?")
    assert opened.evaluate("byId('help').open") and len(text(opened, "#keys tr")) == 13
    assert opened.errors() == []


def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_finger_moves_the_planes(browser, case):
    browser.size(390, 844, mobile=True, density=2)
    browser.open(case.path, READY)
    browser.painted()
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.evaluate("planes.every(p => p.width > 150 && p.height > 120)")
    browser.touch(*screen(browser, "coronal", [10, 0, 44]))
    assert browser.evaluate("[view.at[0], view.at[2]]") == [10, 44]
    assert browser.evaluate("[...document.querySelectorAll('aside button')].every(b => b.offsetHeight >= 24)")
    assert browser.errors() == []


def test_a_damaged_file_says_so_and_still_shows_its_words(browser, case, tmp_path):
    start = case.page.index('id="ct">') + 8
    (tmp_path / "bad_view.html").write_text(case.page[:start] + case.page[start + 400:], encoding="utf-8")
    browser.size(1280, 900)
    browser.open(tmp_path / "bad_view.html", "!byId('message').textContent.startsWith('Unpacking')")
    assert not browser.evaluate(READY) and text(browser, "#warnings li") == WARNINGS


def test_waiting_goes_on_where_another_page_takes_the_place_of_this_one(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<title>page</title>", encoding="utf-8")
    browser.open(page)
    browser.evaluate("setTimeout(() => { location.search = '?second'; }, 300) && 0")
    browser.wait("location.search === '?second' || new Promise(() => {})")       # on the first page: no answer at all
    assert browser.evaluate("document.title + location.search") == "page?second"


def test_the_page_of_all_cases_links_to_the_viewers(browser, case, tmp_path):
    name = "a b#c <img src=x onerror=pwned=1>"
    view = tmp_path / f"{name}_view.html"
    view.write_text(case.page, encoding="utf-8")
    files = {view.name: {"bytes": view.stat().st_size, "sha256": ""}}
    (tmp_path / f"{name}_seg.json").write_text(json.dumps({**case.stats, "files": files}))
    (tmp_path / "z_seg.json").write_text("{")
    write_index(tmp_path)
    browser.size(1280, 900)
    browser.open(tmp_path / "index.html")
    browser.painted()
    assert browser.errors() == [] and browser.evaluate("typeof pwned") == "undefined"
    assert text(browser, "article h2") == [case.stats["input"].replace("\u202e", "\\u202e"), "z"]
    assert text(browser, "#count") == ["2 cases, 2 with warnings"]
    assert text(browser, "article:first-child .warnings li") == WARNINGS
    assert browser.evaluate("[...document.images].map(i => i.naturalWidth > 50)") == [True]
    assert len(text(browser, "article:first-child .volumes .ml")) == len([
        one for one in case.stats["classes"].values() if one["voxels"]])
    browser.evaluate("(i => { i.value = 'ANCREAS'; i.dispatchEvent(new Event('input')); })"
                     "(document.getElementById('find'))")
    assert text(browser, "article:not([hidden]) h2") == text(browser, "article h2")[:1]
    browser.evaluate("document.querySelector('article h2 a').click()")
    browser.wait(f"typeof byId === 'function' && {READY}")
    assert browser.evaluate("document.title") == case.stats["input"].replace("\u202e", "\\u202e")
