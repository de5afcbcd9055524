"""Fine-tuning: it learns, keeps the best epoch, and goes on after a kill as if nothing had been."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import sslzoo
from sslzoo import Classifier, finetune, trainer
from sslzoo.data import EmptyDatasetError
from sslzoo.finetuning import RunExistsError, parameter_groups
from sslzoo.heads import timm_layout
from sslzoo.heads.classifier import Accuracy, Samples

FAST = {"device": "cpu", "progress": False, "num_workers": 0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder that is easy to learn: 20 dark and 20 bright noisy images of 32 pixels."""
    root = tmp_path_factory.mktemp("shades") / "shades"
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 120)):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


def new(seed: int = 0) -> Classifier:
    return sslzoo.classifier(sslzoo.create("resnet18quarter", seed=seed, image_size=32), 2)


def weights_of(model: Classifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the nth training step fail, as a killed process would: nothing after it runs."""

    def arrange(n: int) -> None:
        forward, steps = Classifier.forward, [0]

        def failing(self: Classifier, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            steps[0] += self.training
            if steps[0] == n:
                monkeypatch.setattr(Classifier, "forward", forward)
                raise KeyboardInterrupt
            return forward(self, pixel_values, labels)

        monkeypatch.setattr(Classifier, "forward", failing)

    return arrange


def test_it_learns_and_the_run_is_a_model(shades: Path, tmp_path: Path) -> None:
    model = sslzoo.classifier("byol-resnet18quarter-cifar10", 2)
    report = finetune(model, shades, out=tmp_path / "run", epochs=3, batch_size=8, lr=2e-3, **FAST)
    assert (report.task, report.n_train, report.n_val, report.epochs, report.steps) == ("classification", 32, 8, 3, 12)
    assert report.validation == "8 of the 40 images, since none were given (20%, seed 0)"
    assert report.metrics["accuracy"] > 0.9
    losses = [entry["loss"] for entry in report.history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < 0.75 * losses[0]
    assert "kept epoch" in str(report)

    again = sslzoo.load_model(tmp_path / "run")
    assert again.classes == ["bright", "dark"]
    assert same(weights_of(again), weights_of(model))
    said = again.predict(shades)
    assert np.mean([name.startswith(label) for name, label in zip(said.names, said.labels, strict=True)]) > 0.9
    assert again.finetuning["n_train"] == 32
    assert again.finetuning["data"] == "shades"
    assert again.finetuning["metrics"] == report.metrics
    assert again.finetuning["torch"] == torch.__version__
    assert again.finetuning["device"].startswith("CPU") or torch.cuda.is_available()
    text = (tmp_path / "run" / "config.json").read_text() + (tmp_path / "run" / "finetune.json").read_text()
    assert str(tmp_path) not in text


def test_the_best_epoch_is_kept(shades: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.5, 0.9, 0.7, 0.3])  # ties have a test of their own
    seen: list[dict[str, Tensor]] = []

    model = new()

    def figures(self: Accuracy) -> dict[str, float]:
        seen.append(weights_of(model))
        assert self.seen.sum() == 40  # the last, smaller batch too
        return {"accuracy": next(accuracies)}

    monkeypatch.setattr(Accuracy, "compute", figures)
    report = finetune(model, shades, shades, out=tmp_path / "run", epochs=4, batch_size=16, **FAST)
    assert (report.best_epoch, report.metrics["accuracy"]) == (2, 0.9)
    assert report.validation == "40 images given"
    assert same(weights_of(model), seen[1])
    assert not same(seen[1], seen[3])


@pytest.mark.parametrize("validate", [True, False])
def test_after_a_kill_in_the_middle_of_an_epoch_it_ends_the_same(
    shades: Path, tmp_path: Path, dies: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, validate: bool
) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)  # after every step
    set_epoch = Samples.set_epoch
    settings = {"epochs": 2, "batch_size": 8, "val_fraction": 0.2 if validate else 0.0, **FAST}
    whole = new()
    first = finetune(whole, shades, out=tmp_path / "whole", **settings)
    dies(8)
    with pytest.raises(KeyboardInterrupt):
        finetune(new(), shades, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(RunExistsError, match="already holds a run"):
        finetune(new(), shades, out=tmp_path / "run", **settings)
    with pytest.raises(RunExistsError, match=r"lr was 0\.001, now 0\.1"):
        finetune(new(), shades, out=tmp_path / "run", resume=True, lr=0.1, **settings)
    epochs: list[int] = []

    def recorded(self: Samples, epoch: int) -> None:
        if self.seed is not None:  # accelerate's loader tells the validation set too
            epochs.append(epoch)
        set_epoch(self, epoch)

    monkeypatch.setattr(Samples, "set_epoch", recorded)
    halves = new(seed=5)  # its weights come from the checkpoint
    report = finetune(halves, shades, out=tmp_path / "run", resume=True, **settings)
    assert same(weights_of(halves), weights_of(whole))
    assert set(epochs) == {1}
    assert report.metrics == first.metrics
    assert (report.steps, report.n_val) == (8, 8) if validate else (10, 0)


def test_a_checkpoint_that_was_cut_short_is_passed_over(
    shades: Path, tmp_path: Path, dies: Callable[[int], None]
) -> None:
    whole, halves = new(), new()
    settings = {"epochs": 3, "batch_size": 16, **FAST}
    finetune(whole, shades, out=tmp_path / "whole", **settings)
    dies(5)
    with pytest.raises(KeyboardInterrupt):
        finetune(new(), shades, out=tmp_path / "run", resume=True, **settings)
    cut = tmp_path / "run" / "checkpoint-5"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"half of it")
    finetune(halves, shades, out=tmp_path / "run", resume=True, **settings)
    assert same(weights_of(halves), weights_of(whole))


def test_a_finished_run_is_not_trained_again(shades: Path, tmp_path: Path) -> None:
    model, other = new(), new(seed=1)
    settings = {"epochs": 1, "batch_size": 16, **FAST}
    report = finetune(model, shades, out=tmp_path / "run", **settings)
    again = finetune(other, shades, out=tmp_path / "run", resume=True, **settings)
    assert again == report
    assert same(weights_of(other), weights_of(model))
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(RunExistsError, match="holds a model"):
        finetune(model, shades, out=tmp_path / "saved", **settings)


def test_the_seed_decides_and_workers_do_not(shades: Path, tmp_path: Path) -> None:
    results = {}
    for name, more in {"a": {}, "b": {"num_workers": 1}, "c": {"seed": 1}}.items():
        model = new()
        finetune(model, shades, out=tmp_path / name, steps=2, batch_size=16, val_fraction=0, **(FAST | more))
        results[name] = weights_of(model)
    assert same(results["a"], results["b"])
    assert not same(results["a"], results["c"])


def test_of_equal_epochs_the_one_of_the_lowest_loss_is_kept(
    shades: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accuracy, "compute", lambda self: {"accuracy": 0.5})
    model = sslzoo.classifier("byol-resnet18quarter-cifar10", 2)
    report = finetune(model, shades, out=tmp_path / "run", epochs=3, batch_size=8, **FAST)
    losses = [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]
    assert report.best_epoch == 1 + int(np.argmin(losses)) != 1
    assert report.metrics == {"accuracy": 0.5, "loss": min(losses)}
    assert same(weights_of(sslzoo.load_model(tmp_path / "run")), weights_of(model))


def test_a_frozen_encoder_stays_as_it_was(shades: Path, tmp_path: Path) -> None:
    model = new()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    report = finetune(model, shades, out=tmp_path / "run", epochs=2, batch_size=8, freeze_encoder=True, **FAST)
    assert same(dict(model.encoder.state_dict()), before)
    assert model.head.weight.abs().max() > 0
    assert report.steps == 8


def test_bf16_leaves_a_model_in_float32(shades: Path, tmp_path: Path) -> None:
    model = new()
    finetune(model, shades, out=tmp_path / "run", steps=2, batch_size=8, bf16=True, val_fraction=0, **FAST)
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(x)["logits"], sslzoo.load_model(tmp_path / "run")(x)["logits"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_broken_images_are_left_out_and_reported(photos: np.ndarray, tmp_path: Path) -> None:
    for i, photo in enumerate(photos[:12]):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)
    broken = tmp_path / "data" / "a" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    report = finetune(new(), tmp_path / "data", out=tmp_path / "run", steps=1, batch_size=4, val_fraction=0, **FAST)
    assert report.n_train == 11
    assert [name for name, _ in report.skipped] == ["a/4.jpg"]
    assert "left out as unreadable: 1, such as a/4.jpg" in str(report)
    for path in (tmp_path / "data" / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"All 6 training images in .* are of one class, b"):
        finetune(new(), tmp_path / "data", out=tmp_path / "other", **FAST)
    for path in (tmp_path / "data" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(EmptyDatasetError, match="None of the 12 images can be read"):
        finetune(new(), tmp_path / "data", out=tmp_path / "other", **FAST)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1"),
        ({"val_fraction": 1.0}, "val_fraction must be from 0 to below 1"),
        ({"class_weights": [1.0]}, "class_weights needs 2 numbers"),
        ({"class_weights": "even"}, "'balanced' or one number"),
    ],
)
def test_settings_out_of_range_leave_nothing_behind(
    shades: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(new(), shades, out=tmp_path / "run", **settings, **FAST)
    assert not (tmp_path / "run").exists()


def test_a_class_with_one_image_cannot_be_split(photos: np.ndarray, tmp_path: Path) -> None:
    images = sslzoo.open_images(photos[:5], labels=["a", "b", "b", "b", "b"])
    with pytest.raises(ValueError, match="Class 'a' has a single image"):
        finetune(new(), images, out=tmp_path / "run", **FAST)


def test_loggers_are_passed_on(shades: Path, tmp_path: Path) -> None:
    finetune(new(), shades, out=tmp_path / "run", steps=1, batch_size=8, report_to="tensorboard", **FAST)
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("arch", "layer_decay"), [("resnet18quarter", 0.5), ("vit_tiny_patch16_224", 0.7), ("convnext_atto", 1.0)]
)
def test_parameter_groups_are_timms(arch: str, layer_decay: float) -> None:
    model = sslzoo.classifier(sslzoo.create(arch, seed=0, image_size=32), 2)
    network = timm_layout.timm_network(timm_layout.to_timm(model.encoder, model.head)[0])
    exempt = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    theirs = timm.optim.param_groups_layer_decay(network, 0.05, no_weight_decay_list=exempt, layer_decay=layer_decay)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    wanted = {
        names[id(p)]: (pytest.approx(2.0 * group["lr_scale"]), group["weight_decay"])
        for group in theirs
        for p in group["params"]
    }
    classifier = timm_layout.classifier_name(model.encoder.config)
    mine = {id(p): name for name, p in model.encoder.model.named_parameters()}
    mine |= {id(p): f"{classifier}.{name}" for name, p in model.head.named_parameters()}
    groups = parameter_groups(model, lr=2.0, weight_decay=0.05, layer_decay=layer_decay)
    assert {mine[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]} == wanted
    assert len(wanted) == len(mine)
    lrs = {group["lr"] for group in groups}
    assert len(lrs) > 3 if layer_decay < 1 else lrs == {2.0}


def test_the_warm_up_and_the_cosine(shades: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lrs: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: (lrs.append(self.param_groups[-1]["lr"]), step(self, *a))[1]
    )
    finetune(new(), shades, out=tmp_path / "run", steps=20, batch_size=4, lr=1.0, val_fraction=0, **FAST)
    assert lrs[:3] == pytest.approx([0.0, 0.5, 1.0])
    assert lrs[3:] == pytest.approx([0.5 * (1 + np.cos(np.pi * k / 18)) for k in range(1, 18)])


def test_finished_files_alone_are_left(shades: Path, tmp_path: Path) -> None:
    finetune(new(), shades, out=tmp_path / "run", epochs=2, batch_size=16, **FAST)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names[-3:] == ["config.json", "finetune.json", "model.safetensors"]
    assert 1 <= len(names) - 3 <= 2  # the best checkpoint and the last
    state = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert state["settings"]["lr"] == 1e-3
    assert state["report"]["steps"] == 4
