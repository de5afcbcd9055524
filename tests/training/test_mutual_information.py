"""Estimators, critics and the method against closed forms, plain loops, and the losses of others."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import sslzoo
from sslzoo_training import checkpoint, pretrain
from sslzoo_training.methods.mutual_information import (
    CRITICS,
    ESTIMATORS,
    Distance,
    InnerProduct,
    MutualInformation,
    infonce,
    jensen_shannon,
    nwj,
    triplet,
)
from sslzoo_training.publish import zoo_id
from sslzoo_training.recipe import make_plan

K, DIM = 7, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- estimators


def pairs(scores: Tensor) -> tuple[list[float], list[float]]:
    """Scores of the pairs from p(x, y), and of those from p(x) p(y)."""
    f = scores.tolist()
    return [f[i][i] for i in range(len(f))], [f[i][j] for i in range(len(f)) for j in range(len(f)) if i != j]


def mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def by_loops(name: str, scores: Tensor) -> float:
    own, others = pairs(scores)
    f = scores.tolist()
    if name == "infonce":
        return mean(math.log(math.exp(f[i][i]) / mean(map(math.exp, f[i]))) for i in range(len(f)))
    if name == "nwj":
        return mean(own) - mean(math.exp(v - 1) for v in others)
    if name == "js":
        # the GAN's value from labels 1 and 0, and the constant that makes it 0 for a critic that knows nothing
        return (
            2 * math.log(2)
            + mean(-math.log(1 + math.exp(-v)) for v in own)
            + mean(-math.log(1 + math.exp(v)) for v in others)
        )
    return -mean(max(0.0, f[i][j] - f[i][i] + 1) for i in range(len(f)) for j in range(len(f)) if i != j)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_equal_plain_loops(name: str) -> None:
    scores = 2 * draw(K, K)
    assert ESTIMATORS[name](scores, 0).item() == pytest.approx(by_loops(name, scores), rel=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_rows_of_several_processes_average_to_the_whole(name: str) -> None:
    scores = 2 * draw(6, 6)
    parts = [ESTIMATORS[name](scores[first : first + 2], first) for first in (0, 2, 4)]
    assert torch.stack(parts).mean().item() == pytest.approx(ESTIMATORS[name](scores, 0).item(), rel=1e-12)


def test_infonce_is_torchs_cross_entropy_below_log_k() -> None:
    for scale in (0.1, 1, 30):
        scores = scale * draw(K, K)
        expected = math.log(K) - F.cross_entropy(scores, torch.arange(K)).item()
        assert infonce(scores).item() == pytest.approx(expected, abs=1e-12)
        assert infonce(scores).item() <= math.log(K)
    assert infonce(100 * torch.eye(K)).item() == pytest.approx(math.log(K))
    assert infonce(torch.full((K, K), 3.0)).item() == pytest.approx(0, abs=1e-6)
    # a constant for each x changes nothing, one for each y does: x picks its y, not the other way round
    scores, shift = draw(K, K), draw(K, seed=1)
    assert infonce(scores + shift[:, None]).item() == pytest.approx(infonce(scores).item(), abs=1e-12)
    assert abs(infonce(scores + shift) - infonce(scores)) > 0.01


def test_nwj_takes_only_pairs_of_different_images_in_its_second_term() -> None:
    scores = draw(K, K)
    raised = scores + 2 * torch.eye(K)
    assert (nwj(raised) - nwj(scores)).item() == pytest.approx(2, rel=1e-12)  # through the first term alone
    assert nwj(torch.ones(K, K)).item() == pytest.approx(0, abs=1e-6)  # f = 1 says: independent


def test_jensen_shannon_is_torchs_binary_cross_entropy_between_its_limits() -> None:
    scores = 3 * draw(K, K)
    other = ~torch.eye(K, dtype=torch.bool)
    losses = [
        F.binary_cross_entropy_with_logits(values, torch.full_like(values, label))
        for values, label in ((scores.diagonal(), 1.0), (scores[other], 0.0))
    ]
    assert jensen_shannon(scores).item() == pytest.approx(2 * math.log(2) - float(sum(losses)), rel=1e-12)
    assert jensen_shannon(torch.zeros(K, K)).item() == pytest.approx(0, abs=1e-6)
    perfect = 200 * torch.eye(K) - 100
    assert jensen_shannon(perfect).item() == pytest.approx(2 * math.log(2))
    assert jensen_shannon(-perfect).item() < -50


def test_triplet_is_torchs_triplet_loss_of_squared_distances() -> None:
    x, y = draw(K, DIM), draw(K, DIM, seed=1)
    i, j = (~torch.eye(K, dtype=torch.bool)).nonzero().unbind(1)
    loss = F.triplet_margin_with_distance_loss(
        x[i], y[i], y[j], distance_function=lambda a, b: (a - b).square().sum(1), margin=1.0
    )
    assert triplet(Distance()(x, y)).item() == pytest.approx(-loss.item(), rel=1e-10)


def test_infonce_of_inner_products_is_the_n_pair_loss_of_others() -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import NPairsLoss, NTXentLoss

    x, y = draw(K, DIM), draw(K, DIM, seed=1)
    labels, distance = torch.arange(K), DotProductSimilarity(normalize_embeddings=False)
    expected = math.log(K) - infonce(InnerProduct()(x, y)).item()
    anchors, their = torch.arange(K), torch.arange(K) + K
    nobody = torch.empty(0, dtype=torch.long)
    n_pairs = NPairsLoss(distance=distance)(
        torch.cat([x, y]), labels.repeat(2), indices_tuple=(anchors, their, nobody, nobody)
    )
    assert n_pairs.item() == pytest.approx(expected, rel=1e-10)
    nt_xent = NTXentLoss(temperature=1.0, distance=distance)(
        x, labels, ref_emb=y, ref_labels=labels.clone()
    )  # the same tensor would say: the same images
    assert nt_xent.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_stay_finite_where_a_pair_scores_high(name: str) -> None:
    scores = (200 * torch.eye(K)).requires_grad_()
    ESTIMATORS[name](scores, 0).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(
    ("correlation", "dim", "of_infonce", "of_nwj"),
    # mean and standard deviation of a batch, measured by the survey with a K of 128
    [
        (0.5, 1, (0.143, 0.04), (0.144, 0.04)),
        (0.9, 1, (0.818, 0.08), (0.829, 0.08)),
        (0.8, 5, (2.393, 0.13), (2.557, 0.18)),
        (0.9, 10, (4.726, 0.05), (8.12, 3.5)),
    ],
)
def test_with_the_best_critic_the_estimates_are_those_of_correlated_gaussians(
    correlation: float, dim: int, of_infonce: tuple[float, float], of_nwj: tuple[float, float]
) -> None:
    batches, k = 100, 128
    x, noise = draw(batches, k, dim), draw(batches, k, dim, seed=1)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    true = -dim / 2 * math.log(1 - correlation**2)
    squares = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None]
    exponent = correlation * x @ y.mT - correlation**2 / 2 * squares
    log_ratio = true + exponent / (1 - correlation**2)  # log p(x, y) / (p(x) p(y)), (batches, K, K)
    for estimator, best, (expected, std) in ((infonce, log_ratio, of_infonce), (nwj, log_ratio + 1, of_nwj)):
        estimate = mean(estimator(scores).item() for scores in best)
        assert estimate == pytest.approx(expected, abs=5 * std / math.sqrt(batches))
    if dim < 10:  # with more, I_NWJ depends on events rarer than one in a batch
        assert estimate == pytest.approx(true, abs=0.05)
    # Deep InfoMax's best critic lacks the 1 that I_NWJ's has
    divergence = mean(jensen_shannon(scores).item() for scores in log_ratio[:20])
    for factor in (0.5, 1.5):
        assert mean(jensen_shannon(factor * scores).item() for scores in log_ratio[:20]) < divergence


# --- critics


def one_pair(name: str, critic: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """f(x, y) of two vectors, as the paper writes it."""
    p: Any = critic
    return {
        "bilinear": lambda x, y: x @ p.weight @ y,
        "separable": lambda x, y: p.g(x) @ p.h(y),
        "concat": lambda x, y: (
            p.score(
                (torch.cat([p.of_x.weight, p.of_y.weight], 1) @ torch.cat([x, y]) + p.of_x.bias).relu()
            )[0]
        ),
        "inner": lambda x, y: x @ y,
        "distance": lambda x, y: -(x - y).norm() ** 2,
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", CRITICS)
def test_critics_score_every_pair(name: str) -> None:
    torch.manual_seed(0)
    critic = CRITICS[name](DIM, 6).double()
    x, y = draw(3, DIM), draw(K, DIM, seed=1)
    scores = critic(x, y)
    assert scores.shape == (3, K)
    f = one_pair(name, critic)
    expected = torch.stack([torch.stack([f(a, b) for b in y]) for a in x])
    torch.testing.assert_close(scores, expected)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(critic(x, y[order]), scores[:, order])


def test_bilinear_critic_of_the_identity_is_the_inner_product() -> None:
    critic: Any = CRITICS["bilinear"](DIM, 6).double()
    critic.weight.data = torch.eye(DIM, dtype=torch.float64)
    x, y = draw(3, DIM), draw(K, DIM, seed=1)
    torch.testing.assert_close(critic(x, y), InnerProduct()(x, y))


def test_critics_have_the_papers_sizes() -> None:
    sizes = {name: sum(p.numel() for p in CRITICS[name](100, 100).parameters()) for name in CRITICS}
    layer = 100 * 100 + 100
    assert sizes == {
        "bilinear": 100 * 100,
        "separable": 4 * layer,
        "concat": 200 * 200 + 200 + 200 + 1,
        "inner": 0,
        "distance": 0,
    }


# --- the method


def thin_encoder() -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=0, channels=[4, 8, 8, 16], stem_type="deep", stem_width=4)


@pytest.fixture
def images() -> Tensor:
    return draw(6, 3, 32, 32).float()


@pytest.fixture
def tops(images: Tensor) -> Tensor:
    return images[:, :, :16]


@pytest.mark.parametrize(("split", "first", "second"), [("rows", "top", "bottom"), ("columns", "left", "right")])
def test_the_two_views_are_two_halves(split: str, first: str, second: str) -> None:
    method = MutualInformation(thin_encoder(), split=split)
    assert [method.part(0), method.part(1)] == [first, second]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shared", [False, True])
def test_the_loss_is_minus_the_estimate_of_the_halves(estimator: str, shared: bool, images: Tensor) -> None:
    method = MutualInformation(thin_encoder(), estimator=estimator, shared=shared).train()
    other: Any = method.encoder if shared else method.other_encoder
    one, critic = (sum(p.numel() for p in part.parameters()) for part in (method.encoder, method.critic))
    assert sum(p.numel() for p in method.parameters()) == (1 if shared else 2) * one + critic
    if not shared:
        other.conv1[0].weight.data.mul_(-1)  # g2 is not g1
    top, bottom = images[:, :, :16], images.roll(1, 0)[:, :, 16:] + 0.5
    x, y = method.encoder(top), other(bottom)
    scores = method.critic(x, y)
    expected = -by_loops(estimator, scores)
    out = method([top, bottom], torch.arange(6))
    assert out["loss"].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(out["embedding"], x.detach())
    out["loss"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in (other.conv1[0].weight, *method.critic.parameters())
    )
    bound = by_loops("nwj" if estimator in ("nwj", "js") else "infonce", scores + (estimator == "js"))
    assert out["nats"].item() == pytest.approx(bound, rel=1e-4, abs=1e-6)
    assert out["log_k"].item() == pytest.approx(math.log(6))
    hits = sum(row.index(max(row)) == i for i, row in enumerate(scores.tolist()))
    assert out["accuracy"].item() == pytest.approx(hits / 6)


def test_a_target_is_approached_from_both_sides(tops: Tensor) -> None:
    upwards = MutualInformation(thin_encoder()).train()
    estimate = upwards([tops, tops], torch.arange(6))["nats"].item()
    for target in (estimate - 0.5, estimate + 0.5):
        method = MutualInformation(thin_encoder(), target=target).train()
        method.critic.load_state_dict(upwards.critic.state_dict())
        assert method([tops, tops], torch.arange(6))["loss"].item() == pytest.approx(0.5, rel=1e-4)


def test_scores_are_float32_under_autocast(tops: Tensor) -> None:
    method = MutualInformation(thin_encoder(), critic="separable").train()
    seen: list[Tensor] = []
    method.critic.register_forward_hook(lambda _, inputs, scores: seen.extend([*inputs, scores]))
    with torch.autocast("cpu", torch.bfloat16):
        out = method([tops, tops], torch.arange(6))
    assert {tensor.dtype for tensor in [*seen, out["loss"]]} == {torch.float32}


def test_wrong_words_are_named() -> None:
    for setting in ("estimator", "critic", "split"):
        with pytest.raises(ValueError, match=f"{setting} = 'mine': needs one of "):
            MutualInformation(thin_encoder(), **{setting: "mine"})


def test_the_zoo_names_the_estimator() -> None:
    names = {"infonce": "infonce", "nwj": "nwj", "js": "infomax", "triplet": "triplet"}
    for estimator, name in names.items():
        recipe = make_plan("mutual_information", "cifar10_cpu", {"estimator": estimator}).to_dict()
        assert zoo_id(recipe, "cifar10") == f"{name}-resnet18quarter-cifar10"
    assert zoo_id(make_plan("byol", "cifar10_cpu", {}).to_dict(), "x") == "byol-resnet18quarter-x"


# --- MNIST, as in the paper


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """28 x 28 pixels of scikit-learn's digits."""
    small = torch.from_numpy(load_digits().images[:256])[:, None]
    images = F.interpolate(small, size=28, mode="bicubic", antialias=True).clamp(0, 16).mul(255 / 16).byte()
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=images[:, 0].numpy())
    return path


@pytest.mark.parametrize("settings", [{}, {"arch": "tophalf_conv", "estimator": "nwj", "critic": "separable"}])
def test_the_papers_networks_learn_digits(settings: dict[str, Any], digits: Any, tmp_path: Any) -> None:
    more = {"epochs": 4, "log_every": 1, "lr": 4e-3, "progress": False, "device": "cpu"} | settings
    pretrain("mutual_information", digits, tmp_path / "run", recipe="mnist", **more)
    nats = [row["nats"] for row in checkpoint.read_log(tmp_path / "run") if "nats" in row]
    assert mean(nats[-2:]) > mean(nats[:2]) + 0.2
    encoder = sslzoo.load(tmp_path / "run")
    assert encoder.arch == settings.get("arch", "tophalf_mlp")
    assert encoder.config["sslzoo"]["method"] == settings.get("estimator", "infonce")
    with np.load(digits) as archive:
        image = sslzoo.open_images(archive["images"][:1])[0]
        pixels = torch.from_numpy(archive["images"][0]) / 255
    torch.testing.assert_close(encoder.transform(image), pixels.expand(3, 28, 28))  # as it was trained
    assert encoder(encoder.transform(image)[None]).shape == (1, 100)
