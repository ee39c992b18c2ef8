"""Tables as they come: numbers, gaps, categories, and what is refused by name."""

import gzip
import sys
from pathlib import Path

import helpers
import numpy as np
import pandas
import pytest
import torch

import kit

nan = float("nan")


def read(text, name="t.csv", **options):
    Path(name).write_text(text, encoding="utf-8")
    return kit.read_table(name, **options)


def refused(text, **options):
    """The one line in which a table is refused."""
    with pytest.raises(ValueError, match="t.csv") as error:
        read(text, **options)
    return helpers.one_line(error)


RAW = """rooms,kind,garden,"price, in k"
3,flat,True,200.5
,house,False,250
2.5,"flat",,300.5
4,,True,1e2
"""


def test_numbers_gaps_booleans_and_text_are_read():
    table = read(RAW, target="price, in k")
    assert table.columns == ("rooms", "kind", "garden")
    assert table.categories == {"kind": ("flat", "house")}
    assert table.inputs.dtype == torch.float32 and table.targets.dtype == torch.float32
    inputs = [[3, 0, 1], [nan, 1, 0], [2.5, 0, nan], [4, -1, 1]]
    assert np.array_equal(table.inputs, np.float32(inputs), equal_nan=True)
    assert table.targets.tolist() == [[200.5], [250], [300.5], [100]]
    assert table.classes == table.skipped == ()


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_found(separator):
    expected = read(RAW)
    pandas.read_csv("t.csv").to_csv("s.csv", sep=separator, index=False)
    table = kit.read_table("s.csv")
    assert np.array_equal(table.inputs, expected.inputs, equal_nan=True)
    assert (table.columns, table.categories) == (expected.columns, expected.categories)


def test_compressed_files_and_other_encodings_are_read():
    expected = read(RAW)
    for name, content in (
        ("t.csv.gz", gzip.compress(RAW.encode())),
        ("bom.csv", b"\xef\xbb\xbf" + RAW.encode()),
    ):
        Path(name).write_bytes(content)
        table = kit.read_table(name)
        assert np.array_equal(table.inputs, expected.inputs, equal_nan=True), name
        assert table.columns == expected.columns
    Path("latin.csv").write_bytes("stadt,a\nKöln,1\nBonn,2\n".encode("latin-1"))
    assert kit.read_table("latin.csv").categories == {"stadt": ("Bonn", "Köln")}


def test_a_column_that_counts_the_rows_is_left_out():
    for counter in ("id,a\n1,5\n2,5\n3,6\n", ",a\n0,5\n1,5\n2,6\n", "id,a\n,5\n,6\n"):
        table = read(counter)
        assert table.columns == ("a",) and len(table.skipped) == 1
        assert "id" in table.skipped[0] or "Unnamed: 0" in table.skipped[0]
    assert read("n,a\n1,5\n3,5\n2,6\n").columns == ("n", "a")
    assert read(",a\n7,5\n9,5\n12,6\n").columns == ("a",)  # rows of a larger table


def test_dates_and_names_are_refused_together():
    lines = [f"2024-01-{i + 1:02},name {i},{i % 3},{i}.5" for i in range(25)]
    text = "\n".join(["day,who,k,y", *lines])
    line = refused(text, target="y")
    assert "--drop day,who" in line and "k" not in line.split("--drop")[1]
    assert read(text, target="y", drop=("day", "who", "y")).columns == ("k",)


DATES = ["1/31/2024", "31.1.2024", "2024-01-31 10:00:00", "10:30"]


@pytest.mark.parametrize("date", DATES)
def test_dates_are_known_in_other_forms(date):
    assert "--drop day" in refused(f"day,y\n{date},1\n{date},2.5\n", target="y")


def test_a_slip_among_dates_makes_no_categories_of_them():
    dates = [f"2024-01-{day}" for day in range(10, 29)]
    lines = [f"{text},{i}.5" for i, text in enumerate([*dates, "soon"])]
    assert "--drop day" in refused("\n".join(["day,y", *lines]), target="y")


