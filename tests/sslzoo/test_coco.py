"""COCO's files: outlines and run lengths become the pixels that they are meant to be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslzoo.coco import CocoMask, decode_runs, encode_runs, read_coco


def test_run_lengths_go_down_the_columns() -> None:
    inside = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)
    code = {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert np.array_equal(decode_runs(code), inside)
    assert encode_runs(inside) == code
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        drawn = rng.random((7, 5)) < share
        assert np.array_equal(decode_runs(encode_runs(drawn)), drawn)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 4), (60, 80)])
def test_compressed_run_lengths_are_those_of_cocos_own_code(height: int, width: int) -> None:
    theirs = pytest.importorskip("pycocotools.mask")
    inside = np.random.default_rng(1).random((height, width)) < 0.3
    inside[:, : width // 2] = True
    code = theirs.encode(np.asfortranarray(inside.astype(np.uint8)))
    assert np.array_equal(decode_runs(code), inside)
    assert np.array_equal(decode_runs({**code, "counts": code["counts"].decode()}), inside)
    assert theirs.frPyObjects(encode_runs(inside), height, width) == code


def test_a_compressed_code_by_hand() -> None:
    # digits of 5 bits from "0" on, the lowest first; + 32: more follow. 100 = 4 + 3·32: chr(48 + 4 + 32), chr(48 + 3)
    # from the fourth number on the difference to the one before the last: 6 = 5 + 1
    code, counts = {"size": [56, 2], "counts": "T3511"}, [100, 5, 1, 6]
    assert np.array_equal(decode_runs(code), decode_runs({"size": [56, 2], "counts": counts}))


def test_polygons_cover_the_pixels_inside() -> None:
    square = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]]  # corners, in COCO's coordinates
    drawn = CocoMask((6, 8), [(3, square)]).draw()
    wanted = np.zeros((6, 8), dtype=int)
    wanted[1:4, 2:6] = 3
    assert (drawn[1:4, 2:6] == 3).all()
    assert (drawn != wanted).sum() <= 2 * (3 + 4)  # Pillow draws the outline too


@pytest.fixture
def content() -> dict[str, Any]:
    def box(x: int, y: int, w: int, h: int) -> list[list[int]]:
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]

    runs = {"size": [20, 30], "counts": [0, 40, 560]}  # the first two columns
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 20, "width": 30} for n in (5, 6, 7)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "segmentation": box(8, 4, 4, 4), "area": 16},
            {"id": 2, "image_id": 5, "category_id": 9, "segmentation": box(4, 2, 16, 12), "area": 192},
            {"id": 3, "image_id": 7, "category_id": 9, "segmentation": runs, "area": 40, "iscrowd": 1},
        ],
    }


def write(folder: Path, content: dict[str, Any], name: str = "instances_val.json") -> Path:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / name).write_text(json.dumps(content))
    return folder / "annotations" / name


@pytest.mark.parametrize("place", ["annotations", "annotations/images", ".", "images", "val", "images/val"])
def test_images_are_found_and_small_things_lie_on_large_ones(
    place: str, content: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for row in content["images"]:
        Image.new("RGB", (30, 20)).save(tmp_path / place / row["file_name"])
    files, masks, classes = read_coco(path)
    assert classes == ["cat", "dog"]
    assert [file.name for file in files] == ["5.png", "7.png"]  # nothing is marked on the other
    assert files[0].samefile(tmp_path / place / "5.png")
    first, second = masks[0].draw(), masks[1].draw()
    assert (first[6, 10], first[3, 5], first[0, 0]) == (1, 2, 0)
    assert (second[:, :2] == 2).all()
    assert (second[:, 2:] == 0).all()


def test_what_is_wrong_is_said(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file '5\.png' beside it"):
        read_coco(write(tmp_path, content))
    with pytest.raises(ValueError, match="annotation 1 is of an image or category that the file has not"):
        read_coco(write(tmp_path, {**content, "categories": content["categories"][:1]}))
    with pytest.raises(ValueError, match="no image has an outline"):
        read_coco(write(tmp_path, {**content, "annotations": []}))
    with pytest.raises(ValueError, match="needs images, annotations, categories"):
        read_coco(write(tmp_path, {"images": []}))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_coco(tmp_path / "x.json")
