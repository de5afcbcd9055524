"""SeLa: the schedule of its labellings, its loss, and labels that are the optimal transport of its predictions."""

import copy
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sslzoo.encoder import create
from sslzoo_training import checkpoint, pretrain
from sslzoo_training.methods.sela import SeLa, due
from sslzoo_training.recipe import Settings
from sslzoo_training.source import open_source
from sslzoo_training.sweep import Sweeps

CPU = torch.device("cpu")
VIEW = SeLa.VIEWS[0].__class__(size=32, scale=(0.3, 1.0), flip=0.5)


def method(**settings: object) -> SeLa:
    torch.manual_seed(0)
    made = SeLa(create("resnet18quarter", seed=0, image_size=32).model, **{"clusters": 4, "heads": 3} | settings)  # type: ignore[arg-type]
    made.begin(24)
    return made.train()


@pytest.fixture
def sweeps(photo_folder: Path, tmp_path: Path) -> Sweeps:
    source = open_source(photo_folder, store_size=40, device=CPU)
    settings = Settings(batch_size=8, precision="no", image_size=32)
    return Sweeps(source, VIEW, settings, tmp_path, 1, 0, CPU, steps_per_epoch=3, total=6)


def test_labellings_are_dense_early_by_the_square_and_even_by_the_line() -> None:
    steps = [step for step in range(10000) for _ in due(step, 10000, 100, 2.0)]
    assert steps == [round(10000 * (i / 100) ** 2) for i in range(100)]
    assert sum(step < 2500 for step in steps) == 50
    assert [step for step in range(400) if due(step, 400, 4, 1.0)] == [0, 100, 200, 300]
    assert [i for step in range(6) for i in due(step, 6, 40, 1.0)] == list(
        range(40)
    )  # none is lost where steps are few


def test_labels_start_random_and_balanced() -> None:
    labels = method().labels
    assert labels.shape == (3, 24)
    assert all(Counter(row.tolist()) == dict.fromkeys(range(4), 6) for row in labels)
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], torch.arange(24) % 4)
    for clusters in (1, 25):
        with pytest.raises(ValueError, match=rf"clusters = {clusters}: needs at least 2, and at most one an image, 24"):
            method(clusters=clusters)


def test_the_loss_is_the_mean_over_heads_of_cross_entropies_with_the_labels_of_these_images() -> None:
    sela = method()
    nn.init.normal_(sela.head.weight)
    views, index = (
        torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([7, 3, 3, 20, 11]),
    )
    features = copy.deepcopy(sela.encoder)(views)
    expected = 0.0
    for head in range(3):
        weight, bias = sela.head.weight[4 * head : 4 * head + 4], sela.head.bias[4 * head : 4 * head + 4]
        targets = torch.tensor([int(sela.labels[head, i]) for i in index])
        expected += float(nn.CrossEntropyLoss()(features @ weight.T + bias, targets).detach()) / 3
    out = sela([views], index)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert out["relative_loss"].item() == pytest.approx(expected / math.log(4), rel=1e-5)


def test_an_untrained_head_is_as_good_as_guessing() -> None:
    out = method()([torch.randn(24, 3, 32, 32)], torch.arange(24))
    assert out["relative_loss"].item() == pytest.approx(1, abs=0.02)


def test_labels_are_the_optimal_transport_of_the_predictions(sweeps: Sweeps) -> None:
    ot = pytest.importorskip("ot")
    sela = method(lamb=10.0)
    nn.init.normal_(sela.head.weight, std=0.1)
    index, features = sweeps.features(copy.deepcopy(sela.encoder), 0, augmented=True)
    sela.prepare(0, sweeps)
    for head in range(3):
        weight, bias = sela.head.weight[4 * head : 4 * head + 4], sela.head.bias[4 * head : 4 * head + 4]
        cost = -(features @ weight.T + bias).log_softmax(1).detach().double().numpy()
        plan = ot.sinkhorn(np.full(24, 1 / 24), np.full(4, 1 / 4), cost, reg=1 / 10, numItermax=10000, stopThr=1e-6)
        assert sela.labels[head][index].tolist() == plan.argmax(1).tolist()
        assert sela.labels[head].bincount(minlength=4).tolist() == pytest.approx([6] * 4, abs=3)


def test_a_labelling_is_in_train_mode_and_only_when_it_is_due(sweeps: Sweeps) -> None:
    sela = method(events=2, power=1.0)
    nn.init.normal_(sela.head.weight)
    start = sela.labels.clone()
    sela.prepare(1, sweeps)
    assert torch.equal(sela.labels, start)
    sela.prepare(3, sweeps)
    assert not any(torch.equal(a, b) for a, b in zip(sela.labels, start, strict=True))
    assert int(sela.encoder.bn1.num_batches_tracked) == 3
    assert sela.encoder.training
    assert not sela.labels.requires_grad
    entropy, empty, _, nmi = sela.figures.tolist()
    assert 0.8 < entropy <= 1
    assert empty == 0
    assert 0 < nmi < 0.7


def test_heads_in_turn_are_labelled_one_at_an_event(sweeps: Sweeps) -> None:
    sela = method(in_turn=True, events=6, power=1.0)
    nn.init.normal_(sela.head.weight)
    for step in range(4):
        before = sela.labels.clone()
        sela.prepare(step, sweeps)
        changed = [head for head in range(3) if not torch.equal(before[head], sela.labels[head])]
        assert changed == [step % 3]


def test_a_run_learns_its_labels_and_logs_its_clusters(photo_folder: Path, tmp_path: Path) -> None:
    pretrain(
        "sela", photo_folder, tmp_path / "run", recipe="cifar10_cpu", device="cpu", progress=False, image_size=32,
        batch_size=8, epochs=12, clusters=4, heads=2, events=6, precision="no", log_every=1,
    )  # fmt: skip
    rows = [row for row in checkpoint.read_log(tmp_path / "run") if "loss" in row]
    assert {"entropy", "empty", "largest", "nmi", "relative_loss"} <= rows[0].keys()
    assert rows[0]["relative_loss"] == pytest.approx(1, abs=0.05)
    assert min(row["relative_loss"] for row in rows[-9:]) < 0.9
    assert all(row["entropy"] > 0.8 for row in rows)
