import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network


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
