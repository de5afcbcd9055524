"""Exemplar: each image is a class of its own. Dosovitskiy et al. 2014; triplet loss as in Kolesnikov et al. 2019.

https://arxiv.org/abs/1406.6909 (Sec. 2), https://arxiv.org/abs/1901.09005 (Sec. 3.1)

sslzoo pretrain exemplar --data FOLDER --recipe cifar10 --out RUN
"""

import torch
from torch import Tensor, nn

from ..blocks import gather_over_processes, one_of
from ..method import Backbone, Method, Paper
from ..views import View

# Inception's crops and colours; grey for each copy by itself (the authors' code: for all copies of an image alike)
VIEW = View(
    size=224,
    scale=(0.05, 1.0),
    flip=0.5,
    jitter=1.0,
    brightness=0.125,
    contrast=0.5,
    saturation=0.5,
    hue=0.2,
    grayscale=0.66,
)

LOSSES = ("triplet", "softmax")


def squared_distances(z: Tensor, everyone: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """How far each anchor is from the other copies of its image, and from those of other images.

    Args:
        z: (B, V, D) unit vectors: V copies of B images, each of them an anchor.
        everyone: (N, V, D) unit vectors: those of the whole batch, `z` among them.
        own: (B,) where in `everyone` the anchors' images stand.

    Returns:
        (B, V, V - 1) to the positives, and (B, V, (N - 1) V) to the negatives, from near to far.

    Raises:
        ValueError: A single image, which has no negatives.
    """
    if len(everyone) < 2:
        raise ValueError("the triplet loss compares images: it needs at least 2 in a batch, got 1.")
    B, V, _ = z.shape
    distance = 2 - 2 * torch.einsum("bvd, nwd -> bvnw", z, everyone)
    rows = torch.arange(B, device=z.device)
    others = ~torch.eye(V, dtype=torch.bool, device=z.device)
    positive = distance[rows, :, own][:, others].view(B, V, V - 1)
    mine = nn.functional.one_hot(own, len(everyone)).bool()[:, None, :, None]  # (B, 1, N, 1)
    negative = distance.masked_fill(mine, -torch.inf).flatten(2).sort(dim=2).values[..., V:]
    return positive, negative


def semi_hard(positive: Tensor, negative: Tensor) -> Tensor:
    """The negative for each positive: the nearest one beyond it, else the farthest (Schroff et al. 2015, Sec. 3.2).

    Args:
        positive: (B, V, P) distances.
        negative: (B, V, M) distances, from near to far.

    Returns:
        (B, V, P) distances of negatives.
    """
    beyond = torch.searchsorted(negative.detach().contiguous(), positive.detach().contiguous(), right=True)
    return negative.gather(2, beyond.clamp(max=negative.shape[2] - 1))


class Exemplar(Method):
    """Copies of one image lie closer together than those of different ones.

    Args:
        encoder: The encoder f.
        dim: Size of the embedding.
        margin: By how much closer, in squared distances of unit vectors.
        loss: "triplet", or "softmax" for that of 2014: a classifier with a surrogate class for each image of the data.
            `dim` and `margin` belong to the former.

    Raises:
        ValueError: `loss` is neither.
    """

    PAPER = Paper(
        "Discriminative Unsupervised Feature Learning with Convolutional Neural Networks",
        "Dosovitskiy, Alexey and Springenberg, Jost Tobias and Riedmiller, Martin and Brox, Thomas",
        2014,
        "https://arxiv.org/abs/1406.6909",
    )
    VIEWS = (VIEW,) * 8

    def __init__(self, encoder: Backbone, dim: int = 1000, margin: float = 0.5, loss: str = "triplet") -> None:
        super().__init__()
        one_of("loss", loss, LOSSES)
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, dim)
        self.margin, self.loss = margin, loss

    def begin(self, images: int) -> None:
        if self.loss == "softmax":
            self.head = nn.Linear(self.encoder.num_features, images)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        features = self.encoder(torch.cat(views))  # (V B, D)
        outputs = self.head(features).float().unflatten(0, (len(views), -1)).transpose(0, 1)  # (B, V, dim or images)
        if self.loss == "softmax":
            return self.softmax(outputs, index) | {"embedding": features.detach()}
        return self.triplet(outputs)

    def triplet(self, outputs: Tensor) -> dict[str, Tensor]:
        """Semi-hard triplet loss over all pairs of copies; `accuracy`: anchors whose nearest neighbour is a copy."""
        z = nn.functional.normalize(outputs, dim=2)  # each vector by its own norm; the authors' code has the batch's
        with torch.autocast(z.device.type, enabled=False):  # bf16 has no three digits for a distance
            everyone, first = gather_over_processes(z.flatten(1))
            own = first + torch.arange(len(z), device=z.device)
            positive, negative = squared_distances(z, everyone.view(-1, *z.shape[1:]), own)
        loss = (positive - semi_hard(positive, negative) + self.margin).clamp(min=0).mean()
        accuracy = (positive.amin(2) < negative[..., 0]).float().mean()
        return {"loss": loss, "embedding": z.detach().flatten(0, 1), "accuracy": accuracy}

    def softmax(self, outputs: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Cross entropy with the image's own class."""
        labels = index[:, None].expand(outputs.shape[:2])
        accuracy = (outputs.argmax(2) == labels).float().mean()
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())
        return {"loss": loss, "accuracy": accuracy}
