"""Names in one block: a list of strings in all but size."""

import os
import pickle

import pytest

from sslzoo.names import Names

TEXTS = ["a/1.png", "", "ümläut 猫.jpg", os.fsdecode(b"\xff\xfe.png"), "b/10.png"]


def test_they_come_out_as_they_went_in() -> None:
    names = Names(TEXTS)
    assert len(names) == 5
    assert list(names) == TEXTS
    assert names == TEXTS
    assert names[-1] == TEXTS[-1]
    assert names[1:4] == TEXTS[1:4]
    assert names[::-2] == TEXTS[::-2]
    assert names.take([3, 0, 3]) == [TEXTS[3], TEXTS[0], TEXTS[3]]
    assert TEXTS[2] in names
    assert pickle.loads(pickle.dumps(names)) == names
    for i in (5, -6):
        with pytest.raises(IndexError):
            names[i]


def test_others_are_not_equal() -> None:
    assert Names(["ab", "c"]) != Names(["a", "bc"])  # the same letters
    assert Names(["ab"]) != ["a"]
    assert Names() == []
