from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import sslzoo
from sslzoo.transforms import RandomCrop
from sslzoo_evaluations import knn, linear
from sslzoo_evaluations.__main__ import main
from sslzoo_evaluations.protocol import features, measure, open_splits
from sslzoo_evaluations.results import read
from sslzoo_evaluations.subjects import EvaluationError, mirrored, open_subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits 0, 1 and 2 as 8x8 PNG files: 20 of each to train on, 10 to test on."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for digit in range(3):
        pixels = (digits.images[digits.target == digit] * 15).astype(np.uint8)
        for name, images in {"train": pixels[:20], "test": pixels[20:30]}.items():
            place = root / name / str(digit)
            place.mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).convert("RGB").save(place / f"{i}.png")
    return root


def test_pixels_are_normalised_pixels_and_their_mirror_image(folder):
    train, _ = open_splits(folder)
    x = features(open_subject("pixels", 0, train), train, views=1, seed=0)
    assert x.shape == (60, 2, 3 * 8 * 8)
    image = np.asarray(train[17]) / 255
    expected = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(x[17, 0].view(3, 8, 8), expected.transpose(2, 0, 1), atol=1e-6)
    assert np.allclose(x[17, 1].view(3, 8, 8), expected[:, ::-1].transpose(2, 0, 1), atol=1e-6)


def test_pixels_of_the_top_half_are_the_first_half_of_each_channel(folder):
    train, _ = open_splits(folder)
    whole, top = (
        features(open_subject(name, 0, train), train, views=1, seed=0) for name in ("pixels", "pixels:tophalf")
    )
    assert torch.equal(top.view(60, 2, 3, 4, 8), whole.view(60, 2, 3, 8, 8)[:, :, :, :4])


def test_features_are_the_encoders_own_in_eval_mode(folder):
    train, _ = open_splits(folder)
    subject = open_subject("random:resnet18quarter@32", 3, train)
    encoder = sslzoo.create("resnet18quarter", seed=3, image_size=32)
    x = features(subject, train, views=2, seed=0)
    with torch.inference_mode():
        expected = encoder(torch.stack([encoder.transform(train[i]) for i in (0, 59)]))
    assert torch.allclose(x[[0, 59], 0], expected, rtol=1e-4, atol=1e-5)
    assert subject.name == "random:resnet18quarter@32"
    assert len(subject.sha256) == 64
    assert (x[:, 1] - x[:, 2]).abs().max() > 1e-3


def test_views_depend_on_the_seed_and_not_on_workers(folder):
    train, _ = open_splits(folder)
    subject = open_subject("random:resnet18quarter@32", 0, train)
    here = features(subject, train, views=1, seed=0)
    assert torch.equal(here, features(subject, train, views=1, seed=0, workers=1))
    other = features(subject, train, views=1, seed=1)
    assert torch.equal(here[:, 0], other[:, 0])
    assert not torch.allclose(here[:, 1], other[:, 1])


def test_crops_keep_to_their_ranges():
    random = Random(0)
    boxes = np.array([RandomCrop((8, 8)).box(400, 300, random) for _ in range(2000)], dtype=float)
    left, top, width, height = boxes.T
    assert left.min() == 0
    assert top.min() == 0
    assert (left + width).max() == 400
    assert (top + height).max() == 300
    area, ratio = width * height / (400 * 300), width / height
    assert 0.078 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78
    assert 1.3 < ratio.max() < 1.35


def test_a_crop_is_resized_and_flipped_half_of_the_time():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
    random = Random(0)
    views = [np.asarray(RandomCrop((24, 32))(ramp, random)).astype(int) for _ in range(200)]
    assert {view.shape for view in views} == {(24, 32, 3)}
    rising = sum(view[0, -1, 0] > view[0, 0, 0] for view in views)
    assert 70 < rising < 130
    assert np.array_equal(np.asarray(mirrored(ramp, random)), np.asarray(ramp)[:, ::-1])


