"""Any dataset.json: every field with every type, ids of cases, channels, labels to ignore. Ids: docs/faults.md."""

import itertools
import json

import pytest
from test_find import dataset_json, labels_of

from uniseg.datasets.case_files import same_id
from uniseg.datasets.channels import ct_channel
from uniseg.datasets.check import main as check_main
from uniseg.datasets.dataset import DataError
from uniseg.datasets.dataset_json import read_dataset
from uniseg.datasets.find import find_datasets
from uniseg.evaluation.readings import find_references
from uniseg.training.split import fold_of

LABELS = {"labels": {"background": 0, "liver": 1}}


def nnunet(folder, cases=("x",), ending=".nii.gz", channels=(0,), **content):
    """A dataset in nnU-Net's form with empty files."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case in cases:
        (folder / "labelsTr" / f"{case}{ending}").touch()
        for channel in channels:
            (folder / "imagesTr" / f"{case}_{channel:04d}{ending}").touch()
    (folder / "dataset.json").write_text(json.dumps({**LABELS, **content}))
    return folder


def refusal(folder, *arguments, **options):
    """The message of a refusal, after checking its form."""
    with pytest.raises(DataError) as error:
        read_dataset(folder, *arguments, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700 and message.endswith((".", "?"))
    return message


# ------------------------------------------------------------------------------------------- every field, every type

VALUES = [None, True, False, 0, 5, -1, 1.5, 10**30, "", "text", "CT", "../x", "a\0b", "\ud800", "\x1b[2J", "n" * 5000,
          [], [None], [1], [True], [1, "a"], ["CT"], ["imagesTr/x.nii.gz"], ["a", "b"], [[]], [{}], {}, {"0": "CT"},
          {"0": None}, {"a": {}}, {"liver": [1, True]}, {"\u0661": "liver"}, {"\u00b2": "liver"}, {"1": ["liver"]},
          {"liver": 1.0}, {"liver": -1}, {"liver": 10**30}, {"1": "liver", "01": "stomach"}, {"ignore": 5, "liver": 1}]
FIELDS = ["labels", "training", "name", "file_ending", "channel_names", "modality", "numTraining", "test", "image",
          "label", "entry", "label value", "label name"]


@pytest.mark.parametrize("form, field", list(itertools.product(("decathlon", "nnunet"), FIELDS)))
def test_d27_any_value_of_any_field_is_taken_or_refused_in_one_line(tmp_path, form, field):
    folder = nnunet(tmp_path / "set") if form == "nnunet" else dataset_json(tmp_path / "set", LABELS)
    plain = json.loads((folder / "dataset.json").read_text())
    for value in VALUES:
        content = dict(plain)
        if field in ("image", "label", "entry"):
            entry = {"image": "imagesTr/x.nii.gz", "label": "labelsTr/x.nii.gz"}
            content["training"] = [value if field == "entry" else {**entry, field: value}]
        elif field == "label value":
            content["labels"] = {"liver": value}
        elif field == "label name":
            content["labels"] = {value if isinstance(value, str) else json.dumps(value): 1}
        else:
            content[field] = value
        (folder / "dataset.json").write_text(json.dumps(content))
        for allow in ((), ("missing", "unknown", "outside")):
            try:
                found = read_dataset(folder, allow=allow)
            except DataError as error:
                assert str(error).startswith(f"{folder / 'dataset.json'}: ") and "\n" not in str(error)
                assert len(str(error)) < 800, (field, value)
            else:
                assert isinstance(found.name, str) and len(found.cases) == 1


@pytest.mark.parametrize("value", [v for v in VALUES if v != "\ud800"], ids=lambda v: json.dumps(v)[:20])
def test_d27_a_map_with_any_value_is_taken_or_refused_in_one_line(tmp_path, value):
    folder = dataset_json(tmp_path, {"labels": {"0": "background", "1": "renes"}})
    try:
        assert read_dataset(folder, {"renes": value}).values == (0, 1)
    except DataError as error:
        assert str(error).startswith(("--map: ", str(folder))) and len(str(error)) < 800


def test_d27_the_check_ends_with_one_line_for_any_training_list(tmp_path, capsys):
    for value in VALUES:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        dataset_json(folder, {**LABELS, "training": value})
        assert check_main([str(folder)]) in (1, 2)
        out = capsys.readouterr()
        assert "Traceback" not in out.out + out.err and "\x1b" not in out.out


@pytest.mark.parametrize("content, message", [
    ({"labels": {"1": "liver", "01": "stomach"}}, "labels 'liver' and 'stomach' both have the value 1"),
    ({"labels": {"liver": 1, "stomach": 1}}, "labels 'liver' and 'stomach' both have the value 1"),
    ({"labels": {"liver": -1}}, "label 'liver' has the value [-1]. Number the labels from 0 to 65535."),
    ({**LABELS, "training": 5}, '"training" is 5, not a list of'),
    ({**LABELS, "training": None}, '"training" is None, not a list of'),
    ({**LABELS, "training": True}, '"training" is True, not a list of'),
    ({**LABELS, "name": ["a"]}, "\"name\" is ['a'], not a text"),
    ({**LABELS, "name": ".."}, "\"name\" is '..', which begins with a dot"),
    ({**LABELS, "training": [{"image": ["a.nii", "b.nii"], "label": "c"}]}, "2 images in ['a.nii', 'b.nii']"),
    ({**LABELS, "training": [{"image": {"a": 1}, "label": "c"}]}, "\"image\" of a training entry is {'a': 1}"),
    ({**LABELS, "training": [{"image": "imagesTr", "label": "c"}]}, "'imagesTr', which is a folder. Name the file.")])
def test_d27_the_message_says_what_is_wrong(tmp_path, content, message):
    assert message in refusal(dataset_json(tmp_path, content))


def test_d27_a_list_of_one_image_is_that_image_and_of_several_the_ct_is_taken(tmp_path):
    one = dataset_json(tmp_path / "a", {**LABELS, "training": [{"image": ["imagesTr/x.nii.gz"],
                                                                "label": ["labelsTr/x.nii.gz"]}]})
    assert read_dataset(one).cases[0].image == one / "imagesTr/x.nii.gz"
    two = dataset_json(tmp_path / "b", {**LABELS, "modality": {"0": "PET", "1": "CT"}, "training": [
        {"image": ["imagesTr/pet.nii.gz", "imagesTr/x.nii.gz"], "label": "labelsTr/x.nii.gz"}]})
    assert read_dataset(two).cases[0].image == two / "imagesTr/x.nii.gz"


# ----------------------------------------------------------------------------------------------------- ids of the cases

def patients(folder, *images, **content):
    """A dataset whose training list names these images; each label lies beside its image."""
    for image in images:
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.with_name("label_" + path.name).touch()
    training = [{"image": image, "label": "/".join((*image.split("/")[:-1], "label_" + image.split("/")[-1]))}
                for image in images]
    (folder / "dataset.json").write_text(json.dumps({**LABELS, "training": training, **content}))
    return folder


@pytest.mark.parametrize("images, ids", [
    (["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"], ["a", "b"]),
    (["pat0/ct.nii.gz", "pat1/ct.nii.gz"], ["pat0_ct", "pat1_ct"]),
    (["p/0/ct.nii.gz", "q/0/ct.nii.gz", "q/1/ct.nii.gz"], ["p_0_ct", "q_0_ct", "q_1_ct"]),
    (["a/ct.nii", "b/CT.nii.gz"], ["a_ct", "b_CT"]),
    (["a/ct_0000.nii.gz", "b/ct.nii.gz"], ["a_ct_0000", "b_ct"]),
    (["a/b_ct.nii.gz", "a_b/ct.nii.gz"], ["b_ct", "ct"])])
def test_d28_cases_that_share_a_file_name_are_told_apart_by_their_folders(tmp_path, images, ids):
    assert [case.id for case in read_dataset(patients(tmp_path, *images)).cases] == ids


@pytest.mark.parametrize("images, message", [
    (["i/a.nii.gz", "i/A.nii.gz"], "a.nii.gz and A.nii.gz in .* are one case by their names"),
    (["i/a.nii.gz", "i/a.nii"], "differ by case or ending only. Rename one."),
    (["j/a.nii", "i/a.nii.gz", "i/a_0000.nii.gz"], "a.nii.gz and a_0000.nii.gz in .* are one case"),
    (["i/a.nii.gz", "i/b.nii.gz", "i/a.nii.gz"], "a.nii.gz is listed twice. Keep one entry."),
    (["i/a.nii.gz", "./i/../i/a.nii.gz"], "a.nii.gz is listed twice")])
def test_d28_names_that_nothing_tells_apart_are_refused(tmp_path, images, message):
    with pytest.raises(DataError, match=message):
        read_dataset(patients(tmp_path, *images))


def test_d28_in_nnunets_form_two_endings_or_cases_of_one_name_are_refused(tmp_path):
    folder = nnunet(tmp_path / "a", ("x", "X"))
    assert "X_0000.nii.gz and x_0000.nii.gz in " in refusal(folder)
    assert "are one case by their names" in refusal(folder)
    folder = nnunet(tmp_path / "b")
    (folder / "labelsTr" / "x.nii").touch()
    (folder / "imagesTr" / "x_0000.nii").touch()
    assert "are one case by their names" in refusal(folder)


def test_d28_an_image_that_is_its_own_label_is_refused(tmp_path):
    entry = {"image": "imagesTr/x.nii.gz", "label": "./imagesTr/x.nii.gz"}
    assert "is listed as image and as label" in refusal(dataset_json(tmp_path, {**LABELS, "training": [entry]}))


def test_d28_folds_and_references_have_every_case_once(tmp_path):
    """Six patients whose files have one name: each is held out in one of three folds, and scored under its own name."""
    folder = patients(tmp_path / "set", *(f"pat{i}/ct.nii.gz" for i in range(6)))
    datasets = find_datasets(folder)
    folds = fold_of(datasets, 3)
    assert sorted(folds.values()) == [0, 0, 1, 1, 2, 2] and len(folds) == 6
    assert [r.case for r in find_references(folder)] == [f"pat{i}_ct" for i in range(6)]


def test_d28_two_datasets_whose_names_differ_by_case_only_are_refused(tmp_path):
    for name in ("MSD", "msd"):
        dataset_json(tmp_path / f"folder of {name}", {**LABELS, "name": name})
    with pytest.raises(DataError, match='both have the "name" msd'):
        find_datasets(tmp_path)


@pytest.mark.parametrize("a, b", [("x.nii.gz", "X.nii"), ("x", "x_0000"), ("a b", "a_b"), ("x_seg", "x"),
                                  ("caf\u00e9", "cafe\u0301")])
def test_d28_ids_that_disks_and_results_do_not_tell_apart_are_the_same(a, b):
    assert same_id(a) == same_id(b)


# ------------------------------------------------------------------------------------------------------------- channels

@pytest.mark.parametrize("names, channel, note", [
    (None, 0, None),
    ({"0": "CT"}, 0, None),
    ("CT", 0, None),
    (["CT"], 0, None),
    ({"0": "portal venous CT"}, 0, None),
    ({"0": "PET", "1": "CT"}, 1, "channel 1, 'CT', is used of 2 (0: PET, 1: CT)"),
    ({"1": "PET", "0": "ct"}, 0, "channel 0, 'ct', is used of 2"),
    ({"0": "T2", "3": "CT", "1": "ADC"}, 3, "channel 3, 'CT', is used of 3"),
    ({"0": "noNorm"}, 0, "the channel 'noNorm' is taken for a CT in HU")])
@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_d29_the_channel_that_is_the_ct_is_used_and_said(tmp_path, key, names, channel, note):
    notes = []
    assert ct_channel({key: names}, tmp_path / "dataset.json", notes) == channel
    assert len(notes) == bool(note) and all(note in line for line in notes)


@pytest.mark.parametrize("names, message", [
    ({"0": "MRI"}, 'no channel of "modality" is a CT (0: MRI). Give CTs'),
    ({"0": "MR"}, "no channel"), ({"0": "T1"}, "no channel"), ({"0": "t2-flair"}, "no channel"),
    ({"0": "PET/CT"}, 'if a channel is one, call it "CT"'),
    ({"0": "PET", "1": "MR"}, "no channel"), ({"0": "a", "1": "b"}, "no channel"),
    ({"0": "CT arterial", "1": "CT portal"}, "several channels"),
    ({"x": "CT"}, "the number of each channel and its name"), ({"0": 5}, "the number of each"),
    ([], "the number of each"),
    ({"0": "CT", "00": "PET"}, "the number of each"), (7, "the number of each")])
def test_d29_what_is_no_ct_or_does_not_say_so_is_refused(tmp_path, names, message):
    with pytest.raises(DataError) as error:
        ct_channel({"modality": names}, tmp_path / "dataset.json")
    assert message in str(error.value)


def test_d29_the_images_of_the_cts_channel_are_the_cases(tmp_path):
    folder, notes = nnunet(tmp_path, ("p0", "p1"), channels=(0, 1), channel_names={"0": "PET", "1": "CT"}), []
    assert [c.image.name for c in read_dataset(folder, notes=notes).cases] == ["p0_0001.nii.gz", "p1_0001.nii.gz"]
    assert "channel 1, 'CT', is used" in notes[0]


# ------------------------------------------------------------------------------------- links, endings, labels to ignore

@pytest.mark.parametrize("link", ["imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", "labelsTr"])
def test_d02_nnunets_form_follows_no_link_out_of_the_folder(tmp_path, link):
    folder, outside = nnunet(tmp_path / "set"), tmp_path / "outside"
    (folder / link).rename(outside)
    (folder / link).symlink_to(outside)
    assert "leads out of the dataset's folder. Use paths inside it, or --allow-outside." in refusal(folder)
    assert len(read_dataset(folder, allow=("outside",)).cases) == 1


@pytest.mark.parametrize("path, words", [("a\0b.nii.gz", "cannot be the path of a file"), ("loop", "leads"),
                                         ("n" * 5000, "cannot be the path of a file")])
def test_d02_a_path_that_no_disk_holds_is_refused(tmp_path, path, words):
    folder = dataset_json(tmp_path / "set", {**LABELS, "training": [{"image": path, "label": "labelsTr/x.nii.gz"}]})
    (folder / "loop").symlink_to(folder / "loop")
    message = refusal(folder)
    assert words in message or path == "loop"


@pytest.mark.parametrize("ending, given, message", [
    (".nrrd", ".nrrd", "\"file_ending\" is '.nrrd', and only NIfTI is read. Convert the files"),
    (".nrrd", None, "labelsTr holds no NIfTI file: 1 files (x.nrrd). Convert them to .nii.gz."),
    (".nii.gz", ".nii", "\"file_ending\" is '.nii', and no label ends so: 1 files (x.nii.gz). Correct"),
    (".nii.gz", 5, '"file_ending" is 5, and only NIfTI')])
def test_d05_a_file_ending_that_does_not_fit_is_named(tmp_path, ending, given, message):
    assert message in refusal(nnunet(tmp_path, ending=ending, file_ending=given))


@pytest.mark.parametrize("ending", [".nii", ".NII.GZ", ".nii.gz"])
def test_d05_without_a_file_ending_any_nifti_is_a_case(tmp_path, ending):
    assert [case.id for case in read_dataset(nnunet(tmp_path, ending=ending)).cases] == ["x"]


def test_d30_ignore_is_no_class_and_a_map_to_null_does_not_make_it_background(tmp_path):
    folder = dataset_json(tmp_path, {"labels": {"background": 0, "liver": 1, "Ignore": 5}})
    for name_map in (None, {"ignore": None}, {"Ignore": "stomach"}):
        dataset = read_dataset(folder, name_map)
        assert labels_of(dataset) == {("liver",): (1,)} and dataset.ignored == (5,)


def test_f24_a_label_name_with_control_characters_or_markup_steers_nothing(tmp_path, capsys):
    name = "liver]]>\x1b[2J\nx"
    folder = dataset_json(tmp_path, {"labels": {"0": "background", "1": name}})
    assert check_main([str(folder)]) == 2
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"\x1b[2J" in out
    with pytest.raises(DataError, match="cannot name a class: it has other characters than letters, digits, space"):
        read_dataset(folder, {name: "a]]>\x1b[2J"})
