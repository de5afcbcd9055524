"""The detection evaluation: rows for each head and seed, pictures, and nothing measured twice."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslzoo_evaluations import detection, results
from sslzoo_evaluations.__main__ import main


@pytest.fixture
def cells(photos: np.ndarray, tmp_path: Path) -> Path:
    """A VOC folder: three photographs to train on, two to test on, each with a bright square."""
    root = tmp_path / "cells"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        image = photos[i].copy()
        image[10 : 20 + i, 5:25] = 255
        Image.fromarray(image).save(root / "JPEGImages" / f"{i}.png")
        box = f"<xmin>6</xmin><ymin>11</ymin><xmax>25</xmax><ymax>{20 + i}</ymax>"
        (root / "Annotations" / f"{i}.xml").write_text(
            f"<a><object><name>cell</name><bndbox>{box}</bndbox></object></a>"
        )
    (root / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n2\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("3\n4\n")
    return root


def test_rows_and_pictures(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.csv"
    words = [
        "byol-resnet18quarter-cifar10",
        "--data",
        str(cells),
        "--heads",
        "faster-rcnn",
        "--seeds",
        "0",
        "--steps",
        "2",
    ]
    words += [
        "--batch-size",
        "2",
        "--image-size",
        "64",
        "--results",
        str(file),
        "--pictures",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert detection.main([*words, "--scratch"]) == 0
    rows = results.read(file)
    assert [(row.model, row.protocol, row.metric) for row in rows] == [
        (model, "detection-faster-rcnn", metric)
        for model in ("byol-resnet18quarter-cifar10", "random:resnet18quarter@64")
        for metric in ("ap", "ap50", "ap75")
    ]
    assert all((row.data, row.n_train, row.n_test) == ("cells", 3, 2) and 0 <= row.value <= 1 for row in rows)
    assert "image_size=64 proposals=128 steps=2 batch_size=2" in rows[0].settings
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        f"detection-{name}-faster-rcnn-cells-0.png"
        for name in ("byol-resnet18quarter-cifar10", "random-resnet18quarter@64")
    ]
    out = capsys.readouterr()
    assert "images reduced to a shorter side of 64 pixels" in out.err
    assert "| faster-rcnn | `random:resnet18quarter@64` |" in out.out
    assert detection.main(words) == 0
    assert len(results.read(file)) == 6


def test_the_table_has_mean_and_deviation() -> None:
    rows = [
        results.Result("m", "detection-fcos", "d", metric, value, seed, 1, 1, "", "", "", "2026-01-01")
        for metric in ("ap", "ap50", "ap75")
        for seed, value in enumerate((0.1, 0.3))
    ]
    assert detection.table(rows).splitlines()[-1] == "| fcos | `m` | 20.0 % ± 14.1 | 20.0 % ± 14.1 | 20.0 % ± 14.1 |"


def test_what_cannot_be_evaluated(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["byol-resnet18quarter-cifar10", "--results", str(tmp_path / "r.csv"), "--data"]
    (cells / "ImageSets" / "Main" / "test.txt").unlink()
    assert main(["detection", *words, str(cells)]) == 1
    assert "has no split test: looked for" in capsys.readouterr().err
    assert main(["detection", "pixels", *words[1:], str(cells)]) == 1
