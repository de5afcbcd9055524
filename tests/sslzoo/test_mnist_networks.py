"""The networks of half an MNIST image: what they see, their sizes, RealNVP's inverse, and loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import sslzoo
from sslzoo.card import render_card
from sslzoo.mnist_networks import Coupling, RealNVP, default_cfgs

SIZES = {  # parameters, features
    "tophalf_mlp": (238_300, 100),
    "tophalf_conv": (219_748, 100),
    "tophalf_residual_mlp": (770_280, 392),
    "tophalf_realnvp": (13_922_040, 392),
    "tophalf_realnvp_affine": (16_938_480, 392),
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)).expand(4, 3, 28, 28)


@pytest.fixture(scope="module", params=SIZES)
def encoder(request: pytest.FixtureRequest) -> sslzoo.Encoder:
    return sslzoo.create(request.param, seed=0)


@torch.no_grad()
def test_they_see_the_top_half_in_grey(encoder: sslzoo.Encoder, images: Tensor) -> None:
    params, width = SIZES[encoder.arch]
    assert sum(p.numel() for p in encoder.parameters()) == params
    assert encoder.input_size == (3, 28, 28)
    features = encoder(images)
    assert features.shape == (4, width) == (4, encoder.num_features)
    other = images.clone()
    other[:, :, 14:] = 1 - other[:, :, 14:]
    assert torch.equal(encoder(other), features)
    other[:, :, 13] = 1 - other[:, :, 13]
    assert not torch.allclose(encoder(other), features)
    half: Any = encoder.model(images[:, :, :14])  # as in pretraining, where the other network gets the bottom half
    assert torch.equal(half, features)


@torch.no_grad()
@pytest.mark.parametrize("arch", ["tophalf_conv", "tophalf_realnvp"])
def test_they_load_again_here_and_in_timm(arch: str, images: Tensor, tmp_path: Path) -> None:
    encoder = sslzoo.create(arch, seed=1)  # another seed than `load` builds its network with
    encoder.save_pretrained(tmp_path)
    assert torch.equal(sslzoo.load(tmp_path)(images), encoder(images))  # the order of RealNVP's dimensions too
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(model(images), encoder(images))


def test_their_card_says_what_they_see_and_its_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_snippets: Callable[[str, sslzoo.Encoder], set[str]]
) -> None:
    encoder = sslzoo.create("tophalf_mlp", seed=0)
    card = render_card("infonce-tophalf_mlp-mnist", encoder.config)
    for words in ("images of 28×28 pixels in, 100 features out", "28×28 pixels only", "the top half of an image alone"):
        assert words in card
    encoder.save_pretrained(tmp_path)
    Image.new("L", (30, 30), 128).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert run_snippets(card, encoder) == {"sslzoo", "timm"}


def test_what_they_cannot_do_is_said() -> None:
    encoder = sslzoo.create("tophalf_mlp", seed=0)
    with pytest.raises(ValueError, match="takes images of 28×28 pixels only"):
        encoder(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"takes images \(B, 3, 28, 28\) or \(B, 3, 14, 28\), got \(1, 3, 16, 32\)"):
        encoder.model(torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match="gives no feature maps"):
        encoder.feature_maps(torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="num_classes=10"):
        timm.create_model("tophalf_mlp", num_classes=10)
    assert set(default_cfgs) == set(SIZES)


@torch.no_grad()
@pytest.mark.parametrize("affine", [False, True])
def test_realnvp_can_be_inverted(affine: bool, images: Tensor) -> None:
    torch.manual_seed(0)
    network = RealNVP(affine=affine).double()
    half = images[:, :1, :14].double()
    features = network(half)
    assert (network.inverse(features) - half).abs().max() < 1e-5
    if not affine:
        assert (network.float().inverse(network(half.float())) - half).abs().max() < 1e-5


@pytest.mark.parametrize("affine", [False, True])
def test_a_coupling_that_shifts_keeps_volumes(affine: bool) -> None:
    torch.manual_seed(1)
    flow = nn.Sequential(*(Coupling(6, affine=affine, hidden=8) for _ in range(4))).double()
    x = torch.randn(6, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda v: flow(v[None])[0])(x)
    assert (jacobian - jacobian.triu()).abs().max() > 1e-3  # not just a shift of each dimension by a constant
    volume = torch.linalg.det(jacobian).abs().item()
    if affine:
        assert volume != pytest.approx(1, abs=0.1)
    else:
        assert volume == pytest.approx(1, abs=1e-10)


def test_the_residual_mlp_starts_near_the_identity(images: Tensor) -> None:
    encoder = sslzoo.create("tophalf_residual_mlp", seed=0)
    assert (encoder(images) - images[:, 0, :14].flatten(1)).abs().max() < 0.05
