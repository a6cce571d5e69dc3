"""preprocessing.py: what a checkpoint stores comes back the same, also from checkpoints that say less."""

import dataclasses
import json

import pytest

from uniseg.imaging.preprocessing import Preprocessing
from uniseg.training.options import build_parser, make_config, preprocessing_of

OURS = Preprocessing((2.0, 2.0, 3.0), (-100.0, 200.0), (64, 64, 32), True, "edge")


def test_the_defaults_are_those_of_section_4_1_2():
    assert Preprocessing() == Preprocessing((1.5, 1.5, 1.5), (-175.0, 250.0), (96, 96, 96), False, "air")


def test_what_is_stored_is_plain_and_in_the_order_of_the_fields():
    stored = OURS.to_dict()
    assert list(stored) == [field.name for field in dataclasses.fields(Preprocessing)]
    assert stored == {"spacing_mm": [2.0, 2.0, 3.0], "hu_window": [-100.0, 200.0], "window": [64, 64, 32],
                      "antialias": True, "pad": "edge"}
    assert json.loads(json.dumps(stored)) == stored


@pytest.mark.parametrize("settings", [OURS, Preprocessing()])
def test_what_was_stored_comes_back(settings):
    assert Preprocessing.from_dict(settings.to_dict()) == settings


def test_a_dict_without_padding_means_air():
    stored = OURS.to_dict()
    del stored["pad"]
    assert Preprocessing.from_dict(stored) == dataclasses.replace(OURS, pad="air")
    del stored["window"]
    with pytest.raises(KeyError, match="window"):
        Preprocessing.from_dict(stored)


def test_a_training_prepares_its_cases_as_its_checkpoint_will_say():
    options = ["--data-root", "x", "--device", "cpu", "--spacing", "3", "--hu-window", "-1000", "1000",
               "--patch-size", "32", "64", "96", "--antialias", "--pad", "edge"]
    args = build_parser().parse_args(options)
    expected = Preprocessing((3.0, 3.0, 3.0), (-1000.0, 1000.0), (32, 64, 96), True, "edge")
    assert preprocessing_of(args) == make_config(args, 7, 1).preprocessing == expected
