"""Segmenters: every head learns on every kind of encoder, and what it saves is what it was."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import _deeplabv3_resnet
from torchvision.models.segmentation.fcn import _fcn_resnet

import sslzoo
from sslzoo import Encoder, Segmenter, finetune, weights
from sslzoo.heads import build, decoders, segmenter
from sslzoo.heads.decoders import HEADS
from sslzoo.heads.segmenter import Overlap, confusion
from sslzoo.model_card import render_model_card

NAMES = ["photograph", "zero", "one"]
LAYERS = (1, 1, 2, 2)  # blocks of a short ResNet-50
FAST = {"device": "cpu", "progress": False, "num_workers": 0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(scenes: Callable[..., Any]) -> Any:
    return scenes(8)


def new(head: str = "fcn", arch: str = "resnet18quarter", image_size: int = 64, **options: Any) -> Segmenter:
    encoder = sslzoo.create(arch, seed=0, image_size=64, **options.pop("model_args", {}))
    return sslzoo.segmenter(encoder, classes=NAMES, head=head, image_size=image_size, **options)


def batch(model: Segmenter, data: Any, count: int = 8) -> dict[str, Tensor]:
    samples = model.samples(sslzoo.open_masks((data.images, data.masks)), None)
    return model.collate([samples[i] for i in range(count)])


def miou(model: Segmenter, inputs: dict[str, Tensor]) -> float:
    meter = model.meter()
    with torch.no_grad():
        meter.update(*model.eval().validate(**inputs)[1:])
    return meter.compute()["miou"]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_overfits_a_handful_of_scenes(head: str, scenes: Callable[..., Any]) -> None:
    model = new(head, image_size=32)
    inputs = batch(model, scenes(4, side=32, tile=16, grid=8), 4)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3)
    assert miou(model, inputs) < 0.5
    for step in range(30):
        for group in optimizer.param_groups:
            group["lr"] = 6e-3 * min(1, (step + 1) / 10) * (1 - step / 30)
        model.train()(**inputs)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert miou(model, inputs) > 0.9


@pytest.mark.parametrize(
    ("arch", "head"),
    [("resnet18quarter", head) for head in HEADS]
    + [("convnext_atto", head) for head in HEADS if head != "deeplabv3plus"]
    + [("vgg11_bn", head) for head in ("fcn8s", "unet")]
    + [("resnet50", "deeplabv3")],
)
def test_gradients_reach_every_parameter_that_learns(arch: str, head: str) -> None:
    args = {"channels": (8, 16, 24, 32)} if arch == "resnet50" else {"dims": (8, 16, 24, 32)} if "conv" in arch else {}
    model = new(head, arch, auxiliary=True, model_args=args).freeze(False).train()
    for layer in model.decoder.modules():  # FCN-8s starts at zero, and passes no gradient on in its first step
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
    images, labels = torch.randn(2, 3, 32, 64), torch.randint(0, 3, (2, 32, 64))
    out = model(images, labels)
    assert out["logits"].shape == (2, 3, 32, 64)
    out["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    learning = [name for name, p in model.encoder.named_parameters() if p.requires_grad]
    assert len(learning) >= len(list(model.encoder.parameters())) - 4  # VGG's and ConvNeXt's ends are not used


def test_a_frozen_encoder_keeps_its_weights_and_statistics(data: Any) -> None:
    model = new("fcn8s").freeze().train()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(**batch(model, data, 2))["loss"].backward()
    optimizer.step()
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    model.freeze(False)
    assert model.encoder.training
    assert not model.frozen


@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_is_torchvisions(stride: int) -> None:
    dilate = [False, stride == 8, True]
    theirs = ResNet(Bottleneck, LAYERS, replace_stride_with_dilation=dilate).eval()
    encoder = sslzoo.create("resnet50", seed=0, image_size=64, layers=LAYERS)
    theirs.load_state_dict(encoder.model.state_dict(), strict=False)
    mine = decoders.prepared(encoder, "deeplabv3", stride)
    assert mine.reductions[-1] == stride
    assert encoder.reductions[-1] == 32  # as it was
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            y = layer(y)
        assert torch.equal(mine.feature_maps(x)[-1], y)


@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
def test_torchvisions_own_network_gives_the_same(head: str) -> None:
    encoder = sslzoo.create("resnet50", seed=0, image_size=64, layers=LAYERS)
    model = sslzoo.segmenter(encoder, 5, head=head, auxiliary=True, image_size=64)
    network = ResNet(Bottleneck, LAYERS, replace_stride_with_dilation=[False, True, True])
    make = _fcn_resnet if head == "fcn" else _deeplabv3_resnet  # what fcn_resnet50 and deeplabv3_resnet50 call
    theirs = make(network, 5, aux=True).eval()
    state = {f"backbone.{name}": tensor for name, tensor in model.encoder.model.state_dict().items()}
    state |= {f"classifier.{name}": tensor for name, tensor in model.decoder.layers.state_dict().items()}
    state |= {f"aux_classifier.{name}": tensor for name, tensor in model.auxiliary.state_dict().items()}
    theirs.load_state_dict(state)
    x, labels = torch.randn(1, 3, 32, 64), torch.randint(0, 5, (1, 32, 64))
    with torch.inference_mode():
        out = theirs(x)
        torch.testing.assert_close(model(x)["logits"], out["out"])
        wanted = nn.functional.cross_entropy(out["out"], labels) + 0.4 * nn.functional.cross_entropy(out["aux"], labels)
        # the auxiliary loss belongs to training; batch norm and dropout stay in eval mode here
        model.training = True
        torch.testing.assert_close(model(x, labels)["loss"], wanted)


@pytest.mark.parametrize("size", [(64, 64), (45, 70), (33, 32)])
def test_any_size_is_padded_and_cropped_back(size: tuple[int, int]) -> None:
    model = new("unet")
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        logits = model(x)["logits"]
        assert logits.shape == (1, 3, *size)
        wide = torch.zeros(1, 3, 64, 96)
        wide[:, :, : size[0], : size[1]] = x
        wide = wide[:, :, : -(-size[0] // 32) * 32, : -(-size[1] // 32) * 32]
        assert torch.equal(logits, model(wide)["logits"][:, :, : size[0], : size[1]])


def test_what_is_refused() -> None:
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=64)
    vgg = sslzoo.create("vgg11_bn", seed=0, image_size=32)
    vit = sslzoo.create("vit_tiny_patch16_224", seed=0, image_size=32)
    for make, message in (
        (lambda: sslzoo.segmenter(encoder), "Say how many classes"),
        (lambda: sslzoo.segmenter(encoder, 1), "2 to 255 classes, got 1"),
        (lambda: sslzoo.segmenter(encoder, 3, classes=["a", "b"]), "3 classes need 3 names"),
        (lambda: sslzoo.segmenter(encoder, 2, colours=[(0, 0, 0)]), "2 classes need 2 colours"),
        (lambda: sslzoo.segmenter(encoder, 2, head="segnet"), r"Unknown head 'segnet'\. There is: fcn, fcn8s"),
        (lambda: sslzoo.segmenter(encoder, 2, head="unet", output_stride=8), "Head unet takes output_stride 32, got 8"),
        (lambda: sslzoo.segmenter(encoder, 2, loss="l2"), "Unknown loss 'l2'"),
        (lambda: sslzoo.segmenter(encoder, 2, image_size=16), "at least 32 pixels"),
        (lambda: sslzoo.segmenter(vgg, 2, head="fcn"), "has no output stride 8 in timm"),
        (lambda: sslzoo.segmenter(vit, 2, head="upernet"), "vit_tiny_patch16_224 has no output stride 32"),
        (lambda: sslzoo.segmenter(sslzoo.create("tophalf_alexnet", seed=0), 2), "no feature maps|Unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_where_the_encoder_came_from() -> None:
    model = sslzoo.segmenter("byol-resnet18quarter-cifar10", 2, head="fcn")
    assert model.origin == "132 of 132 encoder tensors from byol-resnet18quarter-cifar10"
    source = sslzoo.load("byol-resnet18quarter-cifar10").model.state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.encoder.model.state_dict().items())
    assert "fcn, 3 classes; 0 of 132 encoder tensors are pretrained" in repr(new())


def test_the_seed_decides_on_the_decoder_and_torchs_state_stays() -> None:
    state = torch.get_rng_state()
    first, again, other = new(), new(), new(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in first.decoder.state_dict().items():
        assert torch.equal(tensor, again.decoder.state_dict()[name])
    assert not torch.equal(first.decoder.layers[0].weight, other.decoder.layers[0].weight)


@pytest.mark.parametrize("head", HEADS)
def test_what_is_saved_is_what_comes_back(head: str, tmp_path: Path) -> None:
    model = new(head, colours=[(1, 2, 3), (4, 5, 6), (7, 8, 9)], auxiliary=head == "fcn", loss="dice")
    model.encoder_id = "byol-thing"
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    x = torch.randn(2, 3, 40, 64)
    with torch.inference_mode():
        wanted = model(x)["logits"]
        model.save_pretrained(tmp_path)
        again = sslzoo.load_model(tmp_path)
        assert torch.equal(again(x)["logits"], wanted)
    assert (again.classes, again.colours, again.settings) == (model.classes, model.colours, model.settings)
    assert (again.encoder_id, again.encoder.config) == (model.encoder_id, model.encoder.config)
    with pytest.raises(weights.WeightsError, match=r"a model for segmentation: sslzoo\.load_model opens it"):
        sslzoo.load(tmp_path)


def test_a_damaged_model_is_not_loaded_and_other_libraries_refuse_it(tmp_path: Path) -> None:
    from transformers import AutoModel

    new("fcn8s").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sslzoo"):  # and does not load an encoder with random weights
        AutoModel.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, wrong in (("settings", {"head": "segnet"}), ("colours", [[0, 0, 0]])):
        broken = {**config, "sslzoo": {**config["sslzoo"], key: wrong}}
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(weights.WeightsError, match=r"config\.json does not describe a segmenter"):
            sslzoo.load_model(tmp_path)


def test_pushed_to_the_hub_and_loaded_from_there(hub_client: None, tmp_path: Path) -> None:
    model = new("fcn8s", colours=[(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    nn.init.normal_(model.decoder.scores[0].weight)
    model.push_to_hub("org/scenes", token="writer")
    again = sslzoo.load_model("org/scenes")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(x)["logits"], model(x)["logits"])
    assert (again.classes, again.colours) == (model.classes, model.colours)


def test_its_card_has_code_that_runs(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = new("fcn8s")
    model.save_pretrained(tmp_path)
    config = weights.read_model_config(tmp_path)
    text = render_model_card("scenes", config)
    card = ModelCard(text)
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-segmentation", "sslzoo")
    for part in ("3 classes, images scaled to fit into 64×64 pixels", "fcn8s (https://arxiv.org/abs/1411.4038)",
                 "an encoder without a name", "`photograph`, `zero`, `one`"):  # fmt: skip
        assert part in text
    assert 'load_model("org/scenes")' in render_model_card("scenes", config, repository="org/scenes")
    Image.fromarray(data.images[0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, scope)
    assert scope["mask"].shape == (64, 64)
    assert (tmp_path / "overlay.png").is_file()
    assert "photo.jpg" in capsys.readouterr().out


# Fine-tuning


def write(folder: Path, data: Any) -> Path:
    for n, (image, mask) in enumerate(zip(data.images, data.masks, strict=True)):
        for name, pixels in (("images", image), ("masks", mask)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    (folder / "classes.txt").write_text("photograph 0 0 0\nzero 255 0 0\none 0 0 255\n")
    return folder


def test_it_learns_and_the_run_is_a_model(scenes: Callable[..., Any], tmp_path: Path) -> None:
    data = scenes(8, side=32, tile=16, grid=8)
    root = write(tmp_path / "scenes", data)
    (root / "masks" / "0.png").unlink()
    model = build("segmentation", "byol-resnet18quarter-cifar10", root, head="fcn8s", image_size=32)
    report = finetune(model, root, out=tmp_path / "run", epochs=10, batch_size=3, lr=1e-2, **FAST)
    assert (report.task, report.n_train, report.n_val) == ("segmentation", 6, 1)
    assert report.remarks[0] == "left out, without a mask: 1 images, such as 0.png"
    losses = [entry["loss"] for entry in report.history if "loss" in entry]
    assert losses[-1] < 0.75 * losses[0]
    assert {"miou", "pixel_accuracy", "loss", "iou/zero"} <= set(report.metrics)
    assert "miou" in str(report)
    assert "iou/zero" not in str(report)

    again = sslzoo.load_model(tmp_path / "run")
    assert again.classes == NAMES
    assert again.colours == [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["sslzoo"]["finetuning"]["metrics"]["miou"] == report.metrics["miou"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Semantic segmentation: 3 classes" in card
    assert "The head fcn8s" in card
    assert "| iou/zero |" in card
    assert str(tmp_path) not in card + json.dumps(config)
    found = again.predict(data.images)
    right = np.mean([np.mean(mask == wanted) for mask, wanted in zip(found.masks, data.masks, strict=True)])
    assert right > 0.7  # half of the pixels are photograph


def test_the_metric_of_validation_is_that_of_all_pixels(data: Any, tmp_path: Path) -> None:
    images = sslzoo.open_masks((data.images, data.masks), classes=NAMES)
    model = new("fcn8s")
    report = finetune(model, images, images, out=tmp_path / "run", steps=2, batch_size=3, **FAST)
    inputs = batch(model, data)
    with torch.no_grad():
        said = model(**inputs)["logits"].argmax(1)
    iou = []
    for k in range(3):
        a, b = said == k, inputs["labels"] == k
        iou.append(float((a & b).sum() / (a | b).sum()))
    assert report.metrics["miou"] == pytest.approx(np.mean(iou))
    assert report.metrics["iou/one"] == pytest.approx(iou[2])
    assert report.metrics["pixel_accuracy"] == pytest.approx(float((said == inputs["labels"]).float().mean()))


def test_after_a_kill_it_ends_the_same(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sslzoo.open_masks((data.images, data.masks), classes=NAMES)
    settings = {"epochs": 3, "batch_size": 4, **FAST}
    whole, halves = new("deeplabv3plus"), new("deeplabv3plus", seed=5)
    finetune(whole, images, images, out=tmp_path / "whole", **settings)
    forward, steps = Segmenter.forward, [0]

    def failing(self: Segmenter, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        steps[0] += self.training
        if steps[0] == 4:
            monkeypatch.setattr(Segmenter, "forward", forward)
            raise KeyboardInterrupt
        return forward(self, pixel_values, labels)

    monkeypatch.setattr(Segmenter, "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        finetune(new("deeplabv3plus"), images, images, out=tmp_path / "run", **settings)
    finetune(halves, images, images, out=tmp_path / "run", resume=True, **settings)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(halves.state_dict()[name], tensor), name


def test_classes_of_data_and_model(data: Any, tmp_path: Path) -> None:
    named = sslzoo.open_masks((data.images, data.masks), classes=NAMES)
    bare = sslzoo.open_masks((data.images, data.masks))
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=64)
    model = sslzoo.segmenter(encoder, classes=["one", "zero", "photograph", "cow"], head="fcn8s")
    opened = model.open_training(named)
    assert np.array_equal(opened.mask(0), np.array([2, 1, 0])[data.masks[0]])
    assert model.remarks(opened) == ["no pixel in 8 masks of 'cow'"]
    with pytest.raises(ValueError, match="validation masks have classes 'photograph'; the model's are 'zero', 'one'"):
        sslzoo.segmenter(encoder, classes=["zero", "one"], head="fcn8s").open_validation(named)
    with pytest.raises(ValueError, match="training masks have values up to 2, the model's 2 classes are 0 to 1"):
        sslzoo.segmenter(encoder, 2, head="fcn8s").open_training(bare)
    with pytest.raises(ValueError, match="has 4 classes, the training masks have 3"):
        sslzoo.segmenter(encoder, 4, head="fcn8s").open_training(named)
    unnamed = sslzoo.segmenter(encoder, 3, head="fcn8s")
    unnamed.open_training(named)
    assert unnamed.classes == NAMES
    assert build("segmentation", encoder, bare, head="fcn8s").classes == ["0", "1", "2"]
    drawn = [build("segmentation", encoder, bare, head="fcn", seed=n).decoder.layers[0].weight for n in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    black = sslzoo.open_masks((data.images, (data.masks > 0).astype(np.uint8) * 255))
    with pytest.raises(ValueError, match=r"All masks are of one class, '0'.*classes\.txt.*'object 255 255 255'"):
        build("segmentation", encoder, black)
    with pytest.raises(ValueError, match="Segmentation knows no freeze_stages: its options are head, output_stride"):
        build("segmentation", encoder, bare, freeze_stages=2)
    with pytest.raises(ValueError, match="Classification knows no head: it has no options"):
        build("classification", encoder, bare, head="fcn")


def test_balanced_weights_are_median_over_frequency(data: Any) -> None:
    model = new()
    images = model.open_training(sslzoo.open_masks((data.images, data.masks), classes=NAMES))
    model.weigh(images, "balanced")
    counts = np.bincount(data.masks.ravel(), minlength=3)
    assert model.class_weights.tolist() == pytest.approx((np.median(counts) / counts).tolist())
    inputs = batch(model, data, 2)
    wanted = nn.functional.cross_entropy(model(inputs["pixel_values"])["logits"], inputs["labels"], model.class_weights)
    torch.testing.assert_close(model(**inputs)["loss"], wanted)
    model.weigh(images, [0, 1, 2.5])
    assert model.class_weights.tolist() == [0, 1, 2.5]
    model.weigh(images, None)
    assert model.class_weights is None
    for wrong in ("even", [1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="class_weights"):
            model.weigh(images, wrong)


def test_confusion_matrices_and_overlap_by_loops() -> None:
    g = torch.Generator().manual_seed(0)
    said, labels = (torch.randint(0, 4, (3, 6, 7), generator=g) for _ in range(2))
    labels[0, :2] = 255
    labels[labels == 3] = 1  # class 3 is only said
    said[said == 2] = 0
    labels[labels == 2] = 0  # class 2 is nowhere
    wanted = torch.zeros(3, 4, 4, dtype=torch.int64)
    for b, row, column in (labels != 255).nonzero().tolist():
        wanted[b, labels[b, row, column], said[b, row, column]] += 1
    matrices = confusion(said, labels, 4)
    assert torch.equal(matrices, wanted)
    meter = Overlap(["a", "b", "c", "d"])
    meter.update(matrices[:2], torch.zeros(2))
    meter.update(matrices[2:], torch.zeros(1))
    known = labels != 255
    iou = {}
    for k, name in ((0, "a"), (1, "b"), (3, "d")):
        a, b = (said == k) & known, (labels == k) & known
        iou[f"iou/{name}"] = float((a & b).sum() / (a | b).sum())
    figures = meter.compute()
    assert {k: v for k, v in figures.items() if "/" in k} == pytest.approx(iou)
    assert figures["miou"] == pytest.approx(np.mean(list(iou.values())))
    assert figures["pixel_accuracy"] == pytest.approx(float((said == labels)[known].float().mean()))


def test_masks_of_which_no_pixel_counts_have_no_metric() -> None:
    meter = Overlap(NAMES)
    labels = torch.full((1, 4, 4), 255)
    meter.update(confusion(torch.zeros_like(labels), labels, len(NAMES)), torch.zeros(1))
    with pytest.raises(ValueError, match="No pixel of the masks is of a class: all are 255"):
        meter.compute()


def test_the_metric_is_that_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.segmentation")
    g = torch.Generator().manual_seed(1)
    said, labels = (torch.randint(0, 3, (2, 9, 9), generator=g) for _ in range(2))
    meter = Overlap(NAMES)
    meter.update(confusion(said, labels, 3), torch.zeros(2))
    theirs = metrics.MeanIoU(3, per_class=True, input_format="index")
    # torchmetrics takes the mean over images: one image of all pixels
    wanted = theirs(said.reshape(1, -1, 9), labels.reshape(1, -1, 9))
    assert [meter.compute()[f"iou/{name}"] for name in NAMES] == pytest.approx(wanted.tolist())


# Prediction


@pytest.fixture(scope="module")
def model(data: Any) -> Segmenter:
    """One that has learnt a little: it tells several classes."""
    torch.set_num_threads(1)
    model = new("fcn8s").train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    inputs = batch(model, data, 4)
    for _ in range(12):
        model(**inputs)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_predictions_have_the_size_of_their_image(model: Segmenter, data: Any, tmp_path: Path) -> None:
    sizes = [(64, 64), (100, 37), (20, 90)]
    for n, (height, width) in enumerate(sizes):
        Image.fromarray(data.images[n]).resize((width, height)).save(tmp_path / f"{n}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:90])
    for workers in (0, 2):
        found = model.predict(tmp_path, batch_size=2, num_workers=workers)
        assert [mask.shape for mask in found.masks] == sizes
        assert [name for name, _ in found.skipped] == ["broken.png"]
        assert found.names == ["0.png", "1.png", "2.png"]
    with torch.inference_mode():
        pixels = model.samples(sslzoo.open_masks((data.images, data.masks)), None)[0][0]
        inputs = model._inputs(pixels[None].as_subclass(Tensor))
        wanted = model(inputs)["logits"].argmax(1)[0]
    assert np.array_equal(found.masks[0], wanted.numpy())
    assert len(np.unique(wanted)) > 1


def test_scores_are_scaled_back_from_what_is_not_padding(model: Segmenter, data: Any) -> None:
    image = Image.fromarray(data.images[0]).resize((128, 64))
    mask = model.predict(image).masks[0]
    half = np.asarray(image.resize((64, 32), Image.Resampling.BILINEAR))  # fits into 64×64
    with torch.inference_mode():
        pixels = model.samples(sslzoo.open_masks((half[None], np.zeros((1, 32, 64), np.uint8))), None)[0][0]
        scores = model(model._inputs(pixels[None].as_subclass(Tensor)))["logits"][:, :, :32]
        wanted = nn.functional.interpolate(scores, (64, 128), mode="bilinear").argmax(1)[0].numpy()
    assert mask.shape == (64, 128)
    assert (mask == wanted).mean() > 0.97  # Pillow and torch round differently


def test_best_classes_are_those_of_all_scores_enlarged_at_once() -> None:
    scores = torch.randn(5, 7, 9)
    wanted = nn.functional.interpolate(scores[None], (20, 31), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(decoders.best_classes(scores, (20, 31)), wanted.to(torch.uint8))


def test_files_of_predictions(model: Segmenter, data: Any, tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / "in" / "sub").mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[n]).save(tmp_path / "in" / "sub" / f"{n}.jpg")
    found = model.predict(tmp_path / "in" / "sub")
    for name in ("said.json", "said.csv", "said.png", "masks"):
        found.save(tmp_path / name)
    rows = json.loads((tmp_path / "said.json").read_text())
    mask = found.masks[1]
    assert (rows[1]["image"], rows[1]["height"], rows[1]["width"]) == ("1.jpg", 64, 64)
    for segment in rows[1]["segments"]:
        inside = mask == NAMES.index(segment["label"])
        assert segment["share"] == pytest.approx(inside.mean(), abs=1e-6)
        assert np.array_equal(sslzoo.coco.decode_runs(segment["segmentation"]), inside)
    assert sum(segment["share"] for segment in rows[1]["segments"]) == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "said.csv").read_text().splitlines()[0] == "image,photograph,zero,one"
    with Image.open(tmp_path / "masks" / "1.png") as picture:
        assert np.array_equal(np.asarray(picture), mask)
        assert np.array_equal(np.asarray(picture.convert("RGB")), np.array(model.colours, dtype=np.uint8)[mask])
    again = sslzoo.open_masks(
        (data.images[:3], sorted((tmp_path / "masks").glob("*.png"))), classes=tmp_path / "masks" / "classes.csv"
    )
    assert (again.classes, again.colours) == (model.classes, model.colours)
    assert np.array_equal(again.mask(1), mask)
    with Image.open(tmp_path / "said.png") as picture:
        assert picture.width > 500
    text = str(found)
    top = max(rows[0]["segments"], key=lambda segment: segment["share"])
    assert text.splitlines()[0].startswith(f"0.jpg  {top['label']} {top['share']:.1%}")


def test_mask_files_stay_in_their_folder(model: Segmenter, data: Any, tmp_path: Path) -> None:
    Image.fromarray(data.images[0]).save(tmp_path / "a.png")
    found = model.predict([tmp_path / "a.png"])  # its name is the whole path
    found.save(tmp_path / "out")
    inside = list((tmp_path / "out").rglob("*.png"))
    assert len(inside) == 1
    assert inside[0].name == "a.png"


def test_it_pickles_as_workers_of_other_systems_need_it(model: Segmenter) -> None:
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.decoder.scores[0].weight, model.decoder.scores[0].weight)
    assert again.loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)).item() > 1


def test_modules_keep_their_modes(model: Segmenter, data: Any) -> None:
    model.train()
    model.predict(data.images[:1])
    assert model.training
    assert model.decoder.training
    model.eval()


def test_an_image_of_many_pixels(model: Segmenter) -> None:
    big = np.zeros((900, 1400, 3), dtype=np.uint8)
    assert model.predict(big[None], num_workers=0).masks[0].shape == (900, 1400)


def test_encoders_are_not_changed_by_a_dilated_copy() -> None:
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=64)
    model = sslzoo.segmenter(encoder, 2, head="fcn")
    assert model.encoder is not encoder
    assert sslzoo.segmenter(encoder, 2, head="unet").encoder is encoder
    assert isinstance(model.encoder, Encoder)
    assert segmenter.Settings("fcn", 8, (256, 256), "cross_entropy", False) == model.settings
