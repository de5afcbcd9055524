"""ONNX files of encoders and classifiers, for runtimes without Python: checked before they take their place.

    report = export_onnx(sslzoo.load("byol-resnet18quarter-cifar10"), "encoder.onnx")     # pip install 'sslzoo[onnx]'

The input is `images`, (batch, C, height, width) float32, normalised as `model.transform` does it; what that is stands
in the file's metadata: input_size, mean, std, interpolation, crop_pct and, for a classifier, classes.
"""

import copy
import json
import os
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # of the largest output, or of 1 where that is more
_MOST = 2**31 - 2**24  # bytes: protobuf, and so an ONNX file, ends at 2 GB; the graph needs some of them


class ExportError(RuntimeError):
    """A model cannot be written as ONNX, or the file would not compute what the model does."""


@dataclass(frozen=True)
class ExportReport:
    """What `export_onnx` wrote.

    Attributes:
        path: The file.
        input_shape: Of `images`; a name stands for a length that is free.
        output: "features" or "logits".
        difference: The largest between onnxruntime's outputs and torch's, relative to the largest output where that is
            above 1.
    """

    path: Path
    input_shape: tuple[str | int, ...]
    output: str
    difference: float

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.input_shape))
        size = self.path.stat().st_size / 1e6
        text = f"{self.path}: {size:.1f} MB, images ({shape}) -> {self.output}"
        return f"{text}; differs from torch by {self.difference:.1g}"


def export_onnx(model: nn.Module, path: str | Path, *, opset: int | None = None) -> ExportReport:
    """Write a model to an ONNX file, for batches of any size and, where the architecture allows it, images of any size.

    onnxruntime then computes the outputs of random images, of two batch sizes (and image sizes); a file whose outputs
    differ from the model's is not written.

    Args:
        model: An encoder, or a model with an `encoder` and `classes` whose output has "logits".
        path: Ends with ".onnx". Its folder is made if it is not there; an older file is replaced.
        opset: Version of ONNX's operators; None is torch's choice.

    Raises:
        ImportError: Without the extra [onnx].
        ValueError: `path` ends otherwise.
        ExportError: torch cannot translate the network, or the outputs differ.
    """
    _need_onnx()
    if (task := getattr(model, "task", "classification")) != "classification":
        raise ExportError(f"ONNX files are written of encoders and classifiers, not of models for {task} so far.")
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"An ONNX file is called NAME.onnx, got {path.name!r}.")
    encoder: Any = getattr(model, "encoder", model)
    classes: list[str] | None = getattr(model, "classes", None)
    network = _OneTensor(copy.deepcopy(model).cpu().float()).eval()
    if sum(p.numel() * p.element_size() for p in network.parameters()) > _MOST:
        raise ExportError("The model has more than 2 GB of weights, and an ONNX file holds no more.")
    config, output = encoder.config, "logits" if classes else "features"
    program, free = _translate(network, config, output, opset)
    program.model.metadata_props.update(_metadata(config, output, classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.onnx")
    try:
        program.save(str(partial))
        difference = _check(partial, network, config, free)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    shape = tuple(free.get(axis, size) for axis, size in enumerate([0, *config["pretrained_cfg"]["input_size"]]))
    return ExportReport(path, shape, output, difference)


class _OneTensor(nn.Module):
    """A model of ours as a function of images alone, with one tensor as its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        return output["logits"] if isinstance(output, dict) else output


def _need_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f"Writing ONNX files needs {name}: pip install 'sslzoo[onnx]'") from error


def _translate(
    network: nn.Module, config: dict[str, Any], output: str, opset: int | None
) -> tuple[Any, dict[int, str]]:
    """Let torch export the network. Returns its program, and the free lengths of the input: axis -> name."""
    choices = [{0: "batch", 2: "height", 3: "width"}, {0: "batch"}]
    if config["pretrained_cfg"].get("fixed_input_size") and not config["model_args"].get("dynamic_img_size"):
        del choices[0]
    for free in choices:
        try:
            with torch.no_grad():
                program = torch.onnx.export(
                    network,
                    (_images(config, batch=2),),
                    input_names=["images"],
                    output_names=[output],
                    dynamic_shapes=(free,),
                    opset_version=opset,
                    dynamo=True,
                    verbose=False,
                )
        except Exception as error:  # torch.export and onnxscript raise whatever a network's code leads to
            if free is choices[-1]:
                what = f"torch {torch.__version__} cannot export {config['architecture']}"
                raise ExportError(f"{what}: {error}") from error
        else:
            return program, free
    raise AssertionError  # the last choice returns or raises


def _images(config: dict[str, Any], *, batch: int, larger: int = 0) -> Tensor:
    channels, height, width = config["pretrained_cfg"]["input_size"]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height + larger, width + larger, generator=generator)


def _check(path: Path, network: nn.Module, config: dict[str, Any], free: dict[int, str]) -> float:
    """Compare with torch on other images than those of the export. Returns the largest difference."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batches = [_images(config, batch=1), _images(config, batch=3, larger=32 if 2 in free else 0)]
    worst = 0.0
    for images in batches:
        with torch.inference_mode():
            expected = network(images).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        difference = float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
        if found.shape != expected.shape or not difference <= TOLERANCE:  # NaN is no good either
            raise ExportError(
                f"onnxruntime's outputs for images {tuple(images.shape)} differ from torch's by {difference:.2g}, more "
                f"than {TOLERANCE:g}: no file is written. Another opset may help."
            )
        worst = max(worst, difference)
    return worst


def _metadata(config: dict[str, Any], output: str, classes: list[str] | None) -> dict[str, str]:
    """What the file says of itself; values other than text are JSON."""
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    settings = {key: config["pretrained_cfg"].get(key) for key in keys}
    facts = {"architecture": config["architecture"], "output": output, "classes": classes}
    block = config.get("sslzoo", {})
    facts |= settings | {key: block.get(key) for key in ("method", "dataset")} | {"sslzoo": version("sslzoo")}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items() if value}
