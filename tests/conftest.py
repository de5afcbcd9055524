import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the two processes of pytest share the cores

Rows = Mapping[str, Mapping[str, Any]]
ROW = {
    "licence": "apache-2.0",
    "num_features": 128,
    "params": 701_720,
    "input_size": [3, 64, 64],
    "sha256": "00",
    "bytes": 1_500_000,
    "source": "bundled",
    "epochs": 30,
    "hardware": "2 CPU cores",
    "paper": "A paper",
    "paper_url": "https://arxiv.org/abs/2006.07733",
    "summary": "A <b>bold</b> claim",
}


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """(24, 40, 40, 3) uint8: cut-outs of two real photographs."""
    rng = np.random.default_rng(0)
    cuts = []
    for number in range(24):
        image = load_sample_images().images[number % 2]
        y, x = rng.integers(0, image.shape[0] - 160), rng.integers(0, image.shape[1] - 160)
        cuts.append(np.asarray(Image.fromarray(image[y : y + 160, x : x + 160]).resize((40, 40))))
    return np.stack(cuts)


@pytest.fixture(scope="session")
def photo_folder(photos: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of the photos: classes china and flower, 12 PNG files each."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for number, photo in enumerate(photos):
        file = root / ("china", "flower")[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(file)
    return root


@dataclass(frozen=True)
class Scenes:
    """Photographs with pasted digits: what is where is known exactly.

    Attributes:
        images: (N, S, S, 3) uint8.
        masks: (N, S, S) uint8: 0 photograph, 1 a zero, 2 a one.
        boxes: N arrays (n, 4), x1 y1 x2 y2 in pixels; x2 and y2 are the first beyond.
        labels: N arrays (n,), 0 a zero, 1 a one.
    """

    images: np.ndarray
    masks: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]


def _scenes(count: int, side: int = 64, tile: int = 28, grid: int = 1, seed: int = 0) -> Scenes:
    rng = np.random.default_rng(seed)
    photographs, digits = load_sample_images().images, load_digits()
    images, masks, boxes, labels = [], [], [], []
    for n in range(count):
        photograph = photographs[n % 2]
        y, x = rng.integers(0, photograph.shape[0] - 2 * side), rng.integers(0, photograph.shape[1] - 2 * side)
        image = np.asarray(Image.fromarray(photograph[y : y + 2 * side, x : x + 2 * side]).resize((side, side))).copy()
        mask, found = np.zeros((side, side), dtype=np.uint8), []
        for label, left in enumerate((0, side // 2)):  # a zero in the left half, a one in the right
            digit = rng.choice(digits.images[digits.target == label])
            top = grid * rng.integers(0, (side - tile) // grid + 1)
            start = left + grid * rng.integers(0, (side // 2 - tile) // grid + 1)
            pixels = np.asarray(Image.fromarray((digit * 15).astype(np.uint8)).resize((tile, tile), 0))
            image[top : top + tile, start : start + tile] = pixels[..., None]
            mask[top : top + tile, start : start + tile] = label + 1
            found.append((start, top, start + tile, top + tile))
        images.append(image)
        masks.append(mask)
        boxes.append(np.array(found, dtype=np.float32))
        labels.append(np.array([0, 1]))
    return Scenes(np.stack(images), np.stack(masks), boxes, labels)


@pytest.fixture(scope="session")
def scenes() -> Callable[..., Scenes]:
    """`scenes(count, side=64, tile=28, grid=1, seed=0)`: photographs with a zero and a one pasted on as squares.

    Corners of the squares are multiples of `grid` pixels.
    """
    return _scenes


def _zoo_toml(models: Rows, aliases: Mapping[str, str] | None = None) -> str:
    lines = ["[aliases]", *(f"{short} = {json.dumps(id_)}" for short, id_ in (aliases or {}).items())]
    for id_, changes in models.items():
        row = {**dict(zip(("method", "arch", "data"), id_.split("-"), strict=False)), **ROW, **changes}
        lines += ["", f'[models."{id_}"]', *(f"{key} = {json.dumps(value)}" for key, value in row.items())]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def zoo_toml() -> Callable[..., str]:
    """Text of a zoo.toml: `zoo_toml({id: {column: value}}, {alias: id})`; columns that are not named get some value."""
    return _zoo_toml


@pytest.fixture
def use_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put another zoo, in a temporary folder, in the place of the package's.

    `use_zoo({id: {column: value}}, {alias: id}, {id: encoder})` bundles those models that have an encoder, and gives
    the path of zoo.toml; the weights are beside it, in bundled/.
    """
    from sslzoo import weights, zoo

    def use(models: Rows, aliases: Mapping[str, str] | None = None, encoders: Mapping[str, Any] | None = None) -> Path:
        rows = {id_: dict(changes) for id_, changes in models.items()}
        bundled = tmp_path / "bundled"
        for id_, encoder in (encoders or {}).items():
            encoder.save_pretrained(bundled / id_, half=True)
            file = bundled / id_ / weights.WEIGHTS
            rows[id_] = {"sha256": weights.sha256(file), "bytes": file.stat().st_size, **rows[id_]}
        table = tmp_path / "zoo.toml"
        table.write_text(_zoo_toml(rows, aliases), encoding="utf-8")
        monkeypatch.setattr(zoo, "TABLE", table)
        monkeypatch.setattr(weights, "BUNDLED", bundled)
        return table

    return use


def _run_snippets(card: str, encoder: Any) -> set[str]:
    import torch

    from sslzoo import read_image

    batch = encoder.transform(read_image("photo.jpg"))[None]
    scope: dict[str, Any] = {}
    libraries = set()
    with torch.no_grad():
        expected = encoder(batch)
        for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            scope.pop("features", None)
            exec(code, scope)
            library = next((line.split()[1] for line in code.splitlines() if re.match(LOADERS, line)), None)
            if library == "segmentation_models_pytorch":
                expected = encoder.feature_maps(batch)[-1]
                scope["features"] = scope["model"].eval().encoder(batch)[-1]
                assert "model.safetensors" not in str(scope["model"].config)
            if library is not None:
                difference = (scope["features"] - expected).abs().max() / expected.abs().max().clamp(min=1)
                assert scope["features"].shape == expected.shape, library
                assert difference <= 1e-6, library
                libraries.add(library)
    return libraries


LOADERS = r"(import|from) (sslzoo$|timm|transformers|torchvision|segmentation_models_pytorch)"


@pytest.fixture(scope="session")
def run_snippets() -> Callable[[str, Any], set[str]]:
    """Run a card's Python code in the working folder, where there is a photo.jpg; returns the libraries it used.

    `run_snippets(card, encoder)` holds what each library makes of the photograph to the encoder's features, within 1e-6
    of the largest.
    """
    return _run_snippets
