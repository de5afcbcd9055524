"""The evaluation transform against timm's own, pixel by pixel."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config

from sslzoo.lab import lightness
from sslzoo.transforms import eval_transform, prepare

RGB = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PRETRAINED_CFGS: dict[str, dict[str, Any]] = {
    "ours": {"input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", **RGB},
    "crop": {"input_size": [3, 56, 56], "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center", **RGB},
    "squash": {"input_size": [3, 48, 48], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash", **RGB},
    "border": {"input_size": [3, 48, 48], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "border", **RGB},
    "wide": {"input_size": [3, 40, 72], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", **RGB},
    "nearest": {"input_size": [3, 64, 64], "interpolation": "nearest", "crop_pct": 1.0, "crop_mode": "squash", **RGB},
    "grey": {"input_size": [1, 28, 28], "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.449], "std": [0.226]},
}
SETTINGS: dict[str, dict[str, Any]] = {name: {"pretrained_cfg": cfg} for name, cfg in PRETRAINED_CFGS.items()}
LIGHTNESS = {
    "pretrained_cfg": PRETRAINED_CFGS["ours"] | {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.25]},
    "sslzoo": {"input": "lab-l"},
}


def photo(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).resize(size)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [(131, 97), (97, 131), (32, 32), (64, 64)])
def test_equal_to_timm(name: str, size: tuple[int, int]) -> None:
    settings = PRETRAINED_CFGS[name]
    image = photo(size).convert("L" if settings["input_size"][0] == 1 else "RGB")
    expected = create_transform(**resolve_data_config(pretrained_cfg=settings))(image)
    found = eval_transform(SETTINGS[name])(image)
    assert found.shape == tuple(settings["input_size"])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_the_defaults_are_timms() -> None:
    image = photo((300, 240))
    expected = create_transform(**resolve_data_config(pretrained_cfg={"input_size": (3, 64, 64)}))(image)
    assert torch.equal(eval_transform({"pretrained_cfg": {"input_size": [3, 64, 64]}})(image), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_reaches_an_rgb_network_as_rgb(mode: str) -> None:
    image = photo((50, 60)).convert(mode)
    transform = eval_transform(SETTINGS["ours"])
    assert torch.equal(transform(image), transform(image.convert("RGB")))


def test_a_grey_network_gets_the_luminance_of_a_colour_image() -> None:
    image = photo((50, 60))
    transform = eval_transform(SETTINGS["grey"])
    assert torch.equal(transform(image), transform(image.convert("L")))


def test_a_lightness_network_gets_l_of_lab() -> None:
    image = photo((64, 64))
    found = eval_transform(LIGHTNESS)(image)
    assert found.shape == (1, 64, 64)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(50 + 25 * found, lightness(pixels)[0], atol=0.21, rtol=0)  # half an 8-bit level
    luma = eval_transform({"pretrained_cfg": LIGHTNESS["pretrained_cfg"]})(image)
    assert (found - luma).abs().mean() > 0.05


@pytest.mark.parametrize("config", [SETTINGS["ours"], LIGHTNESS], ids=["rgb", "lightness"])
def test_a_batch_is_normalised_as_one_image_is(config: dict[str, Any]) -> None:
    image = photo((64, 64))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    expected = eval_transform(config)(image)[None]
    torch.testing.assert_close(
        prepare(pixels, config), expected, atol=1e-5 if config is not LIGHTNESS else 0.01, rtol=0
    )


@pytest.mark.parametrize("config", [SETTINGS["ours"], LIGHTNESS], ids=["rgb", "lightness"])
def test_it_survives_pickling(config: dict[str, Any]) -> None:
    transform = eval_transform(config)
    image = photo((50, 60))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 or 3 channels here, input_size \[4, 8, 8\]"):
        eval_transform({"pretrained_cfg": {"input_size": [4, 8, 8]}})
