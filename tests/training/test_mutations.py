"""Mistakes in each method that its tests must notice: a wrong sign, a missing stop-gradient, a swapped axis.

`pytest -m mutation` makes each of them in a copy of the package, and runs the method's own tests on it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sslzoo_training
from sslzoo_training.method import list_methods

PACKAGE, TESTS = Path(sslzoo_training.__file__).parent, Path(__file__).parent
SHARED = ("blocks.py", "clustering.py", "patches.py")  # where a method's arithmetic stands, if not in its own file
TESTED_BY = {
    "byol": ("test_methods.py",),
    "simsiam": ("test_methods.py",),
    "sela": ("test_sela.py", "test_clustering.py"),
    "deepcluster": ("test_deepcluster.py", "test_clustering.py"),
    "context": ("test_context.py", "test_patches.py"),
    "jigsaw": ("test_jigsaw.py", "test_patches.py"),
}
WRONG_LOSS = (("loss = nn.functional.cross_entropy(", "loss = -nn.functional.cross_entropy("),)

# of each method: what stands once in its code, and what would be wrong
MISTAKES: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "byol": {
        "sign": (("2 - 2 * cosine)", "2 + 2 * cosine)"),),
        "axis of the cosine": (("dim=1, eps", "dim=0, eps"),),
        "no stop-gradient": (
            ("teacher.requires_grad_(False)", "teacher.requires_grad_(True)"),
            ("with torch.no_grad():  # the stop", "with torch.enable_grad():  # the stop"),
        ),
        "each view predicts itself": (
            ("byol_loss(p1, t2)", "byol_loss(p1, t1)"),
            ("byol_loss(p2, t1)", "byol_loss(p2, t2)"),
        ),
        "the target follows at once": (("list(student.parameters()), 1 - tau)", "list(student.parameters()), tau)"),),
    },
    "simsiam": {
        "sign": (("return -nn.functional", "return nn.functional"),),
        "axis of the cosine": (("z.float(), dim=1)", "z.float(), dim=0)"),),
        "no stop-gradient, first view": (("z1.detach())) / 2", "z1)) / 2"),),
        "no stop-gradient, second view": (("z2.detach())", "z2)"),),
    },
    "mutual_information": {
        "sign": (("else -estimate", "else estimate"),),
        "sign in NWJ": (("first).mean() - _mean", "first).mean() + _mean"),),
        "sign in Jensen-Shannon": (("softplus(-positives(", "softplus(positives("),),
        "sign of the margin": (("[:, None] + margin)", "[:, None] - margin)"),),
        "axis of InfoNCE's sum": (("- scores.logsumexp(1)).mean()", "- scores.logsumexp(0)).mean()"),),
        "axes of the bilinear form": (("self.weight @ y.T", "self.weight.T @ y.T"),),
        "halves swapped": (("HALVES[self.split][view]", "HALVES[self.split][1 - view]"),),
        "a stop-gradient too many": (("(y.float())", "(y.float().detach())"),),
    },
    "sela": {
        "sign": WRONG_LOSS,
        "sign of the scores": (("weight, bias = self.lamb *", "weight, bias = -self.lamb *"),),
        "sign of Sinkhorn's step": (("change = -(clusters", "change = (clusters"),),
        "the wrong way to fewer rounds": (("point + change - ((moves", "point + change + ((moves"),),
        "the worst clusters": (("log_a.to(block)).argmax(1)", "log_a.to(block)).argmin(1)"),),
        "axes of the labels": (("[:, index].T.flatten()", "[:, index].flatten()"),),
    },
    "deepcluster": {
        "sign": WRONG_LOSS,
        "the farthest centroids": (("- half_norms).max(1)", "- half_norms).min(1)"),),
        "whitening the wrong way": (("clamp_min(floor).rsqrt()", "clamp_min(floor).sqrt()"),),
        "axes of the principal directions": (("directions.flip(1)[", "directions.flip(0)["),),
        "the head goes on": (("self.head.weight.copy_(torch", "self.head.weight.clone().copy_(torch"),),
        "labels of other images": (("self.labels[index]", "self.labels[index.flip(0)]"),),
    },
    "context": {
        "sign": WRONG_LOSS,
        "patches of a pair swapped": (("FIRST, SECOND = (CENTRE", "SECOND, FIRST = (CENTRE"),),
        "axes of the grid": (("top, left = (torch", "left, top = (torch"),),
        "axis of the colours": (("(patches * a).sum(-3,", "(patches * a).sum(-4,"),),
    },
    "jigsaw": {
        "sign": WRONG_LOSS,
        "the inverse permutations": (("self.permutations[labels]", "self.permutations[labels].argsort(2)"),),
        "the nearest permutations": (("nearest.argmax()", "nearest.argmin()"),),
        "axes of a tile's statistics": (("patches, dim=(-2, -1)", "patches, dim=(-3, -2)"),),
    },
    "rotation": {
        "sign": WRONG_LOSS,
        "clockwise": (("dims=(2, 3)", "dims=(3, 2)"),),
        "sign of the start": (("angle - start)", "angle + start)"),),
        "axes of the labels": ((".repeat_interleave(len(images))", ".repeat(len(images))"),),
    },
    "exemplar": {
        "sign": (("(positive - semi_hard(positive, negative)", "(semi_hard(positive, negative) - positive"),),
        "sign of the margin": (("+ self.margin)", "- self.margin)"),),
        "axes of copies and images": (("(len(views), -1)).transpose(0, 1)", "(-1, len(views)))"),),
        "axis of the norm": (("normalize(outputs, dim=2)", "normalize(outputs, dim=1)"),),
        "a stop-gradient too many": (("(z.flatten(1))", "(z.detach().flatten(1))"),),
    },
    "colorization": {
        "sign": (("entropy = -(weights", "entropy = (weights"),),
        "sign of the distances": (("torch.softmax(-squared", "torch.softmax(squared"),),
        "a and b swapped": (("[..., :1] - centres[..., 0]", "[..., :1] - centres[..., 1]"),),
        "axes of the cells": (("cell[..., 0] * CELLS + cell[..., 1]", "cell[..., 1] * CELLS + cell[..., 0]"),),
        "axes of the image": (("[:, 1:].movedim(1, -1)", "[:, 1:].mT.movedim(1, -1)"),),
        "axis of the smoothing": (("dim=0) @ (counts", "dim=1) @ (counts"),),
    },
    "bigan": {
        "sign": (("(softplus(-real).mean() + softplus(fake)", "(softplus(real).mean() + softplus(-fake)"),),
        "no resistance": (("(softplus(real).mean() + softplus(-fake)", "(softplus(-real).mean() + softplus(fake)"),),
        "no stop-gradient before the discriminator": (("part.detach() for part", "part for part"),),
        "no stop-gradient behind it": (("parameter.detach() for name", "parameter for name"),),
    },
}


def with_mistake(method: str, mistake: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Those files of the package, by name, that the mistake changes, with it."""
    texts = {name: (PACKAGE / name).read_text(encoding="utf-8") for name in (f"methods/{method}.py", *SHARED)}
    changed = {}
    for right, wrong in mistake:
        (name,) = [name for name, text in texts.items() for _ in range(text.count(right))]  # once in all of them
        changed[name] = texts[name] = texts[name].replace(right, wrong)
    return changed


