"""Rotation by any angles: the authors' rules, torchvision's rotation, and nothing but content tells the angle."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from sslzoo_training.methods.rotation import Rotation, rotate_all, rotate_disc
from sslzoo_training.publish import command
from sslzoo_training.recipe import RecipeError, make_plan

EIGHT = (0, 45, 90, 135, 180, 225, 270, 315)


def noise(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def start(count: int) -> Tensor:
    return 360 * torch.rand(count, generator=torch.Generator().manual_seed(1))


def rotnet_rule(image: np.ndarray, angle: int) -> np.ndarray:
    """How the authors' code turns a (H, W, C) image."""
    if angle == 0:
        return image
    if angle == 90:
        return np.flipud(np.transpose(image, (1, 0, 2)))
    if angle == 180:
        return np.fliplr(np.flipud(image))
    return np.transpose(np.flipud(image), (1, 0, 2))


@pytest.mark.parametrize("angles", [(0, 90, 180, 270), (0, 180), (90, 270)])
def test_multiples_of_90_follow_the_authors_rule(angles: tuple[int, ...]) -> None:
    images = noise(3, 6)
    rotated, labels = rotate_all(images, angles)
    expected = [rotnet_rule(image.permute(1, 2, 0).numpy(), angle) for angle in angles for image in images]
    np.testing.assert_array_equal(rotated.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert labels.tolist() == [label for label in range(len(angles)) for _ in range(3)]


def test_other_angles_are_those_of_torchvision_inside_the_disc() -> None:
    line = torch.linspace(-1, 1, 48)
    smooth = torch.stack([torch.sin(3 * line[:, None] + line), line[:, None] * line.abs(), line.expand(48, 48).cos()])
    images = smooth.expand(2, 3, 48, 48)
    rotated, labels = rotate_all(images, EIGHT, start(2))
    inside = (line[:, None] ** 2 + line**2).sqrt() < 0.9
    for image, label in zip(rotated, labels.tolist(), strict=True):
        expected = TF.rotate(smooth, EIGHT[label], InterpolationMode.BILINEAR)
        assert (image - expected)[:, inside].abs().max() < 0.02


def test_corners_are_empty_and_edges_untouched_by_what_lies_outside() -> None:
    rotated = rotate_disc(torch.ones(5, 3, 33, 33), (*EIGHT, 10, 77), start(5))
    line = torch.arange(33) - 16
    disc = ((line[:, None] ** 2 + line**2).sqrt() <= 14.5).float()
    torch.testing.assert_close(rotated, disc.expand_as(rotated))


@pytest.mark.parametrize("angles", [EIGHT, (0, 10, 30, 77)])
def test_sharpness_does_not_tell_the_angle(angles: tuple[float, ...], tiny_encoder: nn.Module) -> None:
    images = nn.functional.interpolate(noise(256, 16), scale_factor=2, mode="bicubic")  # as CIFAR-10 is trained on

    def sharpness(start: Tensor) -> Tensor:
        """Contrast of neighbouring pixels, for each angle."""
        middle = rotate_disc(images, angles, start)[..., 8:24, 8:24].unflatten(0, (len(angles), -1))
        return sum(middle.diff(dim=d).square().mean(dim=(1, 2, 3, 4)) for d in (3, 4))  # type: ignore[return-value]

    straight = sharpness(torch.zeros(256))
    assert straight.max() / straight.min() > 1.25
    draws = Rotation(tiny_encoder, angles).draw(256, torch.Generator().manual_seed(0))
    assert draws is not None
    fair = sharpness(draws)
    assert fair.max() / fair.min() < 1.03


def test_only_angles_that_need_interpolation_say_where_to_start(tiny_encoder: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    assert Rotation(tiny_encoder, (0, 180)).draw(9, generator) is None
    assert Rotation(tiny_encoder, (-90, 450.0, 0)).draw(9, generator) is None
    drawn = Rotation(tiny_encoder, (0, 30)).draw(1000, generator)
    assert drawn is not None
    assert drawn.min() >= 0
    assert drawn.max() < 360
    assert drawn.mean() == pytest.approx(180, abs=15)


def test_eight_angles_train(tiny_encoder: nn.Module) -> None:
    method = Rotation(tiny_encoder, EIGHT)
    images, draws = noise(4, 16), start(4)
    out = method([images, draws], torch.arange(4))
    rotated, labels = rotate_all(images, EIGHT, draws)
    logits = method.head(tiny_encoder(rotated))
    torch.testing.assert_close(out["loss"], nn.functional.cross_entropy(logits, labels))
    assert out["accuracy"] == (logits.argmax(1) == labels).float().mean()
    assert labels.bincount().tolist() == [4] * 8


def test_bf16_does_not_move_the_pixels(tiny_encoder: nn.Module) -> None:
    images = noise(2, 24)
    expected = rotate_disc(images, (45,), start(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotate_disc(images, (45,), start(2)), expected)


@pytest.mark.parametrize("angles", [(), (90,), (0, 360), (45, 90, 45)])
def test_angles_must_be_told_apart(angles: tuple[float, ...], tiny_encoder: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least two"):
        Rotation(tiny_encoder, angles)


def test_angles_are_a_setting() -> None:
    plan = make_plan("rotation", "cifar10", {"angles": [0, 45.5]})
    assert plan.method_settings["angles"] == (0, 45.5)
    assert plan.to_dict()["angles"] == [0, 45.5]
    assert "'angles=[0, 45.5]'" in command(plan.to_dict())
    with pytest.raises(RecipeError, match="needs a tuple, got a int"):
        make_plan("rotation", "cifar10", {"angles": 4})
