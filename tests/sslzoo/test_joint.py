"""Views: masks and boxes go where the pixels go, and views depend on seed, epoch and position alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

import sslzoo
from sslzoo.joint import (
    IGNORE,
    Fit,
    JointSamples,
    Target,
    as_pixels,
    evaluation_view,
    fitted,
    training_view,
)
from sslzoo.transforms import ConvertMode

CONFIG = sslzoo.create("resnet18quarter", seed=0, image_size=64).config
RED = 200


class Squares:
    """Dark images with a square of one colour, which mask and box mark."""

    def __init__(self, boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (60, 90)) -> None:
        self.boxes, self.size = boxes, size

    def __len__(self) -> int:
        return 5

    def example(self, i: int) -> tuple[Image.Image, Target]:
        pixels = np.zeros((*self.size, 3), dtype=np.uint8)
        mask = np.zeros(self.size, dtype=np.uint8)
        for x1, y1, x2, y2 in self.boxes:
            pixels[y1:y2, x1:x2] = RED
            mask[y1:y2, x1:x2] = 7
        corners = torch.tensor(self.boxes, dtype=torch.float32).reshape(-1, 4)
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=self.size)
        labels = torch.arange(len(self.boxes))
        return Image.fromarray(pixels), {
            "masks": tv_tensors.Mask(torch.from_numpy(mask)),
            "boxes": boxes,
            "labels": labels,
        }


def samples(data: Squares, seed: int | None, size: tuple[int, int] = (48, 64)) -> JointSamples:
    view = (evaluation_view if seed is None else training_view)(size, CONFIG)
    return JointSamples(data, ConvertMode("RGB"), view, seed)


def test_mask_and_box_stay_on_the_square() -> None:
    drawn = samples(Squares([(30, 20, 60, 44)]), seed=1)
    seen = 0
    for epoch in range(8):
        drawn.set_epoch(epoch)
        image, target = drawn[0]
        assert image.dtype == torch.uint8
        assert image.shape == (3, 48, 64)
        assert target["masks"].shape == (48, 64)
        bright, marked = image.float().mean(0) > 60, target["masks"] == 7
        padding = target["masks"] == IGNORE
        assert (bright & ~padding).logical_xor(marked).float().mean() < 0.06  # but for the edges
        if marked.sum() < 40:
            continue
        seen += 1
        rows, columns = marked.nonzero(as_tuple=True)
        box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (target["boxes"][0] - box).abs().max() <= 1.5
    assert seen >= 4


def test_boxes_that_the_crop_cuts_away_go_with_their_labels() -> None:
    drawn = samples(Squares([(0, 0, 6, 6), (30, 20, 60, 44), (84, 54, 90, 60)]), seed=0)
    kept = set()
    for epoch in range(12):
        drawn.set_epoch(epoch)
        _, target = drawn[3]
        assert len(target["boxes"]) == len(target["labels"])
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"][:, 2] <= 64).all()
        kept.add(tuple(target["labels"].tolist()))
    assert len(kept) > 2
    none = samples(Squares([]), seed=0)[0][1]
    assert none["boxes"].shape == (0, 4)


def test_views_depend_on_seed_epoch_and_position_alone() -> None:
    data = Squares([(30, 20, 60, 44)])
    views = samples(data, seed=3)
    state = torch.get_rng_state()
    first = views[2]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    views[1]
    again = views[2]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1]["masks"], again[1]["masks"])
    views.set_epoch(1)
    assert not torch.equal(views[2][0], first[0])
    assert not torch.equal(samples(data, seed=4)[2][0], first[0])
    assert not torch.equal(views[1][0], views[2][0])


@pytest.mark.parametrize(("size", "box", "content"), [((60, 90), (48, 64), (43, 64)), ((90, 60), (48, 64), (48, 32))])
def test_evaluation_fits_and_pads(size: tuple[int, int], box: tuple[int, int], content: tuple[int, int]) -> None:
    image, target = samples(Squares([(0, 0, size[1], size[0])], size), None, box)[0]
    assert fitted(size, box) == content
    assert image.shape == (3, *box)
    assert (image[:, : content[0], : content[1]] == RED).all()
    assert (target["masks"][: content[0], : content[1]] == 7).all()
    padding = torch.ones(box, dtype=torch.bool)
    padding[: content[0], : content[1]] = False
    assert (target["masks"][padding] == IGNORE).all()
    mean = torch.tensor([round(255 * value) for value in CONFIG["pretrained_cfg"]["mean"]])
    assert (image[:, padding] == mean[:, None]).all()
    torch.testing.assert_close(target["boxes"][0], torch.tensor([0.0, 0.0, content[1], content[0]]), rtol=0, atol=0.5)


def test_scales_are_uniform_and_small_images_never_vanish() -> None:
    fit = Fit((40, 40), (0.5, 2.0))
    image = as_pixels(Image.new("RGB", (20, 10)))
    torch.manual_seed(0)
    widths = [fit(image).shape[-1] for _ in range(200)]
    assert min(widths) < 24
    assert max(widths) > 76
    assert 45 < np.mean(widths) < 55
    assert fitted((1, 1000), (32, 32)) == (1, 32)


def test_one_channel_stays_one() -> None:
    config = sslzoo.create("resnet18quarter", seed=0, image_size=64, in_chans=1).config
    view = JointSamples(Squares([(1, 1, 9, 9)]), ConvertMode("L"), training_view((32, 32), config), 0)
    image: Tensor = view[0][0]
    assert image.shape == (1, 32, 32)
