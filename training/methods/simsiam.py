"""SimSiam: Exploring Simple Siamese Representation Learning. Chen & He 2021, https://arxiv.org/abs/2011.10566 (Alg. 1).

sslzoo pretrain simsiam --data FOLDER --recipe cifar10 --out RUN
"""

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from ..blocks import mlp
from ..method import Backbone, Method, Paper
from ..views import View

# both views have the same distribution (Sec. 3, "augmentation" of MoCo v2)
VIEW = View(
    size=224,
    scale=(0.2, 1.0),
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.2,
    blur=0.5,
)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """D(p, z) = -cos(p, z), mean over the batch (Eq. 1). p, z: (B, D). In [-1, 1]."""
    return -nn.functional.cosine_similarity(p.float(), z.float(), dim=1).mean()


class SimSiam(Method):
    """A predictor on one view matches the other view's projection, which gets no gradient.

    Args:
        encoder: The encoder f.
        dim: Size of the projections z.
        predictor_dim: Width of the predictor's hidden layer, its bottleneck.
        projector_layers: 3 on ImageNet, 2 on CIFAR-10 (App. D).
    """

    PAPER = Paper(
        "Exploring Simple Siamese Representation Learning",
        "Chen, Xinlei and He, Kaiming",
        2021,
        "https://arxiv.org/abs/2011.10566",
    )
    VIEWS = (VIEW, VIEW)

    def __init__(self, encoder: Backbone, dim: int = 2048, predictor_dim: int = 512, projector_layers: int = 3) -> None:
        super().__init__()
        self.encoder = encoder
        widths = [encoder.num_features, *[dim] * (projector_layers - 1)]
        # the last layer's BN has no scale and shift: z has mean 0 and variance 1 in each dimension
        self.projector = nn.Sequential(
            *(layer for a, b in pairwise(widths) for layer in _block(a, b)),
            nn.Linear(widths[-1], dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = mlp(
            dim, predictor_dim, dim, hidden_bias=False, out_bias=True
        )  # no BN on its output (Sec. 4.4)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        z1, z2 = (
            self.projector(self.encoder(v)) for v in views
        )  # (B, dim) each; one forward a view: BN must not see both
        p1, p2 = self.predictor(z1), self.predictor(z2)
        # z.detach() is the stop-gradient: all that prevents collapse (Sec. 4.1)
        loss = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
        return {"loss": loss, "embedding": z1.detach()}

    def constant_lr(self) -> Iterable[nn.Module]:
        return (self.predictor,)  # the predictor should follow the latest representations (Sec. 4.2, "constant lr")


def _block(a: int, b: int) -> tuple[nn.Module, ...]:
    return nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)
