"""ONNX files compute what the model computes, for any batch, and say how images are prepared."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import sslzoo
from sslzoo import export
from sslzoo.cli import app
from sslzoo.export import ExportError, export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# name, arguments, does it take images of any size; shallow, since exporting costs seconds a network
ARCHS: list[tuple[str, dict[str, Any], bool]] = [
    ("resnet18quarter", {"layers": [1, 1, 1, 1]}, True),
    ("vit_tiny_patch16_224", {"depth": 1}, False),
    ("convnext_atto", {"depths": [1, 1, 1, 1]}, True),
]


def run(path: Path, images: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


@pytest.mark.parametrize(("arch", "args", "any_size"), ARCHS, ids=[arch for arch, _, _ in ARCHS])
def test_the_file_gives_the_models_features(arch: str, args: dict[str, Any], any_size: bool, tmp_path: Path) -> None:
    encoder = sslzoo.create(arch, seed=0, image_size=64, **args).train()
    report = export_onnx(encoder, tmp_path / "new" / "model.onnx")
    assert encoder.training
    encoder.eval()
    assert report.difference <= 1e-4
    assert report.input_shape == (("batch", 3, "height", "width") if any_size else ("batch", 3, 64, 64))
    for size in [(5, 3, 64, 64), (1, 3, 64, 64)] + [(2, 3, 96, 70)] * any_size:
        images = torch.randn(size)
        with torch.inference_mode():
            np.testing.assert_allclose(run(report.path, images), encoder(images).numpy(), rtol=1e-4, atol=1e-4)
    assert [file.name for file in report.path.parent.iterdir()] == ["model.onnx"]
    meta = onnxruntime.InferenceSession(str(report.path)).get_modelmeta().custom_metadata_map
    assert json.loads(meta["input_size"]) == [3, 64, 64]
    assert json.loads(meta["mean"]) == encoder.config["pretrained_cfg"]["mean"]
    assert meta["output"] == "features"
    assert "classes" not in meta


def test_a_network_that_pads_as_tensorflow(tmp_path: Path) -> None:
    created = sslzoo.create("resnet18", seed=0, image_size=64, layers=[1, 1, 1, 1], channels=[8, 16, 32, 64])
    block = {**created.config["sslzoo"], "padding": "same"}
    encoder = sslzoo.Encoder(created.model, {**created.config, "sslzoo": block})
    report = export_onnx(encoder, tmp_path / "model.onnx")
    assert report.input_shape == ("batch", 3, "height", "width")
    for size in ((224, 224), (97, 65), (64, 51)):  # SAME pads even and odd sizes otherwise
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            np.testing.assert_allclose(run(report.path, images), encoder(images).numpy(), rtol=1e-4, atol=1e-5)


class Classifier(nn.Module):
    """As a fine-tuned model is, but for its size: an encoder, logits, and the names of its classes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 2, 3, stride=2)
        self.encoder.config = config  # type: ignore[assignment]
        self.classes = ["crème brûlée", "rain"]

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.encoder(pixel_values).mean((2, 3))}


@pytest.fixture
def classifier(encoder: sslzoo.Encoder) -> Classifier:
    return Classifier(encoder.config)


@pytest.fixture(scope="module")
def encoder() -> sslzoo.Encoder:
    return sslzoo.create("vit_tiny_patch16_224", seed=0, image_size=32, depth=1)


def test_a_classifiers_file_has_its_class_names(classifier: Classifier, tmp_path: Path) -> None:
    report = export_onnx(classifier, tmp_path / "model.onnx", opset=18)
    session = onnxruntime.InferenceSession(str(report.path))
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["classes"]) == ["crème brûlée", "rain"]
    assert report.output == meta["output"] == session.get_outputs()[0].name == "logits"
    assert "-> logits" in str(report)
    images = torch.randn(4, 3, 32, 32)
    np.testing.assert_allclose(run(report.path, images), classifier(images)["logits"].detach(), atol=1e-5)


def test_a_file_that_differs_is_not_written(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("an older file")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"images \(1, 3, 32, 32\) differ from torch's by .*no file is written"):
        export_onnx(classifier, path)
    assert path.read_text() == "an older file"
    assert list(tmp_path.iterdir()) == [path]


class Unexportable(Classifier):
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": pixel_values.mean((2, 3)) if pixel_values.sum() > 0 else pixel_values[:, :, 0, 0]}


def test_what_cannot_be_exported_says_so(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot export vit_tiny"):
        export_onnx(Unexportable(classifier.encoder.config), tmp_path / "model.onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"is called NAME.onnx, got 'model.pt'"):
        export_onnx(classifier, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_is_named(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'sslzoo\[onnx\]'"):
        export_onnx(classifier, tmp_path / "model.onnx")


def test_the_command(encoder: sslzoo.Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "run")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "model.onnx")])
    assert done.exit_code == 0, done.output
    assert "images (batch, 3, 32, 32) -> features" in done.stdout
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        np.testing.assert_allclose(run(tmp_path / "model.onnx", images), encoder(images), rtol=1e-4, atol=1e-4)
