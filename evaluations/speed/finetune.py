"""A step of fine-tuning through `sslzoo.finetune`, beside a bare PyTorch loop of the same model, batch and precision.

    python -m sslzoo_evaluations speed finetune      # goal: at most 1.15 x the bare loop

Both read the same images in memory, draw the same random crops, and use AdamW. CPU time of this process: a long run
less a short one, so that only steps count. The two take turns, so that a busy minute hits both.
"""

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable
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

from .measure import Spread, machine

CLASSES = 10
GOAL = 1.15
LAYER_DECAY, WEIGHT_DECAY = 0.8, 0.05


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


def through_finetune(model: Classifier, data: ImageSet, steps: int, batch_size: int, bf16: bool) -> None:
    """What users call."""
    with TemporaryDirectory() as folder:
        finetune(
            model, data, out=folder, steps=steps, batch_size=batch_size, bf16=bf16, val_fraction=0, device="cpu",
            num_workers=0, progress=False, layer_decay=LAYER_DECAY, weight_decay=WEIGHT_DECAY,
        )  # fmt: skip


def bare(model: Classifier, data: ImageSet, steps: int, batch_size: int, bf16: bool) -> None:
    """What one would write without a library: a loader, an optimizer, a schedule and a loop."""
    loader = DataLoader(model.samples(data, seed=0), batch_size, shuffle=True, drop_last=True, collate_fn=model.collate)
    groups = parameter_groups(model, lr=model.defaults.lr, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    optimizer = torch.optim.AdamW(groups, fused=True)
    warmup = round(WARMUP * steps)

    def scale(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    model.train()
    done = 0
    while done < steps:
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                return


CONTENDERS: dict[str, Callable[[Classifier, ImageSet, int, int, bool], None]] = {
    "bare PyTorch loop": bare,
    "sslzoo.finetune": through_finetune,
}


def seconds(name: str, options: argparse.Namespace, data: ImageSet, steps: int) -> float:
    """CPU time of a whole run."""
    model = classifier(create(options.arch, seed=0, image_size=options.image_size), CLASSES)
    start = time.process_time()
    CONTENDERS[name](model, data, steps, options.batch_size, options.bf16)
    return time.process_time() - start


def main(argv: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18", help="of a thin one the loop's own work is a larger part")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--steps", type=int, default=60, help="steps that are counted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    data = images(4 * options.batch_size, options.image_size)
    short = 4
    costs: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    print(f"{machine()}; torch {torch.__version__}, {options.threads} threads")
    for name in CONTENDERS:
        seconds(name, options, data, 2)  # imports, first calls
    for repeat in range(options.repeats):
        for name, measured in costs.items():
            cost = seconds(name, options, data, short + options.steps) - seconds(name, options, data, short)
            measured.append(1000 * cost / options.steps)
            print(f"{repeat + 1} of {options.repeats}, {name}: {measured[-1]:.2f} ms a step", file=sys.stderr)
    precision = "bf16" if options.bf16 else "float32"
    print(f"{options.arch} at {options.image_size} px, batch {options.batch_size}, {precision}; "
          f"CPU ms a step, median of {options.repeats} (lowest–highest)")  # fmt: skip
    base = Spread.of(costs["bare PyTorch loop"]).median
    for name, measured in costs.items():
        spread = Spread.of(measured)
        print(f"{name:20}{spread.show(2):26}{spread.median / base:.2f}")
    ratio = Spread.of(costs["sslzoo.finetune"]).median / base
    print(f"goal: at most {GOAL} x the bare loop: {'met' if ratio <= GOAL else 'MISSED'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
