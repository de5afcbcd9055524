"""DeepCluster: clusters of whitened features, a head that starts anew, an epoch uniform over clusters."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import nn

from sslzoo.encoder import create
from sslzoo_training import checkpoint, loop, pretrain
from sslzoo_training.methods.deepcluster import DeepCluster
from sslzoo_training.recipe import Settings
from sslzoo_training.source import open_source
from sslzoo_training.sweep import Sweeps
from sslzoo_training.views import View

CPU = torch.device("cpu")
RUN = {"recipe": "cifar10_cpu", "device": "cpu", "progress": False, "image_size": 32, "batch_size": 8, "epochs": 2,
       "clusters": 4, "pca_dim": 6, "reassign": 1, "precision": "no", "log_every": 1}  # fmt: skip


def method(**settings: int) -> DeepCluster:
    torch.manual_seed(0)
    made = DeepCluster(
        create("resnet18quarter", seed=0, image_size=32).model, **{"clusters": 4, "pca_dim": 6} | settings
    )
    made.begin(24)
    return made.train()


@pytest.fixture
def sweeps(photo_folder: Path, tmp_path: Path) -> Sweeps:
    source = open_source(photo_folder, store_size=40, device=CPU)
    settings = Settings(batch_size=8, precision="no", image_size=32)
    return Sweeps(source, View(size=32), settings, tmp_path, 1, 0, CPU, steps_per_epoch=3, total=6)


def test_labels_are_scikit_learns_clusters_of_whitened_features(sweeps: Sweeps) -> None:
    deepcluster = method(iterations=50)
    before = copy.deepcopy(deepcluster.encoder.state_dict())
    index, features = sweeps.features(deepcluster.encoder, 3, augmented=False)
    deepcluster.prepare(3, sweeps)
    white = PCA(6, whiten=True).fit_transform(features.double().numpy())
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    chosen = torch.randperm(24, generator=sweeps.generator(3))[:4]
    start = white[[index.tolist().index(int(i)) for i in chosen]]
    theirs = KMeans(4, init=start, n_init=1, max_iter=50, tol=0, algorithm="lloyd").fit(white)
    assert deepcluster.labels[index].tolist() == theirs.labels_.tolist()
    # the features are those of eval mode: the pass leaves no trace in the network
    assert all(torch.equal(before[key], value) for key, value in deepcluster.encoder.state_dict().items())


def test_every_epoch_has_other_clusters_and_another_head(sweeps: Sweeps) -> None:
    deepcluster = method(clusters=8)
    heads, labels = [], []
    for step in range(6):
        deepcluster.prepare(step, sweeps)
        heads.append(deepcluster.head.weight.detach().clone())
        labels.append(deepcluster.labels.clone())
        deepcluster.head.bias.data.fill_(1.0)
        if step in (0, 3):
            assert heads[step].std() == pytest.approx(0.01, rel=0.1)
    for kept in (1, 2, 4, 5):
        assert torch.equal(heads[kept], heads[kept - 1])
        assert torch.equal(labels[kept], labels[kept - 1])
    assert not torch.equal(heads[3], heads[2])
    assert not torch.equal(labels[3], labels[2])  # the same features from another start
    deepcluster.prepare(6, sweeps)
    assert deepcluster.head.bias.abs().max() == 0


def test_clusters_last_as_many_epochs_as_asked_for(sweeps: Sweeps) -> None:
    deepcluster = method(reassign=2)
    changed = []
    for step in range(0, 13):
        deepcluster.head.bias.data.fill_(1.0)
        deepcluster.prepare(step, sweeps)
        changed += [step] if not deepcluster.head.bias.any() else []
    assert changed == [0, 6, 12]  # of three steps an epoch
    with pytest.raises(ValueError, match="reassign = 0"):
        method(reassign=0)


def test_the_loss_is_the_cross_entropy_with_the_clusters_of_these_images(sweeps: Sweeps) -> None:
    deepcluster = method()
    deepcluster.prepare(0, sweeps)
    nn.init.normal_(deepcluster.head.weight)
    views, index = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([23, 1, 1, 9])
    logits = deepcluster.head(copy.deepcopy(deepcluster.encoder)(views))
    expected = nn.CrossEntropyLoss()(logits, torch.tensor([int(deepcluster.labels[i]) for i in index]))
    out = deepcluster([views], index)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out["relative_loss"].item() == pytest.approx(expected.item() / math.log(4), rel=1e-5)


def test_an_epoch_is_uniform_over_the_clusters_that_have_images() -> None:
    deepcluster = method()
    deepcluster.labels.copy_(torch.tensor([0] * 20 + [3] * 3 + [1]))
    order = deepcluster.order(24, torch.Generator().manual_seed(0))
    assert deepcluster.labels[order].bincount(minlength=4).tolist() == pytest.approx([8, 8, 0, 8], abs=1)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam"])
def test_the_head_has_no_momentum_and_a_constant_rate(optimizer: str) -> None:
    deepcluster = method()
    made = loop.make_optimizer(deepcluster, Settings(optimizer=optimizer, lr=0.1, weight_decay=0.0, batch_size=256))
    head = {id(p) for p in deepcluster.head.parameters()}
    own = [g for g in made.param_groups if head & {id(p) for p in g["params"]}]
    others = [g for g in made.param_groups if not head & {id(p) for p in g["params"]}]
    assert all({id(p) for p in g["params"]} <= head and g["constant_lr"] for g in own)
    key = "betas" if optimizer == "adam" else "momentum"
    assert [g[key] for g in own] == ([(0.0, 0.999)] * 2 if optimizer == "adam" else [0.0] * 2)
    assert all(g[key] == ((0.9, 0.999) if optimizer == "adam" else 0.9) and not g["constant_lr"] for g in others)
    for parameter in deepcluster.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    bias = deepcluster.head.bias.detach().clone()
    deepcluster.head.bias.grad = torch.zeros(4)
    made.step()
    assert torch.equal(deepcluster.head.bias, bias)  # no gradient, no step: nothing goes on from the step before


def test_a_run_stopped_after_any_step_ends_alike(photo_folder: Path, tmp_path: Path) -> None:
    """In mid-epoch, where the order must be the clusters' again, and between two epochs, before the next clustering."""
    assert pretrain("deepcluster", photo_folder, tmp_path / "whole", **RUN).finished
    for step in range(1, 7):
        outcome = pretrain("deepcluster", photo_folder, tmp_path / "parts", resume=True, time_limit=0.0, **RUN)
        assert outcome.step == step
    states = [checkpoint.load(tmp_path / name) for name in ("whole", "parts")]
    assert all(torch.equal(states[0]["method"][key], states[1]["method"][key]) for key in states[0]["method"])  # type: ignore[index]
    logs = [[r["loss"] for r in checkpoint.read_log(tmp_path / n) if "loss" in r] for n in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_the_loop_trains_on_the_methods_order(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    clusters: list[torch.Tensor] = []
    forward = DeepCluster.forward

    def watched(self: DeepCluster, views: list[torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(self.labels[index])
        clusters.append(self.labels.clone())
        return forward(self, views, index)

    monkeypatch.setattr(DeepCluster, "forward", watched)
    pretrain("deepcluster", photo_folder, tmp_path / "run", **RUN)
    for epoch in (0, 3):
        drawn = torch.cat(seen[epoch : epoch + 3]).bincount(minlength=4)
        there = clusters[epoch].bincount(minlength=4) > 0
        assert drawn[there].tolist() == pytest.approx([24 / int(there.sum())] * int(there.sum()), abs=4)
        assert drawn[~there].sum() == 0
