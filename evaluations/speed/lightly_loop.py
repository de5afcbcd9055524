"""The other side of `speed pretrain`: BYOL and SimSiam trained as lightly's documentation says, one epoch of a folder.

    python -m sslzoo_evaluations.speed.lightly_loop byol --data FOLDER

lightly's transforms, data set, heads and loss around torchvision's ResNet-18, and plain SGD: the loop of its BYOL and
SimSiam pages. `--bf16` adds what a user may add to it: bf16 autocast and channels_last.
"""

import argparse
import copy

import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.simsiam_transform import SimSiamTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader

SIZE = 32  # pixels


class BYOL(nn.Module):
    """Online and momentum branches, with the head sizes of lightly's example."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(_backbone(), BYOLProjectionHead(512, 1024, 256))
        self.predictor = BYOLPredictionHead(256, 1024, 256)
        self.momentum = copy.deepcopy(self.online)
        deactivate_requires_grad(self.momentum)
        self.transform = BYOLTransform(BYOLView1Transform(input_size=SIZE), BYOLView2Transform(input_size=SIZE))
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The loss of two views (B, 3, H, W)."""
        update_momentum(self.online, self.momentum, m=0.996)
        p0, z0 = self.predictor(self.online(x0)), self.momentum(x0).detach()
        p1, z1 = self.predictor(self.online(x1)), self.momentum(x1).detach()
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class SimSiam(nn.Module):
    """Projector and predictor with the paper's sizes, lightly's defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(_backbone(), SimSiamProjectionHead(512, 2048, 2048))
        self.predictor = SimSiamPredictionHead(2048, 512, 2048)
        self.transform = SimSiamTransform(input_size=SIZE)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The loss of two views (B, 3, H, W)."""
        z0, z1 = self.online(x0), self.online(x1)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


def _backbone() -> nn.Module:
    resnet = torchvision.models.resnet18()
    return nn.Sequential(*list(resnet.children())[:-1], nn.Flatten())


def train(method: str, data: str, *, batch_size: int, workers: int, bf16: bool) -> None:
    """One epoch."""
    model = BYOL() if method == "byol" else SimSiam()
    layout = torch.channels_last if bf16 else torch.contiguous_format
    model.to(memory_format=layout)
    loader = DataLoader(
        LightlyDataset(data, transform=model.transform),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    total = torch.zeros(())
    for (x0, x1), _, _ in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(x0.to(memory_format=layout), x1.to(memory_format=layout))
        total += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"mean loss {total / len(loader):.4f} over {len(loader)} steps")


def main(argv: list[str]) -> int:
    """Train for an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["byol", "simsiam"])
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2, help="processes that load and augment; 0: none beside it")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast and channels_last")
    args = parser.parse_args(argv)
    train(args.method, args.data, batch_size=args.batch_size, workers=args.workers, bf16=args.bf16)
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
