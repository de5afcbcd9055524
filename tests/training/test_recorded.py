"""Labels from the features of the last steps instead of from a pass over all images."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.encoder import create
from sslzoo_training.method import find_method
from sslzoo_training.recipe import Settings
from sslzoo_training.recorded import RecordedFeatures
from sslzoo_training.source import open_source
from sslzoo_training.sweep import Rows, Sweeps
from sslzoo_training.views import View

CPU = torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "deepcluster": {"clusters": 4, "pca_dim": 6},
    "sela": {"clusters": 4, "heads": 2, "events": 2, "power": 1.0},
}


def share(rank: int, processes: int) -> Any:
    return SimpleNamespace(rank=rank, processes=processes)


def test_the_last_step_counts_and_shares_are_all_images() -> None:
    recorded = RecordedFeatures(5, 2)
    recorded.fill(Rows(torch.tensor([3, 0, 4, 1, 2]), torch.arange(10.0).view(5, 2)))
    recorded.write(torch.tensor([[7.0, 7.5], [-1.0, 0.25]]), torch.tensor([4, 0]))
    recorded.write(torch.tensor([[8.0, 8.0]]), torch.tensor([4]))
    positions, features = recorded.rows(share(0, 1))
    assert positions.tolist() == [0, 1, 2, 3, 4]
    assert features.tolist() == [[-1.0, 0.25], [6.0, 7.0], [8.0, 9.0], [0.0, 1.0], [8.0, 8.0]]
    assert features.dtype == torch.float32
    parts = [recorded.rows(share(rank, 2)) for rank in (0, 1)]
    assert sorted(torch.cat([rows.positions for rows in parts]).tolist()) == [0, 1, 2, 3, 4]
    for rows in parts:
        assert torch.equal(rows.features, features[rows.positions])


@pytest.fixture
def sweeps(photo_folder: Path, tmp_path: Path) -> Sweeps:
    source = open_source(photo_folder, store_size=40, device=CPU)
    settings = Settings(batch_size=8, precision="no", image_size=32)
    return Sweeps(source, View(size=32), settings, tmp_path, 1, 0, CPU, steps_per_epoch=3, total=6)


@pytest.mark.parametrize("name", SETTINGS)
def test_one_pass_and_then_none(name: str, sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = create("resnet18quarter", seed=0, image_size=32).model
    method: Any = find_method(name)(encoder, labels_from="steps", **SETTINGS[name])
    method.begin(24)
    method.train()
    passes: list[int] = []
    whole = Sweeps.features

    def counted(self: Sweeps, encoder: Any, step: int, *, augmented: bool) -> Rows:
        passes.append(step)
        return whole(self, encoder, step, augmented=augmented)

    monkeypatch.setattr(Sweeps, "features", counted)
    method.prepare(0, sweeps)
    first, labels = method.recorded.features.clone(), method.labels.clone()
    assert (first.abs().sum(1) > 0).all()
    index = torch.tensor([5, 0, 23, 7])
    features: list[Tensor] = []
    method.encoder.register_forward_hook(lambda _, inputs, out: features.append(out.detach()))
    method([torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))], index)
    assert torch.equal(method.recorded.features[index], features[0].half())
    others = [i for i in range(24) if i not in index]
    assert torch.equal(method.recorded.features[others], first[others])

    # labels of what was recorded: two far heaps of images must come apart
    heap = torch.arange(24) % 2
    method.recorded.features.copy_((torch.rand(24, 1) + torch.where(heap == 0, 5.0, -5.0)[:, None]) * torch.ones(128))
    if name == "sela":
        method.head.weight.data.copy_(torch.randn(8, 1) * torch.ones(128) / 128)
    method.prepare(3, sweeps)
    assert passes == [0]
    assert not torch.equal(labels, method.labels)
    for clusters in method.labels.view(-1, 24).long():
        assert not set(clusters[heap == 0].tolist()) & set(clusters[heap == 1].tolist())


def test_a_wrong_word_is_named() -> None:
    encoder = create("resnet18quarter", seed=0, image_size=32).model
    for name in SETTINGS:
        with pytest.raises(ValueError, match="labels_from = 'luck': needs one of pass, steps"):
            find_method(name)(encoder, labels_from="luck")
