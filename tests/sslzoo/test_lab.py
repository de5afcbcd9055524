"""CIE Lab against scikit-image, for batches and for the 8-bit lightness of PIL images."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from sslzoo.lab import lightness, lightness_image, rgb_to_lab


def colours() -> np.ndarray:
    """(64, 64, 3) uint8: random ones, greys, the darkest and the corners of the cube."""
    random = np.random.default_rng(0).integers(0, 256, (60, 64, 3), dtype=np.uint8)
    greys = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 3, axis=2)
    dark = np.random.default_rng(1).integers(0, 14, (2, 64, 3), dtype=np.uint8)
    corners = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, 8).T.astype(np.uint8)
    return np.concatenate([random, greys, dark, np.tile(corners, (8, 1))[None]])


def batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def test_equal_to_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    photo = load_sample_images().images[1][:64, :64]
    lab = rgb_to_lab(batch(colours(), photo)).permute(0, 2, 3, 1).numpy()
    for found, image in zip(lab, (colours(), photo), strict=True):
        np.testing.assert_allclose(found, color.rgb2lab(image), atol=2e-3)
    double = rgb_to_lab(batch(colours()).double())[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(double, color.rgb2lab(colours() / 255), atol=1e-5)


def test_white_black_and_the_ranges_of_srgb() -> None:
    corner = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).view(-1, 3, 1, 1)
    white, black, red, green, blue = rgb_to_lab(corner)[:, :, 0, 0]
    torch.testing.assert_close(white, torch.tensor([100.0, 0, 0]), atol=0.02, rtol=0)
    torch.testing.assert_close(black, torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(red, torch.tensor([53.24, 80.09, 67.20]), atol=0.05, rtol=0)
    torch.testing.assert_close(green, torch.tensor([87.74, -86.18, 83.18]), atol=0.05, rtol=0)
    torch.testing.assert_close(blue, torch.tensor([32.30, 79.20, -107.86]), atol=0.05, rtol=0)


def test_lightness_is_the_first_channel_alone() -> None:
    images = batch(colours())
    assert lightness(images).shape == (1, 1, 64, 64)
    torch.testing.assert_close(lightness(images), rgb_to_lab(images)[:, :1])


def test_the_lightness_of_an_image_is_the_same_in_8_bits() -> None:
    found = np.asarray(lightness_image(Image.fromarray(colours())))
    assert (found.dtype, found.shape) == (np.uint8, (64, 64))
    exact = 2.55 * lightness(batch(colours()).double())[0, 0].numpy()
    assert np.abs(found - exact).max() < 0.53  # half a level, and the rounding of the tables
    assert found.min() == 0
    assert found.max() == 255


def test_every_mode_has_a_lightness() -> None:
    photo = Image.fromarray(load_sample_images().images[0]).resize((40, 30))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        image = photo.convert(mode)
        found = lightness_image(image)
        assert (found.mode, found.size) == ("L", (40, 30))
        assert np.array_equal(np.asarray(found), np.asarray(lightness_image(image.convert("RGB"))))
    grey = photo.convert("L")
    assert np.abs(np.asarray(lightness_image(grey)).astype(int) - np.asarray(grey)).max() > 3  # not Pillow's grey
