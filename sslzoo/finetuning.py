"""Fine-tuning: a model with a head, labelled images, and transformers' Trainer under one function.

model = sslzoo.classifier("byol-resnet18quarter-cifar10", num_classes=3)
report = sslzoo.finetune(model, "photos", out="run")     # one sub-folder a class; also CSV, arrays, data sets
sslzoo.load_model("run")

What is asked of a model stands in heads/__init__.py; no task is named here.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm.optim
import torch
from torch import nn

from sslzoo import weights
from sslzoo.data import EmptyDatasetError, unreadable
from sslzoo.feature_files import replacing
from sslzoo.heads import load_model
from sslzoo.model_card import render_model_card
from sslzoo.provenance import run_facts

STATE = "finetune.json"
WARMUP = 0.1  # of all steps
_TIMINGS = ("_runtime", "_per_second", "_flos", "_time")  # ends of Trainer's names that say nothing about the model


class RunExistsError(ValueError):
    """The folder of a run holds another run, or one with other settings."""


@dataclass(frozen=True)
class FinetuneReport:
    """What `finetune` did.

    Attributes:
        folder: The run; `sslzoo.load_model` opens it.
        task: Such as "classification".
        n_train: Images trained on.
        n_val: Images that the best epoch was chosen on; 0 without validation.
        validation: Where those came from, in words.
        metrics: Of the epoch that was kept, on the validation images.
        best_epoch: Which that was, from 1; the last one without validation.
        epochs: How many there were.
        steps: How many steps of training.
        history: One entry for each thing logged: step, epoch, loss, eval_accuracy, and so on.
        skipped: Name and reason of each image that could not be read, and was left out.
        remarks: What else was odd about the data, in words.
        seconds: That it took, those of an earlier, interrupted call not counted.
    """

    folder: Path
    task: str
    n_train: int
    n_val: int
    validation: str
    metrics: dict[str, float]
    best_epoch: int
    epochs: int
    steps: int
    history: list[dict[str, float]]
    skipped: list[tuple[str, str]]
    remarks: list[str]
    seconds: float

    def __str__(self) -> str:
        of_all = {name: value for name, value in self.metrics.items() if "/" not in name}  # classes: in `metrics`
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in of_all.items())
        lines = [
            f"{self.folder}: {self.task}, {self.n_train:,} training images, {self.epochs} epochs, {self.steps:,} steps",
            f"validation: {self.validation}" + (f"; kept epoch {self.best_epoch}: {figures}" if figures else ""),
        ]
        if self.skipped:
            lines.append(f"left out as unreadable: {len(self.skipped):,}, such as {': '.join(self.skipped[0])}")
        lines += self.remarks
        return "\n".join(lines)


def finetune(
    model: Any,
    train: Any,
    val: Any = None,
    *,
    out: str | Path,
    epochs: int = 30,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.05,
    layer_decay: float = 0.8,
    freeze_encoder: bool = False,
    class_weights: str | Sequence[float] | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    bf16: bool = False,
    resume: bool = False,
    report_to: str | list[str] = "none",
    num_workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> FinetuneReport:
    """Train a model on labelled images, keep its best epoch, and save it.

    AdamW, with a warm-up over the first tenth of all steps and a cosine to zero; random crops and flips. Everything
    random is decided by the seed. The folder holds the last and the best checkpoint beside the saved model. Started by
    `accelerate launch` or `torchrun`, the processes share each batch.

    Args:
        model: Such as `sslzoo.classifier` or `sslzoo.segmenter` makes. It is trained in place.
        train: Labelled images: for a classifier whatever `open_images` takes, for a segmenter `open_masks`.
        val: The same, to choose the best epoch on. None holds out a part of `train`.
        out: Folder of the run.
        epochs: Passes over the images.
        steps: Train for so many steps instead.
        batch_size: Images a step, over all processes. What is left over in an epoch waits for another. None takes
            the task's default, `model.defaults`: 32 for a classifier.
        lr: At its peak; None takes the task's default: 1e-3, and 1e-2 for a classifier on a frozen encoder. Thin
            encoders want more: with resnet18quarter 3e-3 was better for segmentation and 2e-3 for detection.
        weight_decay: Not on biases, norms, and what else timm exempts.
        layer_decay: The learning rate of each layer of the encoder, as timm counts them, as a part of that of the
            next; 1 for the same everywhere.
        freeze_encoder: Train the head alone; batch norm's statistics stay as well.
        class_weights: "balanced", or one number a class.
        val_fraction: How much of `train` to hold out if there is no `val`; 0 keeps the last epoch, whatever it is.
        seed: Of everything random.
        bf16: Compute in bfloat16 where that is safe.
        resume: Go on from the run's last checkpoint, if there is one; on a CPU bit for bit.
        report_to: Loggers as transformers' Trainer knows them, such as "tensorboard" or "wandb".
        num_workers: Processes that read images; None chooses. They change no result.
        device: "cpu", or "cuda"; None takes an accelerator if there is one.
        progress: Show a bar and messages.

    Raises:
        RunExistsError: `out` holds a run and `resume` is False, or a run with other settings.
        ValueError: A setting out of its range, or labels that do not fit; before anything is trained.
        sslzoo.data.EmptyDatasetError: There are no images, or none that can be read.
    """
    started = time.monotonic()
    defaults = model.defaults
    lr = (defaults.lr_frozen if freeze_encoder else defaults.lr) if lr is None else lr
    batch_size = defaults.batch_size if batch_size is None else batch_size
    settings: dict[str, Any] = {
        "epochs": None if steps else epochs, "steps": steps, "batch_size": batch_size, "lr": lr,
        "weight_decay": weight_decay, "layer_decay": layer_decay, "freeze_encoder": freeze_encoder,
        "class_weights": class_weights if isinstance(class_weights, str) else list(class_weights or ()) or None,
        "val_fraction": val_fraction if val is None else None, "seed": seed, "bf16": bf16,
    }  # fmt: skip
    _check(settings, epochs)
    folder = Path(out).resolve()
    state = _earlier(folder, resume)
    data = _open(model, train, val, val_fraction, seed)
    settings |= {"data": _name(train), "n_train": len(data.train), "n_val": len(data.val or ())}
    _same_settings(folder, state, settings)
    if state is not None and state["report"] is not None:
        model.load_state_dict(load_model(folder).state_dict())
        return _report_from(folder, state["report"])
    model.freeze(freeze_encoder)
    model.weigh(data.train, class_weights)
    if progress:
        print(f"{model.origin}\n{data.describe()}", file=sys.stderr)
    trainer = _trainer(model, data, settings, folder, epochs, report_to, num_workers, device, progress)
    trainer.accelerator.wait_for_everyone()  # every process has seen that the folder was empty
    if trainer.is_world_process_zero():
        _write_state(folder, settings, None)
    trainer.train(resume_from_checkpoint=None if state is None else _last_checkpoint(folder))
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # takes its autocast off again
    model.eval()
    report = _report(folder, model, data, trainer, time.monotonic() - started)
    if trainer.is_world_process_zero():
        _save(folder, model, settings, report, run_facts(trainer.args.device, trainer.args.world_size))
    trainer.accelerator.wait_for_everyone()
    return report


@dataclass(frozen=True, eq=False)
class _Data:
    train: Any  # labelled images, as the model has them
    val: Any
    validation: str
    skipped: list[tuple[str, str]]
    remarks: list[str]

    def describe(self) -> str:
        lines = [f"{len(self.train):,} training images; validation: {self.validation}"]
        lines += [f"left out, cannot be read: {name}: {reason}" for name, reason in self.skipped[:5]]
        if len(self.skipped) > 5:
            lines.append(f"and {len(self.skipped) - 5:,} more")
        return "\n".join(lines + self.remarks)


def _check(settings: dict[str, Any], epochs: int) -> None:
    """Refuse settings outside their ranges, each by its name."""
    ranges = {
        "epochs": (epochs, epochs >= 1, "at least 1"),
        "steps": (settings["steps"], settings["steps"] is None or settings["steps"] >= 1, "at least 1"),
        "batch_size": (settings["batch_size"], settings["batch_size"] >= 2, "at least 2"),
        "lr": (settings["lr"], 0 < settings["lr"] < float("inf"), "above 0"),
        "weight_decay": (settings["weight_decay"], settings["weight_decay"] >= 0, "at least 0"),
        "layer_decay": (settings["layer_decay"], 0 < settings["layer_decay"] <= 1, "above 0 and at most 1"),
        "val_fraction": (settings["val_fraction"], 0 <= (settings["val_fraction"] or 0) < 1, "from 0 to below 1"),
    }
    for name, (value, good, need) in ranges.items():
        if not good:
            raise ValueError(f"{name} must be {need}, got {value}.")


def _open(model: Any, train: Any, val: Any, val_fraction: float, seed: int) -> _Data:
    """Open and check all images: what is wrong with them should show now, and not in the middle of an epoch."""
    images = model.open_training(train)
    held = None if val is None else model.open_validation(val)  # wrong classes show before hours of reading
    images, skipped = _readable(images)
    images = model.open_training(images)  # a class may have lost its last image
    remarks = model.remarks(images)
    validation = "none, the last epoch is kept"
    if held is not None:
        held, more = _readable(held)
        skipped += more
        remarks += model.remarks(held)
        validation = f"{len(held):,} images given"
    elif val_fraction > 0:
        kept, out = model.split(images, val_fraction, seed)
        held = images.subset(out)
        validation = (
            f"{len(out):,} of the {len(images):,} images, since none were given ({val_fraction:.0%}, seed {seed})"
        )
        images = images.subset(kept)
    return _Data(images, held, validation, skipped, remarks)


def _readable(images: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Leave out the images that cannot be read; also returns name and reason of each."""
    reasons = unreadable(images, num_threads=os.cpu_count() or 1)
    if len(reasons) == len(images):
        first = next(iter(reasons))
        raise EmptyDatasetError(
            f"None of the {len(images):,} images can be read: {images.names[first]}: {reasons[first]}, ..."
        )
    kept = images.subset([i for i in range(len(images)) if i not in reasons])
    return kept, [(images.names[i], reason) for i, reason in reasons.items()]


