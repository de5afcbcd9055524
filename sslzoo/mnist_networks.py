"""Encoders of the upper half of an MNIST image. Tschannen et al. 2020 (Sec. 3, App. A).

https://arxiv.org/abs/1907.13625

Small networks that no other library has. Importing this module adds them to timm's registry, so that timm makes and
loads them as its own:

    encoder = sslzoo.create("tophalf_mlp", image_size=28)     # 28 x 28 pixels in, (B, 100) features of rows 0..13 out
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn.functional import softplus

ROWS, COLUMNS = 14, 28  # of the half
PIXELS = ROWS * COLUMNS
COUPLINGS = 30


class TopHalf(nn.Module):
    """A network of the upper half of an image.

    Args:
        body: Network: (B, 1, 14, 28) -> (B, D).
        num_features: Its D.
        num_classes: 0: there is no classifier.

    Attributes:
        body: As given.
        num_features: As given.
        head_hidden_size: The same, under timm's other name.
        num_classes: 0.
    """

    def __init__(self, body: nn.Module, num_features: int, num_classes: int = 0) -> None:
        super().__init__()
        if num_classes:
            raise ValueError(f"networks of half an image are encoders without classifier: num_classes={num_classes}.")
        self.body = body
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Encode.

        Args:
            images: (B, 3, 28, 28) whole ones, of which rows 0 to 13 count, or halves (B, 3, 14, 28). Grey: what the
                three channels have in common counts.

        Returns:
            Features (B, D).

        Raises:
            ValueError: Images of another size.
        """
        if images.ndim != 4 or images.shape[2] not in (ROWS, 2 * ROWS) or images.shape[3] != COLUMNS:
            raise ValueError(f"this network takes images (B, 3, 28, 28) or (B, 3, 14, 28), got {tuple(images.shape)}.")
        return self.body(images[:, :, :ROWS].mean(1, keepdim=True))


def mlp() -> nn.Module:
    """392-300-300-100."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 100)
    )


def conv() -> nn.Module:
    """Two 5x5 convolutions of stride 2, layer norm over all of a map, its mean, and 100 features."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(64, 128, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.GroupNorm(1, 128),  # one group: over channels, rows and columns
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 100),
    )


class Residual(nn.Module):
    """x + relu(W x + b), at first nearly the identity: its conditioning can be watched from 1 on (Sec. 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.normal_(self.linear.weight, std=1e-4)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, dim)."""
        return x + self.linear(x).relu()


def residual_mlp() -> nn.Module:
    """Five residual layers of 392."""
    return nn.Sequential(nn.Flatten(), *(Residual(PIXELS) for _ in range(5)))


class Coupling(nn.Module):
    """One half of the dimensions, in a random order, decides how the other is shifted and scaled: invertible.

    Dinh, Sohl-Dickstein & Bengio 2017, https://arxiv.org/abs/1605.08803 (Eq. 4, 5)

    Args:
        dim: Even number of dimensions.
        affine: Scale as well; without it volumes stay as they are, |det J| = 1.
        hidden: Width of the two hidden layers.
    """

    order: Tensor

    def __init__(self, dim: int, *, affine: bool, hidden: int = 512) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(dim))
        self.affine = affine
        out = dim if affine else dim // 2
        self.net = nn.Sequential(
            nn.Linear(dim // 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, dim)."""
        a, b = x[:, self.order].chunk(2, dim=1)
        shift, scale = self._shift_and_scale(a)
        return torch.cat([a, b * scale + shift], dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` made y of."""
        a, b = y.chunk(2, dim=1)
        shift, scale = self._shift_and_scale(a)
        x = torch.cat([a, (b - shift) / scale], dim=1)
        return x[:, self.order.argsort()]

    def _shift_and_scale(self, a: Tensor) -> tuple[Tensor, Tensor | float]:
        if not self.affine:
            return self.net(a), 1.0
        shift, scale = self.net(a).chunk(2, dim=1)
        return shift, 1e-7 + softplus(scale)  # not exp: thirty of them would overflow


class RealNVP(nn.Module):
    """Thirty couplings: an invertible network, which keeps all information about the image whatever it is trained for.

    Args:
        affine: As in `Coupling`.
    """

    def __init__(self, *, affine: bool) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(PIXELS, affine=affine) for _ in range(COUPLINGS))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 14, 28) -> (B, 392)."""
        x = images.flatten(1)
        for coupling in self.couplings:
            x = coupling(x)
        return x

    def inverse(self, features: Tensor) -> Tensor:
        """The images that have these features."""
        x = features
        for coupling in reversed(self.couplings):
            x = coupling.inverse(x)  # type: ignore[operator]
        return x.view(-1, 1, ROWS, COLUMNS)


_CFG = {"input_size": (3, 2 * ROWS, COLUMNS), "fixed_input_size": True, "num_classes": 0, "crop_pct": 1.0}
_CFG |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_NAMES = ("mlp", "conv", "residual_mlp", "realnvp", "realnvp_affine")
default_cfgs = generate_default_cfgs({f"tophalf_{name}": _CFG for name in _NAMES})  # where timm looks for them


def _build(name: str, body: nn.Module, num_features: int, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    # timm passes on what it takes from the input's settings; these networks have one input
    unused = ("in_chans", "img_size", "global_pool")
    return build_model_with_cfg(
        TopHalf, name, pretrained, kwargs_filter=unused, body=body, num_features=num_features, **args
    )


def tophalf_mlp(pretrained: bool = False, **args: Any) -> nn.Module:
    """The paper's MLP, 0.24 M parameters, 100 features."""
    return _build("tophalf_mlp", mlp(), 100, pretrained, args)


def tophalf_conv(pretrained: bool = False, **args: Any) -> nn.Module:
    """The paper's convolutional network, 0.22 M parameters, 100 features."""
    return _build("tophalf_conv", conv(), 100, pretrained, args)


def tophalf_residual_mlp(pretrained: bool = False, **args: Any) -> nn.Module:
    """The paper's residual MLP, 0.77 M parameters, 392 features."""
    return _build("tophalf_residual_mlp", residual_mlp(), PIXELS, pretrained, args)


def tophalf_realnvp(pretrained: bool = False, **args: Any) -> nn.Module:
    """RealNVP that shifts only, 13.9 M parameters, 392 features: the paper's invertible encoder."""
    return _build("tophalf_realnvp", RealNVP(affine=False), PIXELS, pretrained, args)


def tophalf_realnvp_affine(pretrained: bool = False, **args: Any) -> nn.Module:
    """RealNVP that scales as well, 16.9 M parameters, 392 features: the paper's adversarially trained one."""
    return _build("tophalf_realnvp_affine", RealNVP(affine=True), PIXELS, pretrained, args)


for entrypoint in (tophalf_mlp, tophalf_conv, tophalf_residual_mlp, tophalf_realnvp, tophalf_realnvp_affine):
    register_model(entrypoint)
