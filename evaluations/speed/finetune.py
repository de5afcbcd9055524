"""A step of fine-tuning through `sslzoo.finetune`, beside a bare PyTorch loop of the same model, batch and precision.

    python -m sslzoo_evaluations speed finetune      # goal: at most 1.15 x the bare loop

Both read the same images in memory, draw the same random crops, and use AdamW. CPU time of this process: a long run
less a short one, so that only steps count. The two take turns, so that a busy minute hits both.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader

from sslzoo.data import ImageSet, open_images
from sslzoo.encoder import create
from sslzoo.finetuning import WARMUP, finetune, parameter_groups
from sslzoo.heads.classifier import Classifier, classifier

from . import steps
from .steps import autocast

CLASSES = 10
GOAL = 1.15
LAYER_DECAY, WEIGHT_DECAY = 0.8, 0.05
SHORT = 4  # steps of the run that is subtracted


def images(count: int, size: int) -> ImageSet:
    """Labelled cuts of scikit-learn's two photographs."""
    photographs = load_sample_images().images
    random = np.random.default_rng(0)
    cuts = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = (int(random.integers(0, side - 256)) for side in photograph.shape[:2])
        cuts.append(np.asarray(Image.fromarray(photograph[top : top + 256, left : left + 256]).resize((size, size))))
    return open_images(np.stack(cuts), labels=[i % CLASSES for i in range(count)])


def through_finetune(model: Classifier, data: ImageSet, count: int, batch_size: int, bf16: bool) -> None:
    """What users call."""
    with TemporaryDirectory() as folder:
        finetune(
            model, data, out=folder, steps=count, batch_size=batch_size, bf16=bf16, val_fraction=0, device="cpu",
            num_workers=0, progress=False, layer_decay=LAYER_DECAY, weight_decay=WEIGHT_DECAY,
        )  # fmt: skip


def bare(model: Classifier, data: ImageSet, count: int, batch_size: int, bf16: bool) -> None:
    """What one would write without a library: a loader, an optimizer, a schedule and a loop."""
    loader = DataLoader(model.samples(data, seed=0), batch_size, shuffle=True, drop_last=True, collate_fn=model.collate)
    groups = parameter_groups(model, lr=model.defaults.lr, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    optimizer = torch.optim.AdamW(groups, fused=True)
    warmup = round(WARMUP * count)

    def scale(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (count - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    model.train()
    done = 0
    while done < count:
        for batch in loader:
            with autocast("cpu", bf16):
                loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == count:
                return


CONTENDERS: dict[str, Callable[[Classifier, ImageSet, int, int, bool], None]] = {
    "bare PyTorch loop": bare,
    "sslzoo.finetune": through_finetune,
}


def seconds(name: str, options: argparse.Namespace, data: ImageSet, count: int) -> float:
    """CPU time of a whole run of `count` steps."""
    model = classifier(create(options.arch, seed=0, image_size=options.image_size), CLASSES)
    start = time.process_time()
    CONTENDERS[name](model, data, count, options.batch_size, options.bf16)
    return time.process_time() - start


def step(name: str, options: argparse.Namespace, data: ImageSet) -> float:
    """CPU milliseconds."""
    cost = seconds(name, options, data, SHORT + options.steps) - seconds(name, options, data, SHORT)
    return 1000 * cost / float(options.steps)


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = steps.options(__doc__, image_size=64, batch_size=32, repeats=5)
    parser.add_argument("--arch", default="resnet18", help="of a thin one the loop's own work is a larger part")
    parser.add_argument("--steps", type=int, default=60, help="steps that are counted")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    data = images(4 * options.batch_size, options.image_size)
    for name in CONTENDERS:
        seconds(name, options, data, 2)  # imports, first calls
    measures = {name: partial(step, name, options, data) for name in CONTENDERS}
    steps.compare(measures, options, options.arch, goal=GOAL)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
