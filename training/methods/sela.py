"""SeLa: Self-labelling via Simultaneous Clustering and Representation Learning. Asano, Rupprecht & Vedaldi 2020.

https://arxiv.org/abs/1911.05371 (Sec. 3)

sslzoo pretrain sela --data FOLDER --recipe cifar10 --out RUN
"""

import math

import torch
from torch import Tensor, nn

from ..blocks import one_of
from ..clustering import FIGURES, best_clusters, by_position, cluster_figures, sinkhorn
from ..method import Backbone, Method, Paper
from ..recorded import LABELS_FROM, RecordedFeatures, labelled_by
from ..sweep import Rows, Sweeps
from ..views import View


def due(step: int, total: int, events: int, power: float) -> list[int]:
    """Which of `events` labellings come before this step: event i is at (i / events)^power of the run, 0 the first."""
    return [i for i in range(events) if min(round(total * (i / events) ** power), total - 1) == step]


class SeLa(Method):
    """Classify images by labels that are themselves optimised: now and then, by optimal transport.

    The labels of a head are the balanced assignment that the head's predictions cost least, so that no cluster can take
    all images. Each head clusters the data set anew; they share the encoder, and the loss is their mean.

    The predictions that labels are made of come, as in the authors' code, from random views and the network in train
    mode. A labelling costs a forward pass of the data set and room for its features and for the scores of one head: in
    memory, or in a file in the run's folder.

    Args:
        encoder: The encoder f.
        clusters: K of each head.
        heads: How many clusterings.
        lamb: Lambda, the sharpness of the assignment: the weight of the predictions against its entropy (Eq. 6).
        events: Labellings of the run.
        power: Of their distribution in time: 2 puts most at the start, 1 spreads them evenly.
        in_turn: A labelling is of one head, the next one each time, instead of all.
        labels_from: "pass": predictions of a forward pass of all images, the paper's; "steps": of the features of the
            last step that saw the image, which cost nothing.
    """

    PAPER = Paper(
        "Self-labelling via simultaneous clustering and representation learning",
        "Asano, Yuki Markus and Rupprecht, Christian and Vedaldi, Andrea",
        2020,
        "https://arxiv.org/abs/1911.05371",
    )
    VIEWS = (
        View(
            size=224,
            scale=(0.08, 1.0),
            flip=0.5,
            jitter=1.0,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.4,
            grayscale=0.2,
        ),
    )
    labels: Tensor  # (heads, N) cluster of each image
    log_a: Tensor  # (heads, K) of the last labelling of each head, from which the next one sets out
    figures: Tensor  # those of the last labelling

    def __init__(
        self,
        encoder: Backbone,
        clusters: int = 3000,
        heads: int = 10,
        lamb: float = 25.0,
        events: int = 100,
        power: float = 2.0,
        in_turn: bool = False,
        labels_from: str = "pass",
    ) -> None:
        super().__init__()
        one_of("labels_from", labels_from, LABELS_FROM)
        self.encoder = encoder
        self.recorded: RecordedFeatures | None = None
        self.labels_from = labels_from
        self.clusters, self.heads, self.lamb = clusters, heads, lamb
        self.events, self.power, self.in_turn = events, power, in_turn
        self.head = nn.Linear(encoder.num_features, heads * clusters)  # all heads side by side
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def begin(self, images: int) -> None:
        if not 2 <= self.clusters <= images:
            raise ValueError(f"clusters = {self.clusters}: needs at least 2, and at most one an image, {images} here.")
        balanced = torch.arange(images, dtype=torch.int32) % self.clusters
        self.register_buffer("labels", torch.stack([balanced[torch.randperm(images)] for _ in range(self.heads)]))
        self.register_buffer("log_a", torch.zeros(self.heads, self.clusters, dtype=torch.float64))
        self.register_buffer("figures", torch.tensor([1.0, 0.0, 1.0, 0.0]))
        if self.labels_from == "steps":
            self.recorded = RecordedFeatures(images, self.encoder.num_features)

    @torch.no_grad()
    def prepare(self, step: int, sweeps: Sweeps) -> None:
        events = due(step, sweeps.total, self.events, self.power)
        if not events:
            return
        rows = labelled_by(self.recorded, sweeps, self.encoder, step, augmented=True)
        chosen = sorted({i % self.heads for i in events}) if self.in_turn else range(self.heads)
        self.figures.copy_(torch.stack([self._label(head, rows, sweeps) for head in chosen]).mean(0))

    def _label(self, head: int, rows: Rows, sweeps: Sweeps) -> Tensor:
        """Replace the labels of one head by the optimal ones (Eq. 5-8). Returns their figures."""
        own = slice(head * self.clusters, (head + 1) * self.clusters)
        weight, bias = self.lamb * self.head.weight[own], self.lamb * self.head.bias[own]
        scores = sweeps.table(len(rows.features), self.clusters)
        for features, target in zip(torch.split(rows.features, 4096), torch.split(scores, 4096), strict=True):
            # lambda log P, but for a constant of each image, which makes no difference to the assignment
            target.copy_(nn.functional.linear(features.to(weight), weight, bias))
        self.log_a[head] = sinkhorn(scores, len(sweeps), weight.device, start=self.log_a[head])
        labels = by_position(best_clusters(scores, self.log_a[head]), rows.positions, len(sweeps))
        changes = cluster_figures(labels, self.labels[head], self.clusters)
        self.labels[head] = labels
        return changes

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        features = self.encoder(views[0])  # (B, D)
        if self.recorded is not None:
            self.recorded.write(features, index)
        logits = self.head(features).float().view(-1, self.clusters)  # (B * heads, K)
        labels = self.labels[:, index].T.flatten().long()  # (B * heads,)
        loss = nn.functional.cross_entropy(logits, labels)
        return {
            "loss": loss,
            "embedding": features.detach(),
            "relative_loss": loss.detach() / math.log(self.clusters),  # 1: the labels are noise to the network
            **dict(zip(FIGURES, self.figures, strict=True)),
        }
