"""Colorization: bins, soft encoding, rebalancing and decoding against scikit-learn, loops and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import sslzoo
from sslzoo.lab import rgb_to_lab
from sslzoo_training import pretrain
from sslzoo_training.methods.colorization import Colorization, SoftEncoding, bin_centres, decode, rebalancing

CENTRES = bin_centres()


def soft_encode(ab: Tensor, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    return SoftEncoding(neighbours, sigma=5.0)(ab)


def colours() -> Tensor:
    """(n, 2): a and b of the pixels of a photograph, and of random ones up to the edges of sRGB."""
    photo = torch.from_numpy(load_sample_images().images[1][::8, ::8].copy()).permute(2, 0, 1) / 255
    random = torch.rand(3, 2000, generator=torch.Generator().manual_seed(0)).lerp(
        torch.eye(3).repeat(1, 667)[:, 1:], 0.4
    )
    return rgb_to_lab(torch.cat([photo.flatten(1), random], 1)[None, :, None])[0, 1:, 0].T


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "resnet18", num_classes=0, in_chans=1, channels=[4, 8, 8, 16], stem_type="deep", stem_width=4
    )


@pytest.fixture
def images() -> Tensor:
    photo = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1) / 255
    return torch.stack([photo[:, y : y + 32, y : y + 32] for y in (0, 90, 180, 270)])


def test_there_are_313_bins_on_a_grid_of_ten() -> None:
    assert CENTRES.shape == (313, 2)
    assert len(CENTRES.unique(dim=0)) == 313
    assert (CENTRES % 10 == 0).all()
    assert CENTRES.min(0).values.tolist() == [-90, -110]
    assert CENTRES.max(0).values.tolist() == [100, 100]
    assert [-90, 40] not in CENTRES.tolist()  # at a = -90, b begins with 50
    assert [0, 0] in CENTRES.tolist()


@pytest.mark.parametrize("neighbours", [5, 10])
def test_soft_encoding_equals_scikit_learns_neighbours(neighbours: int) -> None:
    ab = colours()
    bins, weights = soft_encode(ab, neighbours)
    distance, nearest = NearestNeighbors(n_neighbors=neighbours).fit(CENTRES.numpy()).kneighbors(ab.numpy())
    expected = np.exp(-(distance**2) / (2 * 5**2))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-4)
    untied = np.diff(distance, axis=1).min(1) > 1e-3
    assert untied.mean() > 0.9
    assert np.array_equal(bins.numpy()[untied], nearest[untied])


@pytest.mark.parametrize(("neighbours", "error"), [(5, 0.3), (10, 0.35)])
def test_soft_encoding_is_a_distribution_that_decodes_to_the_colour(neighbours: int, error: float) -> None:
    ab = colours()
    bins, weights = soft_encode(ab, neighbours)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(ab)))
    assert torch.equal(weights.argmax(1), torch.zeros(len(ab), dtype=torch.int64))
    assert torch.equal(bins[:, 0], torch.cdist(ab.double(), CENTRES.double()).argmin(1))
    decoded = (weights[..., None] * CENTRES[bins]).sum(1)
    assert (decoded - ab).norm(dim=1).mean() < error


def test_rebalancing_weighs_one_on_average_and_rare_colours_most() -> None:
    counts = torch.zeros(313, dtype=torch.int64)
    counts.scatter_add_(0, soft_encode(colours(), 1)[0][:, 0], torch.ones(len(colours()), dtype=torch.int64))
    w = rebalancing(counts, CENTRES, 0.5, 5.0)
    p = torch.zeros(313, dtype=torch.float64)
    for i in range(313):  # smoothed: each bin's share of every other one's mass
        for j in counts.nonzero()[:, 0].tolist():
            kernel = torch.exp(-(CENTRES - CENTRES[j]).double().square().sum(1) / 50)
            p[i] += kernel[i] / kernel.sum() * counts[j] / counts.sum()
    assert p.sum().item() == pytest.approx(1)
    assert (p.float() * w).sum().item() == pytest.approx(1, rel=1e-5)
    occurs = counts > 0
    mixed = 0.5 * p + 0.5 * occurs / occurs.sum()
    ratio = (w[occurs].max() / w[occurs].min()).item()
    assert ratio == pytest.approx((mixed[occurs].max() / mixed[occurs].min()).item(), rel=1e-4)
    torch.testing.assert_close(w[occurs], (w[occurs][0] * mixed[occurs][0] / mixed[occurs]).float(), rtol=1e-4, atol=0)
    assert w[counts.argmax()] < 1 < w[occurs].max()
    assert (w[~occurs] == 0).all()
    even = rebalancing(counts, CENTRES, 1.0, 5.0)[occurs]
    torch.testing.assert_close(even, even[:1].expand_as(even))


def test_decoding_goes_from_the_mean_to_the_mode() -> None:
    logits = torch.randn(2, 3, 4, 313, generator=torch.Generator().manual_seed(0))
    mean = (logits.softmax(-1)[..., None] * CENTRES).sum(-2)
    torch.testing.assert_close(decode(logits, CENTRES, 1.0), mean, atol=1e-3, rtol=1e-4)
    mode = CENTRES[logits.argmax(-1)]
    torch.testing.assert_close(decode(logits, CENTRES, 1e-4), mode)
    annealed = decode(logits, CENTRES)
    assert (annealed - mode).norm(dim=-1).mean() < (mean - mode).norm(dim=-1).mean()
    assert annealed.norm(dim=-1).mean() > 1.5 * mean.norm(dim=-1).mean()  # less grey


@pytest.mark.parametrize("stride", [4, 8])
def test_the_loss_is_the_weighted_cross_entropy_of_the_colours_of_one_pixel_of_each_square(
    images: Tensor, stride: int
) -> None:
    method = Colorization(encoder(), stride=stride, hidden_dim=16)
    assert [method.encoder.feature_info[i]["reduction"] for i in method.stages] == [
        s for s in (4, 8, 16, 32) if s >= stride
    ]
    out = method([images], torch.arange(4))
    method.eval()  # keeps its counts; the batch statistics were those of training
    logits = _logits(method.train(), images)
    lab = rgb_to_lab(images)
    w = rebalancing(method.counts, CENTRES, 0.5, 5.0)
    plain, weighted = [], []
    for n in range(4):
        for y in range(0, 32, stride):
            for x in range(0, 32, stride):
                bins, z = soft_encode(lab[n, 1:, y, x][None])
                cross = -(z[0] * logits[n, :, y // stride, x // stride].log_softmax(0)[bins[0]]).sum()
                plain.append(cross)
                weighted.append(w[bins[0, 0]] * cross)
    assert out["cross_entropy"].item() == pytest.approx(torch.stack(plain).mean().item(), rel=1e-4)
    assert out["loss"].item() == pytest.approx(torch.stack(weighted).mean().item(), rel=1e-4)
    assert out["cross_entropy"].item() == pytest.approx(math.log(313), rel=0.1)  # nothing learnt yet


def _logits(method: Colorization, images: Tensor) -> Tensor:
    grey = rgb_to_lab(images)[:, :1] / 100
    maps = method.encoder.forward_intermediates((grey - 0.5) / 0.25, indices=method.stages, intermediates_only=True)
    return method.head(maps, torch.Size([32 // method.stride] * 2))


def test_the_encoder_sees_lightness_only(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Colorization(encoder(), hidden_dim=16)
    seen: list[Tensor] = []
    forward = method.encoder.forward_intermediates
    monkeypatch.setattr(method.encoder, "forward_intermediates", lambda x, **k: seen.append(x) or forward(x, **k))
    method([images], torch.arange(4))
    config = sslzoo.create("resnet18quarter", image_size=32, lightness=True).config
    torch.testing.assert_close(seen[0], sslzoo.transforms.prepare(images, config))


def test_images_without_colour_teach_nothing(images: Tensor) -> None:
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    method = Colorization(encoder(), hidden_dim=16)
    out = method([grey], torch.arange(4))
    assert out["loss"].item() == 0
    both = Colorization(encoder(), hidden_dim=16)
    mixed = both([torch.cat([images[:2], grey[2:]])], torch.arange(4))["loss"]
    assert mixed.item() > 0
    mixed.backward()
    assert all(p.grad is not None for p in both.encoder.parameters())


def test_colours_are_counted_in_training_only(images: Tensor) -> None:
    method = Colorization(encoder(), hidden_dim=16)
    method([images], torch.arange(4))
    once = method.counts.clone()
    assert once.sum() == 4 * 8 * 8
    expected = soft_encode(rgb_to_lab(images)[:, 1:, ::4, ::4].movedim(1, -1).flatten(0, 2), 1)[0]
    assert torch.equal(once, expected[:, 0].bincount(minlength=313))
    method([images], torch.arange(4))
    assert torch.equal(method.counts, 2 * once)
    method.eval()([images], torch.arange(4))
    assert torch.equal(method.counts, 2 * once)


def test_the_diagnostics_see_a_sepia_collapse(images: Tensor) -> None:
    method = Colorization(encoder(), hidden_dim=16)
    middle = int(((CENTRES == 0).all(1)).nonzero())
    with torch.no_grad():
        method.head.out[-1].bias[middle] = 50
    sepia = method([images], torch.arange(4))
    assert sepia["bins_entropy"].item() == pytest.approx(0, abs=1e-5)
    assert sepia["chroma"].item() < 0.1
    torch.nn.init.zeros_(method.head.out[-1].weight)
    with torch.no_grad():
        method.head.out[-1].bias[:] = 0
        method.head.out[-1].bias[method.counts.argmax()] = 50
    constant = method([images], torch.arange(4))
    assert constant["accuracy"] == constant["constant_accuracy"] > 0


def test_a_run_gives_an_encoder_that_makes_its_lightness_itself(photo_folder: Path, tmp_path: Path) -> None:
    settings = {"recipe": "cifar10_cpu", "image_size": 32, "batch_size": 8, "epochs": 1, "hidden_dim": 16}
    assert pretrain(
        "colorization", photo_folder, tmp_path / "run", device="cpu", progress=False, monitor=photo_folder, **settings
    ).finished
    model = sslzoo.load(tmp_path / "run")
    assert model.input_size == (1, 32, 32)
    assert model.config["sslzoo"]["input"] == "lab-l"
    assert model.arch == "resnet18quarter"
    photo = Image.open(next((photo_folder / "china").iterdir()))
    expected = model(model.transform(photo)[None])
    np.testing.assert_allclose(model.embed([photo]), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    rgb = torch.from_numpy(np.array(photo.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(model(sslzoo.transforms.prepare(rgb, model.config)), expected, rtol=0.1, atol=0.02)
    other = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    torch.testing.assert_close(other(model.transform(photo)[None]), expected)
