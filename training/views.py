"""Random views of a batch of images: augmentations on tensors with parameters of their own for every image.

    view = View(size=32, jitter=0.8, grayscale=0.2)
    params = view.sample(sizes, generator)      # on the CPU: one draw for any device
    images = view.apply(uint8_images, params)   # on the device of the images: (B, 3, size, size), normalised

The order is BYOL's (Grill et al. 2020, https://arxiv.org/abs/2006.07733, App. B): crop and flip, rotation, colour
jitter, greyscale, blur, solarisation, normalisation. What each step does to an image is what torchvision's function
of that name does with the same parameters. No step loops over images, and none waits for the accelerator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
Part = Literal["all", "top", "bottom", "left", "right"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbering in ColorJitter
LUMA = (0.2989, 0.587, 0.114)  # the weights of red, green and blue in torchvision's grey
CROP_TRIES = 10
PIXELS_AT_ONCE = 2**18  # on a CPU, 3 MB of floats: larger temporaries leave the caches, and are new pages every time


def _cubic(distance: Tensor) -> Tensor:
    """The cubic kernel with a = -1/2 (PIL's, and torch's when antialiasing); 0 from distance 2 on."""
    t = distance.abs_().clamp_(max=2)
    near = t.clamp(max=1).sub_(1)
    return near.square_().mul_(2 * t - 1).addcmul_(t - 1, (t - 2).square_(), value=-0.5)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs_()).clamp_(min=0)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _cubic, "bilinear": _triangle}


def _resize_matrices(
    start: Tensor,
    length: Tensor,
    pixels: int,
    size: int,
    interpolation: str,
    flip: Tensor | None = None,
    kept: slice = slice(None),
) -> Tensor:
    """Weights that cut [start, start + length) out of a line of pixels and resize it to `size`, of which some are kept.

    (B, kept, pixels).
    """
    scale = (length / size)[:, None]
    centres = start[:, None] + scale * (torch.arange(size, device=start.device) + 0.5)  # (B, size)
    if flip is not None:
        centres = torch.where(flip[:, None], centres.flip(1), centres)
    centres = centres[:, kept]
    shrink = 1 / scale.clamp(min=1)  # antialias: a kernel as wide as the pixels of the output
    edges = torch.arange(pixels, device=start.device, dtype=start.dtype)
    distance = (edges + 0.5)[None, None] * shrink[..., None] - (centres * shrink)[..., None]
    # pixels outside the crop have no say, as if the image were cut first; one cut by a fractional edge has its part
    inside = torch.minimum(edges + 1, (start + length)[:, None]) - torch.maximum(edges, start[:, None])  # (B, pixels)
    weights = KERNELS[interpolation](distance).mul_(inside.clamp_(0, 1)[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _rows_and_columns(part: Part, size: int) -> tuple[slice, slice]:
    every, first, second = slice(size), slice((size + 1) // 2), slice((size + 1) // 2, size)
    return {
        "all": (every, every),
        "top": (first, every),
        "bottom": (second, every),
        "left": (every, first),
        "right": (every, second),
    }[part]


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weigh rows by (B, h, H) and columns by (B, w, W): (B, C, H, W) of any dtype -> (B, C, h, w) float32."""
    B, C, H, W = images.shape
    h, w = rows.shape[1], columns.shape[1]
    x = torch.bmm(images.to(torch.float32).reshape(B, C * H, W), columns.transpose(1, 2)).view(B, C, H, w)
    out = x.new_empty(B, C, h, w)
    for channel in range(C):  # with one product for all, the channels would have to move inside the rows and out again
        torch.bmm(rows, x[:, channel], out=out[:, channel])
    return out


