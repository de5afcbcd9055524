"""Crops of one photograph: their sizes, areas and corners, and that the seed decides them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import sslzoo
from sslzoo_training import checkpoint, pretrain
from sslzoo_training.single_image import AREA, RATIO, WINDOW, cut, open_crops, random_box
from sslzoo_training.source import open_source


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "China.png"
    Image.fromarray(load_sample_images().images[0]).save(path)
    return path


def pixels(photo: Path, seed: int = 0, count: int = 6) -> np.ndarray:
    return np.stack([np.asarray(crop) for crop in open_crops(photo, count, size=24, seed=seed)])


def test_crops_have_their_size_and_differ(photo: Path) -> None:
    crops = open_crops(photo, 5, size=24, seed=0)
    assert (len(crops), crops.names[3], crops.size(3)) == (5, "0000003", (24, 24))
    assert pixels(photo).shape == (6, 24, 24, 3)
    assert len(np.unique(pixels(photo).reshape(6, -1), axis=0)) == 6


def test_a_crop_depends_on_the_seed_and_its_number_only(photo: Path) -> None:
    assert np.array_equal(pixels(photo), pixels(photo))
    assert not np.array_equal(pixels(photo), pixels(photo, seed=1))
    crops = open_crops(photo, 6, size=24, seed=0)
    assert np.array_equal(np.asarray(crops[4]), pixels(photo)[4])
    assert np.array_equal(np.asarray(crops.subset([5, 4])[1]), pixels(photo)[4])
    assert np.array_equal(np.asarray(open_crops(photo, 100, size=24, seed=0)[4]), pixels(photo)[4])


@pytest.mark.parametrize("limit", [2**30, 0])
def test_memory_and_workers_give_the_same_crops(photo: Path, limit: int) -> None:
    source = open_source(
        open_crops(photo, 6, size=24, seed=0), store_size=24, memory_limit=limit, workers=2, device="cpu"
    )
    assert source.in_memory == (limit > 0)
    batches = [batch.images for _, batch in source.loader(torch.arange(6), 4)]
    assert np.array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), pixels(photo))


def test_boxes_lie_in_the_photo_and_their_areas_are_uniform() -> None:
    random = np.random.default_rng(0)
    boxes = np.array([random_box(640, 427, random) for _ in range(20_000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 640
    assert bottom.max() <= 427
    window = round(WINDOW * 427)
    assert max((right - left).max(), (bottom - top).max()) <= window
    areas = (right - left) * (bottom - top) / window**2
    assert areas.min() < 2 * AREA[0]
    # above 3/4 only some ratios fit, so that fewer of those are kept; nothing is the whole window more often than that
    common = areas[areas < 0.75]
    counts = np.histogram(common, bins=10, range=(AREA[0], 0.75))[0]
    assert counts.max() / counts.min() < 1.15
    assert (areas > 0.95).mean() < 0.03
    ratios = np.log((right - left) / (bottom - top))[(areas > 0.1) & (areas < 0.75)]
    assert abs(ratios.mean()) < 0.01
    assert np.abs(ratios).max() < math.log(RATIO[1]) + 0.05
    assert ratios.std() == pytest.approx(2 * math.log(RATIO[1]) / math.sqrt(12), rel=0.05)  # uniform in the logarithm


@pytest.mark.parametrize("size", [16, 33])
def test_no_corner_is_black(size: int) -> None:
    """Turned by 30 degrees and sheared by 30, all that is kept still comes from the photograph."""
    white = Image.new("RGB", (320, 240), "white")
    random = np.random.default_rng(0)
    darkest = min(np.asarray(cut(white, size, random)).min() for _ in range(500))
    assert darkest > 140  # brightness goes down to 0.6


def test_crops_are_turned_sheared_and_jittered() -> None:
    """The line between two halves takes many directions, more than turning gives; a grey image gets other greys."""
    halves = Image.fromarray(np.tile((np.arange(400) < 200) * np.uint8(255), (400, 1))).convert("RGB")
    random = np.random.default_rng(0)
    angles = []
    for _ in range(300):
        dy, dx = np.gradient(np.asarray(cut(halves, 32, random)).mean(axis=2))
        if np.abs(dx).sum() > 1000:
            angles.append(math.degrees(math.atan2((dy * np.sign(dx)).sum(), np.abs(dx).sum())))
    assert len(angles) > 30
    assert min(angles) < -45  # a rotation by 30 degrees, of a crop as much out of proportion, comes to 38 alone
    assert max(angles) > 45
    greys = [np.asarray(cut(Image.new("RGB", (64, 64), (128, 128, 128)), 8, random)).mean() for _ in range(200)]
    assert 0.4 < np.mean(np.abs(np.array(greys) - 128) > 1) < 0.6
    assert min(greys) < 85
    assert max(greys) > 171


def test_training_on_one_photograph(photo: Path, tmp_path: Path) -> None:
    settings = {"recipe": "single_image", "image_size": 32, "batch_size": 8, "epochs": 1, "crops": 16}
    assert pretrain("rotation", photo, tmp_path / "run", device="cpu", progress=False, **settings).finished
    block = sslzoo.load(tmp_path / "run").config["sslzoo"]
    assert (block["dataset"], block["recipe"]["single_image"], block["run"]["images"]) == ("china", True, 16)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "on random crops of one photograph (china) for 1 epochs" in card
    assert "| random crops of one photograph (china), 16 images, no labels |" in card
    assert checkpoint.read_log(tmp_path / "run")[-1]["step"] == 2


def test_the_command_line_says_what_single_image_needs(photo: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sslzoo_training.__main__ import app

    base = ["pretrain", "rotation", "--single-image", "--out", str(tmp_path / "run"), "--recipe", "cifar10_cpu",
            "--epochs", "1", "--image-size", "32", "batch_size=8", "crops=8", "--device", "cpu"]  # fmt: skip
    wrong = CliRunner().invoke(app, [*base, "--data", str(photo.parent)])
    assert wrong.exit_code == 1
    assert "data must be an image file" in wrong.output
    assert CliRunner().invoke(app, [*base, "--data", str(photo)]).exit_code == 0
    assert checkpoint.load(tmp_path / "run")["images"] == 8  # type: ignore[index]
