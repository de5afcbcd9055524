"""RotNet: Unsupervised Representation Learning by Predicting Image Rotations. Gidaris, Singh & Komodakis 2018.

https://arxiv.org/abs/1803.07728 (Sec. 2.1, 2.2)

sslzoo pretrain rotation --data FOLDER --recipe cifar10 --out RUN
"""

import torch
from torch import Tensor, nn

from ..method import Backbone, Method, Paper
from ..views import View


def rotate_all(images: Tensor) -> tuple[Tensor, Tensor]:
    """All four rotations of every image, exact (Eq. 2).

    Args:
        images: (B, C, S, S).

    Returns:
        (4 B, C, S, S): the images as they are, then turned by 90, 180 and 270 degrees counter-clockwise; and (4 B,)
        their labels 0..3.
    """
    rotated = torch.cat([torch.rot90(images, k, dims=(2, 3)) for k in range(4)])
    return rotated, torch.arange(4, device=images.device).repeat_interleave(len(images))


class Rotation(Method):
    """Classify by which of four angles an image was rotated.

    The view, and with it the flip, comes before the rotation: flipped after it, 90 and 270 degrees could not be told
    apart.

    Args:
        encoder: The encoder f.
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

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, 4)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        images, labels = rotate_all(views[0])  # (4 B, 3, S, S), (4 B,)
        features = self.encoder(images)
        logits = self.head(features)  # (4 B, 4)
        accuracy = (logits.argmax(1) == labels).float().mean()
        loss = nn.functional.cross_entropy(logits.float(), labels)
        return {"loss": loss, "embedding": features.detach(), "accuracy": accuracy}
