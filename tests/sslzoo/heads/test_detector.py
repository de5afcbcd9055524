"""The detectors: each learns a handful of images, is torchvision's own, and what is frozen stays as it is."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import sslzoo
from sslzoo import Detector, finetune, trainer, weights
from sslzoo.boxes import BoxSet, open_boxes
from sslzoo.heads.detection_networks import HEADS
from sslzoo.heads.detector import build

FAST: dict[str, Any] = {"device": "cpu", "progress": False, "num_workers": 0}
SIZE = 64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cells(scenes: Callable[..., Any]) -> BoxSet:
    """Six photographs of 64 pixels, with a pasted zero and a pasted one each, of 20 pixels; the last without."""
    return pasted(scenes(6, tile=20))


@pytest.fixture(scope="session")
def large_cells(scenes: Callable[..., Any]) -> BoxSet:
    """The same with digits of 28 pixels."""
    return pasted(scenes(6, tile=28))


def pasted(made: Any) -> BoxSet:
    photo = Image.fromarray(load_sample_images().images[1][:SIZE, :SIZE])
    images = np.stack([*made.images[:5], np.asarray(photo)])
    boxes, labels = [*made.boxes[:5], []], [[("zero", "one")[k] for k in row] for row in made.labels[:5]] + [[]]
    return open_boxes(images, boxes=boxes, labels=labels, classes=["zero", "one"])


def new(head: str = "faster-rcnn", arch: str = "resnet18quarter", **options: Any) -> Detector:
    encoder = sslzoo.create(arch, seed=0, image_size=SIZE)
    return sslzoo.detector(encoder, 2, head=head, **{"image_size": SIZE, "width": 32, "proposals": 32, **options})


def step(model: Detector, cells: BoxSet) -> dict[str, Tensor]:
    """Losses of a training step on all images, after its backward pass."""
    samples = model.samples(cells, seed=0)
    torch.manual_seed(0)  # of the proposals that are drawn
    out: dict[str, Tensor] = model.train()(**model.collate([samples[i] for i in range(len(samples))]))
    out["loss"].backward()
    return out


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pixels(cells: BoxSet) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(cells.images[i]).copy()).permute(2, 0, 1) for i in range(len(cells))]


def whole(model: Detector, cells: BoxSet) -> dict[str, Any]:
    """All images, as they are validated on."""
    samples = model.samples(cells, None)
    return model.collate([samples[i] for i in range(len(samples))])


def overfit(model: Detector, cells: BoxSet, steps: int, *, falling: bool = False) -> list[float]:
    """Losses of some steps on all images at once, at one learning rate or at one that falls to zero."""
    batch = whole(model, cells)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=float(falling))
    torch.manual_seed(0)
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return losses


def score(model: Detector, cells: BoxSet) -> dict[str, float]:
    meter = model.meter()
    with torch.inference_mode():
        meter.update(*model.validate(**whole(model, cells))[1:])
    return meter.compute()


STEPS = {"faster-rcnn": 60, "faster-rcnn-c4": 60, "retinanet": 40, "fcos": 40}  # by head; a new one needs a line
# Its map has stride 16: large digits on images twice as large are more than three places wide. Its last stage was
# pretrained on whole images, and sees boxes here: its norms have to learn that
C4 = {"image_size": 2 * SIZE, "frozen_norms": False}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_a_handful(head: str, cells: BoxSet, large_cells: BoxSet, tmp_path: Path) -> None:
    is_c4 = head == "faster-rcnn-c4"
    few = (large_cells if is_c4 else cells).subset([0, 1, 5])
    model = sslzoo.detector(
        "byol-resnet18quarter-cifar10",
        classes=cells.classes,
        head=head,
        width=32,
        proposals=16,
        # three images are few for statistics
        **(C4 if is_c4 else {"image_size": SIZE, "frozen_norms": True}),
    )
    assert score(model, few)["ap50"] < 0.3
    losses = overfit(model, few, STEPS[head], falling=is_c4)
    assert losses[-1] < 0.5 * losses[0]
    assert score(model, few)["ap50"] > 0.9
    model.save_pretrained(tmp_path)
    again = sslzoo.load_model(tmp_path)
    assert again.classes == ["zero", "one"]
    with torch.inference_mode():
        for mine, theirs in zip(model(pixels(few))["detections"], again(pixels(few))["detections"], strict=True):
            assert same(mine, theirs)


def test_a_run_is_a_model(cells: BoxSet, tmp_path: Path) -> None:
    model = sslzoo.detector("byol-resnet18quarter-cifar10", 2, image_size=SIZE, width=32, proposals=32)
    report = finetune(model, cells, cells, out=tmp_path / "run", epochs=2, batch_size=3, **FAST)
    assert (report.task, report.n_train, report.n_val, report.steps) == ("detection", 6, 6, 4)
    assert set(report.metrics) == {"ap", "ap50", "ap75", "ap/zero", "ap/one"}
    again = sslzoo.load_model(tmp_path / "run")
    assert same(state_of(again), state_of(model))
    assert again.classes == ["zero", "one"]
    assert again.finetuning["metrics"] == report.metrics
    card = (tmp_path / "run" / "README.md").read_text()
    assert "torchvision's faster-rcnn on `byol-resnet18quarter-cifar10`" in card
    assert "`zero`, `one`" in card
    assert "pipeline_tag: object-detection" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_reaches_all_that_learns(head: str, cells: BoxSet) -> None:
    # pretrained, since timm starts residual branches at zero
    model = sslzoo.detector(
        "byol-resnet18quarter-cifar10", 2, head=head, image_size=SIZE, width=32, proposals=32, frozen_norms=False
    )
    out = step(model, cells)
    assert out["loss"].item() == pytest.approx(
        sum(loss.item() for name, loss in out.items() if name != "loss"), rel=1e-5
    )
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("arch", ["convnext_atto", "vgg11_bn", "resnet18"])
def test_other_encoders_with_a_pyramid(arch: str, cells: BoxSet) -> None:
    model = new(arch=arch)
    step(model, cells.subset([0, 5]))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == learning
    assert any(name.startswith("network.backbone.encoder") for name in learning)


def test_it_is_torchvisions_own(cells: BoxSet) -> None:
    encoder = sslzoo.create("resnet18", seed=0, image_size=SIZE)
    model = sslzoo.detector(encoder, 2, image_size=SIZE)
    body = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d
    )
    theirs = FasterRCNN(
        body, num_classes=3, min_size=SIZE, max_size=107, rpn_anchor_generator=model.network.rpn.anchor_generator
    )
    state = model.network.state_dict()
    theirs.load_state_dict({key.replace("backbone.encoder.model.", "backbone.body."): state[key] for key in state})
    images = pixels(cells)
    with torch.inference_mode():
        found, wanted = model.eval()(images)["detections"], theirs.eval()([image / 255 for image in images])
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine["boxes"], other["boxes"])
        assert torch.equal(mine["labels"] + 1, other["labels"])
    targets = [dict(model.samples(cells, None)[i][1]) for i in range(6)]
    torch.manual_seed(0)
    mine = model.train()(images, targets)
    torch.manual_seed(0)
    others = theirs.train()([i / 255 for i in images], [t | {"labels": t["labels"] + 1} for t in targets])
    for name, loss in others.items():
        torch.testing.assert_close(mine[name], loss)


def test_anchors_fit_the_size_of_images() -> None:
    sizes = {size: new(image_size=size).network.rpn.anchor_generator.sizes for size in (800, 200)}
    assert sizes[800] == ((32,), (64,), (128,), (256,), (512,))
    assert sizes[200] == ((16,), (32,), (64,), (128,), (256,))  # the maps are not a quarter as fine
    assert new("faster-rcnn-c4", image_size=200).network.rpn.anchor_generator.sizes == ((8, 16, 32, 64, 128),)
    assert new("fcos", image_size=200).network.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))


def test_a_frozen_encoder_keeps_its_weights_and_statistics(cells: BoxSet) -> None:
    for head in ("faster-rcnn", "faster-rcnn-c4"):
        model = new(head).freeze()
        before = state_of(model.encoder)
        step(model, cells)
        assert model.frozen
        assert model.training
        assert not any(module.training for module in model.encoder.modules())
        assert all(parameter.grad is None for parameter in model.encoder.parameters())
        assert same(state_of(model.encoder), before)
        assert not model.freeze(False).frozen


def test_frozen_stages_and_norms(cells: BoxSet) -> None:
    model = new(frozen_stages=2, frozen_norms=False)
    before = state_of(model.encoder.model)
    step(model, cells)
    moved = {name for name, tensor in state_of(model.encoder.model).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if re.match(r"layer[234].*(running|tracked)", name)}
    frozen = {name for name, parameter in model.encoder.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in before if re.match(r"(conv1|bn1|layer1)", name)} - {
        name for name in before if re.search("running|tracked", name)
    }
    model = new(frozen_norms=True)
    step(model, cells)
    assert same(state_of(model.encoder.model), before)
    assert all(p.requires_grad == (p.ndim == 4) for p in model.encoder.model.parameters())
    assert not sslzoo.detector("byol-resnet18quarter-cifar10", 2).settings.frozen_norms
    assert not new().settings.frozen_norms


def test_after_a_kill_it_ends_the_same(cells: BoxSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)  # after every step
    settings = {"epochs": 2, "batch_size": 2, "val_fraction": 0, **FAST}
    whole = new()
    finetune(whole, cells, out=tmp_path / "whole", **settings)
    forward, steps = Detector.forward, [0]

    def failing(self: Detector, images: Any, targets: Any = None) -> dict[str, Any]:
        steps[0] += 1
        if steps[0] == 5:
            raise KeyboardInterrupt
        return forward(self, images, targets)

    monkeypatch.setattr(Detector, "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        finetune(new(), cells, out=tmp_path / "run", **settings)
    monkeypatch.setattr(Detector, "forward", forward)
    halves = new(seed=3)  # its weights come from the checkpoint
    assert not same(state_of(halves), state_of(whole))
    report = finetune(halves, cells, out=tmp_path / "run", resume=True, **settings)
    assert report.steps == 6
    assert same(state_of(halves), state_of(whole))


def test_bf16(cells: BoxSet, tmp_path: Path) -> None:
    model = new()
    finetune(model, cells, cells, out=tmp_path / "run", epochs=1, batch_size=6, bf16=True, **FAST)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_lightness_encoders(cells: BoxSet) -> None:
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=SIZE, lightness=True)
    model = sslzoo.detector(encoder, classes=["zero", "one"], image_size=SIZE)
    step(model, cells)
    assert len(model.eval().predict(cells.images)) == 6


def test_classes_are_matched_by_name(cells: BoxSet) -> None:
    model = sslzoo.detector(sslzoo.create("resnet18quarter", seed=0), classes=["one", "zero"])
    assert model.open_training(cells).boxes[1].labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="There are boxes of 'zero', 'one'; the classes are 'a', 'b'"):
        sslzoo.detector(model.encoder, classes=["a", "b"]).open_validation(cells)
    with pytest.raises(ValueError, match="has 3 classes, the training images have 2: 'zero', 'one'"):
        sslzoo.detector(model.encoder, 3).open_training(cells)
    assert build(model.encoder, cells, head="fcos", image_size=96).classes == ["zero", "one"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, "Say how many classes"),
        ({"num_classes": 0}, "at least one class, got 0"),
        ({"classes": ["a", "a"]}, "come twice: 'a'"),
        ({"head": "yolo"}, "Unknown head 'yolo'. There are: faster-rcnn, faster-rcnn-c4, retinanet, fcos"),
        ({"image_size": 10}, "image_size is one number, of at least 32 pixels, got 10"),
        ({"image_size": (64, 64)}, r"image_size is one number, of at least 32 pixels, got \(64, 64\)"),
        ({"width": 40}, "width must be a multiple of 32, got 40"),
        ({"frozen_stages": 6}, "frozen_stages must be 0 to 5 for resnet18quarter, got 6"),
        (
            {"arch": "vit_tiny_patch16_224"},
            "needs one map of stride 4; vit_tiny_patch16_224 has maps of strides 16, 16, 16",
        ),
        ({"arch": "convnext_atto", "head": "faster-rcnn-c4"}, "convnext_atto has no layer4. Take faster-rcnn"),
    ],
)
def test_what_cannot_be_made(options: dict[str, Any], message: str) -> None:
    encoder = sslzoo.create(options.pop("arch", "resnet18quarter"), seed=0, image_size=SIZE)
    with pytest.raises(ValueError, match=message):
        sslzoo.detector(encoder, **{"num_classes": 2, **options})


def test_what_cannot_be_trained(cells: BoxSet, photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no class weights"):
        finetune(new(), cells, out=tmp_path / "run", class_weights="balanced", **FAST)
    with pytest.raises(ValueError, match="Found no boxes in"):
        finetune(new(), photo_folder, out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()


def test_where_the_encoder_came_from(tmp_path: Path) -> None:
    assert "0 of 132 encoder tensors are pretrained: resnet18quarter with random" in repr(new())
    model = sslzoo.detector("byol-resnet18quarter-cifar10", 2)
    assert "faster-rcnn, 2 classes; 132 of 132 encoder tensors from byol-resnet18quarter-cifar10" in model.extra_repr()
    model.save_pretrained(tmp_path)
    again = sslzoo.load_model(tmp_path)
    assert again.encoder_id == "byol-resnet18quarter-cifar10"
    assert again.settings == model.settings
    assert again.encoder.config == sslzoo.load("byol-resnet18quarter-cifar10").config


def test_a_damaged_model_is_not_loaded(tmp_path: Path) -> None:
    new().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": ["a", "b", "c"]}))
    with pytest.raises(weights.WeightsError, match=r"cls_score\.weight: shape \(3, 128\), needs \(4, 128\)"):
        sslzoo.load_model(tmp_path)
    del config["sslzoo"]["settings"]["width"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(weights.WeightsError, match="does not describe a detector: TypeError"):
        sslzoo.load_model(tmp_path)
    with pytest.raises(weights.WeightsError, match=r"a model for detection: sslzoo\.load_model opens it"):
        sslzoo.load(tmp_path)


def test_other_libraries_refuse_it(tmp_path: Path) -> None:
    from transformers import AutoModel

    new().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sslzoo"):  # and do not load an encoder with random weights
        AutoModel.from_pretrained(tmp_path)


def test_pushed_to_the_hub_and_loaded_from_there(hub_client: None, cells: BoxSet) -> None:
    model = new("fcos")
    model.push_to_hub("org/cells", token="writer")
    again = sslzoo.load_model("org/cells")
    assert same(state_of(again), state_of(model))
    assert (again.settings, again.classes) == (model.settings, model.classes)


# Prediction


@pytest.fixture(scope="module")
def overfitted(cells: BoxSet) -> Detector:
    model = sslzoo.detector(
        "byol-resnet18quarter-cifar10", classes=cells.classes, head="fcos", image_size=SIZE, width=32, frozen_norms=True
    )
    overfit(model, cells, 60)
    return model


@pytest.fixture
def folder(cells: BoxSet, tmp_path: Path) -> Path:
    """The cells as files, twice as large, and a broken one."""
    for i in range(len(cells)):
        cells.images[i].resize((2 * SIZE, 2 * SIZE)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    return tmp_path


def test_predictions_are_in_pixels_of_the_image(overfitted: Detector, cells: BoxSet, folder: Path) -> None:
    found = overfitted.predict(folder, batch_size=4)
    assert found.names == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert [name for name, _ in found.skipped] == ["3.png"]
    for said, i in zip(found.found, (0, 1, 2, 4, 5), strict=True):
        order = np.argsort(said.xyxy[:, 0])  # from the left
        assert said.labels[order].tolist() == cells.boxes[i].labels.tolist()
        np.testing.assert_allclose(said.xyxy[order] / 2, cells.boxes[i].xyxy, atol=4)
    assert not overfitted.training
    assert "1 zero (" in str(found)
    assert "nothing" in str(found)
    assert "3.png: cannot be read: " in str(found)
    assert len(overfitted.predict(cells.images, min_score=0).found[0]) > 1


def test_files_of_predictions(overfitted: Detector, folder: Path, tmp_path: Path) -> None:
    found = overfitted.predict(folder)
    for name in ("said.json", "said.coco.json", "said.csv", "said.png"):
        found.save(tmp_path / name)
    rows = json.loads((tmp_path / "said.json").read_text())
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png", "4.png", "5.png", "3.png"]
    assert (rows[0]["width"], rows[0]["height"]) == (128, 128)
    assert set(rows[0]["objects"][0]) == {"label", "score", "box"}
    assert set(rows[5]) == {"image", "error"}
    table = list(csv.reader(io.StringIO((tmp_path / "said.csv").read_text())))
    assert table[0] == ["image", "label", "score", "left", "top", "right", "bottom"]
    assert len(table) == 1 + sum(map(len, found.found))
    again = open_boxes(tmp_path / "said.coco.json")
    assert again.classes == ["zero", "one"]
    for boxes, said in zip(again.boxes, found.found, strict=True):
        np.testing.assert_allclose(boxes.xyxy, said.xyxy, atol=0.02)
        assert boxes.labels.tolist() == said.labels.tolist()
    with Image.open(tmp_path / "said.png") as picture:
        assert picture.width > 600


def test_the_picture_shows_class_and_score_beside_the_truth(
    overfitted: Detector, cells: BoxSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    text = Axes.text

    def recorded(self: Axes, x: float, y: float, s: str, **settings: Any) -> Any:
        drawn.append(s)
        return text(self, x, y, s, **settings)

    monkeypatch.setattr(Axes, "text", recorded)
    found = overfitted.predict(cells.images)
    found.picture(tmp_path / "said.png", "Some $title$", truth=cells.boxes)
    assert drawn == [
        f"{('zero', 'one')[label]} {score:.0%}"
        for said in found.found
        for label, score in zip(said.labels[::-1], said.scores[::-1], strict=True)
    ]
