"""A training step of faster-rcnn on our ResNet-50, beside torchvision's own fasterrcnn_resnet50_fpn.

    python -m sslzoo_evaluations speed detection     # goal: at most 1.1 x torchvision's

Both have the same weights, anchors, images and boxes, AdamW and precision: forward, backward and optimizer. CPU time of
this process; the two take turns, so that a busy minute hits both.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from sslzoo.encoder import create
from sslzoo.heads.detector import Detector, detector

from . import steps

CLASSES = 20
BOXES = 8  # an image
GOAL = 1.1
OURS, THEIRS = "sslzoo faster-rcnn", "torchvision fasterrcnn_resnet50_fpn"


def batch(count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Photographs, uint8 (3, H, W), with random boxes."""
    photographs = load_sample_images().images
    random = np.random.default_rng(0)
    images, targets = [], []
    for i in range(count):
        pixels = photographs[i % len(photographs)]
        height, width = pixels.shape[:2]
        corner = random.uniform(0, 0.6, (BOXES, 2)) * (width, height)
        size = random.uniform(0.1, 0.4, (BOXES, 2)) * (width, height)
        boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
        images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        labels = torch.from_numpy(random.integers(0, CLASSES, BOXES))
        targets.append({"boxes": torch.from_numpy(boxes), "labels": labels})
    return images, targets


def theirs(ours: Detector) -> nn.Module:
    """Torchvision's own detector, with the weights of ours."""
    transform = ours.network.transform
    model: nn.Module = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=transform.min_size[0],
        max_size=transform.max_size, rpn_anchor_generator=ours.network.rpn.anchor_generator,
    )  # fmt: skip
    state = {
        key.replace("backbone.encoder.model.", "backbone.body."): v for key, v in ours.network.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def step_of_ours(model: Detector, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """Loss of a batch."""
    loss: Tensor = model(images, targets)["loss"]
    return loss


def step_of_theirs(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """Loss of a batch, as torchvision's reference scripts compute it."""
    shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
    losses: dict[str, Tensor] = model([image / 255 for image in images], shifted)
    return torch.stack(list(losses.values())).sum()


def step(options: argparse.Namespace, examples: tuple[Any, Any], whose: str) -> float:
    """CPU milliseconds of a training step of a new network, the first of which is not counted."""
    model: Any = detector(create("resnet50", seed=0), CLASSES, image_size=options.image_size)
    loss_of: Callable[..., Tensor] = step_of_ours
    if whose == THEIRS:
        model, loss_of = theirs(model), step_of_theirs
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    start = 0.0
    for done in range(options.steps + 1):
        if done == 1:
            start = time.process_time()
        with steps.autocast("cpu", options.bf16):
            loss = loss_of(model, *examples)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return 1000 * (time.process_time() - start) / float(options.steps)


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = steps.options(__doc__, image_size=320, batch_size=2, repeats=5)
    parser.add_argument("--steps", type=int, default=2, help="steps that are counted in each repeat")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    measures = {whose: partial(step, options, batch(options.batch_size), whose) for whose in (THEIRS, OURS)}
    steps.compare(measures, options, "faster-rcnn, ResNet-50", goal=GOAL)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
