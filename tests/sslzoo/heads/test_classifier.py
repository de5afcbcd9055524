"""The classifier: what it saves opens everywhere with the same logits, and what it refuses it refuses early."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vgg import ConvMlp
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import sslzoo
from sslzoo import Classifier, Encoder, weights
from sslzoo.heads import timm_layout
from sslzoo.heads.classifier import build

NAMES = ["lily", "$rose_1", "日本"]


def random_head(model: Classifier, seed: int = 0) -> Classifier:
    """Give a classifier, whose head starts at zero, a head that says something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nn.init.normal_(model.head.weight)
        nn.init.normal_(model.head.bias)
    return model


def random_norms(encoder: Encoder, seed: int = 1) -> Encoder:
    """Give batch norms the statistics that training would: new ones hide loaders that reset them."""
    g = torch.Generator().manual_seed(seed)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=g)
            module.running_var.uniform_(0.5, 1.5, generator=g)
    return encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return random_norms(sslzoo.create("resnet18quarter", seed=0, image_size=32))


@pytest.fixture
def model(encoder: Encoder) -> Classifier:
    return random_head(sslzoo.classifier(encoder, classes=NAMES))


@pytest.mark.parametrize(
    ("arch", "size"), [("resnet18quarter", 64), ("vit_tiny_patch16_224", 32), ("convnext_atto", 64), ("vgg11_bn", 96)]
)
def test_every_library_reads_it_with_the_same_logits_and_names(
    arch: str, size: int, photos: np.ndarray, tmp_path: Path
) -> None:
    encoder = random_norms(sslzoo.create(arch, seed=0, image_size=size))
    model = random_head(sslzoo.classifier(encoder, classes=NAMES))
    model.save_pretrained(tmp_path)
    photo = Image.fromarray(photos[1])
    images = torch.stack([model.transform(Image.fromarray(photo)) for photo in photos[:3]])
    with torch.inference_mode():
        logits = model(images)["logits"]
        again = sslzoo.load_model(tmp_path)
        assert torch.equal(again(images)["logits"], logits)
        assert again.classes == NAMES
        assert again.encoder.arch == arch

        network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(network(images), logits, rtol=1e-5, atol=2e-5)
        assert list(network.pretrained_cfg["label_names"]) == NAMES
        theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        pixels = AutoImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(theirs(pixels).logits, logits[1:2], rtol=1e-5, atol=2e-5)
        answer = pipeline("image-classification", model=str(tmp_path))(photo)
    expected = dict(zip(NAMES, logits[1].softmax(0).tolist(), strict=True))
    assert {row["label"]: row["score"] for row in answer} == pytest.approx(expected, abs=1e-5)
    first = (tmp_path / "model.safetensors").read_bytes()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )


@pytest.mark.parametrize("side", range(1, 8))
def test_vggs_wide_layers_pass_the_mean_of_maps_on(side: int) -> None:
    maps = torch.rand(2, 3, side, 8 - side, generator=torch.Generator().manual_seed(side))
    layers = ConvMlp(3, 16, mlp_ratio=3 / 16).eval()
    rows, columns = timm_layout._mean_weights(side), timm_layout._mean_weights(8 - side)
    first = torch.zeros(3, 3, 7, 7)
    first[range(3), range(3)] = torch.outer(rows, columns)
    second = torch.eye(16, 3)[..., None, None]
    layers.load_state_dict(
        {"fc1.weight": first, "fc1.bias": torch.zeros(3), "fc2.weight": second, "fc2.bias": torch.zeros(16)}
    )
    with torch.inference_mode():
        out = layers(maps)
    assert out.shape == (2, 16, 1, 1)
    torch.testing.assert_close(out[:, :3, 0, 0], maps.mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_what_timm_cannot_hold_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="up to 255 pixels"):
        sslzoo.classifier(sslzoo.create("vgg11", seed=0, image_size=256), 2)
    with pytest.raises(ValueError, match="has classifiers"):
        sslzoo.classifier(sslzoo.create("deit_tiny_distilled_patch16_224", seed=0, image_size=32), 2)