def parameter_groups(model: Any, *, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameters that learn, for a torch optimizer: timm's own groups, as if the head were its network's classifier.

    Args:
        model: With an `encoder`; all its other parameters count as head, which has the full learning rate.
        lr: Of the head.
        weight_decay: Not on vectors, and not on what the network names in `no_weight_decay()`.
        layer_decay: Learning rate of a layer as a part of the next one's.
    """
    network = model.encoder.model
    exempt = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = timm.optim.param_groups_layer_decay(
        _Layers(model), weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay
    )
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * group["lr_scale"]}
        for group in groups
    ]


class _Layers:
    """What timm looks at to group parameters: names, and the network's rule for them."""

    def __init__(self, model: Any) -> None:
        self.model, self.network = model, model.encoder.model
        self.pretrained_cfg = model.encoder.config["pretrained_cfg"]
        if hasattr(self.network, "group_matcher"):
            self.group_matcher = self.network.group_matcher

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The encoder's under timm's names, all others under that of the classifier."""
        yield from self.network.named_parameters()
        known = set(map(id, self.network.parameters()))
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in known:
                yield f"{self.pretrained_cfg['classifier']}.{name}", parameter


def _trainer(
    model: Any, data: _Data, settings: dict[str, Any], folder: Path, epochs: int, report_to: str | list[str],
    num_workers: int | None, device: str | None, progress: bool,
) -> Any:  # fmt: skip
    from sslzoo import trainer  # imports transformers, which takes seconds

    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch_size = min(settings["batch_size"], len(data.train))
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} cannot be shared by {world} processes: take a multiple of {world}.")
    steps = settings["steps"] or epochs * (len(data.train) // batch_size)
    validating = data.val is not None
    args = trainer.arguments(
        str(folder), epochs=epochs, steps=settings["steps"], warmup_steps=round(WARMUP * steps),
        batch_size=batch_size // world, lr=settings["lr"], seed=settings["seed"],
        metric=model.metric if validating else None, bf16=settings["bf16"], device=device, report_to=report_to,
        num_workers=_reading_workers(len(data.train), batch_size, world) if num_workers is None else num_workers,
        world=world,
    )  # fmt: skip
    samples = model.samples(data.train, settings["seed"])
    callbacks = [trainer.Epochs(samples), trainer.Saving(), *([trainer.Bar(args.metric_for_best_model)] * progress)]
    model.to(args.device)
    names = ("lr", "weight_decay", "layer_decay")
    groups = parameter_groups(model, **{name: settings[name] for name in names})
    return trainer.FinetuneTrainer(
        model, args, model.collate, samples, model.samples(data.val, None) if validating else None,
        compute_metrics=trainer.Counting(model.meter), callbacks=callbacks,
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "lr": settings["lr"], "fused": True}),
    )  # fmt: skip


def _reading_workers(n_images: int, batch_size: int, world: int) -> int:
    """Choose how many processes read images beside each of `world` that compute.

    Half of the processors, up to eight a process; none for few images: starting workers takes longer.
    """
    if n_images <= 4 * batch_size:
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, processors // (2 * world)))


def _earlier(folder: Path, resume: bool) -> dict[str, Any] | None:
    """What is known of a run that was begun in this folder.

    Raises:
        RunExistsError: There is one, and it is not to be resumed; or the folder is a model's.
    """
    if not (folder / STATE).is_file():
        if (folder / weights.CONFIG).is_file():
            raise RunExistsError(f"{folder} holds a model. Choose another folder for the run.")
        return None
    if not resume:
        raise RunExistsError(f"{folder} already holds a run. Go on with resume=True (--resume), or choose another.")
    found: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return found


def _same_settings(folder: Path, state: dict[str, Any] | None, settings: dict[str, Any]) -> None:
    """Raise a RunExistsError if a run was begun with other settings or data."""
    before = settings if state is None else state["settings"]
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        what = "; ".join(f"{key} was {before.get(key)!r}, now {settings[key]!r}" for key in changed)
        raise RunExistsError(f"{folder} was begun with other settings: {what}. Resume with the same ones.")


def _write_state(folder: Path, settings: dict[str, Any], report: FinetuneReport | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"settings": settings, "report": None if report is None else {**asdict(report), "folder": None}}
    with replacing(folder / STATE) as file:
        file.write((json.dumps(state, indent=2, default=str) + "\n").encode("utf-8", "backslashreplace"))


def _last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint: its trainer_state.json is written last, and one that a kill cut short has none."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _report(folder: Path, model: Any, data: _Data, trainer: Any, seconds: float) -> FinetuneReport:
    state, args = trainer.state, trainer.args
    per_epoch = max(1, len(data.train) // (args.train_batch_size * args.world_size))
    history = [
        {key: value for key, value in entry.items() if not key.endswith(_TIMINGS)}
        for entry in state.log_history
        if "loss" in entry or f"eval_{model.metric}" in entry
    ]
    best = state.best_global_step or state.global_step
    kept: dict[str, float] = next(
        (entry for entry in history if entry["step"] == best and f"eval_{model.metric}" in entry), {}
    )
    return FinetuneReport(
        folder=folder,
        task=model.task,
        n_train=len(data.train),
        n_val=len(data.val or ()),
        validation=data.validation,
        metrics={key.removeprefix("eval_"): value for key, value in kept.items() if key.startswith("eval_")},
        best_epoch=math.ceil(best / per_epoch),
        epochs=math.ceil(state.global_step / per_epoch),
        steps=state.global_step,
        history=history,
        skipped=data.skipped,
        remarks=data.remarks,
        seconds=round(seconds, 1),
    )


def _report_from(folder: Path, report: dict[str, Any]) -> FinetuneReport:
    skipped = [(name, reason) for name, reason in report["skipped"]]
    return FinetuneReport(**{**report, "folder": folder, "skipped": skipped})


def _save(folder: Path, model: Any, settings: dict[str, Any], report: FinetuneReport, facts: dict[str, Any]) -> None:
    """Write the model, and only then that the run is finished."""
    results = {"metrics": report.metrics, "best_epoch": report.best_epoch, "validation": report.validation}
    model.save_pretrained(folder, finetuning={**settings, **results, "seconds": round(report.seconds), **facts})
    card = render_model_card(folder.name, weights.read_model_config(folder))
    (folder / weights.CARD).write_text(card, encoding="utf-8")
    _write_state(folder, settings, report)


def _name(source: Any) -> str:
    """What to call data in a file that others may read: no path of this machine."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    if hasattr(source, "root"):  # images that were opened already
        return source.root.name if source.root else "images"
    return type(source).__name__
