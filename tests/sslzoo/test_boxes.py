"""Boxes: one truth, written as VOC, COCO, YOLO, arrays and a data set, comes back the same from each."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sslzoo
from sslzoo.boxes import BoxSet, open_boxes
from sslzoo.data import EmptyDatasetError

SIZE = (60, 40)  # width, height
# (class, left, top, right, bottom) of the boxes of three images, the last of which has none
TRUTH = [[("cat", 3, 4, 23, 34), ("dog", 30, 0, 60, 40)], [("dog", 5, 5, 8, 7)], []]
NAMES = ["cat", "dog"]


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", SIZE, (40 * i, 0, 0)).save(folder / name)


def voc(root: Path, truth: list[Any] = TRUTH) -> Path:
    write_images(root / "JPEGImages", [f"{i}.png" for i in range(len(truth))])
    (root / "Annotations").mkdir()
    for i, boxes in enumerate(truth):
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for name, left, top, right, bottom in boxes
        )
        (root / "Annotations" / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
    return root


def voc_split(root: Path) -> Path:
    voc(root)
    path = root / "ImageSets" / "Main" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("0\n1\n2 -1\n")
    return path


def voc_beside(root: Path) -> Path:
    voc(root)
    for folder in ("Annotations", "JPEGImages"):
        for path in (root / folder).iterdir():
            path.rename(root / path.name)
        (root / folder).rmdir()
    return root


def coco(root: Path, truth: list[Any] = TRUTH) -> Path:
    write_images(root / "train2017", [f"{i}.png" for i in range(len(truth))])
    ids = {"dog": 18, "cat": 17}
    annotations = [
        {"id": 1, "image_id": 100 + i, "category_id": ids[name], "bbox": [left, top, right - left, bottom - top]}
        for i, boxes in enumerate(truth)
        for name, left, top, right, bottom in boxes
    ]
    content = {
        "images": [{"id": 100 + i, "file_name": f"{i}.png"} for i in range(len(truth))],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }
    (root / "annotations").mkdir()
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(content))
    return path


def coco_in_folder(root: Path) -> Path:
    path = coco(root)
    path.rename(root / "train2017" / "_annotations.coco.json")
    return root / "train2017"


def yolo(root: Path, names: str = "names: [cat, dog]\ntrain: images/train\n") -> Path:
    write_images(root / "images" / "train", [f"{i}.png" for i in range(3)])
    (root / "labels" / "train").mkdir(parents=True)
    for i, boxes in enumerate(TRUTH):
        lines = [
            f"{NAMES.index(name)} {(a + c) / 2 / 60:.6f} {(b + d) / 2 / 40:.6f} {(c - a) / 60:.6f} {(d - b) / 40:.6f}"
            for name, a, b, c, d in boxes
        ]
        if lines:  # an image without a file has no boxes
            (root / "labels" / "train" / f"{i}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(names)
    return root / "images" / "train"


def yolo_beside(root: Path) -> Path:
    yolo(root / "old")
    root = root / "flat"
    root.mkdir()
    for path in [*(root.parent / "old").rglob("*.png"), *(root.parent / "old").rglob("*.txt")]:
        path.rename(root / path.name)
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def dataset(truth: list[Any] = TRUTH, *, named: bool = True) -> Any:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=NAMES) if named else datasets.Value("int64")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.Sequence({"bbox": [datasets.Value("float32")], "category": label}),
        }
    )
    rows = {
        "image": [Image.new("RGB", SIZE, (40 * i, 0, 0)) for i in range(len(truth))],
        "objects": [
            {
                "bbox": [[a, b, c - a, d - b] for _, a, b, c, d in boxes],
                "category": [NAMES.index(name) for name, *_ in boxes],
            }
            for boxes in truth
        ],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def saved_dataset(root: Path) -> Path:
    dataset().save_to_disk(str(root / "saved"))
    return root / "saved"


def arrays(root: Path) -> BoxSet:
    images = np.zeros((3, 40, 60, 3), np.uint8)
    images[1, ..., 0], images[2, ..., 0] = 40, 80
    boxes = [np.array([box[1:] for box in row]) for row in TRUTH]
    return open_boxes(images, boxes=boxes, labels=[[box[0] for box in row] for row in TRUTH])


SOURCES: list[Callable[[Path], Any]] = [
    voc, voc_split, voc_beside, coco, coco_in_folder, yolo, yolo_beside, saved_dataset, lambda _: dataset(), arrays,
]  # fmt: skip


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_the_same_truth_from_every_source(make: Callable[[Path], Any], tmp_path: Path) -> None:
    images = open_boxes(make(tmp_path / "data"))
    assert images.classes == NAMES
    assert len(images) == 3
    assert images.num_boxes == 3
    for i, boxes in enumerate(images.boxes):
        assert [images.classes[label] for label in boxes.labels] == [box[0] for box in TRUTH[i]]
        np.testing.assert_allclose(boxes.xyxy, np.array([box[1:] for box in TRUTH[i]]).reshape(-1, 4), atol=1e-3)
        assert images.images[i].getpixel((0, 0)) == (40 * i, 0, 0)
    assert images.remarks() == []
    part = pickle.loads(pickle.dumps(images.subset([2, 0])))
    assert [len(boxes) for boxes in part.boxes] == [0, 2]
    image, target = part.example(1)
    assert image.size == SIZE
    assert target["labels"].tolist() == [0, 1]
    assert target["boxes"].canvas_size == (40, 60)


def test_boxes_none_of_which_is_within_its_image_are_an_error() -> None:
    images = [np.zeros((40, 60, 3), np.uint8)] * 2
    with pytest.raises(ValueError, match=r"None of the 2 boxes .* in pixels"):
        open_boxes(images, boxes=[[(61, 0, 69, 9)], [(4, 4, 4, 9)]], labels=[["a"], ["b"]])


@pytest.mark.parametrize("make", [voc, coco], ids=lambda make: make.__name__)
def test_boxes_without_area_are_dropped_and_those_outside_clipped(make: Callable[..., Any], tmp_path: Path) -> None:
    truth = [[("cat", -5, 10, 20, 20), ("dog", 10, 10, 70, 50), ("cat", 9, 9, 9, 20)], [("dog", 61, 5, 70, 9)], []]
    if make is voc:  # which has no pixel 0, so that edges at or below it are at the edge
        truth[0][0] = ("cat", 0, 10, 20, 20)
    images = open_boxes(make(tmp_path / "data", truth))
    assert images.boxes[0].xyxy.tolist() == [[0, 10, 20, 20], [10, 10, 60, 40]]
    assert [len(boxes) for boxes in images.boxes] == [2, 0, 0]
    assert images.dropped == ["0.png: cat", "1.png: dog"]
    assert images.clipped == (1 if make is voc else 2)
    assert images.remarks()[0] == "left out, boxes without area: 2, such as 0.png: cat"


def test_strange_classes_are_an_early_error_with_all_of_them(tmp_path: Path) -> None:
    path = coco(tmp_path, [[("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9)]])
    with pytest.raises(ValueError, match="There are boxes of 'cat', 'dog'; the classes are 'cow', 'hen'"):
        open_boxes(path, classes=["cow", "hen"])
    images = open_boxes(path, classes=["cow", "dog", "cat"])
    assert images.boxes[0].labels.tolist() == [2, 1]
    assert open_boxes(images, classes=["dog", "cat"]).boxes[0].labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="There are boxes of 'cat'; the classes are 'dog'"):
        images.renumbered(["dog"])


def test_crowds_and_difficult_ones_are_kept_apart(tmp_path: Path) -> None:
    path = coco(tmp_path / "coco")
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    root = voc(tmp_path / "voc")
    file = root / "Annotations" / "0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    for source in (path, root):
        images = open_boxes(source)
        assert images.boxes[0].crowd.tolist() == [True, False]
        assert images.example(0)[1]["labels"].tolist() == [1]


def test_splits_are_to_be_chosen(tmp_path: Path) -> None:
    split = voc_split(tmp_path / "voc")
    with pytest.raises(ValueError, match=r"holds the splits train\. Pass one of them, such as .*train\.txt"):
        open_boxes(tmp_path / "voc")
    assert len(open_boxes(str(split))) == 3
    yolo(tmp_path / "yolo")
    for source in (tmp_path / "yolo", tmp_path / "yolo" / "images"):
        with pytest.raises(ValueError, match=r"holds the splits train\. Pass one of them, such as .*images/train"):
            open_boxes(source)
    with pytest.raises(ValueError, match=r"names splits \(train: images/train\)"):
        open_boxes(tmp_path / "yolo" / "data.yaml")


def test_numbered_classes(tmp_path: Path) -> None:
    assert open_boxes(yolo(tmp_path / "a", "")).classes == ["0", "1"]
    assert open_boxes(yolo(tmp_path / "b", "names: {0: tom, 1: rex}")).classes == ["tom", "rex"]
    pixels = np.zeros((1, 40, 60, 3), np.uint8)
    images = open_boxes(pixels, boxes=[[[1, 1, 9, 9]]], labels=[[2]])
    assert images.classes == ["0", "1", "2"]
    assert images.boxes[0].labels.tolist() == [2]
    assert open_boxes(dataset(named=False)).classes == ["0", "1"]
    assert open_boxes(pixels, boxes=[[[1, 1, 9, 9]]], labels=[["x"]], box_format="xywh").boxes[0].xyxy.tolist() == [
        [1, 1, 10, 10]
    ]


def test_what_is_no_set_of_boxes(tmp_path: Path) -> None:
    pixels = np.zeros((2, 40, 60, 3), np.uint8)
    with pytest.raises(ValueError, match="ndarray has no boxes"):
        open_boxes(pixels)
    with pytest.raises(ValueError, match="boxes and labels belong together"):
        open_boxes(pixels, boxes=[[], []])
    with pytest.raises(ValueError, match="got 1 and 2 for 2 images"):
        open_boxes(pixels, boxes=[[]], labels=[[], []])
    with pytest.raises(ValueError, match=r"Image 1 has boxes of shape \(1, 3\) for 1 labels"):
        open_boxes(pixels, boxes=[[], [[1, 2, 3]]], labels=[[], ["a"]])
    with pytest.raises(ValueError, match="None of the 2 images has a box"):
        open_boxes(pixels, boxes=[[], []], labels=[[], []])
    with pytest.raises(ValueError, match="box_format is xyxy or xywh, got 'cxcywh'"):
        open_boxes(pixels, boxes=[[], []], labels=[[], []], box_format="cxcywh")
    with pytest.raises(FileNotFoundError, match="No such file or folder"):
        open_boxes(tmp_path / "nowhere")
    write_images(tmp_path / "plain", ["a.png"])
    with pytest.raises(ValueError, match="Found no boxes in"):
        open_boxes(tmp_path / "plain")


def test_damaged_annotations_are_named(tmp_path: Path) -> None:
    root = voc(tmp_path / "voc")
    (root / "Annotations" / "1.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    with pytest.raises(ValueError, match=r"1\.xml is no VOC annotation"):
        open_boxes(root)
    (root / "Annotations" / "1.xml").unlink()
    (root / "JPEGImages" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="lacks images of 1 entries, such as '0'"):
        open_boxes(root)
    path = coco(tmp_path / "coco")
    path.write_text(path.read_text().replace('"category_id": 17', '"category_id": 3'))
    with pytest.raises(ValueError, match="is of an image or category that the file has not"):
        open_boxes(path)
    folder = yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "labels" / "train" / "0.txt").write_text("7 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match=r"0\.txt, line 1: '7 0.5 0.5 0.1 0.1' .*there are 2 classes"):
        open_boxes(folder)
    (tmp_path / "voc" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "voc" / "ImageSets" / "Main" / "val.txt").write_text("\n")
    with pytest.raises(EmptyDatasetError, match="an empty split"):
        open_boxes(tmp_path / "voc" / "ImageSets" / "Main" / "val.txt")


def test_an_unreadable_image_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "JPEGImages" / "0.png").write_bytes(b"no image")
    images = open_boxes(root)
    assert [len(boxes) for boxes in images.boxes] == [0, 1, 0]
    assert list(sslzoo.data.unreadable(images)) == [0]
