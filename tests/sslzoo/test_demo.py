import re
import shlex

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from sslzoo import demo
from sslzoo.cli import app
from sslzoo.demo import Row, verdict
from sslzoo.encoder import create
from sslzoo.probes import fit_linear
from sslzoo.splits import few_labels

SIDE = 32


@pytest.fixture(scope="module")
def encoders():
    return {f"model{i}": create("resnet18quarter", seed=10 + i, image_size=SIDE) for i in range(4)}


@pytest.fixture
def tiny_zoo(use_zoo, encoders):
    """A zoo of four untrained encoders, each larger than the next, it says."""
    row = {"method": "byol", "arch": "resnet18quarter", "data": "noise"}
    use_zoo({id_: {**row, "params": (9 - i) * 10**5} for i, id_ in enumerate(encoders)}, {"short": "model2"}, encoders)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(demo, "DRAWS", 2)
    monkeypatch.setattr(demo, "RANDOM_SEEDS", 2)


def call(*args):
    return CliRunner().invoke(app, ["demo", *map(str, args)])


def save_folder(root, counts, size=(48, 40)):
    """One sub-folder a class; each class has its own brightness."""
    rng = np.random.default_rng(0)
    for i, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for j in range(count):
            pixels = np.clip(rng.normal(40 + 60 * i, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{j}.png")
    return root


def row(name, pretrained, linear, knn=None):
    return Row(name, pretrained, np.atleast_2d(linear), np.atleast_2d(linear if knn is None else knn))


def test_digits_from_table_to_the_next_commands(tiny_zoo, quick, monkeypatch, tmp_path):
    digits = load_digits()
    for key in ("data", "images", "target"):
        digits[key] = digits[key][:400]
    monkeypatch.setattr(demo, "load_digits", lambda: digits)
    out = tmp_path / "my pictures"
    result = call("-o", out, "--model", "short")
    assert result.exit_code == 0, result.output
    table = result.stdout
    assert "400 images, 10 classes. 10 labels a class, tested on the other 300." in table
    assert all(len(line) <= 100 for line in table.split("Pictures:")[0].splitlines())
    right = []
    for draw in range(2):
        train = few_labels(digits.target, 10, seed=draw)
        test = np.setdiff1d(np.arange(400), train)
        probe = fit_linear(digits.data[train] / 16, digits.target[train], seed=draw)
        right.append(probe.score(digits.data[test] / 16, digits.target[test]))
    raw = re.search(r"^raw pixels +([\d.]+) ±", table, re.M)
    assert raw is not None
    assert float(raw[1]) == pytest.approx(100 * np.mean(right), abs=0.05)
    assert re.search(r"^short +[\d.]+ ±.*^random weights \(resnet18quarter\) +[\d.]+ ±", table, re.M | re.S)
    assert "first is raw pixels" in table  # what else, beside untrained networks
    for name in ("accuracy.png", "confusion.png", "mistakes.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300

    commands = [shlex.split(line) for line in table.partition("Next:\n")[2].splitlines()]
    assert [line[:2] for line in commands] == [["sslzoo", "probe"], ["sslzoo", "embed"], ["sslzoo", "pretrain"]]
    commands[2][commands[2].index("10m")] = "0s"  # a time limit: one checkpoint, no training
    for line in commands:
        ran = CliRunner().invoke(app, line[1:])
        assert ran.exit_code == 0, ran.output
    assert {path.name for path in out.iterdir()} >= {"probe", "features.npz", "byol", "digits.npz"}


def test_digits_are_black_to_white(tmp_path):
    data = demo._digits(tmp_path)
    assert {image.mode for image in data.images} == {"L"}
    pixels = np.stack([np.asarray(image) for image in data.images])
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    np.testing.assert_allclose(pixels.reshape(1797, 64) / 255, data.raw, atol=0.5 / 255)


def test_own_folder(tiny_zoo, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "PER_CLASS", 13)
    photos = save_folder(tmp_path / "photos", {"cat": 12, "dog": 20, "elk": 5, "owl": 10})
    (photos / "cat" / "bad.png").write_bytes(b"no image")
    result = call("--data", photos, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "photos: 25 images, 2 classes. 10 labels a class, tested on the other 5." in result.stdout
    text = " ".join(result.stdout.split())
    assert "Used at most 13 images a class, of 48 in all" in text
    assert "Left out 1 images that cannot be read, such as cat/bad.png: not an image that Pillow can read." in text
    assert "Left out classes with too few images: elk (5), owl (10)" in text
    assert "Not tried, to stay quick: model0." in text
    assert [name in result.stdout for name in ("model1 ", "model2 ", "model3 ")] == [True] * 3
    lines = result.stdout.splitlines()
    assert sum(line.startswith("random weights (") for line in lines) == 1  # one network, so one row for it
    assert not any(line.startswith("model0 ") for line in lines)


def test_encoders_see_of_a_folder_what_they_would_see_of_its_files(tmp_path):
    photos = save_folder(tmp_path / "photos", {"a": 11, "b": 11}, size=(97, 61))
    encoder = create("resnet18quarter", seed=0, image_size=SIDE)
    data = demo._folder(photos, SIDE)
    assert max(max(image.size) for image in data.images) < 97
    np.testing.assert_array_equal(encoder.embed(data.images), encoder.embed(photos))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 3, "dog": 30}, r"fewer than two classes .* 11 images, 10 to learn from .* Too few: cat \(3\)\.$"),
        ({".": 20}, "has no labels. The demo needs a folder with a sub-folder of images for each class"),
    ],
)
def test_unusable_folders(tiny_zoo, counts, message, tmp_path):
    if "." in counts:
        save_folder(tmp_path, {"photos": 20})
    else:
        save_folder(tmp_path / "photos", counts)
    result = call("--data", tmp_path / "photos", "--model", "model0", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert re.match("error: .*" + message, result.stderr)
    assert result.stderr.count("\n") == 1


def test_by_default_small_encoders_of_whole_images_are_taken_in_the_zoos_order(use_zoo):
    params = {"large": 23_500_000, "first": 701_720, "half": 238_300, "second": 701_576, "third": 701_720, "fourth": 1}
    row = {"method": "byol", "data": "noise"}
    arch = {"half": "tophalf_mlp"}
    use_zoo({id_: {**row, "arch": arch.get(id_, "resnet18quarter"), "params": n} for id_, n in params.items()})
    assert demo.default_models() == ["first", "second", "fourth"]


def test_empty_zoo(use_zoo, tmp_path):
    use_zoo({})
    result = call("-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: This version of sslzoo comes without pretrained models")
    assert not (tmp_path / "out").exists()


def test_random_weights_are_of_the_same_network():
    encoder = create("resnet18quarter", seed=0, image_size=SIDE)
    encoder.config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    one, other = demo._random(encoder, 1), demo._random(encoder, 2)
    assert one.config == encoder.config
    assert [p.shape for p in one.parameters()] == [p.shape for p in encoder.parameters()]
    assert not np.array_equal(one.model.conv1[0].weight.detach(), other.model.conv1[0].weight.detach())


PRETRAINED = [0.80, 0.82, 0.81, 0.83, 0.84]


@pytest.mark.parametrize(
    ("random", "raw", "sentence"),
    [
        (0.5, 0.6, "first is byol, 22.0 points ahead of the best baseline, raw pixels (in all 5 draws)."),
        (0.5, 0.9, "first is raw pixels, 8.0 points ahead of the best pretrained encoder, byol (in all 5 draws)."),
        (0.9, 0.3, "first is random, 8.0 points ahead of the best pretrained encoder, byol (in all 5 draws)."),
        (0.5, 0.82, "byol and raw pixels tie at 82.0%."),
        (
            0.5,
            0.815,
            "first is byol, 0.5 points ahead of the best baseline, raw pixels "
            "(but only in 3 of 5 draws: too close to call).",
        ),
        (
            0.5,
            0.825,
            "first is raw pixels, 0.5 points ahead of the best pretrained encoder, byol "
            "(but only in 3 of 5 draws: too close to call).",
        ),
    ],
)
def test_verdict_is_what_the_numbers_say(random, raw, sentence):
    rows = [
        row("rotation", True, [0.2] * 5),
        row("byol", True, PRETRAINED),
        row("random", False, np.full((3, 5), random) + np.array([[-0.1], [0], [0.1]])),
        row("raw pixels", False, [raw] * 5),
    ]
    assert verdict(rows) == [f"Linear probe: {sentence}", f"kNN: {sentence}"]


def test_verdict_on_each_probe_of_its_own():
    rows = [row("byol", True, PRETRAINED, [0.1] * 5), row("raw pixels", False, [0.5] * 5, [0.7] * 5)]
    linear, knn = verdict(rows)
    assert "first is byol, 32.0 points" in linear
    assert "first is raw pixels, 60.0 points" in knn