def resized_crop(
    images: Tensor,
    boxes: Tensor,
    size: int,
    flip: Tensor | None = None,
    interpolation: Interpolation = "bicubic",
    part: Part = "all",
) -> Tensor:
    """Crop each image to its box, resize with antialiasing, and mirror left and right where asked, in one resample.

    Args:
        images: (B, C, H, W), uint8 or float.
        boxes: (B, 4) float: top, left, height, width, pixels; within the image, but fractions of pixels are welcome.
        size: Height and width of the result.
        flip: (B,) bool.
        interpolation: "bicubic" or "bilinear".
        part: Half of the result to make alone; of an odd size, "top" and "left" have the pixel more.

    Returns:
        (B, C, size, size) or that part, float32 on the scale of the input; bicubic overshoots it at edges: clamp where
        that matters.
    """
    top, left, height, width = boxes.unbind(1)
    kept_rows, kept_columns = _rows_and_columns(part, size)
    rows = _resize_matrices(top, height, images.shape[2], size, interpolation, kept=kept_rows)
    columns = _resize_matrices(left, width, images.shape[3], size, interpolation, flip, kept_columns)
    return _separable(images, rows, columns)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image (B, C, H, W) about its centre by its degrees (B,), counter-clockwise; bilinear, else black."""
    height, width = images.shape[2:]
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    # from output to input, in coordinates that run from -1 to 1 over each side
    theta = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)  # (B, 1, H, W)


def grayscale_(images: Tensor, chosen: Tensor) -> Tensor:
    """Make all three channels of the chosen (B,) images (B, 3, H, W) the luma of the image, in place."""
    return images.lerp_(_grey(images), chosen.view(-1, 1, 1, 1).float())  # quicker than to move the chosen out and back


def adjust_color(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Change each image's brightness, contrast or saturation: clamp(factor * image + (1 - factor) * reference).

    The reference is black for brightness, the mean of the grey image for contrast, the grey image for saturation.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        operation: (B,) int: `BRIGHTNESS`, `CONTRAST` or `SATURATION`.
        factor: (B,) >= 0; 1 leaves the image as it is, bit for bit.
    """
    return _blend(images, factor, *_references(operation, factor))


def _references(operation: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """How much of an image's mean grey, and of its grey image, goes into it: both of the shape of the arguments."""
    return (1 - factor) * (operation == CONTRAST), (1 - factor) * (operation == SATURATION)


def _blend(images: Tensor, factor: Tensor, mean: Tensor, grey: Tensor, out: Tensor | None = None) -> Tensor:
    """clamp(factor * image + mean * the mean of its grey + grey * its grey), all (B,); `out` may be `images`."""
    factor, mean, grey = (t.view(-1, 1, 1, 1) for t in (factor, mean, grey))
    reference = _grey(images)
    mean = mean * reference.mean(dim=(2, 3), keepdim=True)
    return torch.addcmul(reference.mul_(grey).add_(mean), images, factor, out=out).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image (B, 3, H, W) in [0, 1] by its shift (B,), a part of the full circle, through HSV."""
    # comparisons go to floats, and choices between two tensors through lerp: on the CPU a `where` costs twenty of them
    red, green, blue = images.unbind(1)
    high, low = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
    chroma = high - low
    unit = chroma.clamp(min=torch.finfo(chroma.dtype).tiny)  # grey: the differences below are 0
    from_green, from_blue = ((blue - red) / unit).add_(2), ((red - green) / unit).add_(4)
    sixths = from_blue.lerp_(from_green, green.clone().eq_(high)).lerp_(
        (green - blue).div_(unit), red.clone().eq_(high)
    )
    turns = sixths.div_(6).add_(shift[:, None, None])
    # a channel is full within one sixth of a turn from its own hue, and empty from two sixths on
    opposite = torch.tensor([1.5, 1.5 - 1 / 3, 1.5 - 2 / 3])
    away = (turns[:, None] + _send(opposite, images.device).view(3, 1, 1)).frac_().sub_(0.5).abs_()
    return torch.addcmul(low[:, None], chroma[:, None], away.mul_(-6).add_(2).clamp_(0, 1))


def hue_turns(factors: Tensor, hue: Tensor, order: Tensor) -> Tensor:
    """(B,) when the hue of each image changes: its turn, 0..3; 4: never; 5: nor does anything else of its colours.

    The arguments are those of `color_jitter_`, in any order of images.
    """
    turns = order.eq(HUE).byte().argmax(dim=1)
    turns[hue == 0] = 4
    turns[(hue == 0) & (factors == 1).all(dim=1)] = 5
    return turns


def color_jitter_(images: Tensor, factors: Tensor, hue: Tensor, order: Tensor) -> Tensor:
    """Change, in place, brightness, contrast, saturation and hue of each image in an order of its own.

    Args:
        images: (B, 3, H, W) float in [0, 1], sorted by `hue_turns`: then each turn's are a slice, and nothing is moved.
        factors: (B, 3) of brightness, contrast and saturation, on the CPU; all 1 and hue 0: unchanged bit for bit.
        hue: (B,) shift, a part of the full circle, on the CPU.
        order: (B, 4) permutation of 0..3 for each image, on the CPU.

    Raises:
        ValueError: The images are not sorted.
    """
    changes = hue_turns(factors, hue, order)
    if (changes.diff() < 0).any():
        raise ValueError("color_jitter_ takes images sorted by hue_turns(factors, hue, order).")
    bounds = torch.searchsorted(changes, torch.arange(6)).tolist()
    factors = torch.cat([factors, torch.ones_like(factors[:, :1])], dim=1)  # the hue has a turn of its own
    turns = factors.gather(1, order)  # (B, 4) in the order of use
    turns, means, greys, shift = (_send(t, images.device) for t in (turns, *_references(order, turns), hue))
    for turn in range(4):
        now = slice(bounds[turn], bounds[turn + 1])
        for rest in (slice(0, now.start), slice(now.stop, bounds[5])):
            part = images[rest]
            if len(part):  # written over itself: new memory would cost as much again
                _blend(part, turns[rest, turn], means[rest, turn], greys[rest, turn], out=part)
        if now.start < now.stop:
            images[now] = adjust_hue(images[now], shift[now])
    return images


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image (B, C, H, W) with its sigma (B,) > 0, pixels; 2 * radius + 1 taps, reflected at the borders.

    Raises:
        ValueError: The radius reaches beyond the reflection, that is, it isn't below height and width.
    """
    height, width = images.shape[2:]
    if radius >= min(height, width):
        raise ValueError(f"A blur of radius {radius} needs images larger than that, got {height} x {width} pixels.")
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)  # (B, 2 * radius + 1)
    rows = _blur_matrices(taps, height)
    return _separable(images, rows, rows if width == height else _blur_matrices(taps, width))


