"""What every method of the folder must do, with its own recipes and on photographs; a new file there is tested at once.

By the same list, test_loop.py resumes runs bit for bit and test_processes.py compares two processes with one.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import sslzoo
from sslzoo_training import Outcome, checkpoint, pretrain
from sslzoo_training.method import find_method, list_methods, method_settings
from sslzoo_training.recipe import list_recipes, make_plan

STEPS_PER_EPOCH, EPOCHS, BATCH = 8, 4, 16  # some thirty steps, with what the recipes do once an epoch done four times
DISTINCT = 8  # so few images that thirty steps show
ADVERSARIAL = {"bigan": "d_loss"}  # its losses work against each other: that of the discriminator leaves chance
ONE_PHOTOGRAPH = "single_image"  # the recipe whose data are crops of it
FAST = "cifar10_cpu"
LARGE_STEPS = {("exemplar", FAST), ("jigsaw", FAST)}  # too large for what 16 images say: theirs shrink with the batch


def thin_encoder(in_chans: int = 3) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(
        "resnet18", num_classes=0, channels=[4, 8, 8, 16], stem_type="deep", stem_width=4, in_chans=in_chans
    )
    return net


@pytest.mark.parametrize("name", list_methods())
def test_a_finite_loss_and_a_gradient_to_the_whole_encoder(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2)]
    kind = find_method(name)
    small = {k: 32 for k in method_settings(kind) if k.endswith("dim")}
    small |= {k: 4 for k in method_settings(kind) if k == "clusters"}
    method = kind(thin_encoder(1 if kind.LIGHTNESS else 3), **small).train()
    method.begin(6)
    draws = method.draw(6, torch.Generator().manual_seed(2))
    inputs = [views[number % 2] for number in range(len(kind.VIEWS))] + ([] if draws is None else [draws])
    out = method(inputs, torch.arange(6))
    out["loss"].backward()
    assert math.isfinite(out["loss"].item())
    assert not out["embedding"].requires_grad
    assert out["embedding"].ndim == 2
    for key, parameter in method.encoder.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """(128, 64, 64, 3) uint8: cuts of two photographs, again and again."""
    random = np.random.default_rng(0)
    images = []
    for i in range(DISTINCT):
        y, x = random.integers(0, 427 - 192), random.integers(0, 640 - 192)
        cut = Image.fromarray(load_sample_images().images[i % 2][y : y + 192, x : x + 192])
        images.append(np.asarray(cut.resize((64, 64))))
    file = tmp_path_factory.mktemp("cuts") / "cuts.npy"
    np.save(file, np.stack(images * (STEPS_PER_EPOCH * BATCH // DISTINCT)))
    return file


def run(method: str, recipe: str, data: Path, out: Path, **more: Any) -> Outcome:
    """Train the thin network for `EPOCHS` short epochs; what is not named here is the recipe's."""
    settings: dict[str, Any] = {"arch": "resnet18quarter", "batch_size": BATCH, "epochs": EPOCHS, "log_every": 1}
    settings["warmup_epochs"] = 1
    own = make_plan(method, recipe, {})
    if (method, recipe) not in LARGE_STEPS:
        settings["lr"] = own.settings.lr * own.settings.batch_size / BATCH  # steps as large as its own
    if "events" in own.method_settings:  # of a whole run: as many an epoch as its own
        settings["events"] = max(1, round(own.method_settings["events"] * EPOCHS / own.settings.epochs))
    if recipe != FAST:  # its network, its size of images and its heads are for a GPU
        settings |= {"image_size": 64} | {k: 64 for k in method_settings(find_method(method)) if k.endswith("dim")}
    settings |= {k: 4 for k in method_settings(find_method(method)) if k == "clusters"}
    return pretrain(method, data, out, recipe=recipe, device="cpu", progress=False, **(settings | more))


def figures(folder: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in checkpoint.read_log(folder) if name in row]


def encoded_by_timm(folder: Path, images: Tensor) -> Tensor:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    features: Tensor = network(images)
    return features


CASES = [(method, recipe) for method in list_methods() for recipe in list_recipes(method) if recipe != ONE_PHOTOGRAPH]


@pytest.mark.parametrize(
    ("method", "recipe"),
    [pytest.param(*case, marks=[] if case[1] == FAST else pytest.mark.recipe) for case in CASES],
)
def test_thirty_steps_lower_the_loss_and_the_encoder_loads(
    method: str, recipe: str, cuts: Path, tmp_path: Path
) -> None:
    assert run(method, recipe, cuts, tmp_path / "run").finished
    found = figures(tmp_path / "run")
    assert len(found) == EPOCHS * STEPS_PER_EPOCH
    assert all(math.isfinite(loss) for loss in found)
    falling = figures(tmp_path / "run", ADVERSARIAL.get(method, "loss"))
    start, end = np.mean(falling[:3]), np.mean(falling[-6:])
    assert end < start - 0.01 * abs(start)

    encoder = sslzoo.load(tmp_path / "run")
    images = torch.randn(2, *encoder.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(encoder(images), encoded_by_timm(tmp_path / "run", images))
        fresh = sslzoo.create(encoder.arch, seed=0, lightness=find_method(method).LIGHTNESS)(images)
        assert not torch.allclose(encoder(images), fresh, rtol=0.1)  # trained weights, not those of the start


@pytest.mark.parametrize("method", list_methods())
def test_the_seed_decides_and_precisions_agree(method: str, cuts: Path, tmp_path: Path) -> None:
    once = {"time_limit": 0.0, "image_size": 32, "batch_size": 16}  # one step
    firsts = {}
    for name, more in {"a": {}, "again": {}, "other": {"seed": 1}, "float32": {"precision": "no"}}.items():
        assert run(method, FAST, cuts, tmp_path / name, **once, **more).step == 1
        (firsts[name],) = figures(tmp_path / name)
    assert firsts["a"] == firsts["again"]
    assert firsts["a"] != firsts["other"]
    assert firsts["float32"] == pytest.approx(firsts["a"], rel=0.05, abs=0.05)
