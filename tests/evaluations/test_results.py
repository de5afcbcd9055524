from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import pytest

from sslzoo_evaluations import results
from sslzoo_evaluations.results import Result, ResultsError, append, latest, read

ROW = Result("byol-x-y", "linear", "y", "top1", 0.5, 0, 100, 50, "ab", "views=4 note=a,b", "1a2b3c4", "2026-01-31")


def test_rows_come_back_as_they_were(tmp_path):
    file = tmp_path / "r.csv"
    other = replace(ROW, model="pixels", value=0.12345678, sha256="")
    append(ROW, file)
    append(other, file)
    assert read(file) == [ROW, replace(other, value=0.1235)]


def test_of_rows_with_one_key_the_last_counts():
    again, other_seed = replace(ROW, value=0.7, date="2026-02-01"), replace(ROW, seed=1)
    assert latest([ROW, other_seed, again]) == [again, other_seed]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",".join([*results.COLUMNS, "colour"]) + "\n", "unknown columns colour"),
        (",".join(results.COLUMNS[1:]) + "\n", "missing columns model"),
        (",".join(results.COLUMNS) + "\na,b,c,d,many,0,1,1,,,,\n", "line 2: value is 'many'"),
        (",".join(results.COLUMNS) + "\na,b,c\n", "line 2: 3 values, needs 12"),
    ],
)
def test_the_reader_names_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "r.csv"
    file.write_text(text)
    with pytest.raises(ResultsError, match=message):
        read(file)


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    file = tmp_path / "r.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ResultsError, match="other columns"):
        append(ROW, file)
    assert file.read_text() == "a,b\n1,2\n"


def _append_many(file, model):
    for seed in range(50):
        append(replace(ROW, model=model, seed=seed), file)


def test_two_writers_lose_and_mix_nothing(tmp_path):
    file = tmp_path / "r.csv"
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        list(pool.map(partial(_append_many, file), ["a" * 300, "b" * 300]))
    rows = read(file)
    assert len(rows) == len({row.key for row in rows}) == 100


def test_the_packaged_file_can_be_read():
    read(results.PACKAGED)
