"""What the benchmarks of training steps share: options, two contenders that take turns, and their table."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from .measure import Spread, machine


def options(doc: str | None, *, image_size: int, batch_size: int, repeats: int) -> argparse.ArgumentParser:
    """Those that all have, with these defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=image_size, help="pixels; of detection the shorter side")
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def autocast(device: str, bf16: bool) -> AbstractContextManager[object]:
    """bf16 where it is asked for, in `device`'s type."""
    return torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()


def compare(
    contenders: Mapping[str, Callable[[], float]], told: argparse.Namespace, what: str, *, goal: float,
    clock: str = "CPU ms",
) -> None:  # fmt: skip
    """Measure the costs of theirs and ours, in turn, so that a busy minute hits both; print the table.

    Args:
        contenders: Name -> a measurement, milliseconds a step; theirs first. Nothing of it is a warm-up.
        told: The options.
        what: What is trained, for the head of the table.
        goal: Ours may cost so many times theirs.
        clock: What the milliseconds are.
    """
    print(f"{machine()}; torch {torch.__version__}, {told.threads} threads")
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(told.repeats):
        for name, measure in contenders.items():
            costs[name].append(measure())
            print(f"{repeat + 1} of {told.repeats}, {name}: {costs[name][-1]:.2f} ms a step", file=sys.stderr)
    precision = "bf16" if told.bf16 else "float32"
    print(f"{what} at {told.image_size} px, batch {told.batch_size}, {precision}; "
          f"{clock} a step, median of {told.repeats} (lowest–highest)")  # fmt: skip
    print(table(costs, goal))


def table(costs: Mapping[str, Sequence[float]], goal: float) -> str:
    """Two contenders, theirs first, both relative to theirs, and whether ours is at most `goal` times that."""
    base, ours = (Spread.of(repeats).median for repeats in costs.values())
    width = 4 + max(map(len, costs))
    lines = []
    for name, repeats in costs.items():
        spread = Spread.of(repeats)
        lines.append(f"{name:{width}}{spread.show(1):30}{spread.median / base:.2f}")
    verdict = "met" if ours / base <= goal else "MISSED"
    return "\n".join([*lines, f"goal: at most {goal} x {next(iter(costs))}: {verdict}"])