def _blur_matrices(taps: Tensor, length: int) -> Tensor:
    """(B, length, length) weights that convolve a line of pixels with an odd number of taps and reflect its ends."""
    radius = taps.shape[1] // 2
    line = torch.eye(length, device=taps.device)
    line = F.pad(line[None], (radius, radius), mode="reflect")[0]  # (from pixel, at position)
    windows = line.unfold(1, length, 1)  # (from pixel, tap, to pixel)
    return (taps @ windows.permute(1, 2, 0).flatten(1)).view(-1, length, length)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert what is at or above the threshold; images in [0, 1]."""
    return torch.lerp(images, 1 - images, images.clone().ge_(threshold))


def _on_some(images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Change the chosen images in place, with their part of the parameters.

    `chosen` is on the CPU: to look for the chosen ones on an accelerator would be to wait for it.
    """
    index = chosen.nonzero().squeeze(1)
    if len(index):
        index = _send(index, images.device)
        images.index_copy_(0, index, change(images[index], *(p[index] for p in parameters)))
    return images


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; to a GPU by way of pinned memory, so that the CPU doesn't wait for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _check_range(name: str, low_high: tuple[float, ...], most: float) -> None:
    if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1] <= most:
        raise ValueError(f"{name} is {low_high}, but must be two numbers, 0 < from <= to <= {most}.")


