"""ranks.py: which of several processes this one is, from the environment."""

import pytest

from uniseg.machine.ranks import launched, local_rank


@pytest.mark.parametrize("world, rank, expected", [(None, None, (0, 1)), ("1", "0", (0, 1)), ("4", "3", (3, 4)),
                                                   ("1", "7", (0, 1)), ("2", None, (0, 2))])
def test_a_single_process_is_rank_0_of_1_and_torchrun_says_what_others_are(monkeypatch, world, rank, expected):
    for name, value in (("WORLD_SIZE", world), ("RANK", rank)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert launched() == expected and local_rank() == 0


@pytest.mark.parametrize("world, rank, said", [("2", "2", "ranks are numbered from 0"), ("two", "0", "WORLD_SIZE=two"),
                                               ("2", "-1", "RANK=-1 in the environment: no number")])
def test_an_environment_that_makes_no_sense_is_named(monkeypatch, world, rank, said):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(ValueError, match=said):
        launched()
