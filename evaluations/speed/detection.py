"""A training step of faster-rcnn on our ResNet-50, beside torchvision's own fasterrcnn_resnet50_fpn.

    python -m sslzoo_evaluations speed detection     # goal: at most 1.1 x torchvision's

Both have the same weights, anchors, images and boxes, AdamW and precision: forward, backward and optimizer. CPU time of
this process; the two take turns, so that a busy minute hits both.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from sslzoo.encoder import create
from sslzoo.heads.detector import Detector, detector

from .measure import Spread, machine

CLASSES = 20
BOXES = 8  # an image
GOAL = 1.1


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


def seconds(model: nn.Module, loss_of: Callable[..., Tensor], batch: tuple[Any, Any], steps: int, bf16: bool) -> float:
    """CPU time of some training steps, the first of which is not counted."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    start = 0.0
    for step in range(steps + 1):
        if step == 1:
            start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = loss_of(model, *batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - start) / steps


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=320, help="shorter side, pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--steps", type=int, default=2, help="steps that are counted in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(f"{machine()}; torch {torch.__version__}, {options.threads} threads")
    examples = batch(options.batch_size)
    costs: dict[str, list[float]] = {"torchvision": [], "sslzoo": []}
    for repeat in range(options.repeats):
        ours = detector(create("resnet50", seed=0), CLASSES, image_size=options.image_size)
        pairs: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {
            "torchvision": (theirs(ours), step_of_theirs),
            "sslzoo": (ours, step_of_ours),
        }
        for name, (model, loss_of) in pairs.items():
            costs[name].append(seconds(model, loss_of, examples, options.steps, options.bf16))
            print(f"{repeat + 1} of {options.repeats}, {name}: {costs[name][-1]:.2f} s a step", file=sys.stderr)
    precision = "bf16" if options.bf16 else "float32"
    print(f"faster-rcnn, ResNet-50 at {options.image_size} px, batch {options.batch_size}, {precision}; "
          f"CPU s a step, median of {options.repeats} (lowest–highest)")  # fmt: skip
    base = Spread.of(costs["torchvision"]).median
    for name, measured in costs.items():
        spread = Spread.of(measured)
        print(f"{name:20}{spread.show(2):26}{spread.median / base:.2f}")
    ratio = Spread.of(costs["sslzoo"]).median / base
    print(f"goal: at most {GOAL} x torchvision's: {'met' if ratio <= GOAL else 'MISSED'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
