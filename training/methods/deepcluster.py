"""DeepCluster: Deep Clustering for Unsupervised Learning of Visual Features. Caron et al. 2018.

https://arxiv.org/abs/1807.05520 (Sec. 3)

sslzoo pretrain deepcluster --data FOLDER --recipe cifar10 --out RUN
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..blocks import one_of
from ..clustering import FIGURES, by_position, cluster_figures, kmeans, uniform_order, whiten_
from ..method import Backbone, Method, Paper
from ..recorded import LABELS_FROM, RecordedFeatures, labelled_by
from ..sweep import Sweeps
from ..views import View


class DeepCluster(Method):
    """Classify images by the k-means clusters of their features, found anew before every epoch, or every few.

    The features of all images (eval mode, no augmentation, what the head sees) are PCA-whitened, l2-normalised and
    clustered; the head, whose classes mean something else then, starts anew; and the epoch draws its images uniformly
    over the clusters, or a few large ones would rule the loss.

    The authors' AlexNet sees Sobel-filtered images, so that clusters are not of colours. The encoders here see
    colours, as their later ResNets do (Caron et al. 2020); recipes may distort them instead.

    Args:
        encoder: The encoder f.
        clusters: K.
        pca_dim: Principal components of the features to cluster by.
        iterations: Of k-means.
        reassign: Epochs from one clustering to the next.
        labels_from: "pass": the features that a forward pass of all images finds, the paper's; "steps": those of the
            last step that saw the image, DeepCluster-v2's, which costs nothing.

    Raises:
        ValueError: `labels_from` is neither, or `reassign` is less than 1.
    """

    PAPER = Paper(
        "Deep Clustering for Unsupervised Learning of Visual Features",
        "Caron, Mathilde and Bojanowski, Piotr and Joulin, Armand and Douze, Matthijs",
        2018,
        "https://arxiv.org/abs/1807.05520",
    )
    VIEWS = (View(size=224, scale=(0.08, 1.0), flip=0.5),)
    labels: Tensor  # (N,) cluster of each image
    figures: Tensor  # those of the last clustering

    def __init__(
        self,
        encoder: Backbone,
        clusters: int = 10000,
        pca_dim: int = 256,
        iterations: int = 20,
        reassign: int = 1,
        labels_from: str = "pass",
    ) -> None:
        super().__init__()
        one_of("labels_from", labels_from, LABELS_FROM)
        if reassign < 1:
            raise ValueError(f"reassign = {reassign}: needs at least 1 epoch from one clustering to the next.")
        self.encoder = encoder
        self.clusters, self.pca_dim, self.iterations, self.reassign = clusters, pca_dim, iterations, reassign
        self.recorded: RecordedFeatures | None = None
        self.labels_from = labels_from
        self.head = nn.Linear(encoder.num_features, clusters)

    def begin(self, images: int) -> None:
        if not 2 <= self.clusters <= images:
            raise ValueError(f"clusters = {self.clusters}: needs at least 2, and at most one an image, {images} here.")
        self.register_buffer("labels", torch.zeros(images, dtype=torch.int32))
        self.register_buffer("figures", torch.zeros(4))
        if self.labels_from == "steps":
            self.recorded = RecordedFeatures(images, self.encoder.num_features)

    @torch.no_grad()
    def prepare(self, step: int, sweeps: Sweeps) -> None:
        if step % (self.reassign * sweeps.steps_per_epoch):
            return
        index, features = labelled_by(self.recorded, sweeps, self.encoder, step, augmented=False)
        generator, images, device = sweeps.generator(step), len(sweeps), self.head.weight.device
        points = whiten_(features, self.pca_dim, images, device)  # (n, d), of unit length
        found, _ = kmeans(points, index, self.clusters, images, device, generator, iterations=self.iterations)
        labels = by_position(found, index, images)
        self.figures.copy_(cluster_figures(labels, self.labels, self.clusters))
        self.labels.copy_(labels)
        self.head.weight.copy_(torch.empty(self.head.weight.shape).normal_(std=0.01, generator=generator))
        self.head.bias.zero_()

    def order(self, count: int, generator: torch.Generator) -> Tensor:
        return uniform_order(self.labels.long().cpu(), count, generator)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        features = self.encoder(views[0])  # (B, D)
        if self.recorded is not None:
            self.recorded.write(features, index)
        loss = nn.functional.cross_entropy(self.head(features).float(), self.labels[index].long())
        return {
            "loss": loss,
            "embedding": features.detach(),
            "relative_loss": loss.detach() / math.log(self.clusters),  # 1: the labels are noise to the network
            **dict(zip(FIGURES, self.figures, strict=True)),
        }

    def without_momentum(self) -> Iterable[nn.Module]:
        return (self.head,)  # the authors' code gives it an SGD of its own: no step may go on from another epoch's head

    def constant_lr(self) -> Iterable[nn.Module]:
        return (self.head,)  # it starts anew however late the epoch