@pytest.mark.parametrize("protocol", [linear, knn])
def test_a_row_is_right_repeatable_and_blind_to_the_test_labels(folder, protocol):
    train, test = open_splits(folder)
    subject = open_subject("pixels", 0, train)

    def run(test):
        return measure("p", protocol.fit, subject, (train, test), data="digits", seed=0, views=1)

    row = run(test)
    assert row == run(test)
    assert (row.model, row.data, row.metric, row.n_train, row.n_test) == ("pixels", "digits", "top1", 60, 30)
    assert row.value > 0.9
    shifted = test.subset(range(len(test)))
    shifted.labels = (test.labels + 1) % 3
    other = run(shifted)
    assert other.settings == row.settings
    assert other.value < 0.1


def test_the_command_line_appends_one_row(folder, tmp_path, capsys):
    file = tmp_path / "r.csv"
    words = ["random:resnet18quarter@32", "--data", str(folder), "--results", str(file), "--device", "cpu"]
    assert linear.main([*words, "--views", "1", "--workers", "0"]) == 0
    assert knn.main([*words, "--seed", "1", "--workers", "0"]) == 0
    first, second = read(file)
    assert (first.protocol, first.seed, second.protocol, second.seed) == ("linear", 0, "knn", 1)
    assert first.settings.startswith("views=1 weight_decay=")
    assert first.sha256 != second.sha256  # another seed, other random weights
    assert f"{first.value:.4f}" in capsys.readouterr().out


def test_networks_of_half_an_image_are_measured_without_views(folder, tmp_path):
    file = tmp_path / "r.csv"
    for model in ("random:tophalf_mlp@28", "pixels:tophalf"):
        words = [model, "--data", str(folder), "--results", str(file), "--device", "cpu", "--workers", "0"]
        assert linear.main([*words, "--views", "0"]) == 0
    network, pixels = read(file)
    assert (network.model, pixels.model) == ("random:tophalf_mlp@28", "pixels:tophalf")
    assert network.settings.startswith("weight_decay=")
    assert min(network.value, pixels.value) > 0.6


def test_a_run_is_not_taken_for_the_zoos_model(folder, tmp_path):
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32)
    encoder.config["sslzoo"] |= {"method": "byol", "dataset": "digits"}
    encoder.save_pretrained(tmp_path / "run")
    train, _ = open_splits(folder)
    assert open_subject(str(tmp_path / "run"), 0, train).name == "run:byol-resnet18quarter-digits"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nonsense", "Unknown model 'nonsense'"),
        ("random:resnet18quarte", "Did you mean 'resnet18quarter'"),
        ("random:resnet18@big", "number of pixels"),
    ],
)
def test_unknown_models_are_errors(folder, tmp_path, capsys, model, message):
    assert main(["knn", model, "--data", str(folder), "--results", str(tmp_path / "r.csv")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()


def _save(path, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size)).save(path)


def test_folders_that_do_not_fit_are_errors(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        _save(tmp_path / name)
    with pytest.raises(EvaluationError, match="two or more sub-folders"):
        open_splits(tmp_path)
    _save(tmp_path / "test/c/1.png")
    with pytest.raises(EvaluationError, match="only one of them has b, c"):
        open_splits(tmp_path)
    with pytest.raises(EvaluationError, match="no folder train/"):
        open_splits(tmp_path / "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_and_not_skipped(tmp_path, workers):
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"):
        _save(tmp_path / name)
    train, _ = open_splits(tmp_path)
    subject = open_subject("pixels", 0, train)
    (tmp_path / "train/b/1.png").write_bytes(b"not a picture")
    with pytest.raises(EvaluationError, match=r"b/1\.png.*whole data set"):
        features(subject, train, views=0, seed=0, workers=workers)


def test_pixels_of_unequal_images_are_refused(tmp_path):
    for name, size in (("train/a/1.png", 8), ("train/b/1.png", 9), ("test/a/1.png", 8), ("test/b/1.png", 8)):
        _save(tmp_path / name, size)
    train, _ = open_splits(tmp_path)
    with pytest.raises(EvaluationError, match="images of one size"):
        features(open_subject("pixels", 0, train), train, views=0, seed=0)
