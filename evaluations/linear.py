"""Linear probe: multinomial logistic regression on frozen features.

Training features are those of the centre view and of random resized crops, flipped or not; test features those of the
centre view. The weight decay is chosen on a tenth of the training images, held out class by class; the classifier is
then fitted to all of them and tested once.

python -m sslzoo_evaluations linear byol-resnet18quarter-cifar10 --data cifar10
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .protocol import Split, evaluate

VIEWS = 4
WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # strong to weak: each fit starts from the one before
STEPS = 60  # of L-BFGS at most, for each of them; in whitened coordinates 10 to 40 reach the minimum
HELD_OUT = 0.1
PATIENCE = 2  # weaker decays that did worse than the best, after which none is tried


def main(argv: list[str]) -> int:
    """`python -m sslzoo_evaluations linear ID --data FOLDER`."""
    return evaluate("linear", fit, argv, views=VIEWS)


@dataclass(frozen=True)
class Linear:
    """logits = (x - mean) / std @ weight + bias, with weight (D, K)."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Features (N, D) -> class numbers (N,)."""
        return (((features - self.mean) / self.std) @ self.weight + self.bias).argmax(1)


def fit(train: Split, seed: int) -> tuple[Callable[[Tensor], Tensor], Mapping[str, object]]:
    """Choose the weight decay on a held-out part of `train`, then fit on all of it."""
    held = held_out(train.labels, HELD_OUT, seed)
    kept = LogisticRegression(Split(train.features[~held], train.labels[~held], train.classes))
    centre, labels = train.features[held][:, 0], train.labels[held]
    best, best_accuracy, worse = None, -1.0, 0
    model: Linear | None = None
    for weight_decay in WEIGHT_DECAYS:
        model = kept.fit(weight_decay, start=model)
        accuracy = float((model.predict(centre) == labels).double().mean())
        if accuracy > best_accuracy:
            best, best_accuracy, worse = (weight_decay, model), accuracy, 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    assert best is not None  # an accuracy is at least 0
    weight_decay, start = best
    del kept  # half of the memory
    final = LogisticRegression(train).fit(weight_decay, start=start)
    return final.predict, {"weight_decay": weight_decay, "held_out_top1": f"{best_accuracy:.4f}"}


def held_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """(N,) mask of a random part of each class: `fraction` of its images, at least one where it has two.

    Raises:
        ValueError: No class has two images.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():  # type: ignore[no-untyped-call]
        members = (labels == label).nonzero()[:, 0]
        count = max(round(fraction * len(members)), int(len(members) > 1))
        mask[members[torch.randperm(len(members), generator=generator)[:count].to(labels.device)]] = True
    if not mask.any():
        raise ValueError("a linear probe needs at least two training images of some class, to choose its weight decay.")
    return mask


class LogisticRegression:
    """Minimises mean cross-entropy over all views + weight_decay / 2 |weight|^2, on standardised features.

    L-BFGS works in the whitened coordinates of the features, where the loss is about as steep in all directions: the
    same minimum, in a tenth of the steps.

    Args:
        train: All views of all images.
    """

    def __init__(self, train: Split) -> None:
        x = train.features.flatten(0, 1)  # (M, D)
        self.mean, self.std = x.mean(0), x.std(0).clamp_min(1e-6)  # a dead feature stays 0
        self.x = (x - self.mean) / self.std
        self.y = train.labels.repeat_interleave(train.features.shape[1])
        self.classes = train.classes
        variances, self.axes = torch.linalg.eigh(self.x.T @ self.x / len(self.x))  # (D,), (D, D)
        self.variances = variances.clamp_min(0)

    def fit(self, weight_decay: float, *, start: Linear | None = None) -> Linear:
        """Minimise.

        Args:
            weight_decay: On `weight`, not on `bias`.
            start: Where to start instead of at 0; the minimum is the same.
        """
        # the Hessian at 0 is (variances / K + weight_decay) times about 1 in these coordinates
        to_weight = self.axes * (self.variances / self.classes + weight_decay).rsqrt()  # (D, D)
        v = self.x.new_zeros(self.x.shape[1], self.classes)
        bias = self.x.new_zeros(self.classes)
        if start is not None:
            v = (self.axes.T @ start.weight) * (self.variances / self.classes + weight_decay).sqrt()[:, None]
            bias = start.bias.clone()
        v.requires_grad_()
        bias.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [v, bias], max_iter=STEPS, history_size=10, tolerance_change=1e-6, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimizer.zero_grad()
            weight = to_weight @ v
            loss = nn.functional.cross_entropy(self.x @ weight + bias, self.y)
            loss = loss + weight_decay / 2 * weight.square().sum()
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return Linear(self.mean, self.std, (to_weight @ v).detach(), bias.detach())
