"""Letters and PNG files: what the font can write, what stands for the rest, and where a letter lands."""

import string

import numpy as np
import pytest

from uniseg.pictures.canvas import BLACK, GLYPHS, blank, plain, text, text_width


def drawn(words, at=(5, 22), unit=2.0):
    picture = blank(30, 300)
    text(picture, *at, words, BLACK, unit)
    return picture


def test_everything_on_a_keyboard_can_be_written():
    assert set(string.ascii_letters + string.digits + string.punctuation + " ") <= set(GLYPHS)


@pytest.mark.parametrize("words, written", [
    ("Müller, André", "Muller, Andre"),             # accents are left out
    ("Ångström", "Angstrom"), ("ﬁbula", "fibula"), ("case²", "case2"), ("p_01 (2)#a", "p_01 (2)#a"), ("", "")])
def test_letters_with_accents_and_ligatures_are_written_as_plain_ones(words, written):
    assert plain(words) == written and np.array_equal(drawn(words), drawn(written))


def test_a_letter_that_the_font_lacks_is_a_box_as_wide_as_a_letter():
    assert np.array_equal(drawn("中文"), drawn("Жя")) and drawn("中").min() < 128
    assert text_width("中") == text_width("o") + 2.0 * (3 - 4)        # the box is 3 units wide, an o 4 (and 1 more)


def test_a_letter_looks_the_same_wherever_it_stands():
    """Letters are drawn once and kept; moving one by whole pixels moves its pixels."""
    here, there = drawn("Rg", (5, 20)), drawn("Rg", (25, 23))
    assert np.array_equal(here[:25, :100], there[3:28, 20:120])
    assert not np.array_equal(drawn("R", (5.5, 20)), drawn("R", (5, 20)))


def test_what_lies_outside_the_picture_is_cut_off():
    for x, y in ((-20, 10), (290, 10), (50, -3), (50, 40), (1000, 1000)):
        drawn("Rg", (x, y))