@dataclass(frozen=True)
class Params:
    """What was drawn for each of B images; a neutral value (factor 1, everything else 0) leaves an image as it is.

    Attributes:
        sizes: (B, 2) true height and width of the images, pixels.
        boxes: (B, 4) top, left, height, width of the crops, true pixels; may reach outside the image (`View.pad`).
        flip: (B,) bool, mirror left and right.
        degrees: (B,) rotation, counter-clockwise.
        factors: (B, 3) of brightness, contrast and saturation.
        hue: (B,) shift, as a part of the full circle.
        order: (B, 4) the order of the four colour operations, a permutation of 0..3 (`BRIGHTNESS` ... `HUE`).
        grayscale: (B,) bool.
        sigma: (B,) of the blur, output pixels; 0 is no blur.
        solarize: (B,) bool.
    """

    sizes: Tensor
    boxes: Tensor
    flip: Tensor
    degrees: Tensor
    factors: Tensor
    hue: Tensor
    order: Tensor
    grayscale: Tensor
    sigma: Tensor
    solarize: Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, part: slice | Tensor) -> Self:
        """The parameters of some of the images: a process's part of a global batch, or others by their positions."""
        return type(self)(**{f.name: getattr(self, f.name)[part] for f in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        if self.sizes.device == torch.device(device):
            return self
        return type(self)(**{f.name: _send(getattr(self, f.name), torch.device(device)) for f in fields(self)})


@dataclass(frozen=True)
class View:
    """Settings of one random view. Every probability is in [0, 1] and 0 (the default) leaves the step out.

    Attributes:
        size: Height and width of the output, pixels.
        scale: Area of the crop as a part of the image's, from and to, in (0, 1].
        ratio: Width / height of the crop, from and to; drawn uniformly in its logarithm.
        interpolation: "bicubic" or "bilinear", both antialiased.
        pad: None, or pixels of black around the image, out of which a box of the image's own size is cut. It takes
            the place of `scale` and `ratio`, and is exact (no interpolation) where the image has `size` already.
        flip: Probability of mirroring left and right.
        rotate: Largest angle in degrees, in [0, 180]; drawn uniformly from both signs, corners black.
        jitter: Probability of changing the colours, all four in an order drawn for each image.
        brightness: b >= 0: factor uniform in [max(0, 1 - b), 1 + b].
        contrast: As `brightness`.
        saturation: As `brightness`.
        hue: h in [0, 0.5]: shift uniform in [-h, h], as a part of the full circle.
        grayscale: Probability of grey.
        blur: Probability of a Gaussian blur. Its radius is size // 20 pixels, at least 1, as BYOL's (23 taps at 224).
        blur_sigma: Standard deviation of the blur, from and to, output pixels.
        solarize: Probability of inverting every value from `solarize_threshold` on.
        solarize_threshold: In [0, 1].
        mean: Of red, green and blue, in [0, 1]; subtracted.
        std: As `mean`; divided by.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    pad: int | None = None
    flip: float = 0.0
    rotate: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "blur_sigma", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # TOML gives lists
        if self.interpolation not in KERNELS:
            raise ValueError(f"interpolation is {self.interpolation!r}, but must be one of {sorted(KERNELS)}.")
        self._check("size", self.size, 1, math.inf)
        self._check("pad", self.pad or 0, 0, math.inf)
        self._check("rotate", self.rotate, 0, 180)
        self._check("hue", self.hue, 0, 0.5)
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "solarize_threshold"):
            self._check(name, getattr(self, name), 0, 1)
        for name in ("brightness", "contrast", "saturation"):
            self._check(name, getattr(self, name), 0, math.inf)
        for name, most in (("scale", 1.0), ("ratio", math.inf), ("blur_sigma", math.inf)):
            _check_range(name, getattr(self, name), most)
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 3 numbers: red, green and blue.")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}, but images are divided by it: give 3 numbers above 0.")

    @staticmethod
    def _check(name: str, value: float, least: float, most: float) -> None:
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}, but must be in [{least}, {most}].")

    def sample(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """Draw parameters for a batch.

        Args:
            sizes: (B, 2) true height and width of each image, pixels.
            generator: On the CPU; its state alone decides the draw.
        """
        sizes = sizes.cpu()
        count = len(sizes)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count).uniform_(low, high, generator=generator)

        def chosen(probability: float) -> Tensor:
            return torch.rand(count, generator=generator) < probability

        boxes = self._crop_boxes(sizes, generator) if self.pad is None else self._shifted_boxes(sizes, generator)
        flip = chosen(self.flip)
        degrees = uniform(-self.rotate, self.rotate)
        jitter = chosen(self.jitter)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = torch.stack([uniform(max(0.0, 1 - s), 1 + s) for s in strengths], dim=1)
        return Params(
            sizes=sizes,
            boxes=boxes,
            flip=flip,
            degrees=degrees,
            factors=factors.where(jitter[:, None], 1.0),
            hue=uniform(-self.hue, self.hue).where(jitter, 0.0),
            order=torch.rand(count, 4, generator=generator).argsort(dim=1),
            grayscale=chosen(self.grayscale),
            sigma=uniform(*self.blur_sigma).where(chosen(self.blur), 0.0),
            solarize=chosen(self.solarize),
        )

    def _crop_boxes(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 4) boxes by the rules of torchvision's RandomResizedCrop: the first try that fits, else the centre."""
        height, width = sizes.double()[:, :, None].unbind(1)  # (B, 1)
        draw = torch.rand(len(sizes), CROP_TRIES, 4, generator=generator, dtype=torch.float64)
        low, high = map(math.log, self.ratio)
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draw[..., 0])
        ratio = torch.exp(low + (high - low) * draw[..., 1])
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()  # (B, CROP_TRIES)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.byte().argmax(dim=1, keepdim=True)
        w, h, y, x = (t.gather(1, first) for t in (w, h, draw[..., 2], draw[..., 3]))  # (B, 1)
        tried = torch.cat([(y * (height - h + 1)).floor(), (x * (width - w + 1)).floor(), h, w], dim=1)

        h = torch.minimum(height, (width / self.ratio[0]).round())
        w = torch.minimum(width, (height * self.ratio[1]).round())
        centre = torch.cat([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], dim=1)
        return tried.where(fits.any(dim=1, keepdim=True), centre).long()

    def _shifted_boxes(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        pad = self.pad or 0
        return torch.cat([torch.randint(-pad, pad + 1, (len(sizes), 2), generator=generator), sizes.long()], dim=1)

    def apply(self, images: Tensor, params: Params, part: Part = "all") -> Tensor:
        """Make the views.

        Args:
            images: (B, 3, H, W) uint8. May have been stretched to H x W from their true sizes, which `params` has.
            params: Of these B images, on the CPU, where what there is to do can be read without waiting.
            part: Half of each view to make alone. To all that comes after crop and flip it is the image.

        Returns:
            (B, 3, size, size) or that part, float32, normalised, channels_last, on the device of the images.

        Raises:
            ValueError: The images are not uint8 with 3 channels, or not as many as the parameters.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(params):
            raise ValueError(
                f"Views are made of uint8 images of shape ({len(params)}, 3, H, W), as many as the parameters, "
                f"got {images.dtype} of shape {tuple(images.shape)}."
            )
        params = params.to("cpu")
        some = max(1, len(images) if images.is_cuda else PIXELS_AT_ONCE // self.size**2)
        height, width = (len(range(self.size)[kept]) for kept in _rows_and_columns(part, self.size))
        out = torch.empty(len(images), 3, height, width, device=images.device, memory_format=torch.channels_last)
        # under bf16 a crop would keep 8 bits and lose the pixel grid; `out`, made outside, may be kept for backward
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            for i in range(0, len(images), some):
                out[i : i + some] = self._sorted_apply(images[i : i + some], params[i : i + some], part)
        return out

    def _sorted_apply(self, images: Tensor, params: Params, part: Part) -> Tensor:
        """Make the views in the order in which `color_jitter_` takes them: small images are moved, not their views."""
        if not self.jitter:
            return self._apply(images, params, part)
        place = hue_turns(params.factors, params.hue, params.order).argsort(stable=True)
        made = self._apply(images.index_select(0, _send(place, images.device)), params[place], part)
        return made.index_select(0, _send(place.argsort(), images.device))

    def _apply(self, images: Tensor, params: Params, part: Part) -> Tensor:
        device, on_device = images.device, params.to(images.device)
        images, boxes = self._pad_stored(images, params)
        x = resized_crop(images, _send(boxes, device), self.size, on_device.flip, self.interpolation, part)
        x = x.clamp_(0, 255).div_(255)
        if self.rotate:
            x = rotate(x, on_device.degrees)
        if self.jitter:
            color_jitter_(x, params.factors, params.hue, params.order)
        if self.grayscale:
            grayscale_(x, on_device.grayscale)
        x = _on_some(x, params.sigma > 0, partial(gaussian_blur, radius=self.blur_radius), on_device.sigma)
        x = _on_some(x, params.solarize, partial(solarize, threshold=self.solarize_threshold))
        mean, std = (_send(torch.tensor(t).view(3, 1, 1), device) for t in (self.mean, self.std))
        return x.sub_(mean).div_(std)

    @property
    def blur_radius(self) -> int:
        """Pixels on either side of the middle of the blur's kernel."""
        return max(1, self.size // 20)

    def _pad_stored(self, images: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        """The images with black around them where boxes reach outside; the boxes in pixels of these."""
        stored = torch.tensor(images.shape[-2:], dtype=torch.float64)
        boxes = params.boxes * (stored / params.sizes).repeat(1, 2)
        if not self.pad:
            return images, boxes.float()
        margin = math.ceil(self.pad * float((stored / params.sizes).max()))
        return F.pad(images, [margin] * 4), (boxes + boxes.new_tensor([margin, margin, 0, 0])).float()
