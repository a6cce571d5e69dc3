"""find.py and dataset_json.py: what a dataset.json means, which classes it annotates, what is refused.

Ids (d01): docs/faults.md.
"""

import json

import pytest

from uniseg.datasets.dataset import DataError
from uniseg.datasets.dataset_json import read_dataset
from uniseg.datasets.find import find_datasets


def dataset_json(folder, content, cases=("x",)):
    """A folder with this dataset.json and empty files for its cases."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for case in cases:
            (folder / name / f"{case}.nii.gz").touch()
    if isinstance(content, dict):
        content = json.dumps({"training": [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"}
                                           for c in cases],
                              **content})
    (folder / "dataset.json").write_text(content, encoding="utf-8")
    return folder


def labels_of(dataset):
    return {label.classes: label.values for label in dataset.labels}


# --------------------------------------------------------------------------------------------------------- dataset.json

def test_d03_both_forms_of_dataset_json_mean_the_same(tmp_path):
    decathlon = read_dataset(dataset_json(tmp_path / "a",
                                          {"labels": {"0": "background", "1": "liver", "2": "Liver Tumours"}}))
    nnunet = read_dataset(dataset_json(tmp_path / "b", {"labels": {"background": 0, "liver": 1, "Liver Tumours": 2}}))
    assert labels_of(decathlon) == labels_of(nnunet) == {("liver",): (1,), ("liver_tumor",): (2,)}
    assert decathlon.values == nnunet.values == (0, 1, 2)
    assert decathlon.annotated == nnunet.annotated == ("liver", "liver_tumor")


def test_one_class_may_have_several_values(tmp_path):
    found = read_dataset(dataset_json(tmp_path, {"labels": {"background": 0, "liver": [1, 2], "Liver Tumour": 2}}))
    assert labels_of(found) == {("liver",): (1, 2), ("liver_tumor",): (2,)}


@pytest.mark.slow
def test_decathlon_cases_are_those_listed_and_nnunet_cases_those_found(phantom_root):
    abdomen, chest, vessels = find_datasets(phantom_root)
    assert [case[0] for case in abdomen.cases] == ["a0", "a1"]
    assert chest.cases[0] == ("c0", chest.folder / "imagesTr" / "c0_0000.nii.gz",
                              chest.folder / "labelsTr" / "c0.nii.gz", None)
    assert [d.name for d in (abdomen, chest, vessels)] == ["Abdomen", "Chest", "Vessels"]


def test_a_folder_that_is_itself_a_dataset_may_be_given(phantom_root):
    assert [d.name for d in find_datasets(phantom_root / "Chest")] == ["Chest"]


def test_annotated_classes_come_in_the_order_of_table_2_and_pairs_as_two(phantom_root):
    abdomen, chest, vessels = find_datasets(phantom_root)
    assert abdomen.annotated == ("spleen", "right_kidney", "left_kidney", "kidney_tumor")
    assert chest.annotated == ("liver", "right_lung", "left_lung", "colon_tumor")
    assert vessels.annotated == ("hepatic_vessel", "hepatic_vessel_tumor")


def test_macos_companion_files_are_no_cases(tmp_path):
    dataset_json(tmp_path, '{"labels": {"liver": 1}}', cases=("x", "x_0000", "._x"))
    (tmp_path / "labelsTr" / "x_0000.nii.gz").unlink()
    assert [case[0] for case in read_dataset(tmp_path).cases] == ["x"]


def test_d01_a_byte_order_mark_is_no_fault(tmp_path):
    dataset_json(tmp_path, '\ufeff{"labels": {"liver": 1}}', cases=("x", "x_0000"))
    (tmp_path / "labelsTr" / "x_0000.nii.gz").unlink()
    assert read_dataset(tmp_path).annotated == ("liver",)


def test_a_map_names_a_label_or_drops_it(tmp_path):
    content = {"labels": {"0": "background", "1": "cancer", "2": "bone", "3": "ductus", "4": "renes", "5": "vena"}}
    name_map = {"cancer": "Lung Tumour", "bone": None, "ductus": "pancreatic_duct", "renes": "kidneys", "vena": "IVC"}
    found = read_dataset(dataset_json(tmp_path, content), name_map)
    assert labels_of(found) == {("lung_tumor",): (1,), ("pancreatic_duct",): (3,),
                                ("right_kidney", "left_kidney"): (4,),
                                ("postcava",): (5,)}
    assert found.values == (0, 1, 2, 3, 4, 5)                    # a dropped label may occur; it is nobody's
    assert found.annotated == ("right_kidney", "left_kidney", "postcava", "lung_tumor", "pancreatic_duct")


BAD_JSON = [
    ('{"labels": {"1": "liver",}}', r"not JSON \(line 1, column \d+: .*\). Mend it"),
    ('[1, 2]', 'no "labels"'),
    ('{"labels": ["liver"]}', 'no "labels"'),
    ({"labels": {"1": "liver", "2": "Liver"}}, "labels 'liver' and 'Liver' are both class liver"),
    ({"labels": {"kidneys": 1, "right kidney": 2}}, "labels 'kidneys' and 'right kidney' are both class right_kidney"),
    ({"labels": {"1": "livr"}}, 'unknown class name .livr.. Did you mean liver.*--map FILE with {"livr": "class"}, '
                                'null to drop'),
    ({"labels": {"1": "cancer"}}, "unknown class name 'cancer'"),
    ({"labels": {"liver": "organ"}}, """label 'liver': 'organ' is neither "1": "liver" nor "liver": 1"""),
    ({"labels": {"liver": True}}, "label 'liver': True is neither"),
    ({"labels": {"liver": []}}, "label 'liver': .* is neither"),
    ({"labels": {"1": 2}}, "unknown class name '1'"),
    ({"labels": {"liver": 0, "spleen": 1}}, "label 'liver' has the value 0, which is background"),
    ({"labels": {"liver": 1}, "training": []}, "no training case"),
    ({"labels": {"liver": 1}, "training": [{"image": "a.nii.gz"}]}, 'training entry .* lacks "image" or "label"'),
    ({"labels": {"liver": 1}, "training": ["a.nii.gz"]}, 'training entry .* lacks "image" or "label"'),
    ({"labels": {"liver": 1}, "training": [{"image": "../x.nii.gz", "label": "labelsTr/x.nii.gz"}]},
     "'../x.nii.gz' leads out of the dataset's folder"),
    ({"labels": {"liver": 1}, "training": [{"image": "imagesTr/x.nii.gz", "label": "/etc/passwd"}]},
     "'/etc/passwd' leads out of the dataset's folder"),
    ({"labels": {"liver": 1}, "training": [{"image": "imagesTr/x.nii.gz", "label": "labelsTr/lost.nii.gz"},
                                           {"image": "imagesTr/gone.nii.gz", "label": "labelsTr/x.nii.gz"}]},
     "2 files it needs are missing: .*lost.nii.gz, .*gone.nii.gz"),
]


@pytest.mark.parametrize("content, message", BAD_JSON, ids=[m[:40] for _, m in BAD_JSON])
def test_a_bad_dataset_json_is_refused_with_its_path_and_the_reason(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_dataset(dataset_json(tmp_path, content))
    assert str(error.value).startswith(str(tmp_path / "dataset.json"))
    assert "\n" not in str(error.value)


def test_d02_a_link_that_leads_out_of_the_dataset_is_refused(tmp_path):
    outside = tmp_path / "outside.nii.gz"
    outside.touch()
    folder = dataset_json(tmp_path / "set", {"labels": {"liver": 1}})
    (folder / "imagesTr" / "x.nii.gz").unlink()
    (folder / "imagesTr" / "x.nii.gz").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the dataset's folder. Use paths inside it, or --allow-outside."):
        read_dataset(folder)
    assert read_dataset(folder, allow=("outside",)).cases[0].image.resolve() == outside.resolve()


def test_a_missing_folder_or_one_without_datasets_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder. --data-root holds one folder per dataset"):
        find_datasets(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no dataset.json in it or in its sub-folders"):
        find_datasets(tmp_path)


def test_two_datasets_of_one_name_are_refused(tmp_path):
    """Their cases would share folds and be sampled as one dataset."""
    for folder in ("a", "b"):
        dataset_json(tmp_path / folder, {"name": "MSD", "labels": {"liver": 1}})
    with pytest.raises(DataError, match='a and .*b both have the "name" MSD'):
        find_datasets(tmp_path)


def test_a_map_cannot_name_sides_itself(tmp_path):
    """A list could name left before right and swap the sides in silence; `kidneys` cannot."""
    folder = dataset_json(tmp_path, {"labels": {"1": "renes"}})
    with pytest.raises(DataError, match="--map: 'renes' -> .* is neither a class name nor null"):
        read_dataset(folder, {"renes": ["left_kidney", "right_kidney"]})
