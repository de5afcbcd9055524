"""Convolutions of small maps as matrix products equal torch's."""

import copy

import pytest
import timm
import torch
from torch import nn

from sslzoo_training.small_maps import SmallMapConv2d, speed_up_small_maps


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": (3, 1), "padding": (1, 0), "bias": False},
        {"kernel_size": 2, "padding": 1},  # output pixels that some input pixels do not reach
    ],
)
def test_output_and_gradients_are_those_of_the_convolution(side: int, settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 5, **settings).double()  # type: ignore[arg-type]
    small = SmallMapConv2d(copy.deepcopy(plain))
    assert list(small.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 6, side, side, dtype=torch.float64)
    got, expected = [], []
    for convolution, results in ((small, got), (plain, expected)):
        leaf = x.clone().requires_grad_()
        y = convolution(leaf)
        y.square().sum().backward()
        results += [y, leaf.grad, *(p.grad for p in convolution.parameters())]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_small_maps_never_reach_torchs_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SmallMapConv2d(nn.Conv2d(6, 5, 3, padding=1))
    x = torch.randn(4, 6, 2, 2)
    expected = small(x)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: torch.full((1,), torch.nan))
    assert torch.equal(small(x), expected)
    assert small(torch.randn(4, 6, 3, 3)).isnan().all()  # too large: handed on


def test_a_whole_network_keeps_its_weights_and_its_output() -> None:
    net = timm.create_model("resnet18", num_classes=0, channels=[4, 8, 8, 16], zero_init_last=False).eval()
    fast = copy.deepcopy(net)
    speed_up_small_maps(fast)
    assert sum(isinstance(m, SmallMapConv2d) for m in fast.modules()) == 17  # all but the three 1x1 ones
    fast.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)


def test_what_a_matrix_product_would_not_equal_stays() -> None:
    odd = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1),
    )
    speed_up_small_maps(odd)
    assert {type(m) for m in odd} == {nn.Conv2d}