def test_it_starts_at_zero_and_shares_the_encoder(encoder: Encoder) -> None:
    model = sslzoo.classifier(encoder, 4)
    assert model.encoder is encoder
    assert model.classes == ["0", "1", "2", "3"]
    assert not model.training
    out = model(torch.rand(2, 3, 32, 32), torch.tensor([0, 3]))
    assert torch.equal(out["logits"], torch.zeros(2, 4))
    assert out["loss"].item() == pytest.approx(np.log(4))
    assert "loss" not in model(torch.rand(1, 3, 32, 32))


def test_where_the_encoder_came_from(encoder: Encoder, tmp_path: Path) -> None:
    assert "0 of 132 encoder tensors are pretrained: resnet18quarter with random" in repr(sslzoo.classifier(encoder, 2))
    model = sslzoo.classifier("byol-resnet18quarter-cifar10", 2)
    assert "132 of 132 encoder tensors from byol-resnet18quarter-cifar10" in model.extra_repr()
    model.save_pretrained(tmp_path)
    again = sslzoo.load_model(tmp_path)
    assert again.encoder_id == "byol-resnet18quarter-cifar10"
    assert again.encoder.config["sslzoo"]["method"] == "byol"
    assert again.encoder.config == sslzoo.load("byol-resnet18quarter-cifar10").config


