"""Images with masks from every kind of source: the same class numbers, and early errors that say what to do."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslzoo import open_masks
from sslzoo.class_table import VOC, palette
from sslzoo.data import EmptyDatasetError, UnreadableImageError

NAMES = ["photograph", "zero", "one"]
COLOURS = [(10, 20, 30), (255, 0, 0), (0, 0, 255)]


@pytest.fixture(scope="module")
def some(scenes: Callable[..., Any]) -> Any:
    return scenes(4)


def write(folder: Path, some: Any, kind: str = "index") -> Path:
    """Images and masks as files: "index", "palette" or "colour"."""
    for n, (image, mask) in enumerate(zip(some.images, some.masks, strict=True)):
        for name, pixels in (("images", image), ("masks", mask)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(
                np.array(COLOURS, dtype=np.uint8)[pixels] if (name, kind) == ("masks", "colour") else pixels
            )
            if (name, kind) == ("masks", "palette"):
                picture.putpalette([value for colour in palette(256) for value in colour])
            picture.save(folder / name / f"{n}.png")
    return folder


def same(found: Any, masks: np.ndarray) -> None:
    assert len(found) == len(masks)
    for i, mask in enumerate(masks):
        assert np.array_equal(found.mask(i), mask)
        assert found.mask(i).dtype == np.uint8


@pytest.mark.parametrize("kind", ["index", "palette", "colour"])
def test_folders(kind: str, some: Any, tmp_path: Path) -> None:
    root = write(tmp_path / "scenes", some, kind)
    lines = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(NAMES, COLOURS, strict=True)]
    (root / "classes.csv").write_text("\n".join(lines))
    found = open_masks(root)
    same(found, some.masks)
    assert (found.classes, found.colours, list(found.names)) == (NAMES, COLOURS, [f"{n}.png" for n in range(4)])
    image, target = found.example(2)
    assert np.array_equal(np.asarray(image), some.images[2])
    assert np.array_equal(target["masks"].numpy(), some.masks[2])
    part = pickle.loads(pickle.dumps(found.subset([3, 1])))
    same(part, some.masks[[3, 1]])
    assert part.classes == NAMES


def test_every_kind_gives_the_same(some: Any, tmp_path: Path) -> None:
    root = write(tmp_path, some)
    np.savez(tmp_path / "a.npz", images=some.images, masks=some.masks)
    files = sorted((root / "masks").glob("*.png"))
    pictures = [Image.fromarray(mask) for mask in some.masks]
    for source in (
        root, str(root), tmp_path / "a.npz", (some.images, some.masks), (list(some.images), pictures),
        (root / "images", files), (sorted((root / "images").glob("*")), list(some.masks.astype(np.int64))),
    ):  # fmt: skip
        found = open_masks(source)
        same(found, some.masks)
        assert found.classes is None
        assert found.highest() == 2
    same(open_masks(open_masks(root).subset([2, 0]), classes=NAMES), some.masks[[2, 0]])


def test_hugging_face_datasets(some: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.fromarray(x) for x in some.images], "annotation": [Image.fromarray(x) for x in some.masks]}
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    data = datasets.Dataset.from_dict(rows, features=features)
    same(open_masks(data), some.masks)
    data.save_to_disk(str(tmp_path / "saved"))
    found = open_masks(tmp_path / "saved", classes=NAMES)
    same(found, some.masks)
    assert np.array_equal(np.asarray(found.images[1]), some.images[1])


def test_pascal_vocs_layout(some: Any, tmp_path: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for n in range(4):
        Image.fromarray(some.images[n]).save(tmp_path / "JPEGImages" / f"2007_{n}.jpg")
        mask = some.masks[n].copy()
        mask[0] = 255  # as the borders in VOC
        picture = Image.fromarray(mask)
        picture.putpalette([value for colour in palette(256) for value in colour])
        if n < 3:
            picture.save(tmp_path / "SegmentationClass" / f"2007_{n}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("2007_1\n2007_3\n2007_2\n")
    (lists / "val.txt").write_text("2007_0\n")
    found = open_masks(lists / "train.txt")
    assert (list(found.names), found.left_out) == (["2007_1", "2007_2"], ["2007_3"])
    assert found.classes == list(VOC)
    assert np.array_equal(found.mask(1)[1:], some.masks[2][1:])
    assert (found.mask(1)[0] == 255).all()
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nwall:0,0,0::\nzero:1,1,1::\none:2,2,2::\n")
    assert open_masks(lists / "train.txt").classes == ["wall", "zero", "one"]
    with pytest.raises(ValueError, match=r"holds splits: train, val\. Pass .*train\.txt"):
        open_masks(tmp_path)


def test_coco(some: Any, tmp_path: Path) -> None:
    write(tmp_path, some)
    rows = []
    for n in range(4):
        for (x1, y1, x2, y2), label in zip(some.boxes[n], some.labels[n], strict=True):
            outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            rows.append(
                {"id": len(rows), "image_id": n, "category_id": int(label) + 4, "segmentation": outline, "area": 9}
            )
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(4)],
        "categories": [{"id": 5, "name": "one"}, {"id": 4, "name": "zero"}], "annotations": rows,
    }  # fmt: skip
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps(content, default=float))
    found = open_masks(path)
    assert found.classes == ["background", "zero", "one"]
    for n in range(4):
        assert (found.mask(n) != some.masks[n]).mean() < 0.06  # outlines are drawn with their border
        assert (found.mask(n)[some.masks[n] > 0] > 0).all()


def test_splits_of_folders_are_named(some: Any, tmp_path: Path) -> None:
    write(tmp_path / "train", some)
    write(tmp_path / "val", some)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match=r"needs the folders images/ and masks/.*holds splits: pass .*val"):
        open_masks(tmp_path)
    assert open_masks(tmp_path / "train").classes == NAMES


def test_images_of_splits_beside_their_annotations(some: Any, tmp_path: Path) -> None:
    write(tmp_path / "x", some)
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "x" / "images").rename(tmp_path / "images" / "training")
    (tmp_path / "x" / "masks").rename(tmp_path / "annotations" / "training")
    same(open_masks(tmp_path / "images" / "training"), some.masks)


def test_void_and_255_count_nowhere(some: Any) -> None:
    masks = some.masks.copy()
    masks[0, 0, :5] = 255
    found = open_masks((some.images, masks), classes=["photograph", "void", "one"])
    assert found.classes == ["photograph", "one"]
    wanted = np.array([0, 255, 1], dtype=np.uint8)[np.minimum(masks, 2)]
    wanted[masks == 255] = 255
    same(found, wanted)
    assert found.counts()[0, 255] == (wanted[0] == 255).sum()
    assert found.counts()[0].sum() == wanted[0].size


def test_black_and_white_masks_by_their_grey_levels(some: Any, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background 0 0 0\nobject 255 255 255\n")
    found = open_masks(
        (some.images, [Image.fromarray((m > 0).astype(np.uint8) * 255) for m in some.masks]),
        classes=tmp_path / "classes.txt",
    )
    same(found, (some.masks > 0).astype(np.uint8))
    one_bit = [Image.fromarray(mask > 0) for mask in some.masks]
    same(open_masks((some.images, one_bit)), (some.masks > 0).astype(np.uint8))


def test_classes_are_matched_by_name(some: Any) -> None:
    found = open_masks((some.images, some.masks), classes=["photograph", "zero", "one"])
    found.counts()
    moved = found.renumbered(["one", "photograph", "other", "zero"])
    new = np.array([1, 3, 0], dtype=np.uint8)[some.masks]
    same(moved, new)
    assert moved.counts().sum(0)[:4].tolist() == np.bincount(new.ravel(), minlength=4).tolist()
    same(moved.subset([2]), new[[2]])
    same(found, some.masks)
    with pytest.raises(ValueError, match="masks have classes 'zero', 'one'"):
        found.renumbered(["photograph"])


def test_masks_that_do_not_fit(some: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"000000 has 64×64 pixels, its mask 64×32"):
        open_masks((some.images, some.masks[:, :, :32])).read(0)
    with pytest.raises(ValueError, match=r"values 2, which are no classes: those are 0 to 1, and 255"):
        open_masks((some.images, some.masks), classes=["a", "b"]).read(0)
    with pytest.raises(ValueError, match="values 500, 1000, which are no classes"):
        open_masks((some.images, some.masks.astype(np.int32) * 500)).read(0)
    with pytest.raises(ValueError, match="negative"):
        open_masks((some.images, -some.masks.astype(np.int32))).read(0)
    with pytest.raises(ValueError, match=r"whole numbers in shape \(H, W\), got uint8 \(64, 64, 3\)"):
        open_masks((some.images, some.images)).read(0)
    with pytest.raises(ValueError, match="whole numbers"):
        open_masks((some.images, some.masks / 2)).read(0)
    root = write(tmp_path / "c", some, "colour")
    with pytest.raises(ValueError, match=r"is in colour, and nothing says what the colours mean.*classes\.txt"):
        open_masks(root).read(0)
    (root / "classes.txt").write_text("photograph 10 20 30\nzero 255 0 0\n")
    with pytest.raises(ValueError, match=r"has the colour \(0, 0, 255\), which is no class's \(19\.1% of its pixels"):
        open_masks(root).read(0)


def test_sources_that_are_refused(some: Any, tmp_path: Path) -> None:
    for source, error, message in (
        ((some.images, some.masks[:2]), ValueError, "4 images need as many masks, got 2"),
        ((some.images, "masks"), TypeError, "A folder has both"),
        (3, TypeError, "Cannot take images and masks from int"),
        (tmp_path / "none", FileNotFoundError, "No such file"),
        (tmp_path, ValueError, "needs the folders images/ and masks/"),
    ):
        with pytest.raises(error, match=message):
            open_masks(source)
    (tmp_path / "x.zip").touch()
    with pytest.raises(ValueError, match=r"expected a folder, or a \.txt, \.json or \.npz"):
        open_masks(tmp_path / "x.zip")
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(ValueError, match="no list of Pascal VOC's"):
        open_masks(tmp_path / "x.txt")


def test_images_without_masks_and_damaged_files(some: Any, tmp_path: Path) -> None:
    root = write(tmp_path, some)
    (root / "masks" / "1.png").unlink()
    found = open_masks(root)
    assert (list(found.names), found.left_out) == (["0.png", "2.png", "3.png"], ["1.png"])
    same(found, some.masks[[0, 2, 3]])
    for part in ("images", "masks"):
        path = root / part / "2.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:80])
        with pytest.raises(UnreadableImageError, match=r"2\.png"):
            found.read(1)
        path.write_bytes(whole)
    for path in (root / "masks").iterdir():
        path.unlink()
    with pytest.raises(EmptyDatasetError, match="No image has a mask"):
        open_masks(root)
