"""Each operation against torchvision's on the same parameters, and what is drawn against what is promised."""

import math

import pytest
import torch
import torchvision.transforms.functional as TF
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import to_tensor

from sslzoo_training import views
from sslzoo_training.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, Params, View

COLOUR = 1 / 255
SIZES = [(32, 32), (45, 37), (101, 134)]
MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
BYOL = {
    "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2,
    "blur": 0.5, "solarize": 0.2,
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(count: int, height: int, width: int) -> Tensor:
    """(count, 3, height, width) uint8: pieces of real photographs, with a grey, a black and a white pixel in each."""
    photos = [torch.from_numpy(p.copy()).permute(2, 0, 1) for p in load_sample_images().images]
    g = generator(height * width)
    pieces = []
    for i in range(count):
        photo = photos[i % len(photos)]
        top = int(torch.randint(photo.shape[1] - height + 1, (), generator=g))
        left = int(torch.randint(photo.shape[2] - width + 1, (), generator=g))
        pieces.append(photo[:, top : top + height, left : left + width].clone())
    images = torch.stack(pieces)
    images[:, :, 0, 0], images[:, :, 0, 1], images[:, :, 1, 0] = 128, 0, 255
    return images


def floats(count: int, height: int, width: int) -> Tensor:
    return photographs(count, height, width) / 255


def plain(size: int, **settings: object) -> View:
    """A view whose output stays in [0, 1]."""
    return View(size, mean=(0, 0, 0), std=(1, 1, 1), **settings)  # type: ignore[arg-type]


def whole(images: Tensor) -> Tensor:
    return torch.tensor(images.shape[-2:]).expand(len(images), 2)


def each(function: object, images: Tensor, *parameters: Tensor) -> Tensor:
    """torchvision's function image by image, since its parameters hold for all images of a call."""
    return torch.stack([function(x, *(p.item() for p in ps)) for x, *ps in zip(images, *parameters, strict=True)])  # type: ignore[operator]


# ------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 77])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crops_as_torchvision(height: int, width: int, size: int, interpolation: str) -> None:
    images = floats(24, height, width)
    boxes = View(size, scale=(0.01, 1)).sample(whole(images), generator()).boxes
    boxes[0] = torch.tensor([0, 0, height, width])
    boxes[1] = torch.tensor([height - 1, 0, 1, 1])  # one pixel, in a corner
    ours = views.resized_crop(images, boxes.float(), size, interpolation=interpolation)  # type: ignore[arg-type]
    theirs = each(
        lambda x, *box: TF.resized_crop(x, *box, [size, size], MODES[interpolation], antialias=True),
        images,
        *boxes.unbind(1),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_a_flip_is_the_crop_mirrored() -> None:
    images = photographs(8, 45, 37)
    boxes = View(33).sample(whole(images), generator()).boxes.float()
    flip = torch.arange(8) % 2 == 0
    ours = views.resized_crop(images, boxes, 33, flip)
    straight = views.resized_crop(images, boxes, 33)
    assert torch.equal(ours[~flip], straight[~flip])
    torch.testing.assert_close(ours[flip], straight[flip].flip(3), rtol=0, atol=1e-3)  # of 255


HALVES = {
    "top": (slice(None, 17), slice(None)),
    "bottom": (slice(17, None), slice(None)),
    "left": (slice(None), slice(None, 17)),
    "right": (slice(None), slice(17, None)),
}


@pytest.mark.parametrize("part", HALVES)
def test_a_part_is_that_of_the_crop(part: views.Part) -> None:
    images = photographs(8, 45, 37)
    boxes = View(33).sample(whole(images), generator()).boxes.float()
    flip = torch.arange(8) % 2 == 0
    expected = views.resized_crop(images, boxes, 33, flip)[:, :, *HALVES[part]]
    torch.testing.assert_close(views.resized_crop(images, boxes, 33, flip, part=part), expected, rtol=0, atol=1e-3)


def test_whole_images_and_flips_are_exact() -> None:
    images = photographs(16, 32, 32)
    view = plain(32, scale=(1, 1), ratio=(1, 1), flip=0.5)
    params = view.sample(whole(images), generator())
    expected = torch.where(params.flip[:, None, None, None], images.flip(3), images) / 255
    assert 0 < params.flip.sum() < 16
    assert torch.equal(view.apply(images, params), expected)


@pytest.mark.parametrize("size", [32, 40])
def test_pad_is_torchvisions_random_crop(size: int) -> None:
    images = photographs(64, 32, 32)
    view = plain(size, pad=4)
    params = view.sample(whole(images), generator())
    ours = view.apply(images, params)
    padded = TF.pad(images / 255, [4, 4, 4, 4])
    theirs = each(lambda x, top, left, *box: TF.crop(x, top + 4, left + 4, *box), padded, *params.boxes.unbind(1))
    if size == 32:
        assert torch.equal(ours, theirs)  # no interpolation
    theirs = TF.resize(theirs, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    shifts = params.boxes[:, :2]
    assert shifts.min() == -4
    assert shifts.max() == 4


def test_pad_scales_with_the_stored_size() -> None:
    images = photographs(4, 32, 32)
    view = plain(32, pad=4)
    params = view.sample(torch.full((4, 2), 64), generator())  # stored at half the size
    params.boxes[:, 0] = torch.tensor([-4, -2, 0, 4])
    params.boxes[:, 1] = 0
    ours = view.apply(images, params)
    for shift, image, made in zip((-2, -1, 0, 2), images, ours, strict=True):
        assert torch.equal(made, TF.crop(TF.pad(image / 255, [4] * 4), 4 + shift, 4, 32, 32))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_rotates_as_torchvision(height: int, width: int) -> None:
    images = floats(9, height, width)
    degrees = torch.tensor([0, 90, -90, 180, 7.3, -33, 45, 123, -170])
    ours = views.rotate(images, degrees)
    theirs = each(lambda x, angle: TF.rotate(x, angle, InterpolationMode.BILINEAR), images, degrees)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_a_crop_of_a_stretched_image_is_a_crop_of_the_image() -> None:
    images = photographs(32, 240, 120)
    stored = TF.resize(images, [128, 128], InterpolationMode.BICUBIC, antialias=True)
    view = plain(24, scale=(0.2, 1), flip=0.5)
    params = view.sample(whole(images), generator())
    wanted = view.apply(images, params)
    difference = (view.apply(stored, params) - wanted).abs().mean()
    wrong_size = (view.apply(stored, view.sample(whole(stored), generator())) - wanted).abs().mean()
    assert difference < COLOUR
    assert wrong_size > 10 * difference


# --------------------------------------------------------------------------------------------- colour

FACTORS = torch.tensor([0, 0.3, 1, 1.7, 2.5])
THEIRS = {BRIGHTNESS: TF.adjust_brightness, CONTRAST: TF.adjust_contrast, SATURATION: TF.adjust_saturation}


@pytest.mark.parametrize("operation", THEIRS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_adjusts_color_as_torchvision(height: int, width: int, operation: int) -> None:
    images = floats(5, height, width)
    ours = views.adjust_color(images, torch.full((5,), operation), FACTORS)
    torch.testing.assert_close(ours, each(THEIRS[operation], images, FACTORS), rtol=0, atol=1e-5)
    assert torch.equal(ours[2], images[2])  # factor 1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_adjusts_hue_as_torchvision(height: int, width: int) -> None:
    images = floats(7, height, width)
    images[0, :, 2, :6] = torch.tensor(
        [[1, 1, 0, 0, 0, 1], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    )  # the corners of hue
    shifts = torch.tensor([0.2, -0.5, -0.31, -0.02, 0, 0.1, 0.5])
    torch.testing.assert_close(views.adjust_hue(images, shifts), each(TF.adjust_hue, images, shifts), rtol=0, atol=1e-5)


def test_hue_leaves_grey_alone() -> None:
    grey = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert torch.equal(views.adjust_hue(grey, torch.tensor([0.3])), grey)


def test_jitter_takes_the_order_of_each_image() -> None:
    images = floats(24, 37, 45)
    order = torch.cartesian_prod(*[torch.arange(4)] * 4)
    order = order[(order.sort(dim=1).values == torch.arange(4)).all(dim=1)]
    g = generator()
    factors, hue = torch.rand(24, 3, generator=g) * 2, torch.rand(24, generator=g) - 0.5
    hue[::5] = 0
    factors[::10] = 1
    place = views.hue_turns(factors, hue, order).argsort()
    ours = torch.empty_like(images)
    ours[place] = views.color_jitter_(images[place], factors[place], hue[place], order[place])
    theirs = images.clone()
    for i in range(24):
        for operation in order[i].tolist():
            adjust, amount = (TF.adjust_hue, hue[i]) if operation == HUE else (THEIRS[operation], factors[i, operation])
            if amount != (operation != HUE):  # else theirs, too, changes nothing but the last bits
                theirs[i] = adjust(theirs[i], float(amount))
    assert len(order) == 24
    torch.testing.assert_close(ours, theirs, rtol=0, atol=COLOUR / 10)
    with pytest.raises(ValueError, match="sorted by hue_turns"):
        views.color_jitter_(images[place.flip(0)], factors[place.flip(0)], hue[place.flip(0)], order[place.flip(0)])


def test_jitter_leaves_the_others_alone() -> None:
    images = photographs(64, 32, 32)
    view = plain(32, scale=(1, 1), ratio=(1, 1), jitter=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    params = view.sample(whole(images), generator())
    others = (params.factors == 1).all(dim=1)
    made = view.apply(images, params)
    assert 16 < others.sum() < 48
    assert torch.equal(made[others], images[others] / 255)
    assert ((made - images / 255).abs().amax(dim=(1, 2, 3))[~others] > COLOUR).all()


def test_grayscale_and_solarize_as_torchvision() -> None:
    images = floats(3, 45, 37)
    ours = views.grayscale_(images.clone(), torch.tensor([True, False, True]))
    torch.testing.assert_close(ours[::2], TF.rgb_to_grayscale(images, 3)[::2], rtol=0, atol=1e-6)
    assert torch.equal(ours[1], images[1])
    assert torch.equal(views.solarize(images, 128 / 255), TF.solarize(images, 128 / 255))


@pytest.mark.parametrize("radius", [1, 3, 11])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blurs_as_torchvision(height: int, width: int, radius: int) -> None:
    images = floats(4, height, width)
    sigmas = torch.tensor([0.1, 0.5, 1.3, 2])
    taps = [2 * radius + 1] * 2
    theirs = each(lambda x, sigma: TF.gaussian_blur(x, taps, [sigma, sigma]), images, sigmas)
    torch.testing.assert_close(views.gaussian_blur(images, sigmas, radius), theirs, rtol=0, atol=1e-5)


def test_a_blur_wider_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"radius 8 needs images larger than that, got 8 x 20"):
        views.gaussian_blur(torch.rand(1, 3, 8, 20), torch.ones(1), 8)


@pytest.mark.parametrize(("size", "taps"), [(32, 3), (64, 7), (224, 23)])
def test_blur_radius_is_byols(size: int, taps: int) -> None:
    assert 2 * View(size).blur_radius + 1 == taps


# ------------------------------------------------------------------------------------ what is drawn

MANY = 20_000


def uniform(values: Tensor, low: float, high: float) -> bool:
    """Kolmogorov's test against the uniform distribution; a right sampler fails it once in 10^6 seeds."""
    assert low <= values.min()
    assert values.max() <= high
    ranks = (values.double().sort().values - low) / (high - low)
    steps = torch.linspace(0, 1, len(values) + 1, dtype=torch.float64)
    return float(torch.maximum(ranks - steps[:-1], steps[1:] - ranks).max()) < 2.7 / math.sqrt(len(values))


def share(chosen: Tensor) -> float:
    return float(chosen.double().mean())


def test_draws_what_it_states() -> None:
    view = View(
        32, flip=0.5, rotate=20, jitter=0.8, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, grayscale=0.2,
        blur=0.3, blur_sigma=(0.5, 1.5), solarize=0.1,
    )  # fmt: skip
    p = view.sample(torch.full((MANY, 2), 32), generator())
    jittered = p.hue != 0
    drawn = {
        "flip": (p.flip, 0.5), "jitter": (jittered, 0.8), "grayscale": (p.grayscale, 0.2), "blur": (p.sigma > 0, 0.3),
        "solarize": (p.solarize, 0.1),
    }  # fmt: skip
    for name, (chosen, probability) in drawn.items():
        assert share(chosen) == pytest.approx(probability, abs=0.015), name
    pairs = torch.corrcoef(torch.stack([chosen.double() for chosen, _ in drawn.values()])) - torch.eye(len(drawn))
    assert pairs.abs().max() < 0.035  # independent of each other

    assert uniform(p.degrees, -20, 20)
    assert uniform(p.hue[jittered], -0.1, 0.1)
    assert uniform(p.sigma[p.sigma > 0], 0.5, 1.5)
    for i, (low, high) in enumerate([(0.6, 1.4), (0, 2.5), (0.8, 1.2)]):
        assert uniform(p.factors[jittered, i], low, high)
    assert (p.factors[~jittered] == 1).all()

    orders, counts = p.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert (orders.sort(dim=1).values == torch.arange(4)).all()
    assert counts.sub(MANY / 24).abs().max() < 5 * math.sqrt(MANY / 24)


def test_crops_have_the_stated_areas_and_ratios() -> None:
    size = 4000  # so that no crop is refused for its shape, and rounding does not show
    p = View(32, scale=(0.08, 0.5), ratio=(0.6, 1.2)).sample(torch.full((MANY, 2), size), generator())
    top, left, height, width = p.boxes.double().unbind(1)
    assert uniform(height * width / size**2, 0.0799, 0.5001)
    assert uniform((width / height).log(), math.log(0.6) - 1e-3, math.log(1.2) + 1e-3)
    assert uniform(top / (size - height), 0, 1)
    assert uniform(left / (size - width), 0, 1)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 50), (40, 333), (5, 7), (1, 1)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    scale, ratio, count = (0.08, 1.0), (3 / 4, 4 / 3), 1500
    ours = View(32).sample(torch.tensor([[height, width]]).expand(10 * count, 2), generator()).boxes
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    assert (ours >= 0).all()
    assert (ours[:, 2:] > 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width])).all()
    for a, b in zip(ours.double().unbind(1), theirs.double().unbind(1), strict=True):
        error = max(float(b.std()), float(a.std())) / math.sqrt(count) + 1e-9
        assert abs(float(a.mean() - b.mean())) < 5 * error
        assert abs(float(a.std() - b.std())) < 5 * error


def test_what_never_fits_is_cut_from_the_centre() -> None:
    boxes = View(32).sample(torch.tensor([[10, 1000], [1000, 10], [3, 3]]), generator()).boxes
    assert boxes[0].tolist() == [0, 493, 10, 13]
    assert boxes[1].tolist() == [493, 0, 13, 10]


def test_pad_shifts_are_uniform() -> None:
    shifts = View(32, pad=4).sample(torch.full((MANY, 2), 32), generator()).boxes[:, :2] + 4
    _, counts = (shifts[:, 0] * 9 + shifts[:, 1]).unique(return_counts=True)
    assert len(counts) == 81
    assert counts.sub(MANY / 81).abs().max() < 5 * math.sqrt(MANY / 81)


def test_the_seed_decides_and_nothing_else() -> None:
    view, sizes = View(32, **BYOL), torch.full((64, 2), 32)
    torch.manual_seed(1)
    first = view.sample(sizes, generator(3))
    torch.manual_seed(2)
    again, other = view.sample(sizes, generator(3)), view.sample(sizes, generator(4))
    for name in ("boxes", "flip", "factors", "hue", "order", "grayscale", "sigma", "solarize"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
        assert not torch.equal(getattr(first, name), getattr(other, name)), name


# ------------------------------------------------------------------------------------ the whole view


@pytest.mark.parametrize("settings", [{}, {"rotate": 15.0}, {"pad": 4}], ids=str)
def test_a_part_of_a_batch_is_the_part_of_the_views(settings: dict[str, float]) -> None:
    images = photographs(24, 32, 32)
    view = View(40, **BYOL, **settings)  # type: ignore[arg-type]
    params = view.sample(whole(images), generator())
    made = view.apply(images, params)
    for part in (slice(0, 12), slice(12, 24), slice(5, 6)):
        torch.testing.assert_close(view.apply(images[part], params[part]), made[part], rtol=0, atol=1e-6)


def test_what_follows_the_crop_sees_the_part_alone() -> None:
    images = photographs(4, 40, 40)
    view = plain(40, scale=(1, 1), ratio=(1, 1), flip=0.5, jitter=1.0, contrast=0.5)
    params = view.sample(whole(images), generator())
    halves: dict[views.Part, tuple[slice, slice]] = {"top": (slice(20), slice(40)), "right": (slice(40), slice(20, 40))}
    for part, (rows, columns) in halves.items():
        half = plain(40, scale=(1, 1), ratio=(1, 1)).apply(images, params)[:, :, rows, columns]
        expected = each(TF.adjust_contrast, half, params.factors[:, CONTRAST])
        torch.testing.assert_close(view.apply(images, params, part), expected, rtol=0, atol=1e-5)


def test_large_batches_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(24, 32, 32)
    view = View(32, **BYOL)
    params = view.sample(whole(images), generator())
    made = view.apply(images, params)
    monkeypatch.setattr(views, "PIXELS_AT_ONCE", 7 * 32 * 32 + 5)
    torch.testing.assert_close(view.apply(images, params), made, rtol=0, atol=1e-6)


def test_a_view_is_all_its_steps_in_order() -> None:
    images = photographs(1, 45, 37)
    view = View(32, **BYOL, rotate=30)
    params = Params(
        sizes=torch.tensor([[45, 37]]), boxes=torch.tensor([[3, 5, 40, 22]]), flip=torch.tensor([True]),
        degrees=torch.tensor([12.0]), factors=torch.tensor([[1.2, 0.7, 1.1]]), hue=torch.tensor([0.07]),
        order=torch.tensor([[2, 0, 3, 1]]), grayscale=torch.tensor([True]), sigma=torch.tensor([1.1]),
        solarize=torch.tensor([True]),
    )  # fmt: skip
    x = TF.resized_crop(images / 255, 3, 5, 40, 22, [32, 32], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    x = TF.rotate(TF.hflip(x), 12, InterpolationMode.BILINEAR)
    x = TF.adjust_contrast(TF.adjust_hue(TF.adjust_brightness(TF.adjust_saturation(x, 1.1), 1.2), 0.07), 0.7)
    x = TF.gaussian_blur(TF.rgb_to_grayscale(x, 3), [3, 3], [1.1, 1.1])
    x = TF.normalize(TF.solarize(x, 0.5), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    difference = (view.apply(images, params) - x).abs()
    assert difference.quantile(0.99) < COLOUR  # at the threshold of solarize a rounding error may decide


def test_output_is_normalised_float() -> None:
    images = photographs(4, 32, 32)
    view = View(32, scale=(1, 1), ratio=(1, 1), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2))
    made = view.apply(images, view.sample(whole(images), generator()))
    assert made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert not made.requires_grad
    assert not made.is_inference()  # a convolution keeps it for its backward pass
    expected = torch.stack([TF.normalize(x / 255, [0.1, 0.2, 0.3], [0.5, 0.25, 2]) for x in images])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_bicubic_stays_within_the_range_of_images() -> None:
    steps = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    steps[:, :, :, 8:] = 255
    view = plain(64, scale=(1, 1), ratio=(1, 1))
    made = view.apply(steps, view.sample(whole(steps), generator()))
    assert made.min() == 0
    assert made.max() == 1


def test_autocast_does_not_reach_the_views() -> None:
    images = photographs(4, 32, 32)
    view = View(32, **BYOL)
    params = view.sample(whole(images), generator())
    with torch.autocast("cpu", torch.bfloat16):
        made = view.apply(images, params)
    assert torch.equal(made, view.apply(images, params))


def test_leaves_its_input_alone() -> None:
    images = photographs(8, 32, 32)
    view = View(32, **BYOL, pad=2)
    before = images.clone()
    view.apply(images, view.sample(whole(images), generator()))
    assert torch.equal(images, before)


def test_empty_batch() -> None:
    images = torch.empty(0, 3, 32, 32, dtype=torch.uint8)
    view = View(32, **BYOL)
    assert view.apply(images, view.sample(whole(images), generator())).shape == (0, 3, 32, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("settings", [{}, {"rotate": 15.0}, {"pad": 4}], ids=str)
def test_a_gpu_makes_the_same_views(settings: dict[str, float]) -> None:
    images = photographs(64, 45, 37)
    view = View(48, **{**BYOL, "solarize": 0.0}, **settings)  # type: ignore[arg-type]
    params = view.sample(whole(images), generator())
    made = view.apply(images.cuda(), params)
    assert made.is_cuda
    torch.testing.assert_close(made.cpu(), view.apply(images, params), rtol=0, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_never_waited_for() -> None:
    images = photographs(16, 32, 32).cuda()
    view = View(32, **BYOL, rotate=10)
    view.apply(images, view.sample(torch.full((16, 2), 32), generator()))
    torch.cuda.set_sync_debug_mode("error")
    try:
        view.apply(images, view.sample(torch.full((16, 2), 32), generator()))
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"scale": (0, 1)}, r"scale is \(0, 1\)"),
        ({"scale": (0.5, 0.2)}, "from <= to"),
        ({"scale": (0.5, 1.2)}, "scale"),
        ({"scale": (0.5,)}, "two numbers"),
        ({"ratio": (0, 1)}, "ratio"),
        ({"interpolation": "cubic"}, r"'cubic', but must be one of \['bicubic', 'bilinear'\]"),
        ({"pad": -1}, "pad is -1"),
        ({"flip": 1.5}, r"flip is 1.5, but must be in \[0, 1\]"),
        ({"rotate": 190}, "rotate is 190"),
        ({"jitter": -0.1}, "jitter"),
        ({"brightness": -1}, "brightness"),
        ({"contrast": -1}, "contrast"),
        ({"saturation": math.nan}, "saturation is nan"),
        ({"hue": 0.6}, r"hue is 0.6, but must be in \[0, 0.5\]"),
        ({"grayscale": 2}, "grayscale"),
        ({"blur": 2}, "blur"),
        ({"blur_sigma": (0, 2)}, "blur_sigma"),
        ({"solarize": 2}, "solarize"),
        ({"solarize_threshold": 128}, "solarize_threshold is 128"),
        ({"mean": (0.5,)}, "mean .* 3 numbers"),
        ({"std": (0.5, 0, 0.5)}, "std"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**{"size": 32, **settings})  # type: ignore[arg-type]


def test_settings_may_come_from_toml() -> None:
    view = View(32, scale=[0.2, 1.0], mean=[0.5, 0.5, 0.5])  # type: ignore[arg-type]
    assert view == View(32, scale=(0.2, 1.0), mean=(0.5, 0.5, 0.5))
    assert hash(view) == hash(View(32, scale=(0.2, 1.0), mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 8).byte(),
        torch.zeros(3, 3, 8, 8).byte(),
        torch.zeros(2, 3, 8).byte(),
    ],
    ids=["float", "one channel", "one more", "no columns"],
)
def test_wrong_images_are_refused(images: Tensor) -> None:
    view = View(8)
    with pytest.raises(ValueError, match=r"uint8 images of shape \(2, 3, H, W\).*got torch"):
        view.apply(images, view.sample(torch.full((2, 2), 8), generator()))


def test_uint8_means_what_to_tensor_means() -> None:
    photo = load_sample_images().images[0][:64, :64].copy()
    images = torch.from_numpy(photo).permute(2, 0, 1)[None]
    view = plain(64, scale=(1, 1), ratio=(1, 1))
    assert torch.equal(view.apply(images, view.sample(whole(images), generator()))[0], to_tensor(photo))