def copy_with(method: str, mistake: tuple[tuple[str, str], ...], folder: Path) -> None:
    """A copy of the package in `folder` with one mistake in it."""
    copy = shutil.copytree(PACKAGE, folder / "sslzoo_training", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in with_mistake(method, mistake).items():
        (copy / name).write_text(text, encoding="utf-8")


def run_tests(method: str, folder: Path) -> tuple[int, str]:
    """Exit status (1: tests failed) and output of the method's tests on the package in `folder`."""
    files = [str(TESTS / name) for name in TESTED_BY.get(method, (f"test_{method}.py",))]
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", *files]
    env = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("method", list_methods())
def test_every_method_has_mistakes_that_can_be_made(method: str) -> None:
    assert all(with_mistake(method, mistake) for mistake in MISTAKES[method].values())


@pytest.mark.mutation
@pytest.mark.parametrize(("method", "name"), [(method, name) for method in MISTAKES for name in MISTAKES[method]])
def test_a_mistake_is_noticed(method: str, name: str, tmp_path: Path) -> None:
    copy_with(method, MISTAKES[method][name], tmp_path)
    status, output = run_tests(method, tmp_path)
    assert status == 1, output


@pytest.mark.mutation
@pytest.mark.parametrize("method", MISTAKES)
def test_a_copy_without_mistakes_passes(method: str, tmp_path: Path) -> None:
    copy_with(method, (), tmp_path)
    status, output = run_tests(method, tmp_path)
    assert status == 0, output