def test_a_frozen_encoder_keeps_its_weights_and_statistics(encoder: Encoder) -> None:
    model = sslzoo.classifier(encoder, 2).freeze().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    out = model(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    out["loss"].backward()
    assert model.training
    assert not any(module.training for module in encoder.modules())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert model.head.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    model.freeze(False)
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_vggs_unused_layers_stay_frozen() -> None:
    model = sslzoo.classifier(sslzoo.create("vgg11", seed=0, image_size=32), 2).freeze().freeze(False).train()
    nn.init.normal_(model.head.weight)
    model(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))["loss"].backward()
    assert all(parameter.requires_grad == (parameter.grad is not None) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "how many classes"),
        ({"num_classes": 1}, "at least two classes, got 1"),
        ({"classes": ["a"]}, "at least two classes, got 1"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "3 classes need 3 names, got 2"),
        ({"classes": ["a", "b", "a"]}, "come twice: 'a'"),
    ],
)
def test_classes_that_are_none(encoder: Encoder, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sslzoo.classifier(encoder, **arguments)


def test_an_encoder_is_no_model_and_a_model_no_encoder(model: Classifier, encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(weights.WeightsError, match=r"no task: it holds an encoder\. sslzoo\.load opens it"):
        sslzoo.load_model(tmp_path / "encoder")
    with pytest.raises(weights.WeightsError, match=r"a model for classification: sslzoo\.load_model opens it"):
        sslzoo.load(tmp_path / "model")


def test_a_damaged_model_is_not_loaded(model: Classifier, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_classes": 4}))
    with pytest.raises(weights.WeightsError, match=r"fc\.weight: shape \(3, 128\), needs \(4, 128\)"):
        sslzoo.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(weights.WeightsError, match="truncated"):
        sslzoo.load_model(tmp_path)


# Prediction


def test_predictions_of_a_folder(model: Classifier, photo_folder: Path) -> None:
    found = model.predict(photo_folder, batch_size=5)
    assert len(found) == 24
    assert found.names[0] == "china/00.png"
    images = torch.stack([model.transform(sslzoo.read_image(photo_folder / name)) for name in found.names])
    with torch.inference_mode():
        expected = model(images)["logits"].softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert found.labels == [NAMES[i] for i in expected.argmax(1)]
    assert "and 4 more" in str(found)
    assert found.labels[0] in str(found).splitlines()[0]


def test_predictions_of_anything(model: Classifier, photo_folder: Path, photos: np.ndarray) -> None:
    wanted = model.predict(photo_folder).probabilities[0]
    path = photo_folder / "china" / "00.png"
    for source in (path, str(path), [path], Image.open(path), [Image.open(path)], photos[:1], [photos[0]]):
        np.testing.assert_allclose(model.predict(source).probabilities, wanted[None], atol=1e-6)
    assert model.train().predict(path).probabilities is not None
    assert model.training  # as it was


@pytest.fixture
def mixed(tmp_path: Path, photos: np.ndarray) -> Path:
    """Two good images and a broken one between them."""
    for name, photo in (("a.png", photos[0]), ("c.png", photos[1])):
        Image.fromarray(photo).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    return tmp_path


def test_a_broken_image_is_listed_and_the_others_are_predicted(model: Classifier, mixed: Path) -> None:
    found = model.predict(mixed)
    assert found.names == ["a.png", "c.png"]
    assert [name for name, _ in found.skipped] == ["b.png"]
    assert "b.png: cannot be read: " in str(found)
    rows = json.loads(found.to_json())
    assert [row["image"] for row in rows] == ["a.png", "c.png", "b.png"]
    assert rows[0]["label"] == max(rows[0]["probabilities"], key=rows[0]["probabilities"].get)
    assert sum(rows[1]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert set(rows[2]) == {"image", "error"}


def test_files_of_predictions(model: Classifier, mixed: Path, tmp_path: Path) -> None:
    found = model.predict(mixed)
    for suffix in ("json", "csv", "png"):
        found.save(tmp_path / f"said.{suffix}")
    table = list(csv.reader(io.StringIO((tmp_path / "said.csv").read_text(encoding="utf-8"))))
    assert table[0] == ["image", "label", "probability", *NAMES]
    assert [row[0] for row in table[1:]] == ["a.png", "c.png"]
    assert float(table[1][2]) == max(map(float, table[1][3:]))
    assert json.loads((tmp_path / "said.json").read_text(encoding="utf-8")) == json.loads(found.to_json())
    with Image.open(tmp_path / "said.png") as picture:
        assert picture.width > 200


def test_the_picture_says_class_and_probability(
    model: Classifier, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr("sslzoo.heads.predictions.contact_sheet", lambda *args: drawn.append(args))
    found = model.predict(mixed)
    found.picture("x.png")
    images, truth, said, *_ = drawn[0]
    assert truth is None
    assert said == [f"{label} {p:.0%}" for label, p in zip(found.labels, found.confidences, strict=True)]
    assert np.array_equal(np.asarray(images[1]), np.asarray(found.images[1]))


# What finetune asks for


def arrays(labels: list[object]) -> sslzoo.data.ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    return sslzoo.open_images(pixels, labels=labels)


def test_labels_are_matched_by_name(encoder: Encoder) -> None:
    model = sslzoo.classifier(encoder, classes=["dog", "cat"])
    assert model.open_training(arrays(["cat", "dog", "cat"])).labels.tolist() == [1, 0, 1]
    assert model.open_validation(arrays(["cat", "cat"])).labels.tolist() == [1, 1]
    assert model.open_training(arrays([0, 1, 0])).labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="validation images have labels 'cow'; the model's classes are 'dog', 'cat'"):
        model.open_validation(arrays(["cat", "cow"]))
    with pytest.raises(ValueError, match="training images have labels '2'; the model's classes are '0', '1'"):
        model.open_training(arrays([0, 1, 2]))
    with pytest.raises(ValueError, match="No training images of 'dog'"):
        sslzoo.classifier(encoder, classes=["dog", "cat", "cow"]).open_training(arrays(["cat", "cow"]))


def test_unnamed_classes_take_the_names_of_the_images(encoder: Encoder, photo_folder: Path, tmp_path: Path) -> None:
    model = sslzoo.classifier(encoder, 2)
    model.save_pretrained(tmp_path)
    again = sslzoo.load_model(tmp_path)
    for unnamed in (model, again):
        unnamed.open_training(photo_folder)
        assert unnamed.classes == ["china", "flower"]
    with pytest.raises(ValueError, match="has 3 classes, the training images have 2: 'china', 'flower'"):
        sslzoo.classifier(encoder, 3).open_training(photo_folder)
    assert build(encoder, photo_folder).classes == ["china", "flower"]
    assert build(encoder, arrays([0, 2, 1])).num_classes == 3


def test_a_single_class_no_labels_and_an_empty_class_are_refused(
    encoder: Encoder, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="All 3 training images are of one class, cat"):
        build(encoder, arrays(["cat"] * 3))
    with pytest.raises(ValueError, match=r"china have no labels.*\.csv"):
        build(encoder, photo_folder / "china")
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"No images in .* for 'c'"):
        build(encoder, tmp_path)


def test_class_weights(encoder: Encoder) -> None:
    model = sslzoo.classifier(encoder, 2)
    images = model.open_training(arrays([0, 0, 0, 1]))
    model.weigh(images, "balanced")
    assert model.class_weights.tolist() == pytest.approx([4 / 6, 2])
    assert model.metric == "balanced_accuracy"
    random_head(model)
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 0, 0, 1])
    logits = model(x)["logits"]
    each = nn.functional.cross_entropy(logits, y, reduction="none")
    assert model(x, y)["loss"].item() == pytest.approx((each[:3].sum() / 3 + each[3]).item() / 2, rel=1e-5)
    assert "class_weights" not in model.state_dict()
    for wrong in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="2 numbers of at least 0"):
            model.weigh(images, wrong)
    with pytest.raises(ValueError, match="'balanced' or one number a class"):
        model.weigh(images, "even")
    model.weigh(images, None)
    assert model.metric == "accuracy"


