"""A training step of `sslzoo.segmenter(..., head="deeplabv3")` beside torchvision's own deeplabv3_resnet50.

    python -m sslzoo_evaluations speed segment      # goal: at most 1.1 x torchvision's

Same images, masks, optimizer and precision: forward, loss, backward and AdamW. The two take turns, so that a busy
minute hits both. On a CPU its time, on a GPU the clock.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

from sslzoo.encoder import create
from sslzoo.heads.segmenter import segmenter
from sslzoo.joint import IGNORE

from . import steps

CLASSES = 21
GOAL = 1.1
OURS, THEIRS = "sslzoo deeplabv3", "torchvision deeplabv3_resnet50"
AUXILIARY_WEIGHT = 0.4  # as in torchvision's reference training
Loss = Callable[[Tensor, Tensor], Tensor]


def contenders(auxiliary: bool, size: int) -> dict[str, tuple[nn.Module, Loss]]:
    """Name -> network in training mode, and the loss of images (B, 3, H, W) and masks (B, H, W)."""
    encoder = create("resnet50", seed=0, image_size=size)
    ours = segmenter(encoder, CLASSES, head="deeplabv3", auxiliary=auxiliary, image_size=size).train()
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=auxiliary).train()

    def their_loss(images: Tensor, masks: Tensor) -> Tensor:
        out = theirs(images)
        loss = F.cross_entropy(out["out"], masks, ignore_index=IGNORE)
        if auxiliary:
            loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(out["aux"], masks, ignore_index=IGNORE)
        return loss

    return {THEIRS: (theirs, their_loss), OURS: (ours, lambda images, masks: ours(images, masks)["loss"])}


def step(loss: Loss, optimizer: torch.optim.Optimizer, images: Tensor, masks: Tensor, bf16: bool) -> float:
    """Train once; returns the milliseconds it took."""
    device = images.device.type
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    with steps.autocast(device, bf16):
        value: Any = loss(images, masks)
    value.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = steps.options(__doc__, image_size=128, batch_size=2, repeats=7)
    parser.add_argument("--auxiliary", action="store_true", help="with the second decoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    generator, side = torch.Generator().manual_seed(0), options.image_size
    images = torch.randn(options.batch_size, 3, side, side, generator=generator).to(options.device)
    masks = torch.randint(0, CLASSES, (options.batch_size, side, side), generator=generator).to(options.device)
    measures = {}
    for name, (network, loss) in contenders(options.auxiliary, side).items():
        network.to(options.device)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        measures[name] = partial(step, loss, optimizer, images, masks, options.bf16)
        measures[name]()  # with its allocations
    clock = "CPU ms" if options.device == "cpu" else "ms"
    steps.compare(measures, options, "deeplabv3, ResNet-50", goal=GOAL, clock=clock)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
