"""RotNet: Unsupervised Representation Learning by Predicting Image Rotations. Gidaris, Singh & Komodakis 2018.

https://arxiv.org/abs/1803.07728 (Sec. 2.1, 2.2)

sslzoo pretrain rotation --data FOLDER --recipe cifar10 --out RUN
"""

import torch
from torch import Tensor, nn

from ..method import Backbone, Method, Paper
from ..views import View, rotate

CORNER = 2  # pixels that two bilinear rotations can mix with the outside, from the edge inwards


def rotate_all(images: Tensor, angles: tuple[float, ...], start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Every rotation of every image (Eq. 2).

    Args:
        images: (B, C, S, S).
        angles: K angles in degrees, counter-clockwise.
        start: None for multiples of 90 degrees, which are exact. For others (B,) degrees: see `rotate_disc`.

    Returns:
        (K B, C, S, S), all images by the first angle, then by the second…; and (K B,) their labels 0..K-1.
    """
    if start is None:
        rotated = torch.cat([torch.rot90(images, round(angle / 90), dims=(2, 3)) for angle in angles])
    else:
        rotated = rotate_disc(images, angles, start)
    return rotated, torch.arange(len(angles), device=images.device).repeat_interleave(len(images))


def rotate_disc(images: Tensor, angles: tuple[float, ...], start: Tensor) -> Tensor:
    """Rotate by interpolation, so that neither corners nor sharpness tell the angle.

    Outside of a disc all is 0: the corners of a square show by how much it was turned. And interpolation blurs a turn
    by 45 degrees, but leaves one by 90 as sharp as it was. So each image is turned to a random start first, and from
    there on to each angle: whatever this is, the second turn is by anything on the circle.

    Args:
        images: (B, C, S, S).
        angles: K angles in degrees, counter-clockwise.
        start: (B,) degrees, uniform on the circle.
    """
    size = images.shape[-1]
    with torch.autocast(images.device.type, enabled=False):  # bf16 would lose the pixel grid
        turned = rotate(images, start)
        rotated = torch.cat([rotate(turned, angle - start) for angle in angles])
    line = torch.arange(size, device=images.device) - (size - 1) / 2
    disc = (line[:, None].square() + line.square()).sqrt() <= size / 2 - CORNER  # (S, S)
    return rotated * disc


class Rotation(Method):
    """Classify by which of several angles an image was rotated.

    The view, and with it the flip, comes before the rotation: flipped after it, 90 and 270 degrees could not be told
    apart.

    Args:
        encoder: The encoder f.
        angles: Degrees, counter-clockwise. The paper's table has 2, 4 and 8 of them.

    Raises:
        ValueError: Fewer than two different angles.
    """

    PAPER = Paper(
        "Unsupervised Representation Learning by Predicting Image Rotations",
        "Gidaris, Spyros and Singh, Praveer and Komodakis, Nikos",
        2018,
        "https://arxiv.org/abs/1803.07728",
    )
    VIEWS = (
        View(size=224, scale=(0.08, 1.0), flip=0.5),
    )  # ImageNet crops as in VISSL; CIFAR-10 pads by 4 instead (its recipe)

    def __init__(self, encoder: Backbone, angles: tuple[float, ...] = (0, 90, 180, 270)) -> None:
        super().__init__()
        if len(angles) < 2 or len({angle % 360 for angle in angles}) < len(angles):
            raise ValueError(f"angles = {list(angles)}: needs at least two, all different on the circle.")
        self.encoder = encoder
        self.angles = tuple(angles)
        self.exact = all(angle % 90 == 0 for angle in angles)
        self.head = nn.Linear(encoder.num_features, len(angles))

    def draw(self, images: int, generator: torch.Generator) -> Tensor | None:
        """(images,) degrees to start from, where angles need interpolation."""
        return None if self.exact else 360 * torch.rand(images, generator=generator)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        images, labels = rotate_all(views[0], self.angles, *views[1:])  # (K B, 3, S, S), (K B,)
        features = self.encoder(images)
        logits = self.head(features)  # (K B, K)
        accuracy = (logits.argmax(1) == labels).float().mean()
        loss = nn.functional.cross_entropy(logits.float(), labels)
        return {"loss": loss, "embedding": features.detach(), "accuracy": accuracy}