@pytest.mark.parametrize(
    "values, classes",
    [
        (["b", "a", "b"], ("a", "b")),
        (["True", "False", "True"], ("False", "True")),
        (["10", "2", "10"], ("2", "10")),
        (["1.0", "0.0", "1.0"], ("0", "1")),
        (["1.5", "2.5", "3.5"], ()),
        ([str(i) for i in range(20)] * 2, tuple(map(str, range(20)))),
        ([str(i) for i in range(21)] * 2, ()),
    ],
)
def test_the_target_tells_the_task(values, classes):
    text = "\n".join(["a,y", *(f"{i % 2}.5,{v}" for i, v in enumerate(values))])
    table = read(text, target="y")
    assert table.classes == classes
    if classes:
        assert table.targets.dtype == torch.int64 and table.targets.ndim == 1
        names = [classes[i] for i in table.targets]
        assert [str(v).removesuffix(".0") for v in values] == names
    else:
        assert table.targets.tolist() == [[float(v)] for v in values]


def test_the_task_may_be_told():
    text = "a,y\n5,1\n5,0\n6,1\n"
    assert read(text, target="y").classes == ("0", "1")
    table = read(text, target="y", task="regression")
    assert table.classes == () and table.targets.tolist() == [[1.0], [0.0], [1.0]]
    table = read("a,y\n5,1.5\n5,2.5\n6,1.5\n", target="y", task="classification")
    assert table.classes == ("1.5", "2.5") and table.targets.tolist() == [0, 1, 0]
    line = refused("a,y\n5,b\n5,c\n", target="y", task="regression")
    assert "y" in line and "b" in line
    with pytest.raises(ValueError, match="^task must be .*'mean'"):
        read(text, target="y", task="mean")


def test_rows_without_their_target_are_left_out_and_said():
    table = read("a,y\n5,1.5\n5,\n6,2.5\n", target="y")
    assert table.targets.tolist() == [[1.5], [2.5]] and len(table.inputs) == 2
    assert "1" in table.skipped[0] and "y" in table.skipped[0]


def test_another_file_is_read_like_the_first():
    like = read("id,a,k,y\n1,5,01,x\n2,7,2,z\n3,5,K,x\n", target="y")
    text = "k,more,a\nK,2024-01-01,1\n01,,2\n9,,3\n,,\n"  # no y, no id, another order
    table = read(text, like=like)
    expected = [[1, 2], [2, 0], [3, -1], [nan, -1]]
    assert np.array_equal(table.inputs, np.float32(expected), equal_nan=True)
    assert (table.columns, table.categories) == (like.columns, like.categories)
    assert read("k,a,y\nK,1,z\n", target="y", like=like).targets.tolist() == [1]
    numbers = read("a,k,y\n1,01,z\n2,2,x\n", like=like)  # k is numbers here
    assert numbers.inputs[:, 1].tolist() == [0, 1]
    assert "'cow'" in refused("k,a,y\nK,1,cow\n", target="y", like=like)
    assert "'k'" in refused("a\n1\n", like=like) or "k" in refused("a\n1\n", like=like)
    line = refused("k,a\nK,1\n1,six\n", like=like)
    assert "a" in line and "six" in line


@pytest.mark.parametrize(
    "text, target, words",
    [
        ("", None, "t.csv"),
        ("a,y\n", None, "no rows"),
        ("a,y\n1,2\n1,2,3,4,5\n", None, "line 3"),
        ("a,y\n1,2.5\n", "z", "a, y"),
        ("a,y\n5,pos\n5,pos\n", "y", "pos"),
        ("\n".join(["a,y", *(f"5,name {i}" for i in range(30))]), "y", "30 classes"),
        ("y\n1.5\n2.5\n", "y", "column"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(text, target, words):
    assert words in refused(text, target=target)


def test_files_that_are_none_are_named():
    Path("folder.csv").mkdir()
    for name in ("no.csv", "folder.csv", "http://localhost/t.csv"):
        with helpers.refused(name[-7:], OSError):
            kit.read_table(name)


def test_without_pandas_the_error_is_how_to_install_it(monkeypatch):
    Path("t.csv").write_text(RAW)
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    with helpers.refused("pip install .*pandas", ImportError):
        kit.read_table("t.csv")


def test_text_after_many_numbers_makes_all_of_them_text():
    rows = [f"{i % 7},{'1.50' if i % 2 else '2'}" for i in range(600_000)]
    table = read("\n".join(["a,k", *rows, "5,new"]))
    assert table.categories == {"k": ("1.50", "2", "new")}
    assert table.inputs[-1].tolist() == [5, 2]


def test_texts_that_end_in_a_zero_stay_different():
    table = read("version,y\nv1,1.5\nv1.0,2.5\nv1,3.5\n", target="y")
    assert table.categories == {"version": ("v1", "v1.0")}
