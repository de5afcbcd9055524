"""BiGAN: Adversarial Feature Learning. Donahue, Krähenbühl & Darrell 2017.

https://arxiv.org/abs/1605.09782 (Sec. 3, 4)

sslzoo pretrain bigan --data FOLDER --recipe cifar10 --out RUN
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate, leaky_relu, softplus

from ..method import Backbone, Method, Paper
from ..views import View

SHOWN = 16  # images of a batch whose reconstructions are measured


def bigan_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The discriminator's loss, and that of encoder and generator: the same with the labels swapped (Sec. 3.4).

    Both are binary cross entropies with each term weighted 1/2, and ln 2 for logits of 0. The swapped labels, instead
    of the first loss with another sign, give a gradient also where the discriminator is sure.

    Args:
        real: (B,) logits of the pairs x, E(x): positive where D takes them for such.
        fake: (B,) logits of the pairs G(z), z.
    """
    discriminator = (softplus(-real).mean() + softplus(fake).mean()) / 2
    return discriminator, (softplus(real).mean() + softplus(-fake).mean()) / 2


class BiGAN(Method):
    """A discriminator tells images with their codes from codes with their images; encoder and generator resist it.

    All three learn in one step, from one state, by one optimizer: the discriminator's loss is that of detached pairs,
    and the other two's that of the same pairs under a discriminator of frozen weights. So the gradient of the sum has,
    for each network, that of its own loss alone; and Adam treats every weight by itself anyway.

    Args:
        encoder: The encoder E but for its last layer, which is linear.
        z_dim: Size of the codes z, uniform in [-1, 1].
        side: Of the images that generator and discriminator see, pixels: 4 times a power of 2. What the encoder sees
            may be larger (the paper's generalised BiGAN).
        width: Channels of the discriminator's first layer; each halving of the image doubles them.
        generator_width: Channels of the generator's last hidden layer, likewise.
        noise: Deviation of the Gaussian noise on all that the discriminator sees, images and codes, real and fake.
            Not in the paper: "instance noise" (Sønderby et al. 2017, https://arxiv.org/abs/1610.04490, Sec. 3) keeps a
            discriminator that would win from being sure, and what fools it with noise would fool it without.
    """

    PAPER = Paper(
        "Adversarial Feature Learning",
        "Donahue, Jeff and Krähenbühl, Philipp and Darrell, Trevor",
        2017,
        "https://arxiv.org/abs/1605.09782",
    )
    VIEWS = (View(size=112, scale=(0.79, 0.79), ratio=(1.0, 1.0), flip=0.5),)  # 64 of 72 pixels

    def __init__(
        self,
        encoder: Backbone,
        z_dim: int = 200,
        side: int = 64,
        width: int = 64,
        generator_width: int = 64,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.code = nn.Linear(encoder.num_features, z_dim)
        self.generator = Generator(z_dim, side, generator_width)
        self.discriminator = Discriminator(z_dim, side, width)
        self.z_dim, self.side, self.noise = z_dim, side, noise

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """Codes, and the noise on images and on codes."""
        z = 2 * torch.rand(images, self.z_dim, generator=generator) - 1
        if not self.noise:
            return z
        # real and fake pairs may have the same: they are never compared one by one
        pixels = 3 * self.side**2
        return torch.cat([z, self.noise * torch.randn(images, pixels + self.z_dim, generator=generator)], dim=1)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        images, draws = views
        z, noise = draws.tensor_split([self.z_dim], dim=1)
        features = self.encoder(images)
        x, code = interpolate(images, self.side, mode="area"), self.code(features)
        # real pairs and fake ones in batches of their own, each with its statistics: mixed, the features came to an
        # effective rank of 10 instead of 19 after 390 steps on CIFAR-10
        pairs = self._noisy(x, code, noise), self._noisy(self.generator(z), z, noise)
        d_loss, _ = bigan_losses(*(self.discriminator(*(part.detach() for part in pair)) for pair in pairs))
        real, fake = (_frozen(self.discriminator, *pair) for pair in pairs)
        _, eg_loss = bigan_losses(real, fake)
        return {
            "loss": d_loss + eg_loss,
            "d_loss": d_loss.detach(),
            "eg_loss": eg_loss.detach(),
            "accuracy": ((real > 0).float().mean() + (fake < 0).float().mean()) / 2,
            "reconstruction": self._reconstruction(x[:SHOWN], code[:SHOWN]),
            "embedding": features.detach(),
        }

    def _noisy(self, x: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A pair as the discriminator sees it."""
        if not self.noise:
            return x, z
        on_x, on_z = noise.tensor_split([3 * self.side**2], dim=1)
        return x + on_x.view_as(x), z + on_z

    @torch.no_grad()
    def _reconstruction(self, x: Tensor, codes: Tensor) -> Tensor:
        """Error of G(E(x)) as a part of its error as a copy of another image: 1 where codes say nothing of images."""
        self.generator.eval()  # it must not see these images' statistics
        copies = self.generator(codes)
        self.generator.train(self.training)
        return (copies - x).square().mean() / (copies - x.roll(1, 0)).square().mean()


def _frozen(module: nn.Module, *inputs: Tensor) -> Tensor:
    """What `module` gives, with a gradient for the inputs only; its running statistics stay as they are."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return functional_call(module, weights | {name: buffer.clone() for name, buffer in module.named_buffers()}, inputs)


def _widths(side: int, width: int) -> list[int]:
    """Channels at side / 2, side / 4, ... 4 pixels."""
    halvings = side.bit_length() - 3
    if side != 4 * 2**halvings or halvings < 1:
        raise ValueError(f"side = {side}: needs to be 4 times a power of 2, such as 32 or 64.")
    return [width * 2**i for i in range(halvings)]


def _draw_weights(module: nn.Module) -> None:
    """As DCGAN, normal with deviation 0.02: all logits begin near 0, and all losses at ln 2."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """DCGAN's: codes (B, z_dim) -> images (B, 3, side, side), normalised as views are."""

    mean: Tensor
    std: Tensor

    def __init__(self, z_dim: int, side: int, width: int) -> None:
        super().__init__()
        widths = _widths(side, width)[::-1]
        layers: list[nn.Module] = [
            nn.Linear(z_dim, 16 * widths[0], bias=False),
            nn.BatchNorm1d(16 * widths[0]),  # each pixel by itself
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (widths[0], 4, 4)),
        ]
        for a, b in pairwise(widths):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1), nn.Sigmoid())
        self.apply(_draw_weights)
        self.register_buffer("mean", torch.tensor(View.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(View.std).view(3, 1, 1), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        return (self.layers(z).float() - self.mean) / self.std


class Discriminator(nn.Module):
    """DCGAN's for pairs: images (B, 3, side, side) and codes (B, z_dim), which enter each layer -> logits (B,)."""

    def __init__(self, z_dim: int, side: int, width: int) -> None:
        super().__init__()
        widths = _widths(side, width)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise([3, *widths]))
        self.codes = nn.ModuleList(nn.Linear(z_dim, b) for b in widths)
        self.norms = nn.ModuleList([nn.Identity(), *map(nn.BatchNorm2d, widths[1:])])
        self.out = nn.Linear(16 * widths[-1], 1)
        self.apply(_draw_weights)

    def forward(self, images: Tensor, z: Tensor) -> Tensor:
        x = images
        for conv, code, norm in zip(self.convs, self.codes, self.norms, strict=True):
            x = leaky_relu(norm(conv(x) + code(z)[:, :, None, None]), 0.2)
        return self.out(x.flatten(1)).squeeze(1).float()