def test_metrics(model: Classifier) -> None:
    meter = model.meter()
    meter.update(torch.tensor([0, 0]), torch.tensor([0, 0]))
    meter.update(torch.tensor([1, 0]), torch.tensor([1, 1]))
    assert meter.compute() == {"accuracy": 0.75, "balanced_accuracy": 0.75}
    meter = model.meter()
    meter.update(torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 0, 1]))
    assert meter.compute() == {"accuracy": 0.5, "balanced_accuracy": pytest.approx(1 / 3)}


def test_what_validation_counts(model: Classifier) -> None:
    images, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 2, 1])
    loss, said, wanted = model.validate(images, labels)
    assert loss.item() == model(images, labels)["loss"].item()
    assert torch.equal(said, model(images)["logits"].argmax(1))
    assert wanted is labels


def test_views_depend_on_seed_epoch_and_position_alone(model: Classifier, photo_folder: Path) -> None:
    images = sslzoo.classifier(model.encoder, 2).open_training(photo_folder)
    views = model.samples(images, seed=3)
    first = views[5][0]
    views[6]
    assert torch.equal(views[5][0], first)
    views.set_epoch(1)
    assert not torch.equal(views[5][0], first)
    assert not torch.equal(model.samples(images, seed=4)[5][0], first)
    assert torch.equal(model.samples(images, None)[5][0], model.transform(images[5]))


def test_views_have_the_size_and_scale_of_the_transform(model: Classifier, photo_folder: Path) -> None:
    images = sslzoo.classifier(model.encoder, 2).open_training(photo_folder)
    whole = model.samples(images, seed=0)
    whole.view = replace(whole.view, area=(1.0, 1.0))
    plain = model.samples(images, None)
    views, expected = (model.collate([samples[0], samples[23]]) for samples in (whole, plain))
    assert views["pixel_values"].shape == expected["pixel_values"].shape == (2, 3, 32, 32)
    assert views["labels"].tolist() == [0, 1]
    # the whole image, turned left and right half of the time, as the transform has it
    either = torch.stack(
        [
            (views["pixel_values"] - x).abs().mean((1, 2, 3))
            for x in (expected["pixel_values"], expected["pixel_values"].flip(3))
        ]
    )
    assert either.amin(0).max() < 0.02
    assert either.amax(0).min() > 0.1
