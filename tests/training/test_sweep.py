"""Passes over the whole data set: every image once, with and without a trace, in memory or in a file."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from sslzoo.encoder import create
from sslzoo_training import sweep
from sslzoo_training.recipe import Settings
from sslzoo_training.source import open_source
from sslzoo_training.sweep import Sweeps
from sslzoo_training.views import View

CPU = torch.device("cpu")
STATISTICS = {"mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.1), "interpolation": "bilinear"}
VIEW = View(size=32, scale=(0.3, 1.0), flip=0.5, jitter=1.0, brightness=0.4, **STATISTICS)


def sweeps(data: Path, folder: Path, *, rank: int = 0, processes: int = 1, batch_size: int = 10) -> Sweeps:
    source = open_source(data, store_size=40, device=CPU)
    settings = Settings(batch_size=batch_size, precision="no", image_size=32)
    return Sweeps(source, VIEW, settings, folder, processes, rank, CPU, steps_per_epoch=2, total=4)


@pytest.fixture
def encoder() -> nn.Module:
    return create("resnet18quarter", seed=0, image_size=32).model.train()


def test_each_image_once_without_a_trace(photo_folder: Path, tmp_path: Path, encoder: nn.Module) -> None:
    encoder.bn1.eval()  # modes come back as they were, part by part
    before = copy.deepcopy(encoder.state_dict())
    whole = sweeps(photo_folder, tmp_path)
    index, features = whole.features(encoder, 0, augmented=False)
    assert sorted(index.tolist()) == list(range(24))
    assert features.shape == (24, 128)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert encoder.training
    assert not encoder.bn1.training
    plain = View(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), **STATISTICS)
    batch = whole.source.fetch(index)
    with torch.no_grad():
        expected = encoder.eval()(plain.apply(batch.images, plain.sample(batch.sizes, torch.Generator())))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_augmented_is_a_random_view_in_train_mode(photo_folder: Path, tmp_path: Path, encoder: nn.Module) -> None:
    whole = sweeps(photo_folder, tmp_path)
    before = encoder.bn1.running_mean.clone()
    twin = copy.deepcopy(encoder)
    index, features = whole.features(encoder, 0, augmented=True)
    assert sorted(index.tolist()) == list(range(24))
    assert index.tolist() != list(range(24))  # batch norm must not see one folder, that is one class, at a time
    assert not torch.equal(encoder.bn1.running_mean, before)
    assert int(encoder.bn1.num_batches_tracked) == 3
    again, same = whole.features(twin, 0, augmented=True)
    assert torch.equal(index, again)
    assert torch.equal(features, same)
    other, _ = whole.features(twin, 1, augmented=True)
    assert not torch.equal(index, other)


@pytest.mark.parametrize("processes", [2, 5])
def test_shares_make_up_the_whole(processes: int, photo_folder: Path, tmp_path: Path, encoder: nn.Module) -> None:
    alone = sweeps(photo_folder, tmp_path).features(encoder, 3, augmented=False)
    shares = [
        sweeps(photo_folder, tmp_path, rank=rank, processes=processes).features(encoder, 3, augmented=False)
        for rank in range(processes)
    ]
    index, features = torch.cat([s.positions for s in shares]), torch.cat([s.features for s in shares])
    assert sorted(index.tolist()) == list(range(24))
    torch.testing.assert_close(
        features[index.argsort()], alone.features[alone.positions.argsort()], atol=1e-4, rtol=1e-4
    )


def test_a_set_smaller_than_a_batch_is_still_gone_through_once(
    photo_folder: Path, tmp_path: Path, encoder: nn.Module
) -> None:
    index, features = sweeps(photo_folder, tmp_path, batch_size=64).features(encoder, 0, augmented=True)
    assert sorted(index.tolist()) == list(range(24))
    assert len(features) == 24


def test_features_that_do_not_fit_go_to_a_file_that_leaves_nothing_behind(
    photo_folder: Path, tmp_path: Path, encoder: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweeps(photo_folder, tmp_path / "run")
    in_memory = whole.features(encoder, 0, augmented=False)
    opened: list[Path] = []
    temporary = sweep.tempfile.TemporaryFile
    monkeypatch.setattr(sweep, "available_memory", lambda: 1000)
    monkeypatch.setattr(sweep.tempfile, "TemporaryFile", lambda dir: opened.append(dir) or temporary(dir=dir))
    in_file = whole.features(encoder, 0, augmented=False)
    assert opened == [tmp_path / "run"]
    assert torch.equal(in_memory.features, in_file.features)
    assert list((tmp_path / "run").iterdir()) == []
    in_file.features.mul_(2)  # it is there to be written to
    assert torch.equal(in_memory.features * 2, in_file.features)
