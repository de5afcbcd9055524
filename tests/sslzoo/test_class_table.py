"""Class files as data sets have them."""

from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from sslzoo.class_table import VOC, ClassTable, as_table, find_table, palette, read_table

SKY = ((128, 128, 128), (128, 0, 0))


@pytest.mark.parametrize(
    "text",
    [
        "sky 128 128 128\nroad marking 128 0 0\n",
        "name,r,g,b\nsky,128,128,128\nroad marking,128,0,0\n",
        "class_name, red, green, blue\nsky, 128, 128, 128\nroad marking, 128, 0, 0",
        "128 128 128\tsky\n128 0 0\t\troad marking\n",
        "# label:color_rgb:parts:actions\nsky:128,128,128::\nroad marking:128,0,0::\n",
        "\ufeffsky;128,128,128\r\n\r\nroad marking;128,0,0\r\n",
    ],
)
def test_names_and_colours(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(text, encoding="utf-8", newline="")
    assert read_table(tmp_path / "c.txt") == ClassTable(("sky", "road marking"), SKY)


def test_names_alone_and_void(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("sky\nroad marking\nVoid\ncar 2\n")
    table = read_table(tmp_path / "c.txt")
    assert table == ClassTable(("sky", "road marking", "Void", "car 2"))
    assert table.kept == [0, 1, 3]
    assert as_table(tmp_path / "c.txt") == as_table(table) == as_table(["sky", "road marking", "Void", "car 2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n# nothing\n", "is empty"),
        ("sky 1 2 3\ncar\n", "'car' has no colour, others have"),
        ("sky\nsky\n", "class 'sky' is there twice"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "c.txt")


def test_the_file_is_beside_the_folders_or_above(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert find_table(tmp_path / "train") is None
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\na,1,2,3\n")
    assert find_table(tmp_path / "train") == ClassTable(("a",), ((1, 2, 3),))
    (tmp_path / "train" / "classes.txt").write_text("b\n")
    assert find_table(tmp_path / "train") == ClassTable(("b",))


def test_the_palette_is_vocs() -> None:
    # as in the development kit's documentation: aeroplane, bicycle, bird, ..., tvmonitor
    colours = palette(256)
    assert [to_hex([v / 255 for v in c]) for c in colours[:5]] == [
        "#000000",
        "#800000",
        "#008000",
        "#808000",
        "#000080",
    ]
    assert colours[len(VOC) - 1] == (0, 64, 128)
    assert colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256
